"""Forwarding: a call of a driver's op, or of a function that a program lends, from its caller to its server and back."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from llmos.ipc import manifest as manifests
from llmos.ipc import protocol, wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect, Header, pack_header
from llmos.ipc.protocol import Kind as Message
from llmos.kernel import params
from llmos.kernel.asking import Asking, Attempt
from llmos.kernel.authority import Authority
from llmos.kernel.calls import KERNEL, Call, Calls
from llmos.kernel.capability import USER, Capability, Scope
from llmos.kernel.flow import Request, Verdict
from llmos.kernel.labels import BOTTOM, Integrity, Label, reply_label
from llmos.kernel.process import Process, ProcessTable, State
from llmos.kernel.programs import Programs
from llmos.kernel.values import Substituted

PREVIEW_S = 5.0
"""Seconds a driver may take to say what a call would change."""
NOTHING = Substituted({}, {}, {})


@dataclass(frozen=True)
class Function:
    """What a running program lends: `app.NAME`."""

    conn: int
    holder: str
    op: manifests.Op
    label: Label
    """Of its description, and of whatever it answers."""
    cap: str
    """Id of the capability that allowed it to be lent."""


@dataclass(frozen=True)
class Server:
    """Who serves a call, and what is known of its answers beforehand."""

    conn: int
    name: str
    label: Label
    undo: bool


@dataclass(frozen=True)
class _Outgoing:
    """A call as its server will get it."""

    call: Call
    header: Header
    body: bytes
    label: Label
    """Of the server's answers."""
    undo: bool


@dataclass(frozen=True)
class _Route:
    """Where an op is served."""

    name: str
    target: str
    verb: str
    op: manifests.Op
    right: str
    """The verb of the capability that it needs."""
    leaves: bool
    """Whether whoever serves it can tell the world."""
    function: Function | None

    def request(self, holder: str, label: Label, args: dict[str, Any], values: Substituted, cap: Capability) -> Request:
        """What the sink rule looks at; a question that leaves the system tells somebody something."""
        return Request(
            holder=holder,
            op=self.name,
            effect=Effect.SEND if self.op.effect is Effect.READ and self.leaves else self.op.effect,
            args=args,
            control=tuple(self.op.control),
            label=label,
            values=values.labels,
            ceiling=cap.right.ceiling,
        )


Answered = Callable[[bool, dict[str, Any], Label], None]


class Forwarder:
    """Routes, checks and hands on; knows where each call is being served."""

    def __init__(
        self,
        calls: Calls,
        authority: Authority,
        asking: Asking,
        programs: Programs,
        processes: ProcessTable,
        send: Callable[[int, bytes, bytes], None],
    ) -> None:
        self._calls = calls
        self._authority = authority
        self._asking = asking
        self._programs = programs
        self._processes = processes
        self._send = send
        self.functions: dict[str, Function] = {}
        """Name → what a running program lends as `app.NAME`, until its connection ends."""
        self._queues: dict[int, list[_Outgoing]] = {}
        """Driver's pid → calls that wait until it is ready."""
        self.off: Collection[str] = ()
        """Drivers that the user has switched off."""
        self._own_ids = itertools.count(1)

    # -- out -------------------------------------------------------------------------------------------------------

    def forward(self, call: Call, header: Header, args: dict[str, Any], values: Substituted = NOTHING) -> None:
        """Check a call and let it out, now or once the user has approved. Raises `OpError`.

        Args:
            args: with references substituted.
            values: what was substituted.
        """
        route = self._route(header.op, from_kernel=call.conn == KERNEL)
        op = route.op
        op.check(args)
        bounds = self._bounds(route, args)
        cap = call.cap = self._authority.check(call.holder, route.target, route.right, bounds, header.cap)
        if "path" in bounds:  # what was checked is what the driver gets
            name = op.scope["path"]
            args = {**args, name: list(bounds["path"]) if isinstance(args[name], list) else bounds["path"][0]}
        body = wire.encode(args)
        self._authority.charge(cap, bytes=len(body))
        if header.keep:
            self._authority.spend_outcome(call.holder)
        request = route.request(call.holder, call.label, args, values, cap)
        decision = self._authority.decide(request, cap)
        asked = min(header.deadline_ms, protocol.MAX_DEADLINE_MS) / 1000
        limit = asked or op.timeout_s
        handed = Header(
            kind=Message.CALL,
            id=call.id,
            op=header.op,
            deadline_ms=int(limit * 1000),
            sender=call.holder,
            scope={key: list(values) for key, values in cap.right.scope.items()},
            label=decision.label.to_wire(),
        )
        out = _Outgoing(call, handed, body, self._result_label(route), op.undo)

        def go() -> None:
            call.label = decision.label
            self._calls.expire(call, limit)
            if route.function is not None:
                if self.functions.get(route.verb) is not route.function:
                    raise OpError(Code.UNAVAILABLE, f"{header.op}: the program that lent it has gone")
                self._hand(out, route.function.conn, route.function.holder)
            else:
                self._to_driver(route.target, out)

        preview = self._previewing(header.op, args, decision.label) if op.preview and not route.leaves else None
        served_by = route.function.holder if route.function is not None else ""
        self._asking.attempt(
            Attempt(call, request, decision, body, cap, go, served_by, undoable=op.undo, preview=preview, wait_s=asked)
        )

    def ask(self, op: str, args: dict[str, Any], label: Label, done: Answered, limit_s: float) -> None:
        """A call of the kernel's own, with the user's authority and the label of what is in it.

        `done` gets whether it worked, the result or the error in wire form, and the label of that.
        """
        header = Header(kind=Message.CALL, id=next(self._own_ids), op=op, deadline_ms=int(limit_s * 1000))
        call = self._calls.begin(KERNEL, USER, header)
        call.on_result = lambda ok, body, label: done(ok, wire.decode_map(body), label)
        call.label = call.read = label
        try:
            self.forward(call, header, args)
        except OpError as error:
            call.fail(error)

    def _to_driver(self, name: str, out: _Outgoing) -> None:
        process = self._processes.named(name)
        if process is None and name in self.off:
            raise OpError(Code.UNAVAILABLE, f"the driver {name} is disabled", f"llmosctl driver enable {name}")
        if process is None or process.state is State.FAILED:
            reason = process.status if process is not None else "it is not running"
            why = f": {reason}" if out.call.holder == USER else ""  # its own last words might be meant for an agent
            hint = f"see `llmosctl driver show {name}`"
            raise OpError(Code.UNAVAILABLE, f"the driver {name} does not run{why}", hint)
        if process.state is State.READY and process.conn:
            self._hand_process(process, out)
        else:
            self._wait_ready(process, out)

    def _hand_process(self, process: Process, out: _Outgoing) -> None:
        self._hand(out, process.conn, process.name)
        process.calls += 1

    def _hand(self, out: _Outgoing, conn: int, name: str) -> None:
        call = out.call
        load, mine = self._calls.load(conn), self._calls.load_of(conn, call.holder)
        if not params.share(params.MAILBOX, mine, load - mine):
            detail = f"{call.op}: {load} calls are waiting for it already, {mine} of them yours"
            raise OpError(Code.BUSY, detail, "try again in a moment")
        source = self._authority.labels.source(call.holder, f"call of {call.op}", call.label, call.id)
        self._authority.receive(name, call.label, source)
        self._calls.serve(call, Server(conn, name, out.label, out.undo))
        self._send(conn, pack_header(out.header), out.body)

    def _wait_ready(self, process: Process, out: _Outgoing) -> None:
        queue = self._queues.setdefault(process.pid, [])
        queue[:] = [waiting for waiting in queue if not waiting.call.done]
        if len(queue) >= params.MAILBOX:
            detail = f"{out.call.op}: {params.MAILBOX} calls wait for it to start"
            raise OpError(Code.BUSY, detail, "try again in a moment")
        queue.append(out)

    def ready(self, process: Process) -> None:
        """It serves: hand it what waited."""
        for out in self._queues.pop(process.pid, []):
            if not out.call.done:
                try:
                    self._hand_process(process, out)
                except OpError as error:
                    out.call.fail(error)

    def given_up(self, process: Process, reason: str) -> None:
        """It will not serve."""
        for out in self._queues.pop(process.pid, []):
            why = f": {reason}" if out.call.holder == USER else ""
            out.call.fail(OpError(Code.UNAVAILABLE, f"the driver {process.name} does not run{why}"))

    # -- back ------------------------------------------------------------------------------------------------------

    def answered(self, conn: int, header: Header, body: bytes) -> None:
        """A server's reply; one for a call that is not its own, or that has ended, goes nowhere."""
        call = self._calls.served_by(conn, header.id)
        if call is None or not isinstance(call.server, Server):
            return
        try:
            content = wire.decode_map(body)
        except wire.Malformed as error:  # its caller's decoder would refuse it too
            detail = f"{call.op}: the answer is malformed: {error}"
            call.fail(OpError(Code.INTERNAL, detail, "report it to the driver's author"))
            return
        label = reply_label(call.server.label, call.label, header.label or None, self._programs.known_tags)
        if call.op.startswith("app."):  # what its program has seen since it lent the function
            label = label | self._authority.labels.of(call.server.name)
        source = self._authority.labels.source(call.server.name, call.op, label, call.id)
        try:
            if header.ok and call.server.undo and "undo" in content:
                effect = self._authority.undo.remember(call.holder, call.op, content["undo"])
                body = wire.encode({**content, "undo": effect.id})
            self._authority.charge(call.cap, bytes=len(body))
        except OpError as error:
            call.fail(error)
        else:
            self._calls.end(call, header.ok, body, label, source)

    # -- functions that programs lend ------------------------------------------------------------------------------

    def revoked(self, caps: set[str]) -> None:
        """Functions that these capabilities allowed are lent no more."""
        for name in [name for name, function in self.functions.items() if function.cap in caps]:
            del self.functions[name]

    def connection_gone(self, conn: int) -> None:
        """With it the functions that were lent on it."""
        for name in [name for name, function in self.functions.items() if function.conn == conn]:
            del self.functions[name]

    # -- what is known of an op ------------------------------------------------------------------------------------

    def _route(self, name: str, *, from_kernel: bool = False) -> _Route:
        """Raises `OpError(UNKNOWN_OP)`."""
        target, _, verb = name.partition(".")
        function = self.functions.get(verb) if target == "app" else None
        if function is not None:
            return _Route(name, target, verb, function.op, "call", function.holder.startswith("app:"), function)
        manifest = self._programs.drivers.get(target)
        op = manifest.ops.get(verb) if manifest is not None else None
        if manifest is None or op is None or (verb in manifests.KERNEL_OPS and not from_kernel):
            raise self._unknown(name, manifest)
        return _Route(name, target, verb, op, op.effect.value, self._leaves(manifest), None)

    def _leaves(self, manifest: manifests.DriverManifest) -> bool:
        """Whether a driver can tell the world: it says so, or was granted it."""
        return bool(manifest.permissions.hosts) or self._authority.caps.can(manifest.name, "net", "connect")

    def _bounds(self, route: _Route, args: dict[str, Any]) -> Scope:
        if route.function is not None:
            return {"name": (route.verb,)}
        return self._authority.scope_values(route.target, route.op.scope, args)

    def foresee(
        self, holder: str, name: str, args: dict[str, Any]
    ) -> tuple[Verdict, Capability | None, tuple[str, ...], str]:
        """What would become of a call: the verdict, the capability, why, and what would help; whatever is left of quotas.

        Of a program that does not run, as it would be born. Raises `OpError(UNKNOWN_OP)`.
        """
        authority = self._authority
        label = authority.labels.of(holder) if authority.labels.known(holder) else BOTTOM
        syscall = protocol.SYSCALLS.get(name)
        if syscall is not None and syscall.RIGHT is None:
            return Verdict.ALLOW, None, ("every process may",), ""
        try:
            if syscall is not None and syscall.RIGHT is not None:
                target, _, right = syscall.RIGHT.partition(".")
                bounds = authority.scope_values(target, syscall.SCOPE, args)
                cap = authority.caps.must_fit(holder, target, right, bounds)
                authority.refuse_tainted(name, right, label)
                request = authority.plain_request(holder, name, args, label, cap)
            else:
                route = self._route(name)
                route.op.check(args)
                cap = authority.caps.must_fit(holder, route.target, route.right, self._bounds(route, args))
                request = route.request(holder, label, args, NOTHING, cap)
            decision = authority.decide(request, cap)
        except OpError as error:
            if error.code not in (Code.DENIED, Code.TAINTED):
                raise
            return Verdict.DENY, None, (error.detail,), error.hint or ""
        return decision.verdict, cap, decision.reasons, ""

    def stated_label(self, name: str) -> Label:
        """Of an op's answers, as far as its manifest says. Raises `OpError(UNKNOWN_OP)`."""
        return BOTTOM if name in protocol.SYSCALLS else self._result_label(self._route(name))

    def _result_label(self, route: _Route) -> Label:
        return route.function.label if route.function is not None else self.driver_label(route.target, route.op.label)

    def driver_label(self, name: str, stated: manifests.Label | None = None) -> Label:
        """Of a driver's answers by its manifest, or by what it states for one op.

        A driver that does not come with the system is taken for trusted only when the user has granted it `label.trust`.
        """
        manifest = self._programs.drivers[name]
        integrity, tags = (
            (stated.integrity, stated.tags) if stated is not None else (manifest.integrity, manifest.tags or [name])
        )
        label = Label.make(integrity, tags)
        if label.trusted and not (self._programs.shipped(name) or self._authority.caps.can(name, "label", "trust")):
            label = Label(Integrity.UNTRUSTED, label.tags)
        return label | self._authority.heard(name)

    def _previewing(self, op: str, args: dict[str, Any], label: Label) -> Callable[[Callable[[str], None]], None]:
        """A driver that can tell the world is not asked what it would do: being asked tells it."""
        name, _, verb = op.partition(".")

        def preview(then: Callable[[str], None]) -> None:
            def done(ok: bool, answer: dict[str, Any], _label: Label) -> None:
                text = answer.get("preview") if ok else None
                then(text if isinstance(text, str) else f"no preview: {answer.get('detail', 'it gave none')}")

            self.ask(f"{name}.preview", {"op": verb, "args": args}, label, done, PREVIEW_S)

        return preview

    def _unknown(self, op: str, manifest: manifests.DriverManifest | None) -> OpError:
        target = op.partition(".")[0]
        if manifest is not None:
            known = ", ".join(f"{target}.{name}" for name in manifest.ops if name not in manifests.KERNEL_OPS)
            return OpError(Code.UNKNOWN_OP, f"{target} has no such op", f"it has {known}")
        if target == "app":
            lent = ", ".join(self.functions) or "none"
            return OpError(Code.UNKNOWN_OP, f"no running program lends {op}", f"lent now: {lent}")
        ours = [name for name in protocol.SYSCALLS if name.startswith(f"{target}.")]
        objects = sorted({name.partition(".")[0] for name in protocol.SYSCALLS})
        return OpError(
            Code.UNKNOWN_OP, f"unknown op {op!r}", f"known: {', '.join(ours or [*self._programs.drivers, *objects])}"
        )


def describe(name: str, op: manifests.Op, tags: list[str]) -> dict[str, Any]:
    """A row of `sys.ops`."""
    return {
        "op": name,
        "summary": op.summary,
        "effect": op.effect.value,
        "utterances": op.utterances,
        "control": op.control,
        "args": {arg: msgspec.to_builtins(spec) for arg, spec in op.args.items()},
        "tags": tags,
    }
