"""The core's conversation with the kernel: one thread, one pipe, one turn at a time.

Every message is a map with an `op`. From the kernel, and what answers it:

| op | fields | answer |
| --- | --- | --- |
| `limits` | `kv_bytes`, `spill_dir` (or null), `spill_bytes` | none; before the first `load` |
| `load` | `model` (name), `folder`, `provider`, `kind` (`generator` or `embedding`) | `ready {model, info, load_ms, warnings}` |
| `unload` | `model` | `unloaded {model}`; its jobs end as cancelled before that |
| `open` | `context`, `model` | none |
| `fork` | `context`, `source` | none; nothing is computed |
| `close` | `context` | none; a job in it ends as cancelled |
| `job` | `model`, and see `request.Request` | `admitted {job, prompt_tokens, cached_tokens, max_tokens}` |
| `embed` | `job`, `model`, `label`, `texts` | `admitted`, its `max_tokens` 0; once it is done `embedded {job, dim, vectors}` |
| `run` | `turn`, `prefill` ([job, tokens] or null), `decode` ([job, tokens]…) | `chunk {job, text, tokens}`…, then `ran` |
| `park` | `job` | none; its row is free, and it goes on with a later `run` |
| `yield` | | ends the turn under way, which is answered as always |
| `cancel` | `job` | none; a job of the turn under way is in its `ran` |
| `shutdown` | | the process ends |

`ran {turn, jobs, prefill_s, steps, decode_s, rows, kv}`: `jobs` are `[job, prefill, cached, decode, forced, state, finish]` with the
tokens read, found in the cache, produced, and produced without a decision; `state` is `prefill`, `decode` or `done`. `steps` runs of
the model decoded, with `rows` texts in all, in `decode_s` seconds. `kv` are the bytes of `seats.Memory.usage`.

In place of any answer: `error {about, job, context, model, code, detail, hint}`. A job that fails in a turn has one, and is then in
`ran` as `done`, `failed`. A job whose conversation had to be paged is `admitted` a second time, when it begins to read what is left.
A grant is passed by what a grammar or a draft adds to its last token, and a prompt's by two tokens, so that it is cut between
pairs (see `passage.next_slice`). `yield` without a turn and `cancel` of a job that has ended are ignored: they crossed
its last message on the way. A message outside this table is the kernel's bug and ends the core.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.ipc.errors import Code, OpError
from llmos.ipc.pipe import Pipe
from llmos.kernel.core.conversation import Conversation
from llmos.kernel.core.job import Embedding, Generation
from llmos.kernel.core.model import Model, load_model
from llmos.kernel.core.request import Request
from llmos.kernel.core.seats import Memory
from llmos.kernel.core.turn import Turn

if TYPE_CHECKING:
    from llmos.kernel.core.embedder import Embedder

Message = dict[str, Any]

_BETWEEN_STEPS = frozenset({"open", "fork", "close", "job", "embed"})


class Loop:
    """Obeys the kernel until it says `shutdown` or the pipe closes (`PeerGone`).

    Args:
        pipe: the conversation.
        load: how a model folder becomes a model.
    """

    def __init__(self, pipe: Pipe, load: Callable[[Path, str, Memory], Model] = load_model) -> None:
        self._pipe = pipe
        self._load_model = load
        self._memory = Memory()
        self._models: dict[str, Model | Embedder] = {}
        self._jobs: dict[int, Generation | Embedding] = {}
        self._contexts: dict[int, tuple[str, Conversation]] = {}
        """The model and the conversation of each."""
        self._turn: Turn | None = None
        self._backlog: deque[Message] = deque()  # came while a turn was under way
        self._running = True
        self._handlers: dict[str, Callable[[Message], None]] = {
            "limits": self._limits,
            "load": self._load,
            "unload": self._unload,
            "open": self._open,
            "fork": self._fork,
            "close": self._close,
            "job": self._admit,
            "embed": self._embed,
            "run": self._run,
            "park": self._park,
            "yield": lambda _: None,
            "cancel": self._cancel,
            "shutdown": self._shutdown,
        }

    def serve(self) -> None:
        """Blocks until the end. Raises `PeerGone`."""
        while self._running:
            message = self._backlog.popleft() if self._backlog else self._pipe.receive(None)
            if message is not None:
                self._handle(message)

    def _handle(self, message: Message) -> None:
        try:
            self._handlers[message["op"]](message)
        except OpError as error:
            self._fail(error, message)

    def _fail(self, error: OpError, about: Message) -> None:
        named = {key: about[key] for key in ("job", "context", "model") if about.get(key) is not None}
        self._pipe.send({"op": "error", "about": about["op"], **named, **error.to_wire()})

    # -- models

    def _limits(self, message: Message) -> None:
        folder = message["spill_dir"]
        self._memory = Memory(message["kv_bytes"], Path(folder) if folder else None, message["spill_bytes"])

    def _load(self, message: Message) -> None:
        started, name = time.monotonic(), message["model"]
        warnings: tuple[str, ...] = ()
        if message["kind"] == "embedding":
            # Imports the runtime, which a core without a model need not.
            from llmos.kernel.core.embedder import Embedder

            embedder = Embedder(Path(message["folder"]))
            loaded: Model | Embedder = embedder
            info: Message = {"dim": embedder.dim}
        else:
            loaded = model = self._load_model(Path(message["folder"]), message["provider"], self._memory)
            info, warnings = asdict(model.info), model.warnings
        self._drop(name)  # one that it takes the place of
        self._models[name] = loaded
        took = round((time.monotonic() - started) * 1000)
        self._pipe.send({"op": "ready", "model": name, "info": info, "load_ms": took, "warnings": list(warnings)})

    def _unload(self, message: Message) -> None:
        self._drop(message["model"])
        self._pipe.send({"op": "unloaded", "model": message["model"]})

    def _drop(self, name: str) -> None:
        for job in [job for job in self._jobs.values() if job.model == name]:
            self._end_cancelled(job)
        self._contexts = {number: kept for number, kept in self._contexts.items() if kept[0] != name}
        model = self._models.pop(name, None)
        if isinstance(model, Model):
            self._memory.part(model.seats)

    def _model(self, name: str) -> Model:
        model = self._models.get(name)
        if not isinstance(model, Model):
            raise OpError(Code.UNAVAILABLE, f"no model {name!r} is loaded", f"llmosctl model load {name}")
        return model

    # -- contexts

    def _open(self, message: Message) -> None:
        self._contexts[message["context"]] = (message["model"], Conversation())

    def _fork(self, message: Message) -> None:
        model, conversation = self._known(message["source"])
        self._contexts[message["context"]] = (model, conversation.fork())

    def _close(self, message: Message) -> None:
        _, conversation = self._contexts.pop(message["context"], ("", None))
        user = self._user(conversation)
        if user is not None:
            self._end_cancelled(user)

    def _known(self, number: int) -> tuple[str, Conversation]:
        if number not in self._contexts:
            raise OpError(Code.NOT_FOUND, f"context {number} is not open")
        return self._contexts[number]

    def _user(self, conversation: Conversation | None) -> Generation | None:
        """The job that works in a context now."""
        generations = (job for job in self._jobs.values() if isinstance(job, Generation) and job.conversation)
        return next((job for job in generations if job.conversation is conversation), None)

    # -- jobs

    def _admit(self, message: Message) -> None:
        request, conversation = Request.parse(message), None
        model = self._model(message["model"])
        if request.context is not None:
            name, conversation = self._known(request.context)
            if name != message["model"]:
                raise OpError(Code.CONFLICT, f"context {request.context} is one of model {name}", "open another")
            if (user := self._user(conversation)) is not None:
                detail = f"context {request.context} is in use by job {user.job}"
                raise OpError(Code.CONFLICT, detail, "wait for it, or cancel it")
        job = Generation(request, message["model"], model, conversation)
        self._jobs[job.job] = job
        self._tell_admitted(job)

    def _tell_admitted(self, job: Generation) -> None:
        sizes = {"prompt_tokens": job.prompt_tokens, "cached_tokens": job.known(), "max_tokens": job.max_tokens}
        self._pipe.send({"op": "admitted", "job": job.job, **sizes})

    def _embed(self, message: Message) -> None:
        embedder = self._models.get(message["model"])
        if embedder is None or isinstance(embedder, Model):
            raise OpError(Code.UNAVAILABLE, "no embedding model is loaded", "llmosctl model pull minilm")
        job = Embedding(message["job"], message["model"], message["texts"], embedder, message.get("label", ""))
        self._jobs[job.job] = job
        size = sum(len(text) // 4 + 1 for text in message["texts"])
        self._pipe.send({"op": "admitted", "job": job.job, "prompt_tokens": size, "cached_tokens": 0, "max_tokens": 0})

    def _park(self, message: Message) -> None:
        job = self._jobs.get(message["job"])
        if job is not None:
            job.leave()

    def _cancel(self, message: Message) -> None:
        job = self._jobs.get(message["job"])
        if job is not None:
            self._end_cancelled(job)

    def _end_cancelled(self, job: Generation | Embedding) -> None:
        if job.finish is None:  # else it has ended in this turn, and its last message is on the way
            job.finish = "cancelled"
        if self._turn is None or job not in self._turn:  # else the turn's end sees to it
            self._release(job)

    def _release(self, job: Generation | Embedding) -> None:
        """Forget a job that has ended."""
        del self._jobs[job.job]
        job.leave()

    def _shutdown(self, _: Message) -> None:
        self._running = False

    # -- turns

    def _run(self, message: Message) -> None:
        """Work until the grants are used up, their jobs have ended, or the kernel says otherwise."""
        turn = self._turn = Turn(
            self._grant(message["prefill"]), [grant for each in message["decode"] if (grant := self._grant(each))]
        )
        while not self._interrupted() and turn.work():
            for job in turn:
                self._tell(job, last=False)
        self._turn = None
        for job, error in turn.failed:
            self._fail(error, {"op": "run", "job": job.job})
        for job in turn:
            self._tell(job, last=True)  # it may be long until its next turn
            if isinstance(job, Generation) and job.take_paged():
                self._tell_admitted(job)
        for job in turn:
            if job.finish is not None:
                if job.finish in ("stop", "eos", "length"):
                    job.close()
                self._release(job)
        self._memory.make_room(0)  # rows have grown
        self._pipe.send({"op": "ran", "turn": message["turn"], **turn.report(), "kv": self._memory.usage()})

    def _grant(self, grant: list[int] | None) -> tuple[Generation | Embedding, int] | None:
        """None for a job that ended before its turn came."""
        if grant is None or grant[0] not in self._jobs:
            return None
        return self._jobs[grant[0]], grant[1]

    def _tell(self, job: Generation | Embedding, *, last: bool) -> None:
        chunk = job.chunk(last=last)
        if chunk is not None:
            self._pipe.send(chunk)

    def _interrupted(self) -> bool:
        """Look at what came since the turn's `run`: a yield ends the turn, and what changes nothing in it acts now, between two steps.

        So the kernel hears at once how large a new job is, and whether it is worth a yield. All else waits, and what came after it.
        """
        messages = [*self._backlog, *self._pipe.drain()]
        self._backlog.clear()
        ended = False
        for message in messages:
            if message["op"] == "yield":
                ended = True
            elif message["op"] == "shutdown":
                ended, self._running = True, False
            elif message["op"] == "cancel" or (message["op"] in _BETWEEN_STEPS and not self._backlog):
                self._handle(message)
            else:
                self._backlog.append(message)
        return ended
