"""The kernel: every message between any two processes passes through here and is checked here.

receive (from the gate) → decide (who is it, may it) → act (a syscall, or hand it on) → answer (to the gate).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from llmos.ipc import paths, protocol, wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Header, pack_header, parse_header
from llmos.ipc.protocol import Kind as Message
from llmos.kernel import gate_frames, gates, jail, launch, net, params, syscalls
from llmos.kernel import syscalls_authority as _more  # noqa: F401  (registers its handlers)
from llmos.kernel import syscalls_code as _code  # noqa: F401
from llmos.kernel import syscalls_driver as _drivers  # noqa: F401  (the same)
from llmos.kernel import syscalls_llm as _llm  # noqa: F401
from llmos.kernel.agents import Agents
from llmos.kernel.approvals import Approval
from llmos.kernel.apps import Apps
from llmos.kernel.apps import holder as app_holder
from llmos.kernel.asking import Asking, Attempt
from llmos.kernel.audit import Audit
from llmos.kernel.authority import ENDED, Authority
from llmos.kernel.calls import Call, Calls
from llmos.kernel.capability import USER, Capability, Right
from llmos.kernel.cgroup import Groups
from llmos.kernel.choices import Choices
from llmos.kernel.code import CodeRuns
from llmos.kernel.drivers import Drivers
from llmos.kernel.engine import Engine
from llmos.kernel.events import Events
from llmos.kernel.forward import NOTHING, Forwarder
from llmos.kernel.health import Health
from llmos.kernel.inference import Inferences
from llmos.kernel.journal import Journal
from llmos.kernel.labels import BOTTOM, Label, Source
from llmos.kernel.launch import Places
from llmos.kernel.loop import Loop, Timer
from llmos.kernel.models import Model, Models
from llmos.kernel.peers import Peer, Peers
from llmos.kernel.process import Kind, LogRing, Process, ProcessTable, State, now
from llmos.kernel.programs import Programs
from llmos.kernel.spares import Command
from llmos.kernel.supervisor import Supervisor
from llmos.kernel.topics import Topics
from llmos.kernel.values import REFERENCE
from llmos.kernel.watchdog import Excess, Watchdog

log = structlog.get_logger()

_ONE_WAY = frozenset((Message.REPLY, Message.CHUNK, Message.CREDIT, Message.CANCEL))
_REFERENCE = REFERENCE.encode()


@dataclass(frozen=True)
class Stores:
    """What outlives the kernel, open."""

    journal: Journal
    audit: Audit
    events: Events


class Kernel:
    """All state of a running system. Made by `main.boot`; everything happens in the loop's callbacks."""

    def __init__(
        self,
        loop: Loop,
        places: Places,
        stores: Stores,
        report: jail.Report,
        log_ring: LogRing,
        *,
        headless: bool = False,
        groups: Groups = Groups(works=False, reason="not tried"),  # noqa: B008  (immutable)
    ) -> None:
        self.loop = loop
        self.places = places
        self.journal = stores.journal
        self.report = report
        self.groups = groups
        self.log_ring = log_ring
        self.booted = loop.clock()
        self.ready_s = 0.0
        self.on_ready: Callable[[], None] = lambda: None
        self.programs = Programs(places.packages)
        self.processes = ProcessTable()
        self.apps = Apps(stores.journal)
        self.authority = Authority(
            now,
            str(places.home),
            self.programs.scope_kinds,
            stores.journal,
            stores.audit,
            self._approval_changed,
            headless=headless,
        )
        self.caps = self.authority.caps
        self.gates = gates.Gates(loop, self._from_gate)
        self.peers = Peers(loop, self.processes, self._peer_gone)
        self.topics = Topics(loop, stores.events, self.authority, self.gates, self.peers.holder)
        self.calls = Calls(loop, self.gates.message, self._finished, self._deliver)
        self.asking = Asking(self.calls, self.authority)
        self.forwarder = Forwarder(
            self.calls, self.authority, self.asking, self.programs, self.processes, self.gates.message
        )
        self.egress = net.Egress(
            loop, self.authority, self.processes, self._egress_up, self._restart_egress, self._anchor_soon
        )
        self.models = Models(places.models)
        self.supervisor = Supervisor(
            loop, report, self._command, self._process_ended, lambda kind: groups.prefix(kind.value)
        )
        self.agents = Agents(
            self.authority, self.programs, self.processes, self.supervisor, str(places.home), self.revoked
        )
        self.engine = Engine(
            loop,
            self.models,
            self.processes,
            self.supervisor,
            stores.journal,
            launch.core_folder(places),
            self._model_changed,
        )
        self.inference = Inferences(loop, self.engine, self.models, self.authority)
        self.engine.work = self.inference
        self.health = Health(loop, self.processes, self.gates.message, self.engine.stuck, self.supervisor.put_down)
        self.watchdog = Watchdog(loop, self.processes, self._own_directory, self._serves, self._over_limit)
        self.code = CodeRuns(loop, places.state / "code", stores.journal, self.authority, self.processes, report)
        self.authority.judges[protocol.RunCode.OP] = self.code.judge
        self.choices = Choices(stores.journal)
        self.forwarder.off = self.choices.off
        self.drivers = Drivers(
            loop,
            self.programs,
            self.processes,
            self.supervisor,
            self.authority,
            self.forwarder,
            self.topics,
            self.choices,
            self.revoked,
            self._check_ready,
        )
        self._clock_timer: Timer | None = None
        self._clock_due = float("inf")
        self._anchor: Timer | None = None
        self._apps_up: list[Callable[[], None]] = []
        """What waits for the apps' gate to listen."""
        self.stopping = False
        self.failed: OpError | None = None
        """Why it cannot go on, once it cannot."""

    # -- boot and shutdown -----------------------------------------------------------------------------------------

    def start_gates(self) -> None:
        """The apps' one only when there are apps."""
        self.supervisor.sweep(launch.agents_folder(self.places))
        self.supervisor.start(self.processes.add(Kind.GATE, gates.SYSTEM))
        if len(self.apps):
            self.start_apps_gate()
        if any(cap.right.object == "net" for cap in self.caps):
            self.start_egress()

    def start_apps_gate(self, then: Callable[[], None] = lambda: None) -> None:
        """Call `then` once it listens."""
        process = self.processes.named(gates.APPS)
        if process is None:
            process = self.processes.add(Kind.GATE, gates.APPS)
            self.supervisor.start(process)
        if process.state is State.READY:
            then()
        else:
            self._apps_up.append(then)

    def start_egress(self) -> None:
        """The broker, when something may be connected to for the first time."""
        if self.processes.named(net.NAME) is None:
            launch.private_directory(paths.egress_socket(self.places.runtime).parent)
            self.supervisor.start(self.processes.add(Kind.EGRESS, net.NAME))

    def _egress_up(self) -> None:
        process = self.processes.named(net.NAME)
        if process is not None:
            self.supervisor.ready(process)

    def _restart_egress(self) -> None:
        process = self.processes.named(net.NAME)
        if process is not None:
            self.supervisor.restart(process)

    def watch(self) -> None:
        """See to it that everybody answers and nobody takes too much."""
        self.health.start()
        self.watchdog.start()

    def load_grants(self) -> None:
        """The user's own right, what she granted before, and what every program is by being installed."""
        own = self.caps.mint(USER, Right("*", "*", grantable=True), "boot")
        if self.journal.last_grant is not None:  # what somebody noted of one that is gone names no other
            self.caps.go_on_after(self.journal.last_grant)
        known = {app_holder(app.name) for app in self.apps}
        for grant in list(self.journal.grants()):
            if grant.holder.startswith("app:") and grant.holder not in known:
                self.journal.remove_grants([grant.id])  # killed while the app was let in, or thrown out
                continue
            try:
                right = Right.parse(grant.cap, str(self.places.home), self.programs.scope_kinds)
            except OpError as error:
                log.error("grant.unreadable", id=grant.id, err=error.detail)
                continue
            spent = self.journal.spending(grant.id)
            about = (grant.holder, right, grant.origin)
            kept = self.caps.mint(*about, id=grant.id, reason=grant.reason, spent=spent, parent=own.id)
            self.caps.keep(kept)
        self.drivers.admit_all()
        for app in self.apps:
            self.authority.app_born(app_holder(app.name))
        self._on_time()

    def shutdown(self) -> None:
        """In order: tell everybody, agents and drivers, then the core, then the gates; the loop ends when they have."""
        if self.stopping:
            return
        self.stopping = True
        self.topics.publish("sys.shutdown", {}, "kernel")
        self.code.stop_all()
        self.loop.later(params.DOWN_S, self.loop.stop)
        self._stop_in_order([Kind.AGENT, Kind.DRIVER, Kind.CORE])

    def _stop_in_order(self, kinds: list[Kind]) -> None:
        """Each kind once the one before it has ended, of itself or by force; none may start meanwhile."""
        if not kinds:
            self.loop.later(0.05, self.loop.stop)  # the gates have a moment to send the last answers
            return
        if kinds[0] is Kind.CORE:
            self.engine.shutdown()
        self.supervisor.stop_all(kinds[0])

        def look() -> None:
            if self.supervisor.children(kinds[0]):
                self.loop.later(0.01, look)
            else:
                self._stop_in_order(kinds[1:])

        look()

    def close(self) -> None:
        """Nobody outlives the kernel; what was spent is remembered exactly."""
        self.supervisor.close()
        self.code.close()
        try:
            self.journal.set_spending(self.caps.take_unsaved(exact=True))
            self.authority.audit.close()
            self.topics.close()
        except OpError as error:
            log.error("journal.unwritten", err=error.detail)
        self.journal.close()

    # -- the gates -------------------------------------------------------------------------------------------------

    def _from_gate(self, name: str, frame: bytes) -> None:
        kind = frame[:1]
        if kind == b"M":
            _, conn, size = gate_frames.MESSAGE.unpack_from(frame)
            peer = self.peers.get(conn)
            if peer is not None:
                self._message(peer, frame[9 : 9 + size], frame[9 + size :])
        elif kind == b"S":
            _, conn, _uid, os_pid = gate_frames.SEEN.unpack(frame)
            self.peers.seen(conn, os_pid)
        elif kind == b"N":
            _, conn, os_pid = gate_frames.NAMED.unpack_from(frame)
            app = frame[gate_frames.NAMED.size :].decode()
            self.peers.seen_app(conn, os_pid, app, let_in=self.apps.get(app) is not None)
        elif kind == b"G":
            self.peers.drop(gate_frames.CONN.unpack(frame)[1], "its connection is gone")
        elif kind == b"L":
            _, conn, count = gate_frames.LOST.unpack(frame)
            if self.peers.get(conn) is not None:
                self.topics.lost(conn, count)
        elif kind == b"P":
            self.apps.offer_server_key(frame[1:41].decode(), frame[41:].decode())
        elif kind == b"U":
            self._gate_up(name)

    def _gate_up(self, name: str) -> None:
        process = self.processes.named(name)
        if process is not None:
            self.supervisor.ready(process)
        if name == gates.APPS:
            waiting, self._apps_up = self._apps_up, []
            for then in waiting:
                then()
        self._check_ready()

    def _peer_gone(self, peer: Peer, why: str) -> None:
        if peer.process is not None and peer.process.conn == peer.conn:
            peer.process.conn = 0
            self.supervisor.lost(peer.process)
        self.calls.connection_gone(peer.conn, why)
        self.topics.gone(peer.conn)
        self.inference.connection_gone(peer.conn)
        self.forwarder.connection_gone(peer.conn)
        self.gates.drop(peer.conn)

    # -- messages --------------------------------------------------------------------------------------------------

    def _message(self, peer: Peer, raw_header: bytes, raw_body: bytes) -> None:
        number, answerable = 0, True
        try:
            raw = wire.decode_map(raw_header)
            number = raw["id"] if isinstance(raw.get("id"), int) and 0 <= raw["id"] < 1 << 63 else 0
            kind = raw.get("kind")
            answerable = not (isinstance(kind, str) and kind in _ONE_WAY)
            header = parse_header(raw)
            if header.kind is Message.CALL:
                self._call(peer, header, raw_body)
            elif header.kind is Message.REPLY:
                if not self.health.answered(peer.conn, header.id):
                    self.forwarder.answered(peer.conn, header, raw_body)
            elif header.kind is Message.CREDIT:
                self.calls.credit(peer.conn, header.id, header.n)
            elif header.kind is Message.CANCEL:
                self.calls.cancelled(peer.conn, header.id)
            else:
                raise OpError(Code.INVALID_ARGUMENT, f"a {header.kind} is not for the kernel")
        except wire.Malformed as error:
            self._refuse(peer, number, OpError(Code.INVALID_ARGUMENT, f"malformed: {error}"))
        except OpError as error:
            if answerable:  # a reply, a credit, a cancel have an id of somebody's call, and are not answered
                self._refuse(peer, number, error)
        except Exception as error:
            log.exception("message.bug", conn=peer.conn)
            if answerable:
                self._refuse(peer, number, OpError(Code.INTERNAL, f"{type(error).__name__} in the kernel"))
        self._anchor_soon()

    def _refuse(self, peer: Peer, number: int, error: OpError) -> None:
        header = pack_header(Header(kind=Message.REPLY, id=number, ok=False))
        self.gates.message(peer.conn, header, wire.encode(error.to_wire()))

    def _call(self, peer: Peer, header: Header, raw_body: bytes) -> None:
        if not peer.holder and header.op != protocol.Hello.OP:
            raise OpError(Code.DENIED, protocol.NOT_GREETED)
        call = self.calls.begin(peer.conn, peer.holder, header)
        try:
            args, values = wire.decode_map(raw_body), NOTHING
            if header.parent:
                self.calls.adopt(call, peer.conn, header.parent)
            call.label = self.authority.stamp(peer.holder, call.parent.label if call.parent is not None else None)
            if _REFERENCE in raw_body:
                values = self.authority.values.substitute(peer.holder, args)
                args = values.args
            call.read = call.label | values.label
            syscall = protocol.SYSCALLS.get(header.op)
            if syscall is not None:
                own, call.label = call.label, call.label | values.label
                self._syscall(peer, call, header, syscall, args, own, values.labels)
            else:
                self.forwarder.forward(call, header, args, values)
        except wire.Malformed as error:
            call.fail(OpError(Code.INVALID_ARGUMENT, f"{header.op}: malformed body: {error}"))
        except OpError as error:
            self.authority.refused(peer.holder, header.op, error)
            call.fail(error)
        except Exception as error:
            log.exception("syscall.bug", op=header.op, id=call.id)
            call.fail(OpError(Code.INTERNAL, f"{header.op}: {type(error).__name__} in the kernel", "please report it"))

    def _syscall(
        self,
        peer: Peer,
        call: Call,
        header: Header,
        syscall: type[protocol.Syscall],
        raw: dict[str, Any],
        own: Label,
        referenced: Mapping[str, Label],
    ) -> None:
        """`own` is the call's label without that of what was `referenced`."""
        args = protocol.parse(syscall, raw)
        if syscall.RIGHT is not None:
            object_, _, verb = syscall.RIGHT.partition(".")
            named = {name: getattr(args, name) for name in syscall.SCOPE.values()}
            values = self.authority.scope_values(object_, syscall.SCOPE, named)
            call.cap = self.authority.check(peer.holder, object_, verb, values, header.cap)
            self.authority.refuse_tainted(syscall.OP, verb, call.label)
        if header.keep:
            self.authority.spend_outcome(peer.holder)

        file = args if isinstance(args, protocol.RunCode) and args.file is not None else None
        unchanged = self.code.projects.pin(file.project) if file is not None else None

        def go() -> None:
            if unchanged is not None:
                unchanged()
            result = syscalls.HANDLERS[syscall.OP](self, syscalls.Request(peer, call), args)
            if result is not None:
                call.reply(result)
            elif not call.done and syscall.OP not in syscalls.OWN_TIME:
                default = params.GENERATE_S if syscall.RIGHT in ("llm.generate", "proc.spawn") else params.SYSCALL_S
                default = params.CODE_S if syscall is protocol.RunCode else default
                self.calls.expire(call, header.deadline_ms / 1000 or default)

        if syscall.EFFECT is not protocol.Effect.READ and call.cap is not None:
            self._attempt(call, call.cap, header, raw, go, own, referenced)
        elif call.cap is None or call.cap.right.unconditional:
            go()
        else:
            self._attempt(call, call.cap, header, raw, go, call.label, {})

    def _attempt(
        self,
        call: Call,
        cap: Capability,
        header: Header,
        raw: dict[str, Any],
        go: Callable[[], None],
        label: Label,
        values: Mapping[str, Label],
    ) -> None:
        """A syscall with an effect, or under a capability that asks, or that has a ceiling."""
        request = self.authority.plain_request(call.holder, call.op, raw, label, cap, values)
        decision = self.authority.decide(request, cap)
        wait_s = header.deadline_ms / 1000
        self.asking.attempt(Attempt(call, request, decision, wire.encode(raw), cap, go, wait_s=wait_s))

    def _deliver(
        self, call: Call, ok: bool, body: bytes, label: Label, source: Source | None
    ) -> tuple[bool, bytes, Label]:
        """What a caller gets of an answer: nothing reaches it before its label does. Raises `OpError`."""
        if not ok:
            label = label | call.read  # an error may say what stood in the arguments
        if label is BOTTOM and not call.keep:
            return ok, body, label
        labels = self.authority.labels
        source = source or labels.source("kernel", call.op, label, call.id)
        if call.keep and (ok or not label <= labels.of(call.holder)):
            value = self.authority.values.put(call.holder, body, label, source)
            if ok:
                return True, wire.encode(value.describe()), BOTTOM
            code = wire.decode_map(body).get("code")
            told = OpError(
                Code(code) if code in set(Code) else Code.INTERNAL, f"{call.op} failed; what it says is kept"
            )
            return False, wire.encode({**told.to_wire(), "value": value.describe()}), BOTTOM
        self.authority.receive(call.holder, label, source)
        if call.parent is not None:
            call.parent.label = call.parent.label | label
        elif call.holder in self.programs.drivers and not self.programs.shipped(call.holder):
            self.authority.hear(call.holder, label)
        return ok, body, label

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
        process = self.peers.greet(peer, token, client)
        if process is not None:
            self.supervisor.greeted(process)

    def app_removed(self, name: str, key: str) -> None:
        """Its key opens nothing any more, and its connections are over."""
        self.gates.shut_out(key)
        self.peers.drop_all(lambda peer: peer.holder == app_holder(name), "its key was taken back")

    def process_ready(self, process: Process, status: str) -> None:
        """It serves: hand it what waited, unless it is about to be started again."""
        process.status = status
        self.supervisor.ready(process)
        if process.state is not State.READY:
            return
        log.info(
            "process.ready", pid=process.pid, name=process.name, dur_ms=round((self.loop.clock() - process.born) * 1000)
        )
        self.topics.publish("proc.started", {"pid": process.pid, "name": process.name}, "kernel")
        self.forwarder.ready(process)
        self._check_ready()

    def _check_ready(self) -> None:
        """The system is ready once the gates answer and every driver serves, or has failed to."""
        boot = [process for process in self.processes if process.kind in (Kind.GATE, Kind.DRIVER)]
        if not self.ready_s and all(process.state not in (State.STARTING, State.WAITING) for process in boot):
            self.ready_s = self.loop.clock() - self.booted
            log.info("boot.ready", dur_ms=round(self.ready_s * 1000))
            self.engine.drivers_ready()
            self._expect_agents()
            self.on_ready()

    def _expect_agents(self) -> None:
        """What the shipped agents are started with, as long as none of them has been granted a directory."""
        for name, manifest in self.programs.agents.items():
            if jail.is_own(Path(manifest.directory)):
                like = Process(0, Kind.AGENT, name, manifest=manifest)
                self.supervisor.expect(launch.program(like, self.places, (), self.report.tier))
                return

    # -- processes -------------------------------------------------------------------------------------------------

    def _command(self, process: Process) -> Command:
        """How to start a process, as of now."""
        if process.kind is Kind.GATE:
            apps = process.program == gates.APPS
            fd = self.gates.attach(process.program)
            if apps and self.apps.server_key is not None:
                self.gates.serve_apps(self.apps.server_key[1], [(app.key, app.name) for app in self.apps])
            address = (paths.apps_socket if apps else paths.bus_socket)(self.places.runtime)
            return launch.gate(fd, address, self.report.tier, apps=apps)
        if process.kind is Kind.EGRESS:
            address = paths.egress_socket(self.places.runtime)
            return launch.egress(self.egress.attach(), address, self.report.tier)
        if process.kind is Kind.CORE:
            scratch = launch.core_folder(self.places)
            launch.emptied(scratch)
            return launch.core(self.engine.attach(), self.engine.folders(), scratch, self.report.tier)
        settings = self.choices.settings(process.name) if process.kind is Kind.DRIVER else None
        return launch.program(process, self.places, self.caps.held(process.name), self.report.tier, settings)

    def _process_ended(self, process: Process, reason: str) -> None:
        """Its calls fail, its contexts and capabilities go; the supervisor sees to its return."""
        if process.kind is Kind.GATE:
            self.gates.detach(process.program)
            self.peers.drop_all(lambda peer: gates.of(peer.conn) == process.program, "the gate ended")
            if process.state is State.FAILED and process.program == gates.SYSTEM:  # nobody can reach the kernel now
                hint = "see the log, and `llmosctl doctor`"
                self.failed = OpError(Code.UNAVAILABLE, f"the gate does not run: {reason}", hint)
                self.loop.later(0, self.shutdown)
            return
        if process.kind is Kind.CORE:
            self.engine.detach(process, reason)
            return
        if process.kind is Kind.EGRESS:
            self.egress.detach()
            return
        self.egress.process_ended(process)
        if process.conn:
            self.peers.drop(process.conn, f"{process.name} ended ({reason})")
        self.inference.drop(process.name)
        told = (
            reason if process.trouble else reason.partition(" ")[0].rstrip(":")
        )  # no more of its exit status than a word
        self.topics.publish("proc.ended", {"pid": process.pid, "name": process.name, "reason": told}, "kernel")
        if process.kind is Kind.AGENT:
            self.agents.ended(process, process.details or reason)
        elif process.state is State.FAILED:
            self.forwarder.given_up(process, reason)
            self._check_ready()

    def _own_directory(self, process: Process) -> Path | None:
        if process.kind is Kind.CORE:
            return launch.core_folder(self.places)
        if process.kind is Kind.DRIVER:
            return launch.driver_folder(process.program, self.places)
        return process.own

    def _serves(self, process: Process) -> bool:
        """Whether it has something to compute for: a driver a call to serve, an agent one under way."""
        return bool(self.calls.load(process.conn) or self.calls.made_by(process.conn))

    def _over_limit(self, process: Process, excess: Excess) -> None:
        """It uses more than it may: everybody hears of it, and it ends."""
        about = {"pid": process.pid, "name": process.name, "limit": excess.limit}
        used = {"used": excess.used, "allowed": excess.allowed}
        label = self.authority.labels.of(process.name) if process.manifest is not None else BOTTOM
        self.topics.publish("proc.limit", {**about, **used}, "kernel", label)
        self.supervisor.put_down(process, excess.public, excess.details, for_good=excess.lasting)

    # -- events and changes ----------------------------------------------------------------------------------------

    def revoked(self, caps: list[Capability], how: str = ENDED) -> OpError | None:
        """What followed from these ends with them, whatever the journal can do about it. → why it could not be written down."""
        failure = None
        self.authority.revoked(caps, how)
        try:
            self.journal.remove_grants(cap.id for cap in caps)
        except OpError as error:
            failure = error
            log.error("grant.unremoved", err=error.detail)
        self.topics.bus.revoke({cap.id for cap in caps})
        self.forwarder.revoked({cap.id for cap in caps})
        self.calls.revoked({cap.id for cap in caps})
        self.egress.revoked({cap.id for cap in caps})
        self._rebuild_jails({cap.holder for cap in caps if cap.right.object == "fs"})
        connected = {cap.holder for cap in caps if cap.right.object == "net"}
        self._rebuild_jails({holder for holder in connected if not self.caps.can(holder, "net", "connect")})
        for holder in {cap.holder for cap in caps if cap.right.object == "label"}:
            self._trust(holder)
        return failure

    def granted(self, cap: Capability) -> None:
        """A driver's jail shows it a new directory; a running agent's instances hold it at once."""
        if cap.right.object == "fs":
            self._rebuild_jails({cap.holder})
        if cap.right.object == "net":
            self.start_egress()
            held = sum(one.right.object == "net" for one in self.caps.held(cap.holder))
            if held == 1:  # from now on its jail shows it the broker
                self._rebuild_jails({cap.holder})
        if cap.right.object == "label":
            self._trust(cap.holder)
        self.agents.granted(cap)
        self.watch_clock()

    def _trust(self, holder: str) -> None:
        """`label.trust` was given to it, or taken back."""
        if holder in self.programs.drivers:
            self.drivers.trust_changed(holder)
        elif holder not in {app_holder(app.name) for app in self.apps}:
            return
        elif self.caps.can(holder, "label", "trust"):
            self.authority.app_trusted(holder)
        else:
            self.authority.app_born(holder)

    def _rebuild_jails(self, holders: set[str]) -> None:
        for process in self.processes:
            if process.name in holders and process.kind is Kind.DRIVER:
                self.supervisor.restart(process, soon=params.REJAIL_S)
            elif process.name in holders and process.kind is Kind.AGENT:
                self.supervisor.stop(process)  # its jail cannot be narrowed, and it cannot start again

    def _model_changed(self, model: Model, state: str) -> None:
        default = model.name == self.models.default
        self.topics.publish("sys.model", {"state": state, "model": model.name, "default": default}, "kernel")

    def _approval_changed(self, approval: Approval) -> None:
        """Written down and told at once; calls that wait for it go on when whoever changed it is done."""
        self.authority.settled(approval)
        about = {"id": approval.id, "op": approval.op, "holder": approval.holder}
        if approval.state.value == "pending":
            self.topics.publish("approval.requested", {**about, "expires": approval.expires}, "kernel")
            self.watch_clock()
        else:
            self.topics.publish("approval.settled", {**about, "state": approval.state.value}, "kernel")
            self.loop.later(0, lambda: self.asking.settled(approval))

    # -- time ------------------------------------------------------------------------------------------------------

    def watch_clock(self) -> None:
        """Be there when the next capability or approval comes to its end."""
        due = min(self.caps.due, self.authority.approvals.next_expiry or float("inf"))
        if due < self._clock_due:
            if self._clock_timer is not None:
                self._clock_timer.cancel()
            self._clock_due = due
            self._clock_timer = self.loop.later(min(max(0.0, due - now()), params.CLOCK_S), self._on_time)

    def _on_time(self) -> None:
        self._clock_timer, self._clock_due = None, float("inf")
        self.authority.approvals.expire()
        gone = self.caps.expire()
        self.revoked(gone, "expired")
        self.watch_clock()

    def _anchor_soon(self) -> None:
        if self._anchor is None and self.authority.audit.unanchored:
            self._anchor = self.loop.later(params.AUDIT_ANCHOR_S, self._bring_to_disk)

    def _bring_to_disk(self) -> None:
        self._anchor = None
        try:
            self.authority.audit.anchor()
        except OpError as error:
            log.error("audit.unanchored", err=error.detail)
