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
    """In a call: the handle of the capability to use (`perm.mine`); empty lets the kernel choose the one that fits."""
    keep: bool = False
    """In a call: the result stays with the kernel as a value, and the reply describes it: `{$v, type, bytes, label}`."""
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
    label: list[str] = []
    """Of what the body holds: empty for trusted and about nothing, else `t` or `u` and the tags of its sources. In a server's reply: what
    it says of this answer beyond its manifest; that can only raise it."""
    topic: str = ""
    """In an event."""
    ts: float = 0.0
    """In an event: seconds since 1970 UTC when the kernel accepted it."""
    number: int = 0
    """In an event of a durable topic: its number in the store, for `bus.replay`."""


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
Holder = Annotated[str, Meta(pattern=r"^(app:)?[a-z][a-z0-9_]{0,39}$")]
"""A driver, an agent's program, or `app:NAME` for a program from outside."""
Id = Annotated[str, Meta(min_length=1, max_length=60)]


class Syscall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of one op that the kernel itself serves."""

    OP: ClassVar[str]
    RIGHT: ClassVar[str | None]
    """The capability wanted, `object.right`; None for what every process may do."""
    SCOPE: ClassVar[dict[str, str]] = {}
    """Scope key → the argument it bounds."""
    EFFECT: ClassVar[Effect] = Effect.READ
    """What it does outside of its caller; any but `read` goes through the sink rule."""
    CONTROL: ClassVar[tuple[str, ...]] = ()
    """Of one with an effect: the arguments that decide where the effect lands."""
    SINCE: ClassVar[str] = "1.0"


# -- sys: the system itself --------------------------------------------------------------------------------------------


class Hello(Syscall, frozen=True):
    """First call on every connection: proves who is calling. → `{badge, pid, version, home}`

    `token` is in the environment of a process that the kernel started (`LLMOS_TOKEN`), and in the file `user.token` of the
    runtime directory for the person who started the kernel. A started process's token serves that process alone. On the apps'
    gate the key of the connection is the proof, and the token is left empty.
    Errors: `DENIED` for an unknown token or one that serves another process; `CONFLICT` for a second hello.
    """

    OP = "sys.hello"
    RIGHT = None
    token: Annotated[str, Meta(max_length=128)] = ""
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
    """→ `{version, uptime_s, ready_s, pid, rss_mb, home, state, socket, tier, limits, model, counts, broken}`.

    `limits` is `{by, reason}`: whether what processes use is held by `cgroup`, Linux itself, or looked after by the `watchdog`.
    `model` is about the default one; its `state` is one of `none unloaded starting loading ready failed`.
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
    requests. Its label starts as the join of the caller's and the arguments'; when that is trusted, what stands in the arguments counts
    as said by the user. `mode` `strict` asks the user about every effect once anything untrusted is in it, planned or not.
    Errors: `NOT_FOUND` (no such program), `DENIED` (more than the caller holds), `BUDGET` (a quota is not left), `BUSY` (too many of its
    line are alive), `UNAVAILABLE` (no jail here), `PEER_DIED` (with `wait`: it ended without a result).
    """

    OP = "proc.spawn"
    RIGHT = "proc.spawn"
    SCOPE: ClassVar[dict[str, str]] = {"program": "program"}
    program: Name
    args: dict[str, Any] = {}
    allow: list[Annotated[str, Meta(max_length=400)]] | None = None
    wait: bool = False
    mode: Annotated[str, Meta(pattern="^(default|strict)$")] = "default"


class ListProcesses(Syscall, frozen=True):
    """→ `{processes: [{pid, name, kind, state, parent, os_pid, started, restarts, rss_mb, pss_mb, cpu_s, cpu_pct, threads, disk_mb, calls,
    status, label, limits}], next}`, by pid

    `rss_mb` is the program's own; `pss_mb` (shared memory by its share), `cpu_s`, `cpu_pct` (of one processor) and `threads` are of all
    in its jail, `disk_mb` of its own directory, all as the watchdog saw them last. `limits` has those of `pss_mb` and `disk_mb` that it
    may not pass.
    `next` is the `after` of the next page, 0 when there is none.
    """

    OP = "proc.list"
    RIGHT = "proc.read"
    after: Annotated[int, Meta(ge=-1)] = -1
    """Only those with a greater pid; the kernel is 0."""


class Kill(Syscall, frozen=True):
    """Ends a process: SIGTERM, then SIGKILL after two seconds; `force` skips the first. → `{}`. Drivers come back."""

    OP = "proc.kill"
    RIGHT = "proc.kill"
    pid: Positive
    force: bool = False


class Logs(Syscall, frozen=True):
    """The last lines a process wrote to stderr, oldest first. → `{name, lines: [str], next, more}`

    With `after` the lines that came after that one, oldest first, over all restarts of the process: `next` is the `after` of the next call,
    `more` says whether there are lines already that did not fit. A `name` that several have is answered with the one whose log this is.
    """

    OP = "proc.logs"
    RIGHT = "proc.read"
    name: Annotated[str, Meta(max_length=60)]
    lines: Annotated[int, Meta(ge=1, le=1000)] = 100
    after: Annotated[int, Meta(ge=0)] | None = None
    """Number of a line."""
    since: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds since 1970 UTC."""


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
    """Sends an event to everyone who subscribed. → `{receivers}`, how many mailboxes it went to.

    Errors, of durable topics: `TOO_LARGE`, `BUSY` (too many topics are stored), `UNAVAILABLE` (it could not be stored: nobody got it).
    """

    OP = "bus.publish"
    RIGHT = "bus.publish"
    SCOPE: ClassVar[dict[str, str]] = {"topic": "topic"}
    topic: Topic
    data: dict[str, Any] = {}


class Subscribe(Syscall, frozen=True):
    """Events of every topic that matches, from now on. → `{subscription}`

    A pattern is a topic, in which `*` stands for one level, or at its end for all the rest: `mail.*`. The topics that the
    system itself publishes are in `TOPICS`. Of topics that keep their last event that comes at once.
    Errors: `BUSY` (too many, of this connection or this holder).
    """

    OP = "bus.subscribe"
    RIGHT = "bus.subscribe"
    SCOPE: ClassVar[dict[str, str]] = {"topic": "topic"}
    topic: TopicPattern


class Replay(Syscall, frozen=True):
    """Stored events of durable topics, oldest first, a page at a time. → `{events: [{number, topic, seq, ts, sender, label, data}], next}`

    From `after` (an event's number) on, or from `since` (seconds since 1970 UTC). `next` is the `after` of the next page, 0 when there is
    none. To miss nothing: subscribe, then replay, then drop live events whose number has been seen.
    """

    OP = "bus.replay"
    RIGHT = "bus.subscribe"
    SCOPE: ClassVar[dict[str, str]] = {"topic": "topic"}
    topic: TopicPattern
    after: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    since: Annotated[float, Meta(ge=0)] = 0.0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class ListSubscriptions(Syscall, frozen=True):
    """→ `{subscriptions: [{id, holder, client, topic, dropped}]}`; `dropped` counts what its connection lost by not reading."""

    OP = "bus.list"
    RIGHT = "bus.read"


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


ModelName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,79}$")]
JobClassName = Annotated[str, Meta(pattern="^(interactive|event|background)$")]
Conversation = Annotated[list[Message], Meta(min_length=1, max_length=1000)]


class Generate(Syscall, frozen=True):
    """Tokens from the model. → chunks `{text, tokens}`, then `{text, finish, usage, timings}`.

    The final `text` is empty when it is longer than 60,000 bytes.
    Exactly one of `prompt` (raw text) and `messages`. With a `context` it is put at the context's end, and so is the answer; with
    neither, the answer goes on from there. Without a context it is the whole prompt, run by `model`, or by the default. `schema` (JSON
    Schema), `regex` and `choices` constrain the output; at most one. `temperature` 0 is greedy. `finish` is `stop`, `eos` or `length`.
    `job_class` may not be sooner than the capability's. `speculate` allows an interactive job
    guesses that save time; they change no text but by rounding.
    `usage` in tokens: `prompt`, `cached` (of it, found and not read again), `completion`, `forced` (of that, without a choice under the
    constraint). `timings` in milliseconds: `queue` (to the first turn), `prefill`, `decode`, `first_text`, `total`.
    Errors: `INVALID_ARGUMENT` (a constraint that nothing satisfies, too), `TOO_LARGE` (a prompt over the window, but in a context the
    middle makes room; more KV than there is), `UNAVAILABLE` (no model, one that is not loaded, or cannot be; the hint says what to do),
    `NOT_FOUND` (no such model, no context of the caller's), `CONFLICT` (the context is in use), `BUSY` (queue full), `BUDGET` (a quota
    of tokens is used up: what came before it has been streamed), `PEER_DIED` (the core crashed, now or before, and took the context
    with it), `CANCELLED` (by the caller, by closing the context, by unloading the model), `TIMEOUT`.
    """

    OP = "llm.generate"
    RIGHT = "llm.generate"
    SCOPE: ClassVar[dict[str, str]] = {"class": "job_class"}
    prompt: str | None = None
    messages: Conversation | None = None
    context: Positive | None = None
    model: ModelName | None = None
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
    speculate: bool = True
    job_class: JobClassName = "interactive"


class OpenContext(Syscall, frozen=True):
    """A context is a conversation that stays with the model: what has been read is not read again. → `{context}`

    It belongs to its opener, ends with it, and has the label of all that was put in. `model` is one that is loaded, or the default.
    Errors: `BUSY` (too many are open), and `llm.generate`'s about the model.
    """

    OP = "llm.open"
    RIGHT = "llm.generate"
    model: ModelName | None = None


class Append(Syscall, frozen=True):
    """Puts something at a context's end and reads it now, so that a later answer begins at once. → `{tokens, cached}`

    `tokens` is how long the context is now, `cached` how much of it was not read again. A context holds either turns or raw text.
    Errors: `llm.generate`'s.
    """

    OP = "llm.append"
    RIGHT = "llm.generate"
    SCOPE: ClassVar[dict[str, str]] = {"class": "job_class"}
    context: Positive
    prompt: str | None = None
    messages: Conversation | None = None
    job_class: JobClassName = "interactive"


class ForkContext(Syscall, frozen=True):
    """Another context with all that this one has, which goes its own way from here; nothing is computed. → `{context}`

    Errors: `NOT_FOUND` (none of the caller's), `CONFLICT` (it is in use), `BUSY` (too many are open), `PEER_DIED`.
    """

    OP = "llm.fork"
    RIGHT = "llm.generate"
    context: Positive


class CloseContext(Syscall, frozen=True):
    """What runs in it ends as `CANCELLED`. → `{}`. Errors: `NOT_FOUND` (none of the caller's)."""

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


class Extract(Syscall, frozen=True):
    """What the model makes of values that stay unread: → `{answer}`, under a schema of booleans, enumerations and bounded integers.

    It sees `prompt` and the values and no tools. `log2` of the number of possible answers is taken out of the task's bit budget before it
    runs. The answer is trusted, and as secret as the values.
    Errors: `INVALID_ARGUMENT` (a schema that can carry a text), `BUDGET`, `NOT_FOUND` (no such value), and `llm.generate`'s.
    """

    OP = "llm.extract"
    RIGHT = "llm.generate"
    SCOPE: ClassVar[dict[str, str]] = {"class": "job_class"}
    prompt: Annotated[str, Meta(min_length=1, max_length=16_384)]
    values: Annotated[list[Id], Meta(min_length=1, max_length=16)]
    schema: dict[str, Any]
    job_class: JobClassName = "interactive"


class LoadModel(Syscall, frozen=True):
    """Loads a model of the store beside those that are loaded. → `{model, unloaded}` once it is there.

    All share one budget of memory. Where there is no room, idle ones go, least recently used first: `unloaded` names them. It becomes
    the default where there is none that works.
    Errors: `NOT_FOUND`, `TOO_LARGE` (it would not fit alone), `BUSY` (those in the way are in use), `UNAVAILABLE` (it cannot be loaded).
    """

    OP = "llm.load"
    RIGHT = "sys.control"
    model: ModelName


class UnloadModel(Syscall, frozen=True):
    """Gives a model's memory back. → `{model}`. What runs on it ends as `CANCELLED`, its contexts are lost. Errors: `NOT_FOUND`.

    The default comes back when it is next asked for.
    """

    OP = "llm.unload"
    RIGHT = "sys.control"
    model: ModelName


class ModelStatistics(Syscall, frozen=True):
    """What the models are doing, and have done since boot. → `{jobs, running, contexts, kv, weights, models, turns, steps, rows, prefill_s,
    decode_s, tokens, tokens_s, hit_rate, ended}`

    `jobs` has a row for each class: how many are `new` (not admitted yet), in `prefill`, in `decode`, `parked`; `running` are in the turn
    under way. `kv` in bytes: `rows` (of jobs), `cache` (kept for later), `spilled` (in files), `reserved`, `limit`, `spill_limit`.
    `weights` in bytes: `used`, `limit`. `models` has a row for each: `name`, `kind`, `state`, `problem`, `default`, `jobs`, `contexts`,
    `weights_mb`, and which `engine` and `provider` run it and `why`. `tokens` since boot: `prefill`, `cached`, `decode`, `forced`;
    `tokens_s`, of the last seconds: `prefill`, `decode`. `hit_rate` is the part of all prompt tokens that was found in the cache.
    `ended` counts jobs by finish or error.
    """

    OP = "llm.stats"
    RIGHT = "sys.read"


class DefaultModel(Syscall, frozen=True):
    """Which model answers those who name none, now and after restarts, having made it `model` if that is given. → `{model}`, or empty

    It is loaded when it is first asked for; what is loaded now stays. Errors: `NOT_FOUND`, `INVALID_ARGUMENT` (it generates no text).
    """

    OP = "llm.default"
    RIGHT = "sys.control"
    model: ModelName | None = None


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


# -- plan, value: how a process stays trusted ---------------------------------------------------------------------------


class PlanStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One op of a plan, and what it fixes of its arguments; those it does not name are open.

    `{"$slot": NAME}` fixes an argument to be a value passed by reference, the same one wherever the name stands.
    """

    op: Annotated[str, Meta(max_length=100)]
    args: dict[str, Any] = {}


class FixPlan(Syscall, frozen=True):
    """What the caller is going to do, in place of what it said before, while nothing untrusted has reached it. → `{steps}`

    A call with an effect that is a step of it needs no approval later, though the caller has read untrusted data by then, as long as its
    control arguments are trusted. Each step serves one call. Errors: `TAINTED` (too late), `NOT_FOUND` (not an agent), `TOO_LARGE`.
    """

    OP = "plan.fix"
    RIGHT = None
    steps: Annotated[list[PlanStep], Meta(max_length=64)]


class DescribeValue(Syscall, frozen=True):
    """What may be known of a value without reading it. → `{$v, type, bytes, label}`"""

    OP = "value.describe"
    RIGHT = None
    value: Id


class ProjectValue(Syscall, frozen=True):
    """A part of a value as a value of its own, e.g. `.items[0].title`; null when there is no such part. → `{$v, type, bytes, label}`

    Of a part neither type (`part`) nor size (0) is told.
    """

    OP = "value.project"
    RIGHT = None
    value: Id
    path: Annotated[str, Meta(max_length=400)]


class OpenValue(Syscall, frozen=True):
    """Reads a value: its label is the caller's from then on. → `{value}`"""

    OP = "value.open"
    RIGHT = None
    value: Id


class DropValue(Syscall, frozen=True):
    """Gives its room back. → `{}`"""

    OP = "value.drop"
    RIGHT = None
    value: Id


class EndorseValue(Syscall, frozen=True):
    """Asks the user to take a value, which she is shown, for trusted. → the description of a new value, once she has approved."""

    OP = "value.endorse"
    RIGHT = None
    value: Id


# -- approval, undo, label, audit: what waits for the user, and what was done -------------------------------------------


class ListApprovals(Syscall, frozen=True):
    """→ `{approvals: [{id, op, holder, program, state, asked, expires, reasons, undoable, label}]}`, newest first.

    `state` empty for any.
    """

    OP = "approval.list"
    RIGHT = "approval.read"
    state: Annotated[str, Meta(pattern="^(|pending|approved|used|denied|expired)$")] = "pending"
    limit: Annotated[int, Meta(ge=1, le=200)] = 100


class ShowApproval(Syscall, frozen=True):
    """One request with its exact arguments, where each came from, what it would change, and the rule that `always` would save.

    → `{id, op, holder, program, task, label, args, asked, expires, state, reasons, provenance, provenance_of, why, undoable, preview, rule,
    answer, words, decided, by}`; `provenance` may hold fewer rows than the `provenance_of` there are. Errors: `NOT_FOUND`.
    """

    OP = "approval.show"
    RIGHT = "approval.read"
    id: Id


class AnswerApproval(Syscall, frozen=True):
    """The user's word. → the approval, as `approval.show` has it.

    `once`; `task` and `always`, which save a rule; `no`; `reject`, which is no with `words` for the agent.
    Errors: `NOT_FOUND`, `CONFLICT` (answered, used, or expired).
    """

    OP = "approval.answer"
    RIGHT = "approval.control"
    id: Id
    answer: Annotated[str, Meta(pattern="^(once|task|always|no|reject)$")]
    words: Annotated[str, Meta(max_length=500)] = ""


class ListRules(Syscall, frozen=True):
    """What needs no asking any more. → `{rules: [{id, program, task, op, text, created, by}]}`"""

    OP = "approval.rules"
    RIGHT = "approval.read"


class ForgetRule(Syscall, frozen=True):
    """Takes a rule back. → `{}`. Errors: `NOT_FOUND`."""

    OP = "approval.forget"
    RIGHT = "approval.control"
    id: Id


class ListUndo(Syscall, frozen=True):
    """What can be undone, newest first. → `{effects: [{id, holder, op, at, expires}]}`"""

    OP = "undo.list"
    RIGHT = "undo.read"
    limit: Annotated[int, Meta(ge=1, le=200)] = 50


class RunUndo(Syscall, frozen=True):
    """Undoes one effect, with the user's authority. → what its driver says. Errors: `NOT_FOUND`, `CONFLICT` (undone, or too late)."""

    OP = "undo.run"
    RIGHT = "undo.control"
    id: Id


class Why(Syscall, frozen=True):
    """Which datum tainted whom, through which call, from `id` back to the sources.

    `id` is an approval's, a call's number (as `audit.list` shows it), or a process's badge.
    → `{id, label, chain: [{taint, at, holder, sender, via, call, added}]}`, nearest first. Errors: `NOT_FOUND`.
    """

    OP = "label.why"
    RIGHT = "label.read"
    id: Id


class ListAudit(Syscall, frozen=True):
    """The last rows of the audit log, oldest first. → `{rows: [{seq, ts, kind, holder, op, cap, label, bytes, decision, detail, …}]}`"""

    OP = "audit.list"
    RIGHT = "audit.read"
    last: Annotated[int, Meta(ge=1, le=200)] = 50
    holder: Annotated[str, Meta(max_length=60)] = ""
    kind: Annotated[str, Meta(pattern="^(|boot|grant|denial|approval|effect|label)$")] = ""
    since: Annotated[float, Meta(ge=0)] = 0.0


class VerifyAudit(Syscall, frozen=True):
    """Recomputes the whole chain. → `{rows, head, fault}`; `fault` is null, or `{seq, what}` of the first row that is not what it was."""

    OP = "audit.verify"
    RIGHT = "audit.read"


class ExportAudit(Syscall, frozen=True):
    """Rows after `after`, a page at a time. → `{rows, next, head: {seq, hash}}`; `next` is the `after` of the next page, 0 at the end."""

    OP = "audit.export"
    RIGHT = "audit.read"
    after: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0


# -- apps: programs from outside ---------------------------------------------------------------------------------------


class AddApp(Syscall, frozen=True):
    """Lets an outside program in: the holder of the secret half of `key` is `app:NAME` from now on. → `{name, address, server_key, caps}`

    `key` is the public half of a CURVE key pair, Z85; the secret half never comes here. `allow` is granted with it. An app that exists gets
    the new key in place of the old one. Errors: `INVALID_ARGUMENT` (not a key, not a capability), `CONFLICT` (another app has the key),
    `BUSY` (too many).
    """

    OP = "apps.add"
    RIGHT = "perm.control"
    name: Name
    key: Annotated[str, Meta(min_length=40, max_length=40)]
    allow: Annotated[list[Annotated[str, Meta(max_length=400)]], Meta(max_length=64)] = []


class ListApps(Syscall, frozen=True):
    """→ `{apps: [{name, created, connections, label, caps: [str]}], address, server_key}`"""

    OP = "apps.list"
    RIGHT = "perm.read"


class RemoveApp(Syscall, frozen=True):
    """Its key opens nothing from now on, its connections and grants end. → `{revoked}`. Errors: `NOT_FOUND`."""

    OP = "apps.remove"
    RIGHT = "perm.control"
    name: Name


# -- perm, driver: what the user decides -------------------------------------------------------------------------------


class Grant(Syscall, frozen=True):
    """Gives a driver, an agent or an app (`app:NAME`) a capability, kept across restarts. → `{id, cap}`

    `reason` says what for, in the words of whoever asked. A driver whose jail this widens is restarted.
    Errors: `INVALID_ARGUMENT` (not a capability), `NOT_FOUND` (no such holder).
    """

    OP = "perm.grant"
    RIGHT = "perm.control"
    holder: Holder
    cap: Annotated[str, Meta(max_length=400)]
    reason: Annotated[str, Meta(max_length=200)] = ""


class Revoke(Syscall, frozen=True):
    """Takes a capability back with all that was derived from it. → `{revoked}`, how many. Errors: `NOT_FOUND`."""

    OP = "perm.revoke"
    RIGHT = "perm.control"
    id: Annotated[str, Meta(max_length=40)]


class ListGrants(Syscall, frozen=True):
    """→ `{caps: [{id, parent, holder, cap, origin, reason}], requests: [{holder, cap, granted, present}], more}`.

    `more` counts those that did not fit; ask for one holder's.
    """

    OP = "perm.list"
    RIGHT = "perm.read"
    holder: str = ""


class CheckRight(Syscall, frozen=True):
    """Whether `holder` could call `op` with these arguments now; nothing is charged and nobody is asked.

    → `{verdict, cap, chain, reasons, hint}`: `verdict` is `allow`, `ask` or `deny`, `chain` as `perm.why` has it.
    """

    OP = "perm.check"
    RIGHT = "perm.read"
    holder: Annotated[str, Meta(max_length=60)]
    op: Annotated[str, Meta(max_length=100)]
    args: dict[str, Any] = {}


class WhyRight(Syscall, frozen=True):
    """Where a capability comes from, from it back to the user's own. → `{chain: [{id, holder, cap, origin, reason}], left}`

    `left` is what remains of its quotas now: `{calls?, bytes?, tokens?}`. Errors: `NOT_FOUND`.
    """

    OP = "perm.why"
    RIGHT = "perm.read"
    id: Id


class OwnRights(Syscall, frozen=True):
    """The caller's own capabilities. → `{caps: [{handle, cap}]}`; a handle is of use to its holder alone."""

    OP = "perm.mine"
    RIGHT = None


class ListDrivers(Syscall, frozen=True):
    """→ `{drivers: [{name, version, summary, state, status, pid, ops, requests}]}`"""

    OP = "driver.list"
    RIGHT = "driver.read"


class ScanDrivers(Syscall, frozen=True):
    """Reads again what is installed: new drivers start, changed ones start again, removed ones end. → `{added, changed, removed, broken}`

    What was granted to one that is gone stays, for a package may be unreadable for a moment; `perm.revoke` takes it.
    """

    OP = "driver.scan"
    RIGHT = "sys.control"


class ShowDriver(Syscall, frozen=True):
    """→ the driver's manifest, state, and grants. Errors: `NOT_FOUND`."""

    OP = "driver.show"
    RIGHT = "driver.read"
    name: Name


class DisableDriver(Syscall, frozen=True):
    """Ends a driver and keeps it off, over restarts too; its calls answer `UNAVAILABLE`. → `{name, state}`

    Its grants, its state and its settings stay. Errors: `NOT_FOUND`.
    """

    OP = "driver.disable"
    RIGHT = "sys.control"
    name: Name


class EnableDriver(Syscall, frozen=True):
    """Lets a driver run again that was disabled, and starts it. → `{name, state}` before it is ready. Errors: `NOT_FOUND`."""

    OP = "driver.enable"
    RIGHT = "sys.control"
    name: Name


class SetDriver(Syscall, frozen=True):
    """Sets one of the settings in a driver's manifest, and starts the driver again with it. → `{name, settings}`, all of them

    None, or no value, sets it back to its default. Errors: `NOT_FOUND` (the driver or the setting), `INVALID_ARGUMENT` (not of its type),
    `TOO_LARGE`.
    """

    OP = "driver.set"
    RIGHT = "sys.control"
    name: Name
    key: str
    value: Any = None


class ForgetDriver(Syscall, frozen=True):
    """Forgets the settings of a driver that is not installed any more, and that it was disabled. → `{}`

    Errors: `CONFLICT` (it is installed).
    """

    OP = "driver.forget"
    RIGHT = "sys.control"
    name: Name


# -- code: programs that the model or the user writes ------------------------------------------------------------------


ProjectPath = Annotated[str, Meta(min_length=1, max_length=400)]
"""Beneath the project's directory, with `/`; `..`, links and what is no regular file are refused."""


class RunCode(Syscall, frozen=True):
    """Runs a Python program in a jail of its own, in a project's directory. Chunks `{stream: stdout|stderr, text}`, then →
    `{exit, reason, stdout, stderr, truncated, seconds, cpu_s, peak_mb, files: [{path, bytes, change}], more}`.

    Either `source`, run like `python -I -c`, or `file` of the project, run like `python -I FILE` with its directory to import from. It
    has the standard library and what is installed beside it, its arguments, its standard input, the project to read and write, and
    nothing else: no network, no bus, no other file of the user's. All that it started ends with it, and it ends with this call. The
    first run makes the project.
    `seconds` are of the clock. `memory_mb` (10⁶ bytes) is for the program, or with `processes`, which lets it start others, for all of
    them together. More than `output_bytes` on either stream ends it.
    `exit` is its status, or minus the number of the signal that ended it; `reason` says in words why it was ended, empty when it has by
    itself; `stdout` and `stderr` hold the first 16,000 bytes each, `truncated` that there was more; `change` is `new`, `changed` or
    `removed`, `more` counts files that did not fit.
    The project takes on the label of the call, and the answer has the project's. To run a `file` of an untrusted project needs the
    user's approval, of what it holds when she is asked.
    Errors: `INVALID_ARGUMENT` (not exactly one of source and file), `NOT_FOUND` (no such file), `CONFLICT` (the project was changed
    while she was asked), `BUSY` (a program runs in the project,
    or too many run), `TOO_LARGE` (the project is full), `UNAVAILABLE` (no jail here).
    """

    OP = "code.run"
    RIGHT = "code.exec"
    SCOPE: ClassVar[dict[str, str]] = {"project": "project"}
    EFFECT = Effect.EXEC
    CONTROL = ("project", "source", "file", "args")
    project: Name
    source: str | None = None
    file: ProjectPath | None = None
    args: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(max_length=64)] = []
    stdin: str = ""
    seconds: Annotated[float, Meta(ge=0.1, le=600)] = 30.0
    memory_mb: Annotated[int, Meta(ge=64, le=4096)] = 512
    output_bytes: Annotated[int, Meta(ge=1, le=1 << 20)] = 64 << 10
    processes: bool = False


class ListCode(Syscall, frozen=True):
    """The projects that the caller may read: → `{projects: [{project, label, running, made}]}`. Of one, the files by path after `after`: →
    `{project, label, bytes, entries, files: [{path, bytes, modified}], hidden, next}`.

    `hidden` counts what is no regular file, or has a name that is not UTF-8; `next` is the `after` of the next page, empty at the end.
    Errors: `NOT_FOUND` (no such project).
    """

    OP = "code.ls"
    RIGHT = "code.read"
    SCOPE: ClassVar[dict[str, str]] = {"project": "project"}
    project: Annotated[str, Meta(pattern=r"^([a-z][a-z0-9_]{0,39})?$")] = ""
    after: Annotated[str, Meta(max_length=400)] = ""


class ReadCode(Syscall, frozen=True):
    """A part of a project's file. → `{data, bytes, next}`, or with `text` `{text, bytes, next}`, what is not UTF-8 being replaced.

    `bytes` is the size of the file, `next` the `offset` of the next part, 0 at its end.
    Errors: `NOT_FOUND`, `DENIED` (not a regular file, or one with several names), `BUSY` (it is locked by a program).
    """

    OP = "code.read"
    RIGHT = "code.read"
    SCOPE: ClassVar[dict[str, str]] = {"project": "project"}
    project: Name
    path: ProjectPath
    offset: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    limit: Annotated[int, Meta(ge=1, le=48_000)] = 48_000
    text: bool = False


class WriteCode(Syscall, frozen=True):
    """Puts a file into a project, in place of what has its name, or `append`s to it. → `{}`

    What does not fit a message is written in parts. The project takes on the label of the call.
    Errors: `INVALID_ARGUMENT` (not exactly one of text and data), `DENIED` (not a regular file), `TOO_LARGE` (the project is full),
    `BUSY` (a program runs in it).
    """

    OP = "code.write"
    RIGHT = "code.exec"
    SCOPE: ClassVar[dict[str, str]] = {"project": "project"}
    EFFECT = Effect.WRITE
    CONTROL = ("project", "path")
    project: Name
    path: ProjectPath
    text: str | None = None
    data: bytes | None = None
    append: bool = False


class RemoveCode(Syscall, frozen=True):
    """Removes a project, or what has this `path` in it, with all beneath. → `{}`

    What is put into a project of the same name later begins with no label. Errors: `NOT_FOUND`, `BUSY` (a program runs in it).
    """

    OP = "code.rm"
    RIGHT = "code.exec"
    SCOPE: ClassVar[dict[str, str]] = {"project": "project"}
    EFFECT = Effect.DELETE
    CONTROL = ("project", "path")
    project: Name
    path: ProjectPath | None = None


SYSCALLS: dict[str, type[Syscall]] = {call.OP: call for call in Syscall.__subclasses__()}

TOPICS = {
    "proc.started": "a process is ready: {pid, name}",
    "proc.ended": "a process ended: {pid, name, reason}, the reason being exit, killed, or what the kernel did not like",
    "proc.limit": "a process used more than it may, and is ended: {pid, name, limit, used, allowed}; limit is memory, tasks, cpu or disk",
    "sys.model": "a model's state changed: {state, model, default}; default is whether it is the default one",
    "sys.shutdown": "the system is going down: {}",
    "approval.requested": "a call waits for the user's word: {id, op, holder, expires}",
    "approval.settled": "it was answered, used, or is over: {id, op, holder, state}",
}

_Call = TypeVar("_Call", bound=Syscall)
_MAP16, _FIXMAP = 0xDE, 0x80
"""First bytes of a msgpack map: followed by a 16-bit count, or with the count in it."""


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
    packed = msgspec.msgpack.encode(header)
    if packed[0] == _MAP16 and packed[2] < 16 and not packed[1]:  # the encoder reserves room for every field there is
        return bytes((_FIXMAP | packed[2],)) + packed[3:]
    return packed


def topic_matches(pattern: str, topic: str) -> bool:
    """Whether a subscription's pattern takes a topic: level by level, `*` for one, a final `*` for one or more."""
    wanted, levels = pattern.split("."), topic.split(".")
    if wanted[-1] == "*":
        if len(levels) < len(wanted):
            return False
    elif len(levels) != len(wanted):
        return False
    return all(w in ("*", level) for w, level in zip(wanted, levels, strict=False))
