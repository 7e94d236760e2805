"""The core's conversation with the kernel: one thread, one pipe, one quantum at a time.

Every message is a map with an `op`. From the kernel, and what answers it:

| op | fields | answer |
| --- | --- | --- |
| `load` | `model` (folder), `embedder` (folder or null), `provider` | `ready {model, embedder, load_ms, warnings}` |
| `unload` | | `unloaded` |
| `open` | `context` | none |
| `close` | `context` | none; a job in it ends as cancelled |
| `job` | see `request.Request` | `admitted {job, prompt_tokens, cached_tokens, max_tokens}` |
| `run` | `job`, `tokens` | `chunk {job, text, tokens}`…, then `ran {job, prefill, decode, state, finish}` |
| `embed` | `job`, `texts` | `embedded {job, dim, vectors}` |
| `yield` | | ends the quantum under way, which is answered as always |
| `cancel` | `job` | `ran` with `state: "done", finish: "cancelled"`, at once |
| `shutdown` | | the process ends |

In place of any answer: `error {about, job, context, code, detail, hint}`; a job that fails after it was admitted is gone.
A quantum is passed by two tokens at most, so that a prompt is cut between pairs (see `job.next_slice`), or by what a
grammar forces after its last token.
An `embed` starts by itself; one that yields answers `ran` with `state: "more"` and goes on with the next `run`.
`yield` without a quantum and `cancel` of a job that has ended are ignored: they crossed its last message on the way.
A message outside this table is the kernel's bug and ends the core.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos.ipc.errors import Code, OpError
from llmos.ipc.pipe import Pipe
from llmos.kernel.core.engine import Context
from llmos.kernel.core.job import Embedding, Generation, Job, Pace
from llmos.kernel.core.model import Model, load_model
from llmos.kernel.core.request import Request

if TYPE_CHECKING:
    from llmos.kernel.core.embedder import Embedder

Message = dict[str, Any]


class Loop:
    """Obeys the kernel until it says `shutdown` or the pipe closes (`PeerGone`).

    Args:
        pipe: the conversation.
        load: how a model folder becomes a model.
    """

    def __init__(self, pipe: Pipe, load: Callable[[Path, str], Model] = load_model) -> None:
        self._pipe = pipe
        self._load_model = load
        self._model: Model | None = None
        self._embedder: Embedder | None = None
        self._pace = Pace()
        self._jobs: dict[int, Job] = {}
        self._current: Job | None = None  # whose quantum is under way
        self._contexts: dict[int, Context | None] = {}  # None: open, and not used since a model was loaded
        self._backlog: deque[Message] = deque()  # came while a quantum was under way
        self._running = True
        self._handlers: dict[str, Callable[[Message], None]] = {
            "load": self._load,
            "unload": self._unload,
            "open": self._open,
            "close": self._close,
            "job": self._admit,
            "run": self._run,
            "embed": self._embed,
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
        named = {key: about[key] for key in ("job", "context") if about.get(key) is not None}
        self._pipe.send({"op": "error", "about": about["op"], **named, **error.to_wire()})

    # -- models

    def _load(self, message: Message) -> None:
        self._drop_model()
        started = time.monotonic()
        self._model = self._load_model(Path(message["model"]), message["provider"])
        if message.get("embedder") is not None:
            from llmos.kernel.core.embedder import (
                Embedder,
            )  # imports the runtime, which a core without a model need not

            self._embedder = Embedder(Path(message["embedder"]))
        self._pipe.send(
            {
                "op": "ready",
                "model": asdict(self._model.info),
                "embedder": {"dim": self._embedder.dim} if self._embedder else None,
                "load_ms": round((time.monotonic() - started) * 1000),
                "warnings": list(self._model.warnings),
            }
        )

    def _unload(self, _: Message) -> None:
        self._drop_model()
        self._pipe.send({"op": "unloaded"})

    def _drop_model(self) -> None:
        for job in list(self._jobs.values()):
            self._end_cancelled(job)
        for context in self._contexts.values():
            if context is not None:
                context.close()
        self._contexts = dict.fromkeys(self._contexts)
        self._model = self._embedder = None
        self._pace = Pace()

    # -- contexts

    def _open(self, message: Message) -> None:
        self._contexts.setdefault(message["context"], None)

    def _close(self, message: Message) -> None:
        context = self._contexts.pop(message["context"], None)
        user = self._user(context)
        if user is not None:
            self._end_cancelled(user)
        if context is not None:
            context.close()

    def _user(self, context: Context | None) -> Generation | None:
        """The job that works in a context now."""
        generations = (job for job in self._jobs.values() if isinstance(job, Generation))
        return next((job for job in generations if job.context is context), None)

    # -- jobs

    def _admit(self, message: Message) -> None:
        request = Request.parse(message)
        if self._model is None:
            raise OpError(Code.UNAVAILABLE, "no model is loaded", "llmosctl model pull smollm2-135m")
        context = self._context(request.context, self._model)
        job = Generation(request, self._model, context, self._pace)
        self._jobs[job.job] = job
        self._pipe.send(
            {
                "op": "admitted",
                "job": job.job,
                "prompt_tokens": job.prompt_tokens,
                "cached_tokens": job.cached_tokens,
                "max_tokens": job.max_tokens,
            }
        )

    def _context(self, number: int | None, model: Model) -> Context:
        if number is None:
            fresh: Context = model.engine.open(lasting=False)
            return fresh
        if number not in self._contexts:
            raise OpError(Code.NOT_FOUND, f"context {number} is not open")
        context = self._contexts[number]
        if context is None:
            context = self._contexts[number] = model.engine.open(lasting=True)
        elif (user := self._user(context)) is not None:
            raise OpError(Code.CONFLICT, f"context {number} is in use by job {user.job}", "wait for it, or cancel it")
        return context

    def _embed(self, message: Message) -> None:
        if self._embedder is None:
            raise OpError(Code.UNAVAILABLE, "no embedding model is loaded", "llmosctl model pull minilm")
        job = Embedding(message["job"], message["texts"], self._embedder)
        self._jobs[job.job] = job
        self._quantum(job, sys.maxsize)

    def _run(self, message: Message) -> None:
        job = self._jobs.get(message["job"])
        if job is None:
            raise OpError(Code.NOT_FOUND, f"no job {message['job']}")
        self._quantum(job, message["tokens"])

    def _cancel(self, message: Message) -> None:
        job = self._jobs.get(message["job"])
        if job is not None:
            self._end_cancelled(job)

    def _shutdown(self, _: Message) -> None:
        self._running = False

    # -- the quantum

    def _quantum(self, job: Job, tokens: int) -> None:
        """Work on one job until its tokens are used up, it ends, or the kernel says otherwise."""
        job.begin()
        self._current = job
        try:
            while job.finish is None and (left := tokens - job.prefill - job.decode) > 0 and not self._interrupted():
                job.step(left)
                self._send_chunk(job, last=False)
        except OpError:
            self._release(job)
            raise
        finally:
            self._current = None
        if job.finish is None:
            self._report(job)
        elif job.job in self._jobs:  # a cancelled job has been released and reported already
            self._release(job)
            self._report(job)

    def _interrupted(self) -> bool:
        """Look at what came since the quantum's `run`: cancels act now, a yield ends the quantum, all else waits."""
        messages = [*self._backlog, *self._pipe.drain()]
        self._backlog.clear()
        ended = False
        for message in messages:
            if message["op"] == "yield":
                ended = True
            elif message["op"] == "shutdown":
                ended, self._running = True, False
            elif message["op"] == "cancel" and message["job"] in self._jobs:
                self._cancel(message)
            else:
                self._backlog.append(message)
        return ended or (self._current is not None and self._current.finish is not None)

    def _end_cancelled(self, job: Job) -> None:
        if job is not self._current:
            job.begin()  # what it did in earlier quanta has been reported
        job.finish = "cancelled"
        self._release(job)
        self._report(job)

    def _release(self, job: Job) -> None:
        """Forget a job that has ended, and its cache unless that is a context's."""
        del self._jobs[job.job]
        if isinstance(job, Generation) and job.context not in self._contexts.values():
            job.context.close()

    def _report(self, job: Job) -> None:
        self._send_chunk(job, last=True)
        self._pipe.send(job.report())

    def _send_chunk(self, job: Job, *, last: bool) -> None:
        chunk = job.chunk(last=last)
        if chunk is not None:
            self._pipe.send(chunk)
