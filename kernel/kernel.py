"""The kernel: every message between any two processes passes through here and is checked here.

receive (from the gate) → decide (who is it, may it) → act (a syscall, or hand it on) → answer (to the gate).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from llmos.ipc import manifest as manifests
from llmos.ipc import paths, protocol, wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Header, pack_header, parse_header
from llmos.ipc.protocol import Kind as Message
from llmos.kernel import gate, jail, launch, params, syscalls
from llmos.kernel.bus import Bus
from llmos.kernel.calls import Call, Calls
from llmos.kernel.capability import USER, Capability, Right, Table, normal_value
from llmos.kernel.inference import Model
from llmos.kernel.journal import Journal
from llmos.kernel.launch import Places
from llmos.kernel.link import Link
from llmos.kernel.loop import Loop, Timer
from llmos.kernel.process import Kind, LogRing, Process, ProcessTable, State, now
from llmos.kernel.programs import Programs
from llmos.kernel.supervisor import Command, Supervisor

log = structlog.get_logger()


@dataclass(eq=False)
class Peer:
    """A connection that the gate knows, and whose it is once it has said hello."""

    conn: int
    os_pid: int
    holder: str = ""
    process: Process | None = None
    client: str = ""
    exit_fd: int = -1
    """pidfd of a person's program, so that its end ends its calls."""


@dataclass(frozen=True)
class Function:
    """What a running program lends: `app.NAME`."""

    conn: int
    holder: str
    op: manifests.Op


class Kernel:
    """All state of a running system. Made by `main.boot`; everything happens in the loop's callbacks."""

    def __init__(self, loop: Loop, places: Places, journal: Journal, report: jail.Report, log_ring: LogRing) -> None:
        self.loop = loop
        self.places = places
        self.journal = journal
        self.report = report
        self.log_ring = log_ring
        self.booted = loop.clock()
        self.ready_s = 0.0
        self.on_ready: Callable[[], None] = lambda: None
        self.caps = Table()
        self.bus = Bus()
        self.programs = Programs()
        self.processes = ProcessTable()
        self.calls = Calls(loop, self._send, self._finished)
        self.model = Model(loop, places.models, self._model_changed)
        self.supervisor = Supervisor(loop, report, self._command, self._process_ended)
        self.functions: dict[str, Function] = {}
        self.waiters: dict[int, Call] = {}
        """Agent's pid → the call that waits for its result."""
        self.dropped: dict[int, int] = {}
        """Connection → events it lost because it did not read."""
        self._peers: dict[int, Peer] = {}
        self._queues: dict[int, list[tuple[Call, Header, dict[str, Any]]]] = {}
        """Driver's pid → calls that wait until it is ready."""
        self._gate: Link | None = None
        self._gate_process: Process | None = None
        self._core_process: Process | None = None
        self._core_start: Timer | None = None
        self.user_token = secrets.token_hex(16)
        self.stopping = False

    # -- boot and shutdown -----------------------------------------------------------------------------------------

    def start_gate(self) -> None:
        self._gate_process = self.processes.add(Kind.GATE, "gate")
        self.supervisor.start(self._gate_process)

    def start_drivers(self) -> None:
        for name, manifest in self.programs.drivers.items():
            self.supervisor.start(self.processes.add(Kind.DRIVER, name, manifest=manifest))

    def choose_model(self, name: str | None) -> None:
        """The model of this run: the one named, else the one last chosen, else a default. Raises `OpError(NOT_FOUND)`.

        It is loaded after the drivers have started, so that it does not hold them up.
        """
        remembered = self.journal.get("model")
        if name is None and remembered is not None and self.model.choose(remembered) is not None:
            name = remembered  # one that has been removed since is no reason not to boot
        self.model.name = self._present(name)
        if self.model.name is not None:
            self.model.state = "starting"
            self._core_start = self.loop.later(params.CORE_START_S, self._start_core)

    def load_model(self, name: str) -> None:
        """Take another model, from now on. Raises `OpError(NOT_FOUND)`."""
        self.model.name = self._present(name)
        self._start_core()

    def _present(self, name: str | None) -> str | None:
        chosen = self.model.choose(name)
        if chosen is None and name is not None:
            raise OpError(
                Code.NOT_FOUND,
                f"no model {name!r} is installed",
                f"llmosctl model pull {name}, or see `llmosctl model ls`",
            )
        return chosen

    def _start_core(self) -> None:
        if self._core_start is not None:
            self._core_start.cancel()
            self._core_start = None
        if self._core_process is None:
            self._core_process = self.processes.add(Kind.CORE, "core")
            self.supervisor.start(self._core_process)
        else:
            self.supervisor.restart(self._core_process)

    def load_grants(self) -> None:
        """The user's own right, and what she granted before."""
        self.caps.mint(USER, Right("*", "*", grantable=True), "boot")
        for grant in self.journal.grants():
            try:
                right = Right.parse(grant.cap, str(self.places.home))
            except OpError as error:
                log.error("grant.unreadable", id=grant.id, err=error.detail)
                continue
            spent = self.journal.spending(grant.id)
            kept = self.caps.mint(grant.holder, right, grant.origin, id=grant.id, reason=grant.reason, spent=spent)
            self.caps.keep(kept)

    def shutdown(self) -> None:
        """In order: tell everybody, agents and drivers, then the core, then the gate; the loop ends when they have."""
        if self.stopping:
            return
        self.stopping = True
        self.publish("sys.shutdown", {}, "kernel")
        self.supervisor.stop_all()
        self.model.shutdown()
        self.loop.later(params.TERM_S + 1, self.loop.stop)
        self._stop_when_empty()

    def _stop_when_empty(self) -> None:
        if self.supervisor.children(Kind.AGENT, Kind.DRIVER, Kind.CORE):
            self.loop.later(0.02, self._stop_when_empty)
        else:
            self.loop.later(0.05, self.loop.stop)  # the gate has a moment to send the last answers

    # -- the gate --------------------------------------------------------------------------------------------------

    def _send(self, conn: int, header: bytes, body: bytes) -> None:
        if self._gate is not None:
            self._gate.post(gate.MESSAGE.pack(b"M", conn, len(header)) + header + body)

    def _from_gate(self, frame: bytes) -> None:
        kind = frame[:1]
        if kind == b"M":
            _, conn, size = gate.MESSAGE.unpack_from(frame)
            peer = self._peers.get(conn)
            if peer is not None:
                self._message(peer, frame[9 : 9 + size], frame[9 + size :])
        elif kind == b"S":
            _, conn, _uid, os_pid = gate.SEEN.unpack(frame)
            self._peers[conn] = Peer(conn, os_pid)
        elif kind == b"G":
            self._peer_gone(gate.CONN.unpack(frame)[1], "its connection is gone")
        elif kind == b"L":
            _, conn, count = gate.LOST.unpack(frame)
            self.dropped[conn] = self.dropped.get(conn, 0) + count
        elif kind == b"U" and self._gate_process is not None:
            self.supervisor.ready(self._gate_process)
            self._check_ready()

    def _peer_gone(self, conn: int, why: str) -> None:
        peer = self._peers.pop(conn, None)
        if peer is None:
            return
        if peer.exit_fd >= 0:
            self.loop.unwatch(peer.exit_fd)
            os.close(peer.exit_fd)
        if peer.process is not None and peer.process.conn == conn:
            peer.process.conn = 0
        self.calls.connection_gone(conn, why)
        self.bus.drop(conn)
        self.dropped.pop(conn, None)
        for name in [name for name, function in self.functions.items() if function.conn == conn]:
            del self.functions[name]
        if self._gate is not None:
            self._gate.post(gate.CONN.pack(b"D", conn))

    # -- messages --------------------------------------------------------------------------------------------------

    def _message(self, peer: Peer, raw_header: bytes, raw_body: bytes) -> None:
        number = 0
        try:
            raw = wire.decode_map(raw_header)
            number = raw["id"] if isinstance(raw.get("id"), int) and 0 <= raw["id"] < 1 << 63 else 0
            header = parse_header(raw)
            if header.kind is Message.CALL:
                self._call(peer, header, raw_body)
            elif header.kind is Message.REPLY:
                wire.decode_map(raw_body)  # a server cannot hand its caller what the caller's decoder would choke on
                self.calls.answered(peer.conn, header.id, header.ok, raw_body)
            elif header.kind is Message.CREDIT:
                self.calls.credit(peer.conn, header.id, header.n)
            elif header.kind is Message.CANCEL:
                self.calls.cancelled(peer.conn, header.id)
            else:
                raise OpError(Code.INVALID_ARGUMENT, f"a {header.kind} is not for the kernel")
        except wire.Malformed as error:
            self._refuse(peer, number, OpError(Code.INVALID_ARGUMENT, f"malformed: {error}"))
        except OpError as error:
            self._refuse(peer, number, error)

    def _refuse(self, peer: Peer, number: int, error: OpError) -> None:
        self._send(
            peer.conn, pack_header(Header(kind=Message.REPLY, id=number, ok=False)), wire.encode(error.to_wire())
        )

    def _call(self, peer: Peer, header: Header, raw_body: bytes) -> None:
        if not peer.holder and header.op != protocol.Hello.OP:
            raise OpError(Code.DENIED, "say sys.hello first")
        call = self.calls.begin(peer.conn, peer.holder, header)
        try:
            args = wire.decode_map(raw_body)
            if header.parent:
                self.calls.adopt(call, peer.conn, header.parent)
            syscall = protocol.SYSCALLS.get(header.op)
            if syscall is not None:
                self._syscall(peer, call, header, syscall, args)
            else:
                self._forward(call, header, args)
        except wire.Malformed as error:
            call.fail(OpError(Code.INVALID_ARGUMENT, f"{header.op}: malformed body: {error}"))
        except OpError as error:
            call.fail(error)
        except Exception as error:  # noqa: BLE001  (a bug of ours costs the caller an error, not everybody the system)
            log.exception("syscall.bug", op=header.op, id=call.id)
            call.fail(OpError(Code.INTERNAL, f"{header.op}: {type(error).__name__} in the kernel", "please report it"))

    def _syscall(
        self, peer: Peer, call: Call, header: Header, syscall: type[protocol.Syscall], raw: dict[str, Any]
    ) -> None:
        args = protocol.parse(syscall, raw)
        cap = None
        if syscall.RIGHT is not None:
            object_, _, verb = syscall.RIGHT.partition(".")
            values = self._scope_values(syscall.SCOPE, {name: getattr(args, name) for name in syscall.SCOPE.values()})
            cap = self.caps.check(peer.holder, object_, verb, values, header.cap)
        result = syscalls.HANDLERS[syscall.OP](self, syscalls.Request(peer, call, cap), args)
        if result is not None:
            call.reply(result)
        elif not call.done:
            default = params.GENERATE_S if syscall.RIGHT in ("llm.generate", "proc.spawn") else params.SYSCALL_S
            self.calls.expire(call, header.deadline_ms / 1000 or default)

    def _forward(self, call: Call, header: Header, args: dict[str, Any]) -> None:
        """A driver's op, or a function that a program lends."""
        target, _, verb = header.op.partition(".")
        function = self.functions.get(verb) if target == "app" else None
        manifest = self.programs.drivers.get(target)
        op = function.op if function is not None else manifest.ops.get(verb) if manifest is not None else None
        if op is None:
            raise self._unknown(header.op, manifest)
        op.check(args)
        right, scope = (op.effect.value, op.scope) if function is None else ("call", {})
        values = self._scope_values(scope, args) if function is None else {"name": (verb,)}
        cap = self.caps.check(call.holder, target, right, values, header.cap)
        if "path" in values:  # what was checked is what the driver gets
            name = op.scope["path"]
            args = {**args, name: list(values["path"]) if isinstance(args[name], list) else values["path"][0]}
        limit = min(header.deadline_ms / 1000, protocol.MAX_DEADLINE_MS / 1000) or op.timeout_s
        self.calls.expire(call, limit)
        handed = Header(
            kind=Message.CALL,
            id=call.id,
            op=header.op,
            deadline_ms=int(limit * 1000),
            sender=call.holder,
            scope={key: list(bounds) for key, bounds in cap.right.scope.items()},
        )
        if function is not None:
            self._hand(call, Peer(function.conn, 0), handed, args)
            return
        process = self.processes.named(target)
        if process is None or process.state is State.FAILED:
            reason = process.status if process is not None else "it is not running"
            raise OpError(
                Code.UNAVAILABLE, f"the driver {target} does not run: {reason}", f"see `llmosctl driver show {target}`"
            )
        if process.state is State.READY and process.conn:
            self._hand(call, process, handed, args)
        else:
            self._wait_ready(process, call, handed, args)

    def _hand(self, call: Call, server: Peer | Process, header: Header, args: dict[str, Any]) -> None:
        if self.calls.load(server.conn) >= params.MAILBOX:
            raise OpError(
                Code.BUSY, f"{call.op}: {params.MAILBOX} calls are waiting for it already", "try again in a moment"
            )
        if isinstance(server, Process):
            server.calls += 1
        self.calls.serve(call, server)
        self._send(server.conn, pack_header(header), wire.encode(args))

    def _wait_ready(self, process: Process, call: Call, header: Header, args: dict[str, Any]) -> None:
        queue = self._queues.setdefault(process.pid, [])
        queue[:] = [entry for entry in queue if not entry[0].done]
        if len(queue) >= params.MAILBOX:
            raise OpError(Code.BUSY, f"{call.op}: {params.MAILBOX} calls wait for it to start", "try again in a moment")
        queue.append((call, header, args))

    def _unknown(self, op: str, manifest: manifests.DriverManifest | None) -> OpError:
        target, _, _verb = op.partition(".")
        if manifest is not None:
            return OpError(
                Code.UNKNOWN_OP,
                f"{target} has no such op",
                f"it has {', '.join(f'{target}.{name}' for name in manifest.ops)}",
            )
        if target == "app":
            return OpError(
                Code.UNKNOWN_OP, f"no running program lends {op}", f"lent now: {', '.join(self.functions) or 'none'}"
            )
        ours = [name for name in protocol.SYSCALLS if name.startswith(f"{target}.")]
        known = ", ".join(
            ours or [*self.programs.drivers, *sorted({name.partition(".")[0] for name in protocol.SYSCALLS})]
        )
        return OpError(Code.UNKNOWN_OP, f"unknown op {op!r}", f"known: {known}")

    def _scope_values(self, scope: dict[str, str], args: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        """Scope key → what the request names; a key it leaves open is left out."""
        values: dict[str, tuple[str, ...]] = {}
        for key, name in scope.items():
            given = args.get(name)
            if given is None or given == "" or given == []:
                continue
            texts = given if isinstance(given, list) else [given]
            values[key] = tuple(normal_value(key, str(text), str(self.places.home)) for text in texts)
        return values

    def _finished(self, call: Call, code: str | None) -> None:
        level = log.debug if call.op == protocol.Ping.OP and code is None else log.info
        level(
            "syscall.done",
            op=call.op,
            holder=call.holder,
            id=call.id,
            dur_ms=round((self.loop.clock() - call.started) * 1000, 2),
            err=code,
        )

    # -- who is who ------------------------------------------------------------------------------------------------

    def greet(self, peer: Peer, token: str, client: str) -> None:
        """Bind a connection to whom its token proves it to be. Raises `OpError` `DENIED`, `CONFLICT`."""
        if peer.holder:
            raise OpError(Code.CONFLICT, f"this connection is {peer.holder} already")
        if secrets.compare_digest(token, self.user_token):
            self._watch_exit(peer)
            peer.holder, peer.client = USER, client
            return
        process = self.processes.by_token(token)
        if process is None:
            raise OpError(
                Code.DENIED,
                "the token is not known",
                "the system was restarted, or it belongs to another; take the present one",
            )
        if process.os_pid not in (0, peer.os_pid):
            raise OpError(Code.DENIED, "the token belongs to another process")
        process.os_pid = peer.os_pid
        if process.conn and process.conn != peer.conn:
            self._peer_gone(process.conn, "it opened another connection")
        peer.holder, peer.process, peer.client = process.name, process, client
        process.conn = peer.conn
        self.supervisor.greeted(process)

    def _watch_exit(self, peer: Peer) -> None:
        try:
            peer.exit_fd = os.pidfd_open(peer.os_pid)
        except OSError:
            raise OpError(Code.PEER_DIED, "the caller has gone") from None
        self.loop.watch(peer.exit_fd, lambda: self._peer_gone(peer.conn, "the program has ended"))

    def process_ready(self, process: Process, status: str) -> None:
        """It serves: hand it what waited."""
        process.status = status
        self.supervisor.ready(process)
        log.info(
            "process.ready", pid=process.pid, name=process.name, dur_ms=round((self.loop.clock() - process.born) * 1000)
        )
        self.publish("proc.started", {"pid": process.pid, "name": process.name}, "kernel")
        for call, header, args in self._queues.pop(process.pid, []):
            if not call.done:
                try:
                    self._hand(call, process, header, args)
                except OpError as error:
                    call.fail(error)
        self._check_ready()

    def _check_ready(self) -> None:
        """The system is ready once the gate answers and every driver serves, or has failed to."""
        boot = [process for process in self.processes if process.kind in (Kind.GATE, Kind.DRIVER)]
        if not self.ready_s and all(process.state not in (State.STARTING, State.WAITING) for process in boot):
            self.ready_s = self.loop.clock() - self.booted
            log.info("boot.ready", dur_ms=round(self.ready_s * 1000))
            if self._core_start is not None:
                self._start_core()
            self.on_ready()

    # -- processes -------------------------------------------------------------------------------------------------

    def spawn_agent(self, name: str, args: dict[str, Any], allow: list[str] | None, giver: str, parent: int) -> Process:
        """Start an agent with capabilities derived from its spawner's. Raises `OpError`."""
        manifest = self.programs.agent(name)
        checked = manifests.Op(effect=protocol.Effect.EXEC, summary=manifest.summary, args=manifest.args)
        checked.check(args)
        home = str(self.places.home)
        rights = [Right.parse(text, home) for text in (manifest.permissions.calls if allow is None else allow)]
        process = self.processes.add(Kind.AGENT, name, parent=parent, manifest=manifest, args=args)
        try:
            for right in rights:
                self.caps.derive(giver, right, process.name, f"spawned by {giver}")
            if giver == USER:
                for cap in list(self.caps.held(name)):
                    self.caps.lend(cap, process.name, "granted")
        except OpError:
            self.caps.drop(process.name)
            self.processes.remove(process)
            raise
        self.supervisor.start(process)
        return process

    def _command(self, process: Process) -> Command:
        """How to start a process, as of now."""
        if process.kind is Kind.GATE:
            ours, theirs = socket.socketpair()
            self._gate = Link(self.loop, ours, self._from_gate)
            return launch.gate(theirs.detach(), paths.bus_socket(self.places.runtime), self.report.tier)
        if process.kind is Kind.CORE:
            return launch.core(self.model.attach(), self.model.folders(), self.report.tier)
        return launch.program(process, self.places, self.caps.held(process.name), self.report.tier)

    def _process_ended(self, process: Process, reason: str) -> None:
        """Its calls fail, its contexts and capabilities go; the supervisor sees to its return."""
        if process.kind is Kind.GATE:
            if self._gate is not None:
                self._gate.close()
                self._gate = None
            for conn in list(self._peers):
                self._peer_gone(conn, "the gate ended")
            return
        if process.kind is Kind.CORE:
            self.model.detach(process, reason)
            return
        if process.conn:
            self._peer_gone(process.conn, f"{process.name} ended ({reason})")
        self.model.drop(process.name)
        self.publish("proc.ended", {"pid": process.pid, "name": process.name, "reason": reason}, "kernel")
        if process.kind is Kind.AGENT:
            waiter = self.waiters.pop(process.pid, None)
            if waiter is not None:
                waiter.fail(
                    OpError(
                        Code.PEER_DIED,
                        f"{process.name} ended without a result ({reason})",
                        f"see `llmosctl logs {process.name}`",
                    )
                )
            self.caps.drop(process.name)
            self.processes.remove(process)
            shutil.rmtree(launch.scratch(process, self.places), ignore_errors=True)
        elif process.state is State.FAILED:
            for call, _, _ in self._queues.pop(process.pid, []):
                call.fail(OpError(Code.UNAVAILABLE, f"the driver {process.name} does not run: {reason}"))
            self._check_ready()

    def lend(self, name: str, peer: Peer, op: manifests.Op) -> None:
        """`app.NAME` is `peer`'s from now on, until its connection ends."""
        self.functions[name] = Function(peer.conn, peer.holder, op)

    # -- events and changes ----------------------------------------------------------------------------------------

    def publish(self, topic: str, data: dict[str, Any], sender: str) -> int:
        """To every subscriber's mailbox; how many those are."""
        conns = self.bus.receivers(topic)
        number = self.bus.number(topic)
        if conns and self._gate is not None:
            header = pack_header(Header(kind=Message.EVENT, topic=topic, seq=number, sender=sender, ts=now()))
            count = len(conns)
            self._gate.post(struct.pack(f">cI{count}II", b"F", count, *conns, len(header)) + header + wire.encode(data))
        return len(conns)

    def revoked(self, caps: list[Capability]) -> None:
        """What followed from these ends with them."""
        self.bus.revoke({cap.id for cap in caps})
        self._rebuild_jails({cap.holder for cap in caps if cap.right.object == "fs"})

    def granted(self, cap: Capability) -> None:
        """A driver's jail shows it a new directory; a running agent's instances hold it at once."""
        if cap.right.object == "fs":
            self._rebuild_jails({cap.holder})
        for process in self.processes:
            if process.kind is Kind.AGENT and process.program == cap.holder:
                self.caps.lend(cap, process.name, "granted")

    def _rebuild_jails(self, holders: set[str]) -> None:
        for process in self.processes:
            if process.kind is Kind.DRIVER and process.name in holders:
                self.supervisor.restart(process)

    def _model_changed(self) -> None:
        if self.model.state == "ready" and self._core_process is not None:
            self.supervisor.ready(self._core_process)
        self.publish("sys.model", {"state": self.model.state, "model": self.model.name or ""}, "kernel")
