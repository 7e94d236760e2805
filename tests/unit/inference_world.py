"""A kernel's side of the model without a kernel: real jobs, contexts, models and scheduler, and a core that does what a test says."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from llmos.ipc import protocol, wire
from llmos.ipc.errors import OpError
from llmos.ipc.protocol import Header, Kind, parse_header
from llmos.kernel import models
from llmos.kernel.calls import Call, Calls
from llmos.kernel.capability import Capability, Right, Table
from llmos.kernel.inference import Inferences
from llmos.kernel.labels import BOTTOM, Label, Source
from llmos.kernel.loop import Loop
from llmos.kernel.models import Memory, Model, Models

Message = dict[str, Any]

KV = {"rows": 0, "cache": 0, "spilled": 0}


def install(store: Path, name: str, size: int = 1000, *, embedding: bool = False) -> Path:
    """A model's folder, as far as the kernel looks at it."""
    folder = store / name
    folder.mkdir(parents=True)
    (folder / ("llmos.json" if embedding else "genai_config.json")).write_text("{}")
    (folder / "model.onnx").write_bytes(b"\0" * (size - 2))
    return folder


class FakeLabels:
    def source(self, sender: str, via: str, label: Label, call: int = 0) -> Source:
        return Source(sender, via, call)


class FakeAuthority:
    """Quotas as they are, and nothing else of the authority."""

    def __init__(self, caps: Table) -> None:
        self.caps = caps
        self.labels = FakeLabels()
        self.refusals: list[str] = []

    def charge(self, cap: Capability | None, *, bytes: int = 0, tokens: int = 0) -> None:  # noqa: A002
        if cap is not None and cap.accounts:
            self.caps.charge(cap, bytes=bytes, tokens=tokens)

    def tokens_left(self, cap: Capability | None) -> Any:
        return self.caps.drawn(cap, "tokens") if cap is not None else None

    def refused(self, holder: str, op: str, error: OpError, what: str = "") -> None:
        self.refusals.append(error.code)


class FakeCore:
    """Holds the models that a test has made ready. A prompt has a token for each character, and each run gives `x` for each token."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.posted: deque[Message] = deque()
        self.jobs: dict[int, Message] = {}
        self.silent = False
        """Keeps its admissions for itself."""

    def post(self, message: Message) -> None:
        self.posted.append(message)
        if message["op"] in ("job", "embed"):
            self.jobs[message["job"]] = message
            if not self.silent:
                self.admit(message["job"])

    def need(self, name: str | None, kind: models.Kind = models.Kind.GENERATOR) -> Model:
        model = self._world.models.get(name or ("minilm" if kind is models.Kind.EMBEDDING else "small"))
        assert model is not None
        return model

    def admit(self, job: int, cached: int = 0, **fields: Any) -> None:
        message = self.jobs[job]
        size = len(message.get("prompt") or "") or sum(map(len, message.get("texts", ()))) or 10
        limit = 0 if message["op"] == "embed" else message["max_tokens"]
        told = {"prompt_tokens": size, "cached_tokens": cached, "max_tokens": limit, **fields}
        self._world.inference.heard({"op": "admitted", "job": job, **told})

    @property
    def run(self) -> Message:
        """The turn that was posted last."""
        return next(message for message in reversed(self.posted) if message["op"] == "run")

    @property
    def ops(self) -> list[str]:
        return [message["op"] for message in self.posted]

    def ran(self, *rows: list[Any], turn: int | None = None) -> None:
        """The turn is over, and this is what it did; a job that is not named did nothing."""
        self._world.inference.heard(
            {
                "op": "ran",
                "turn": self.run["turn"] if turn is None else turn,
                "jobs": list(rows),
                "prefill_s": 0.1,
                "steps": 4,
                "decode_s": 0.2,
                "rows": 4,
                "kv": KV,
            }
        )

    def obey(self, turns: int = 1, *, finish: str | None = None) -> None:
        """Do all that is granted, so many times; at the last one every job that decodes is done, with `finish`."""
        for left in reversed(range(turns)):
            run = self.run
            end = finish if not left else None
            rows: list[list[Any]] = []
            if run["prefill"] is not None:
                job, tokens = run["prefill"]
                inference = self._world.job(job)
                unread = (inference.job.unread or 0) if inference is not None else 0
                read = min(tokens, unread)
                whole = read == unread
                limit = self.jobs[job].get("max_tokens")
                if whole and not limit:
                    if self.jobs[job]["op"] == "embed":
                        self._world.inference.heard({"op": "embedded", "job": job, "dim": 2, "vectors": b"12345678"})
                    rows.append([job, read, 0, 0, 0, "done", "stop"])
                else:
                    rows.append([job, read, 0, 0, 0, "decode" if whole else "prefill", None])
            for job, tokens in run["decode"]:
                self._world.inference.heard({"op": "chunk", "job": job, "text": "x" * tokens, "tokens": tokens})
                rows.append([job, 0, 0, tokens, 0, "done" if end else "decode", end])
            self.ran(*rows)


class World:
    """All of it, on a clock that moves when told."""

    def __init__(self, store: Path) -> None:
        self.now = 1000.0
        self.loop = Loop(lambda: self.now)
        self.sent: list[tuple[Header, Message]] = []
        self.calls = Calls(
            self.loop, self._send, lambda call, code: None, lambda call, ok, body, label, source: (ok, body, label)
        )
        self.caps = Table(lambda: self.now, {})
        self.authority = FakeAuthority(self.caps)
        self.models = Models(store)
        self.models.memory = Memory(1 << 30, 1 << 30, 0)
        self.models.default = "small"
        self.core = FakeCore(self)
        self.inference = Inferences(self.loop, self.core, self.models, self.authority)  # type: ignore[arg-type]
        self._ids = 0
        for name in ("small", "minilm"):
            install(store, name, embedding=name == "minilm")
            self.models.want(self.models.installed(name))

    def ready(self, *names: str) -> None:
        """These models are loaded now; all, without a name."""
        for model in self.models:
            if not names or model.name in names:
                model.state, model.info = models.State.READY, {"kv_bytes": 1000}
                self.inference.model_ready(model)

    def call(self, op: str, holder: str = "user", cap: str = "", label: Label = BOTTOM, conn: int = 1) -> Call:
        """A call that nobody serves yet; with `cap`, under a new capability of that text."""
        self._ids += 1
        made = self.calls.begin(conn, holder, Header(kind=Kind.CALL, id=self._ids, op=op))
        made.label = label
        if cap:
            made.cap = self.caps.mint(holder, Right.parse(cap, "/home/user", {}), "test")
        return made

    def generate(self, prompt: str = "hello", call: Call | None = None, **args: Any) -> Call:
        call = call or self.call("llm.generate")
        self.inference.generate(call, protocol.Generate(prompt=prompt or None, **args), call.holder)
        return call

    def append(self, context: int, prompt: str = "hello", call: Call | None = None) -> Call:
        call = call or self.call("llm.append")
        self.inference.append(call, protocol.Append(context=context, prompt=prompt), call.holder)
        return call

    def embed(self, *texts: str, call: Call | None = None) -> Call:
        call = call or self.call("llm.embed")
        self.inference.embed(call, protocol.Embed(texts=list(texts)), call.holder)
        return call

    def job(self, number: int) -> Any:
        return self.inference._jobs.get(number)

    def reply(self, call: Call) -> Message:
        """The final answer of a call; an error's body has a `code`."""
        return next(body for header, body in self.sent if header.kind is Kind.REPLY and header.id == call.caller_id)

    def streamed(self, call: Call) -> str:
        return "".join(
            body["text"] for header, body in self.sent if header.kind is Kind.CHUNK and header.id == call.caller_id
        )

    def _send(self, conn: int, header: bytes, body: bytes) -> None:
        self.sent.append((parse_header(wire.decode_map(header)), wire.decode_map(body)))
