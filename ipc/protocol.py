"""The protocol, version 1: every frame, header field, syscall, right and topic that travels on the bus.

This module is the specification; `ipc/PROTOCOL.md` states the rules around it, so that a client in another language can be
written from the two. Error codes are in `llmos.ipc.errors`, limits in `llmos.ipc.wire`. The rules of evolution: a new field
has a default, an unknown *header* field is ignored, an unknown *argument* is refused by name, nothing is reordered or retyped.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

import msgspec
from msgspec import Meta

from llmos.ipc.errors import Code, OpError

MAJOR = 1
GREETING = b"llmos/%d" % MAJOR
"""First frame of every message, in both directions. Another major version is answered `VERSION_MISMATCH`."""

NOT_GREETED = "say sys.hello first"
"""Detail of the `DENIED` for a call on a connection that has not said hello, or that the gate has forgotten."""
MAX_TOPIC = 128
"""Characters of a topic."""
MAX_DEADLINE_MS = 30 * 60 * 1000
"""Milliseconds a caller may ask a call to take; a call without a deadline gets its op's own time-out."""
DEFAULT_CREDIT = 64
"""Chunks a stream may send before the receiver grants more with a `credit` message."""


class Kind(StrEnum):
    """What a message is; the first thing a receiver looks at."""

    CALL = "call"
    """To the kernel from anyone; to a driver or an app from the kernel. Body: the arguments, a map. Answered by one `reply`."""
    REPLY = "reply"
    """The one final answer to the call with this `id`. Body: the result when `ok`, otherwise `{code, detail, hint?}`."""
    CHUNK = "chunk"
    """A part of a streamed answer, numbered from 0 by `seq`, before the `reply`. Body: as the op says."""
    CREDIT = "credit"
    """To the kernel: `n` more chunks may be sent for the call with this `id`. Body: an empty map. Never answered."""
    CANCEL = "cancel"
    """The caller has lost interest in `id`; the call ends with `CANCELLED` unless it has ended already. Never answered itself."""
    EVENT = "event"
    """To a subscriber from the kernel. Body: the data published."""


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Second frame, a msgpack map. Who sent a message is never in it on the way in: the gate knows, the kernel stamps."""

    kind: Kind
    id: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    """Chosen by the caller, unique among its calls in flight, 1 to 2⁶³−1; 0 only in an event."""
    op: Annotated[str, Meta(max_length=100)] = ""
    """In a call: `object.verb`, e.g. `llm.generate`, `browser_history.search`, `app.weather`."""
    deadline_ms: Annotated[int, Meta(ge=0, le=MAX_DEADLINE_MS)] = 0
    """In a call: milliseconds the caller is willing to wait; 0 for the op's own time-out."""
    parent: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    """In a call: the id of the call that the caller is serving and makes this one for; deadlines and cancels pass along it."""
    cap: Annotated[str, Meta(max_length=80)] = ""
    """In a call: the id of the capability to use; empty lets the kernel choose the one that fits."""
    credit: Annotated[int, Meta(ge=0, le=1 << 20)] = DEFAULT_CREDIT
    """In a call to a streaming op: chunks that may come at once."""
    ok: bool = True
    """In a reply."""
    seq: int = 0
    """In a chunk: its number, from 0. In an event: its number in its topic; a gap is what this subscriber lost, and is counted."""
    n: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    """In a credit message."""
    # stamped by the kernel on what it delivers; ignored, whatever they say, on what it receives
    sender: str = ""
    """The badge of the process that called or published."""
    scope: dict[str, list[str]] = {}
    """In a call to a driver: the scope of the capability that allowed it; the driver confines itself to it."""
    topic: str = ""
    """In an event."""
    ts: float = 0.0
    """In an event: seconds since 1970 UTC when the kernel accepted it."""


class Effect(StrEnum):
    """What an op does to the world: the right a caller needs for it, declared in the driver's manifest."""

    READ = "read"
    WRITE = "write"
    """Local and undoable."""
    SEND = "send"
    EXEC = "exec"
    ACTUATE = "actuate"
    DELETE = "delete"


class JobClass(IntEnum):
    """Who waits for an inference; smaller is sooner."""

    INTERACTIVE = 0
    EVENT = 1
    BACKGROUND = 2


Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Topic = Annotated[str, Meta(min_length=1, max_length=MAX_TOPIC, pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_\-]+)*$")]
TopicPattern = Annotated[
    str, Meta(min_length=1, max_length=MAX_TOPIC, pattern=r"^([a-z0-9_]+|\*)(\.([A-Za-z0-9_\-]+|\*))*$")
]
Positive = Annotated[int, Meta(ge=1)]


class Syscall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of one op that the kernel itself serves."""

    OP: ClassVar[str]
    RIGHT: ClassVar[str | None]
    """The capability wanted, `object.right`; None for what every process may do."""
    SCOPE: ClassVar[dict[str, str]] = {}
    """Scope key → the argument it bounds."""
    SINCE: ClassVar[str] = "1.0"


# -- sys: the system itself --------------------------------------------------------------------------------------------


class Hello(Syscall, frozen=True):
    """First call on every connection: proves who is calling. → `{badge, pid, version, home}`

    `token` is in the environment of a process that the kernel started (`LLMOS_TOKEN`), and in the file `user.token` of the
    runtime directory for the person who started the kernel. A started process's token serves that process alone.
    Errors: `DENIED` for an unknown token or one that serves another process; `CONFLICT` for a second hello.
    """

    OP = "sys.hello"
    RIGHT = None
    token: Annotated[str, Meta(max_length=128)]
    client: Annotated[str, Meta(max_length=80)] = ""


class Ping(Syscall, frozen=True):
    """→ `{}`. What it costs is the bus's own cost."""

    OP = "sys.ping"
    RIGHT = None


class Ready(Syscall, frozen=True):
    """A driver or an agent says that it serves calls now. → `{}`

    `status` is one line for people: what works and what is missing ("2 of 3 profiles readable").
    """

    OP = "sys.ready"
    RIGHT = None
    status: Annotated[str, Meta(max_length=500)] = ""


class Status(Syscall, frozen=True):
    """→ `{version, uptime_s, ready_s, pid, rss_mb, home, state, socket, tier, model, counts, broken}`.

    `model.state` is one of `none starting loading ready failed`.
    """

    OP = "sys.status"
    RIGHT = "sys.read"


class Ops(Syscall, frozen=True):
    """The ops the caller's capabilities reach. → `{ops: [{op, summary, effect, utterances, control, args, tags}]}`"""

    OP = "sys.ops"
    RIGHT = None


class Shutdown(Syscall, frozen=True):
    """Ends the system in order: agents, drivers, core, gate. → `{}` before it begins."""

    OP = "sys.shutdown"
    RIGHT = "sys.control"


# -- proc: processes ---------------------------------------------------------------------------------------------------


class Spawn(Syscall, frozen=True):
    """Starts an agent as a process of its own, in a jail. → `{pid}`; with `wait`, chunks of what it emits, then `{pid, result}`.

    `allow` lists the capabilities it is born with, each derived from one the caller holds; None takes what its manifest
    requests. Errors: `NOT_FOUND` (no such program), `DENIED` (more than the caller holds), `UNAVAILABLE` (no jail here),
    `PEER_DIED` (with `wait`: it ended without a result).
    """

    OP = "proc.spawn"
    RIGHT = "proc.spawn"
    SCOPE: ClassVar[dict[str, str]] = {"program": "program"}
    program: Name
    args: dict[str, Any] = {}
    allow: list[Annotated[str, Meta(max_length=400)]] | None = None
    wait: bool = False


class ListProcesses(Syscall, frozen=True):
    """→ `{processes: [{pid, name, kind, state, parent, os_pid, started, restarts, rss_mb, cpu_s, calls, status}]}`"""

    OP = "proc.list"
    RIGHT = "proc.read"


class Kill(Syscall, frozen=True):
    """Ends a process: SIGTERM, then SIGKILL after two seconds; `force` skips the first. → `{}`. Drivers come back."""

    OP = "proc.kill"
    RIGHT = "proc.kill"
    pid: Positive
    force: bool = False


class Logs(Syscall, frozen=True):
    """The last lines a process wrote to stderr, oldest first. → `{name, lines: [str]}`"""

    OP = "proc.logs"
    RIGHT = "proc.read"
    name: Annotated[str, Meta(max_length=60)]
    lines: Annotated[int, Meta(ge=1, le=1000)] = 100


class Emit(Syscall, frozen=True):
    """An agent tells whoever waits for it how it is doing. → `{}` once it is on its way, so that a slow reader slows the agent."""

    OP = "proc.emit"
    RIGHT = None
    data: dict[str, Any]


class Exit(Syscall, frozen=True):
    """An agent's result; the process should end after it. → `{}`"""

    OP = "proc.exit"
    RIGHT = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


# -- bus: topics -------------------------------------------------------------------------------------------------------


class Publish(Syscall, frozen=True):
    """Sends an event to everyone who subscribed. → `{receivers}`, how many mailboxes it went to."""

    OP = "bus.publish"
    RIGHT = "bus.publish"
    SCOPE: ClassVar[dict[str, str]] = {"topic": "topic"}
    topic: Topic
    data: dict[str, Any] = {}


class Subscribe(Syscall, frozen=True):
    """Events of every topic that matches, from now on. → `{subscription}`

    A pattern is a topic, in which `*` stands for one level, or at its end for all the rest: `mail.*`. The topics that the
    system itself publishes are in `TOPICS`.
    """

    OP = "bus.subscribe"
    RIGHT = "bus.subscribe"
    SCOPE: ClassVar[dict[str, str]] = {"topic": "topic"}
    topic: TopicPattern


class Unsubscribe(Syscall, frozen=True):
    """→ `{}`. Errors: `NOT_FOUND`."""

    OP = "bus.unsubscribe"
    RIGHT = None
    subscription: Positive


# -- llm: the model ----------------------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation, rendered by the model's own chat template."""

    role: Annotated[str, Meta(pattern="^(system|user|assistant|tool)$")]
    content: str


class Generate(Syscall, frozen=True):
    """Tokens from the model. → chunks `{text, tokens}`, then `{text, finish, usage: {prompt, cached, completion}, timings}`.

    The final `text` is empty when it is longer than 60,000 bytes.
    Exactly one of `prompt` (raw text) and `messages`. `schema` (JSON Schema), `regex` and `choices` constrain the output; at
    most one. `temperature` 0 is greedy. `finish` is `stop`, `eos`, `length` or `cancelled`. `job_class` may not be sooner than
    the capability's. `timings` in
    milliseconds: `queue`, `first_text`, `total`.
    Errors: `INVALID_ARGUMENT`, `TOO_LARGE` (over the window), `UNAVAILABLE` (no model; the hint says how to get one),
    `BUSY` (queue full), `PEER_DIED` (the core crashed), `CANCELLED`, `TIMEOUT`.
    """

    OP = "llm.generate"
    RIGHT = "llm.generate"
    SCOPE: ClassVar[dict[str, str]] = {"class": "job_class"}
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=1000)] | None = None
    context: int | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=32768)] = 256
    temperature: Annotated[float, Meta(ge=0, le=5)] = 0.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    seed: Annotated[int, Meta(ge=0)] | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=8)] = []
    schema: dict[str, Any] | None = None
    regex: Annotated[str, Meta(max_length=4000)] | None = None
    choices: Annotated[list[str], Meta(min_length=1, max_length=200)] | None = None
    job_class: Annotated[str, Meta(pattern="^(interactive|event|background)$")] = "interactive"


class OpenContext(Syscall, frozen=True):
    """A context keeps its tokens' KV between calls to `llm.generate`. → `{context}`. It ends with its owner."""

    OP = "llm.open"
    RIGHT = "llm.generate"


class CloseContext(Syscall, frozen=True):
    """→ `{}`. Errors: `NOT_FOUND` (none of the caller's)."""

    OP = "llm.close"
    RIGHT = "llm.generate"
    context: Positive


class Embed(Syscall, frozen=True):
    """Vectors of texts. → `{dim, vectors}`, `vectors` being n·dim little-endian float32, each row of length 1.

    Over 40 texts exceed a reply's 64 KiB at 384 dimensions: send them in batches; the SDK does.
    """

    OP = "llm.embed"
    RIGHT = "llm.embed"
    texts: Annotated[list[Annotated[str, Meta(max_length=8000)]], Meta(min_length=1, max_length=40)]


class LoadModel(Syscall, frozen=True):
    """Makes a model of the store the default and loads it. → `{model}` once it is loaded."""

    OP = "llm.load"
    RIGHT = "sys.control"
    model: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,79}$")]


# -- fn: functions that a running program lends to the model -----------------------------------------------------------


class Register(Syscall, frozen=True):
    """Offers `app.NAME` to whoever may call it, until the connection ends. → `{op}`

    `args` is like a manifest's: name → `{type, description, default?, enum?, role?}`. Calls arrive as `call` messages.
    Errors: `CONFLICT` (another program has the name).
    """

    OP = "fn.register"
    RIGHT = "fn.register"
    SCOPE: ClassVar[dict[str, str]] = {"name": "name"}
    name: Name
    summary: Annotated[str, Meta(min_length=1, max_length=300)]
    utterances: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=20)] = []
    args: dict[str, dict[str, Any]] = {}
    effect: Effect = Effect.EXEC


class Unregister(Syscall, frozen=True):
    """→ `{}`. Errors: `NOT_FOUND` (none of the caller's)."""

    OP = "fn.unregister"
    RIGHT = None
    name: Name


# -- perm, driver: what the user decides -------------------------------------------------------------------------------


class Grant(Syscall, frozen=True):
    """Gives a driver or an agent a capability, kept across restarts. → `{id, cap}`

    A driver whose jail this widens is restarted. Errors: `INVALID_ARGUMENT` (not a capability), `NOT_FOUND` (no such holder).
    """

    OP = "perm.grant"
    RIGHT = "perm.control"
    holder: Name
    cap: Annotated[str, Meta(max_length=400)]


class Revoke(Syscall, frozen=True):
    """Takes a capability back with all that was derived from it. → `{revoked}`, how many. Errors: `NOT_FOUND`."""

    OP = "perm.revoke"
    RIGHT = "perm.control"
    id: Annotated[str, Meta(max_length=40)]


class ListGrants(Syscall, frozen=True):
    """→ `{caps: [{id, parent, holder, cap, origin}], requests: [{holder, cap, granted, present}]}`"""

    OP = "perm.list"
    RIGHT = "perm.read"
    holder: str = ""


class ListDrivers(Syscall, frozen=True):
    """→ `{drivers: [{name, version, summary, state, status, pid, ops, requests}]}`"""

    OP = "driver.list"
    RIGHT = "driver.read"


class ShowDriver(Syscall, frozen=True):
    """→ the driver's manifest, state, and grants. Errors: `NOT_FOUND`."""

    OP = "driver.show"
    RIGHT = "driver.read"
    name: Name


SYSCALLS: dict[str, type[Syscall]] = {call.OP: call for call in Syscall.__subclasses__()}

TOPICS = {
    "proc.started": "a process is ready: {pid, name}",
    "proc.ended": "a process ended: {pid, name, reason}",
    "sys.model": "the model's state changed: {state, model}",
    "sys.shutdown": "the system is going down: {}",
}

_Call = TypeVar("_Call", bound=Syscall)


def parse(call: type[_Call], args: dict[str, Any]) -> _Call:
    """The typed arguments of a syscall. Raises `OpError(INVALID_ARGUMENT)` that names the argument."""
    try:
        return msgspec.convert(args, call, strict=True)
    except msgspec.ValidationError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"{call.OP}: {error}".replace("$.", "argument ")) from None


def parse_header(raw: dict[str, Any]) -> Header:
    """Raises `OpError(INVALID_ARGUMENT)` that names the field."""
    try:
        return msgspec.convert(raw, Header, strict=True)
    except msgspec.ValidationError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"header: {error}".replace("$.", "field ")) from None


def pack_header(header: Header) -> bytes:
    """The second frame."""
    return msgspec.msgpack.encode(header)


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether a subscription's pattern takes a topic: level by level, `*` for one, a final `*` for one or more."""
    wanted, levels = pattern.split("."), topic.split(".")
    if wanted[-1] == "*":
        if len(levels) < len(wanted):
            return False
    elif len(levels) != len(wanted):
        return False
    return all(w in ("*", level) for w, level in zip(wanted, levels, strict=False))
