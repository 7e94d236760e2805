"""The syscall table: from an op's name to its handler. The right to call it has been checked when a handler runs.

A handler returns the result, or None when it will answer `request.call` later, or raises `OpError`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from llmos.ipc import manifest as manifests
from llmos.ipc import paths, protocol, wire
from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.agents import Birth
from llmos.kernel.calls import Call
from llmos.kernel.capability import USER
from llmos.kernel.flow import Mode
from llmos.kernel.forward import Function, describe
from llmos.kernel.labels import BOTTOM, Integrity, Label, Source, join
from llmos.kernel.process import Kind, Process, State, own_rss_mb

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel
    from llmos.kernel.peers import Peer

VERSION = "0.1.0"


@dataclass(frozen=True)
class Request:
    """Who calls, and the call to answer; it carries the capability that allowed it, and its label."""

    peer: Peer
    call: Call


Result = dict[str, Any] | None
_S = TypeVar("_S", bound=protocol.Syscall)
_Handler = Callable[["Kernel", Request, _S], Result]

HANDLERS: dict[str, Callable[[Kernel, Request, Any], Result]] = {}


def syscall(kind: type[_S]) -> Callable[[_Handler[_S]], _Handler[_S]]:
    def register(handler: _Handler[_S]) -> _Handler[_S]:
        HANDLERS[kind.OP] = handler
        return handler

    return register


OWN_TIME = frozenset({protocol.EndorseValue.OP, protocol.VerifyAudit.OP, protocol.RunUndo.OP})
"""Those that say themselves how long they may take."""
STRANGERS = Label(Integrity.UNTRUSTED)
"""Of what anybody may have had a word in."""
LOG_BYTES = 55_000
"""Of a log's lines in one answer."""
ANSWER_BYTES = 60_000
"""Of a list's rows in one answer; what does not fit is left for the next page, or out."""


def fitting(rows: Iterable[dict[str, Any]], left: int = ANSWER_BYTES) -> list[dict[str, Any]]:
    """The first of them, as many as fit an answer, or so many bytes of it; at least one."""
    found: list[dict[str, Any]] = []
    for row in rows:
        left -= len(wire.encode(row))
        if left < 0 and found:
            break
        found.append(row)
    return found


# -- sys ---------------------------------------------------------------------------------------------------------------


@syscall(protocol.Hello)
def _hello(kernel: Kernel, request: Request, args: protocol.Hello) -> Result:
    kernel.greet(request.peer, args.token, args.client)
    process = request.peer.process
    return {
        "badge": request.peer.holder,
        "pid": process.pid if process is not None else 0,
        "version": VERSION,
        "home": str(kernel.places.home),
    }


@syscall(protocol.Ping)
def _ping(kernel: Kernel, request: Request, args: protocol.Ping) -> Result:  # noqa: ARG001
    return {}


@syscall(protocol.Ready)
def _ready(kernel: Kernel, request: Request, args: protocol.Ready) -> Result:
    kernel.process_ready(_own_process(request), args.status)
    return {}


@syscall(protocol.Status)
def _status(kernel: Kernel, request: Request, args: protocol.Status) -> Result:  # noqa: ARG001
    model = kernel.models.get(kernel.models.default or "")
    answer = {
        "version": VERSION,
        "uptime_s": round(kernel.loop.clock() - kernel.booted, 1),
        "ready_s": round(kernel.ready_s, 3),
        "pid": os.getpid(),
        "rss_mb": own_rss_mb(),
        "home": str(kernel.places.home),
        "state": str(kernel.places.state),
        "socket": str(paths.bus_socket(kernel.places.runtime)),
        "tier": kernel.report.tier.value,
        "limits": {"by": "cgroup" if kernel.groups.works else "watchdog", "reason": kernel.groups.reason},
        "model": {
            **(model.info if model is not None else {}),
            "name": kernel.models.default or "",
            "state": kernel.engine.state,
            "problem": kernel.engine.problem,
        },
        "counts": {
            "processes": len(kernel.processes),
            "calls": len(kernel.calls),
            "functions": len(kernel.forwarder.functions),
            "apps": len(kernel.apps),
            "approvals": sum(one.state.value == "pending" for one in kernel.authority.approvals),
            "dropped_events": sum(kernel.topics.dropped.values()),
        },
        "broken": kernel.programs.broken,
    }
    said_by = STRANGERS if kernel.programs.broken else BOTTOM
    request.call.reply(answer, said_by, kernel.authority.labels.source("packages", "sys.status", said_by))
    return None


@syscall(protocol.Ops)
def _ops(kernel: Kernel, request: Request, args: protocol.Ops) -> Result:  # noqa: ARG001
    holder = request.peer.holder
    rows = [
        describe(f"{name}.{verb}", op, op.label.tags if op.label is not None else manifest.tags)
        for name, manifest in kernel.programs.drivers.items()
        if name not in kernel.choices.off
        for verb, op in manifest.ops.items()
        if verb not in manifests.KERNEL_OPS and kernel.caps.can(holder, name, op.effect.value)
    ]
    lent = {
        name: function
        for name, function in kernel.forwarder.functions.items()
        if kernel.caps.allowed(holder, "app", "call", {"name": (name,)})
    }
    rows += [describe(f"app.{name}", function.op, [f"app:{name}"]) for name, function in lent.items()]
    described_by = join(function.label for function in lent.values())
    request.call.reply(
        {"ops": fitting(rows)}, described_by, kernel.authority.labels.source("apps", "sys.ops", described_by)
    )
    return None


@syscall(protocol.Shutdown)
def _shutdown(kernel: Kernel, request: Request, args: protocol.Shutdown) -> Result:  # noqa: ARG001
    kernel.loop.later(0, kernel.shutdown)
    return {}


# -- proc --------------------------------------------------------------------------------------------------------------


@syscall(protocol.Spawn)
def _spawn(kernel: Kernel, request: Request, args: protocol.Spawn) -> Result:
    peer, call = request.peer, request.call
    parent = peer.process.pid if peer.process is not None else 0
    process = kernel.agents.spawn(
        Birth(args.program, args.args, args.allow, peer.holder, parent, call.label, Mode(args.mode))
    )
    kernel.watch_clock()
    if process.state is State.FAILED:
        raise OpError(Code.UNAVAILABLE, f"{args.program} cannot be started: {process.status}", "see `llmosctl doctor`")
    if not args.wait:
        return {"pid": process.pid}
    kernel.agents.waiters[process.pid] = call
    call.on_end = lambda: kernel.agents.stop_waiting(process)
    return None


@syscall(protocol.ListProcesses)
def _list(kernel: Kernel, request: Request, args: protocol.ListProcesses) -> Result:
    own = {
        "pid": 0, "name": "kernel", "kind": "kernel", "state": "ready", "parent": 0, "os_pid": os.getpid(), "started": 0.0,
        "restarts": 0, "rss_mb": own_rss_mb(), "cpu_s": round(sum(os.times()[:2]), 2), "calls": 0, "status": "", "label": str(BOTTOM),
        "pss_mb": own_rss_mb(), "cpu_pct": 0, "threads": 1, "disk_mb": 0.0, "limits": {},
    }  # fmt: skip
    labels = kernel.authority.labels
    wanted = sorted((one for one in kernel.processes if one.pid > args.after), key=lambda one: one.pid)
    rows = [{**process.describe(), "label": str(_of(kernel, process))} for process in wanted]
    said_by = join(_of(kernel, process) for process in kernel.processes if process.status)
    shown = fitting([own, *rows] if args.after < 0 else rows)
    following = shown[-1]["pid"] if wanted and shown[-1]["pid"] < wanted[-1].pid else 0
    source = labels.source("processes", "proc.list", said_by)
    request.call.reply({"processes": shown, "next": following}, said_by, source)
    return None


def _of(kernel: Kernel, process: Process) -> Label:
    """What a process has seen; the gates and the core hold nothing of their own."""
    if process.kind is Kind.CODE:
        return kernel.code.projects.label(process.args["project"])
    return kernel.authority.labels.of(process.name) if process.manifest is not None else BOTTOM


@syscall(protocol.Kill)
def _kill(kernel: Kernel, request: Request, args: protocol.Kill) -> Result:  # noqa: ARG001
    process = kernel.processes.get(args.pid)
    if process.kind is Kind.CODE:
        kernel.code.kill(process)
    else:
        kernel.supervisor.stop(process, force=args.force)
    return {}


@syscall(protocol.Logs)
def _logs(kernel: Kernel, request: Request, args: protocol.Logs) -> Result:
    process = kernel.processes.named(args.name)
    ended = kernel.agents.ended_logs
    ring = kernel.log_ring if args.name == "kernel" else process.log if process else ended.get(args.name)
    if ring is None:
        known = ", ".join(["kernel", *(one.name for one in kernel.processes), *ended])
        raise OpError(Code.NOT_FOUND, f"no process is called {args.name!r}", f"known: {known}")
    came = ring.after(args.after or 0, args.since)
    fit = itertools.accumulate(len(line.encode()) + 5 for line in (came if args.after is not None else reversed(came)))
    count = min(args.lines, sum(size <= LOG_BYTES for size in fit))
    lines = came[:count] if args.after is not None else came[len(came) - count :]
    following = ring.count - (len(came) - count if args.after is not None else 0)
    label = kernel.authority.labels.last_of(process.name if process is not None and process.manifest else args.name)
    said_by = STRANGERS if ring is kernel.log_ring else label  # it repeats what callers called things
    named = process.name if process is not None and ring is process.log else args.name
    answer = {"name": named, "lines": lines, "next": following, "more": following < ring.count}
    request.call.reply(answer, said_by, kernel.authority.labels.source(args.name, "proc.logs", said_by))
    return None


@syscall(protocol.Emit)
def _emit(kernel: Kernel, request: Request, args: protocol.Emit) -> Result:
    process = _own_process(request)
    waiter = kernel.agents.waiters.get(process.pid)
    if waiter is None:
        return {}
    if waiter.is_behind():  # though its own call may have been cancelled
        raise OpError(Code.BUSY, "an earlier proc.emit has not been taken yet", "wait for each one's answer")
    waiter.chunk(args.data, request.call.label, _said(kernel, process, request.call))
    if not waiter.is_behind():
        return {}
    waiter.on_drained = lambda: request.call.reply({})
    return None


@syscall(protocol.Exit)
def _exit(kernel: Kernel, request: Request, args: protocol.Exit) -> Result:
    process = _own_process(request)
    error = OpError.from_wire(args.error) if args.error is not None else None
    waiter = kernel.agents.waiters.pop(process.pid, None)
    if waiter is not None:
        source = _said(kernel, process, request.call)
        if error is not None:
            waiter.fail(error, request.call.label, source)
        else:
            waiter.reply({"pid": process.pid, "result": args.result or {}}, request.call.label, source)
    return {}


def _said(kernel: Kernel, process: Process, call: Call) -> Source:
    return kernel.authority.labels.source(process.name, call.op, call.label, call.id)


def _own_process(request: Request) -> Process:
    if request.peer.process is None:
        raise OpError(Code.INVALID_ARGUMENT, f"{request.call.op} is for processes that the kernel started")
    return request.peer.process


# -- bus ---------------------------------------------------------------------------------------------------------------


@syscall(protocol.Publish)
def _publish(kernel: Kernel, request: Request, args: protocol.Publish) -> Result:
    return {"receivers": kernel.topics.publish(args.topic, args.data, request.peer.holder, request.call.label)}


@syscall(protocol.Subscribe)
def _subscribe(kernel: Kernel, request: Request, args: protocol.Subscribe) -> Result:
    peer, cap = request.peer, request.call.cap
    number = kernel.topics.bus.subscribe(
        peer.conn, args.topic, cap.id if cap is not None else "", peer.holder, peer.client
    )
    request.call.reply({"subscription": number})  # before the first event, so that the caller knows what it belongs to
    kernel.topics.send_retained(peer.conn, args.topic)
    return None


@syscall(protocol.Replay)
def _replay(kernel: Kernel, request: Request, args: protocol.Replay) -> Result:
    rows, following, label = kernel.topics.replay(args.topic, args.after, args.since, args.limit)
    source = kernel.authority.labels.source("events", f"replay {args.topic}", label)
    request.call.reply({"events": [row.describe() for row in rows], "next": following}, label, source)
    return None


@syscall(protocol.ListSubscriptions)
def _subscriptions(kernel: Kernel, request: Request, args: protocol.ListSubscriptions) -> Result:  # noqa: ARG001
    """Those that lose most first."""
    rows = [
        {
            "id": one.id,
            "holder": one.holder,
            "client": one.client,
            "topic": one.pattern,
            "dropped": kernel.topics.dropped.get(one.conn, 0),
        }
        for one in kernel.topics.bus.subscriptions()
    ]
    shown = fitting(sorted(rows, key=lambda row: -row["dropped"]))
    labels = kernel.authority.labels
    said_by = join(labels.of(row["holder"]) for row in shown)  # a client's name and patterns are its own words
    request.call.reply({"subscriptions": shown}, said_by, labels.source("subscribers", "bus.list", said_by))
    return None


@syscall(protocol.Unsubscribe)
def _unsubscribe(kernel: Kernel, request: Request, args: protocol.Unsubscribe) -> Result:
    kernel.topics.bus.unsubscribe(request.peer.conn, args.subscription)
    return {}


# -- fn ----------------------------------------------------------------------------------------------------------------


@syscall(protocol.Register)
def _register(kernel: Kernel, request: Request, args: protocol.Register) -> Result:
    functions = kernel.forwarder.functions
    known = functions.get(args.name)
    if known is not None and known.conn != request.peer.conn:
        raise OpError(Code.CONFLICT, f"app.{args.name} is lent by another program", "choose another name")
    try:
        spec = {name: msgspec.convert(arg, manifests.Arg) for name, arg in args.args.items()}
    except msgspec.ValidationError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"fn.register: args: {error}") from None
    if len(wire.encode(args.args)) + len(wire.encode(args.utterances)) > params.FUNCTION_BYTES:
        raise OpError(
            Code.TOO_LARGE, f"fn.register: more than {params.FUNCTION_BYTES} bytes of description", "say it shorter"
        )
    lent = sum(function.conn == request.peer.conn for function in functions.values())
    if known is None and lent >= params.MAX_FUNCTIONS:
        raise OpError(Code.BUSY, f"{params.MAX_FUNCTIONS} functions on one connection", "unregister some")
    op = manifests.Op(effect=args.effect, summary=args.summary, utterances=args.utterances, args=spec)
    label = request.call.label | Label.make("trusted", [f"app:{args.name}"])
    if request.peer.holder != USER:
        label = label | Label(Integrity.UNTRUSTED)
    cap = request.call.cap
    functions[args.name] = Function(
        request.peer.conn, request.peer.holder, op, label, cap.id if cap is not None else ""
    )
    return {"op": f"app.{args.name}"}


@syscall(protocol.Unregister)
def _unregister(kernel: Kernel, request: Request, args: protocol.Unregister) -> Result:
    known = kernel.forwarder.functions.get(args.name)
    if known is None or known.conn != request.peer.conn:
        raise OpError(Code.NOT_FOUND, f"you lend no function {args.name!r}")
    del kernel.forwarder.functions[args.name]
    return {}


# -- driver ------------------------------------------------------------------------------------------------------------


@syscall(protocol.ListDrivers)
def _drivers(kernel: Kernel, request: Request, args: protocol.ListDrivers) -> Result:  # noqa: ARG001
    rows = [_driver(kernel, name) for name in kernel.programs.drivers]
    rows += [{"name": name, "state": "broken", "status": why} for name, why in kernel.programs.broken.items()]
    said_by = join(kernel.authority.labels.of(name) for name in kernel.programs.drivers)
    if kernel.programs.broken:
        said_by = said_by | STRANGERS
    return _labelled(kernel, request, {"drivers": fitting(rows)}, said_by)


def _labelled(kernel: Kernel, request: Request, answer: dict[str, Any], said_by: Label) -> Result:
    """An answer in which others have had a word."""
    request.call.reply(answer, said_by, kernel.authority.labels.source("drivers", request.call.op, said_by))
    return None


@syscall(protocol.ScanDrivers)
def _scan(kernel: Kernel, request: Request, args: protocol.ScanDrivers) -> Result:  # noqa: ARG001
    changes = kernel.drivers.rescan()
    return {
        "added": changes.added,
        "changed": changes.changed,
        "removed": changes.removed,
        "broken": kernel.programs.broken,
    }


@syscall(protocol.ShowDriver)
def _show_driver(kernel: Kernel, request: Request, args: protocol.ShowDriver) -> Result:
    manifest = kernel.programs.drivers.get(args.name)
    if manifest is None:
        raise OpError(
            Code.NOT_FOUND, f"no driver is called {args.name!r}", f"installed: {', '.join(kernel.programs.drivers)}"
        )
    ops = {verb: msgspec.to_builtins(op) for verb, op in manifest.ops.items()}
    settings = {key: setting.get("default") for key, setting in manifest.settings.items()}
    settings |= kernel.choices.settings(args.name)
    answer = {**_driver(kernel, args.name), "manifest": msgspec.to_builtins(manifest), "ops": ops, "settings": settings}
    return _labelled(kernel, request, answer, kernel.authority.labels.of(args.name))


def _driver(kernel: Kernel, name: str) -> dict[str, Any]:
    manifest, process = kernel.programs.drivers[name], kernel.processes.named(name)
    return {
        "name": name,
        "version": manifest.version,
        "summary": manifest.summary,
        "state": process.state.value if process is not None else "disabled" if name in kernel.choices.off else "off",
        "status": process.status if process is not None else "",
        "pid": process.pid if process is not None else 0,
        "ops": [f"{name}.{verb}" for verb in manifest.ops],
        "requests": kernel.programs.requests(name, str(kernel.places.home), kernel.caps.held(name)),
    }
