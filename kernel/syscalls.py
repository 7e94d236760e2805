"""The syscall table: from an op's name to its handler. The right to call it has been checked when a handler runs.

A handler returns the result, or None when it will answer `request.call` later, or raises `OpError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from llmos.ipc import manifest as manifests
from llmos.ipc import paths, protocol
from llmos.ipc.errors import Code, OpError
from llmos.kernel.calls import Call
from llmos.kernel.capability import USER, Capability, Right
from llmos.kernel.process import Process, State, own_rss_mb

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel, Peer

VERSION = "0.1.0"


@dataclass(frozen=True)
class Request:
    """Who calls, the call to answer, and the capability that allowed it."""

    peer: Peer
    call: Call
    cap: Capability | None


Result = dict[str, Any] | None
_S = TypeVar("_S", bound=protocol.Syscall)
_Handler = Callable[["Kernel", Request, _S], Result]

HANDLERS: dict[str, Callable[[Kernel, Request, Any], Result]] = {}


def _syscall(kind: type[_S]) -> Callable[[_Handler[_S]], _Handler[_S]]:
    def register(handler: _Handler[_S]) -> _Handler[_S]:
        HANDLERS[kind.OP] = handler
        return handler

    return register


# -- sys ---------------------------------------------------------------------------------------------------------------


@_syscall(protocol.Hello)
def _hello(kernel: Kernel, request: Request, args: protocol.Hello) -> Result:
    kernel.greet(request.peer, args.token, args.client)
    process = request.peer.process
    return {
        "badge": request.peer.holder,
        "pid": process.pid if process is not None else 0,
        "version": VERSION,
        "home": str(kernel.places.home),
    }


@_syscall(protocol.Ping)
def _ping(kernel: Kernel, request: Request, args: protocol.Ping) -> Result:  # noqa: ARG001
    return {}


@_syscall(protocol.Ready)
def _ready(kernel: Kernel, request: Request, args: protocol.Ready) -> Result:
    kernel.process_ready(_own_process(request), args.status)
    return {}


@_syscall(protocol.Status)
def _status(kernel: Kernel, request: Request, args: protocol.Status) -> Result:  # noqa: ARG001
    model = kernel.model
    return {
        "version": VERSION,
        "uptime_s": round(kernel.loop.clock() - kernel.booted, 1),
        "ready_s": round(kernel.ready_s, 3),
        "pid": os.getpid(),
        "rss_mb": own_rss_mb(),
        "home": str(kernel.places.home),
        "state": str(kernel.places.state),
        "socket": str(paths.bus_socket(kernel.places.runtime)),
        "tier": kernel.report.tier.value,
        "model": {"name": model.name or "", "state": model.state, "problem": model.problem, **model.info},
        "counts": {
            "processes": len(kernel.processes),
            "calls": len(kernel.calls),
            "functions": len(kernel.functions),
            "dropped_events": sum(kernel.dropped.values()),
        },
        "broken": kernel.programs.broken,
    }


@_syscall(protocol.Ops)
def _ops(kernel: Kernel, request: Request, args: protocol.Ops) -> Result:  # noqa: ARG001
    holder = request.peer.holder
    rows = [
        _describe(f"{name}.{verb}", op, op.label.tags if op.label is not None else manifest.tags)
        for name, manifest in kernel.programs.drivers.items()
        for verb, op in manifest.ops.items()
        if kernel.caps.can(holder, name, op.effect.value)
    ]
    rows += [
        _describe(f"app.{name}", function.op, [f"app:{name}"])
        for name, function in kernel.functions.items()
        if kernel.caps.allowed(holder, "app", "call", {"name": (name,)})
    ]
    return {"ops": rows}


def _describe(name: str, op: manifests.Op, tags: list[str]) -> dict[str, Any]:
    return {
        "op": name,
        "summary": op.summary,
        "effect": op.effect.value,
        "utterances": op.utterances,
        "control": op.control,
        "args": {arg: msgspec.to_builtins(spec) for arg, spec in op.args.items()},
        "tags": tags,
    }


@_syscall(protocol.Shutdown)
def _shutdown(kernel: Kernel, request: Request, args: protocol.Shutdown) -> Result:  # noqa: ARG001
    kernel.loop.later(0, kernel.shutdown)
    return {}


# -- proc --------------------------------------------------------------------------------------------------------------


@_syscall(protocol.Spawn)
def _spawn(kernel: Kernel, request: Request, args: protocol.Spawn) -> Result:
    peer, call = request.peer, request.call
    process = kernel.spawn_agent(
        args.program, args.args, args.allow, peer.holder, peer.process.pid if peer.process is not None else 0
    )
    if process.state is State.FAILED:
        raise OpError(Code.UNAVAILABLE, f"{args.program} cannot be started: {process.status}", "see `llmosctl doctor`")
    if not args.wait:
        return {"pid": process.pid}
    kernel.waiters[process.pid] = call
    call.on_end = lambda: _stop_waiting(kernel, process)
    return None


def _stop_waiting(kernel: Kernel, process: Process) -> None:
    """Nobody waits for the agent's result any more: it has given it, or its caller has gone and it ends with it."""
    if kernel.waiters.pop(process.pid, None) is not None:
        kernel.supervisor.stop(process)


@_syscall(protocol.ListProcesses)
def _list(kernel: Kernel, request: Request, args: protocol.ListProcesses) -> Result:  # noqa: ARG001
    own = {
        "pid": 0, "name": "kernel", "kind": "kernel", "state": "ready", "parent": 0, "os_pid": os.getpid(), "started": 0.0,
        "restarts": 0, "rss_mb": own_rss_mb(), "cpu_s": round(sum(os.times()[:2]), 2), "calls": 0, "status": "",
    }  # fmt: skip
    return {"processes": [own, *(process.describe() for process in kernel.processes)]}


@_syscall(protocol.Kill)
def _kill(kernel: Kernel, request: Request, args: protocol.Kill) -> Result:  # noqa: ARG001
    kernel.supervisor.stop(kernel.processes.get(args.pid), force=args.force)
    return {}


@_syscall(protocol.Logs)
def _logs(kernel: Kernel, request: Request, args: protocol.Logs) -> Result:  # noqa: ARG001
    if args.name == "kernel":
        ring = kernel.log_ring
    else:
        process = kernel.processes.named(args.name)
        if process is None:
            known = ", ".join(["kernel", *(one.name for one in kernel.processes)])
            raise OpError(Code.NOT_FOUND, f"no process is called {args.name!r}", f"running: {known}")
        ring = process.log
    lines = list(ring.lines)[-args.lines :]
    while sum(len(line) for line in lines) > 40_000:  # what fits an answer; the newest matter most
        lines = lines[len(lines) // 4 + 1 :]
    return {"name": args.name, "lines": lines}


@_syscall(protocol.Emit)
def _emit(kernel: Kernel, request: Request, args: protocol.Emit) -> Result:
    waiter = kernel.waiters.get(_own_process(request).pid)
    if waiter is None:
        return {}
    waiter.chunk(args.data)
    if not waiter.behind:
        return {}
    waiter.on_drained = lambda: request.call.reply({})
    return None


@_syscall(protocol.Exit)
def _exit(kernel: Kernel, request: Request, args: protocol.Exit) -> Result:
    process = _own_process(request)
    waiter = kernel.waiters.pop(process.pid, None)
    if waiter is not None:
        if args.error is not None:
            waiter.fail(OpError.from_wire(args.error))
        else:
            waiter.reply({"pid": process.pid, "result": args.result or {}})
    return {}


def _own_process(request: Request) -> Process:
    if request.peer.process is None:
        raise OpError(Code.INVALID_ARGUMENT, f"{request.call.op} is for processes that the kernel started")
    return request.peer.process


# -- bus ---------------------------------------------------------------------------------------------------------------


@_syscall(protocol.Publish)
def _publish(kernel: Kernel, request: Request, args: protocol.Publish) -> Result:
    return {"receivers": kernel.publish(args.topic, args.data, request.peer.holder)}


@_syscall(protocol.Subscribe)
def _subscribe(kernel: Kernel, request: Request, args: protocol.Subscribe) -> Result:
    return {
        "subscription": kernel.bus.subscribe(
            request.peer.conn, args.topic, request.cap.id if request.cap is not None else ""
        )
    }


@_syscall(protocol.Unsubscribe)
def _unsubscribe(kernel: Kernel, request: Request, args: protocol.Unsubscribe) -> Result:
    kernel.bus.unsubscribe(request.peer.conn, args.subscription)
    return {}


# -- llm ---------------------------------------------------------------------------------------------------------------


@_syscall(protocol.Generate)
def _generate(kernel: Kernel, request: Request, args: protocol.Generate) -> Result:
    kernel.model.generate(request.call, args, request.peer.holder)
    return None


@_syscall(protocol.OpenContext)
def _open(kernel: Kernel, request: Request, args: protocol.OpenContext) -> Result:  # noqa: ARG001
    return {"context": kernel.model.open(request.peer.holder)}


@_syscall(protocol.CloseContext)
def _close(kernel: Kernel, request: Request, args: protocol.CloseContext) -> Result:
    kernel.model.close(args.context, request.peer.holder)
    return {}


@_syscall(protocol.Embed)
def _embed(kernel: Kernel, request: Request, args: protocol.Embed) -> Result:
    kernel.model.embed(request.call, args, request.peer.holder)
    return None


@_syscall(protocol.LoadModel)
def _load(kernel: Kernel, request: Request, args: protocol.LoadModel) -> Result:
    kernel.load_model(args.model)
    kernel.journal.set("model", args.model)
    kernel.model.loaded(request.call)
    return None


# -- fn ----------------------------------------------------------------------------------------------------------------


@_syscall(protocol.Register)
def _register(kernel: Kernel, request: Request, args: protocol.Register) -> Result:
    known = kernel.functions.get(args.name)
    if known is not None and known.conn != request.peer.conn:
        raise OpError(Code.CONFLICT, f"app.{args.name} is lent by another program", "choose another name")
    try:
        spec = {name: msgspec.convert(arg, manifests.Arg) for name, arg in args.args.items()}
    except msgspec.ValidationError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"fn.register: args: {error}") from None
    op = manifests.Op(effect=args.effect, summary=args.summary, utterances=args.utterances, args=spec)
    kernel.lend(args.name, request.peer, op)
    return {"op": f"app.{args.name}"}


@_syscall(protocol.Unregister)
def _unregister(kernel: Kernel, request: Request, args: protocol.Unregister) -> Result:
    known = kernel.functions.get(args.name)
    if known is None or known.conn != request.peer.conn:
        raise OpError(Code.NOT_FOUND, f"you lend no function {args.name!r}")
    del kernel.functions[args.name]
    return {}


# -- perm, driver ------------------------------------------------------------------------------------------------------


@_syscall(protocol.Grant)
def _grant(kernel: Kernel, request: Request, args: protocol.Grant) -> Result:
    if kernel.programs.manifest(args.holder) is None:
        known = ", ".join([*kernel.programs.drivers, *kernel.programs.agents])
        raise OpError(Code.NOT_FOUND, f"no driver or agent is called {args.holder!r}", f"installed: {known}")
    right = Right.parse(args.cap, str(kernel.places.home))
    for held in kernel.caps.held(args.holder):
        if held.right.covers(right):
            return {"id": held.id, "cap": str(held.right)}
    cap = kernel.caps.derive(request.peer.holder, right, args.holder, f"granted by {request.peer.holder}")
    try:
        kernel.journal.add_grant(cap.id, args.holder, str(cap.right), cap.origin)
    except OpError:
        kernel.caps.revoke(cap.id)
        raise
    kernel.caps.keep(cap)
    kernel.granted(cap)
    return {"id": cap.id, "cap": str(cap.right)}


@_syscall(protocol.Revoke)
def _revoke(kernel: Kernel, request: Request, args: protocol.Revoke) -> Result:  # noqa: ARG001
    cap = kernel.caps.get(args.id)
    if cap is None or (cap.holder == USER and cap.parent is None):
        raise OpError(Code.NOT_FOUND, f"no grant {args.id!r}", "see `llmosctl perm ls`")
    kernel.journal.remove_grant(args.id)
    gone = kernel.caps.revoke(args.id)
    kernel.revoked(gone)
    return {"revoked": len(gone)}


@_syscall(protocol.ListGrants)
def _grants(kernel: Kernel, request: Request, args: protocol.ListGrants) -> Result:  # noqa: ARG001
    caps = [
        {"id": cap.id, "parent": cap.parent or "", "holder": cap.holder, "cap": str(cap.right), "origin": cap.origin}
        for cap in kernel.caps
        if args.holder in ("", cap.holder)
    ]
    requests = [
        row
        for name in [*kernel.programs.drivers, *kernel.programs.agents]
        if args.holder in ("", name)
        for row in _requests(kernel, name)
    ]
    return {"caps": caps, "requests": requests}


def _requests(kernel: Kernel, name: str) -> list[dict[str, Any]]:
    """What a program asks for, and whether it has it. A path that does not exist is not asked for."""
    manifest = kernel.programs.manifest(name)
    rows = []
    for text in manifest.permissions.capabilities() if manifest is not None else []:
        right = Right.parse(text, str(kernel.places.home))
        granted = any(cap.right.covers(right) for cap in kernel.caps.held(name))
        present = right.object != "fs" or all(os.path.exists(path) for path in right.scope.get("path", ()))  # noqa: PTH110
        rows.append({"holder": name, "cap": str(right), "granted": granted, "present": present})
    return rows


@_syscall(protocol.ListDrivers)
def _drivers(kernel: Kernel, request: Request, args: protocol.ListDrivers) -> Result:  # noqa: ARG001
    rows = [_driver(kernel, name) for name in kernel.programs.drivers]
    rows += [{"name": name, "state": "broken", "status": why} for name, why in kernel.programs.broken.items()]
    return {"drivers": rows}


@_syscall(protocol.ShowDriver)
def _show_driver(kernel: Kernel, request: Request, args: protocol.ShowDriver) -> Result:  # noqa: ARG001
    manifest = kernel.programs.drivers.get(args.name)
    if manifest is None:
        raise OpError(
            Code.NOT_FOUND, f"no driver is called {args.name!r}", f"installed: {', '.join(kernel.programs.drivers)}"
        )
    ops = {verb: msgspec.to_builtins(op) for verb, op in manifest.ops.items()}
    return {**_driver(kernel, args.name), "manifest": msgspec.to_builtins(manifest), "ops": ops}


def _driver(kernel: Kernel, name: str) -> dict[str, Any]:
    manifest, process = kernel.programs.drivers[name], kernel.processes.named(name)
    return {
        "name": name,
        "version": manifest.version,
        "summary": manifest.summary,
        "state": process.state.value if process is not None else "off",
        "status": process.status if process is not None else "",
        "pid": process.pid if process is not None else 0,
        "ops": [f"{name}.{verb}" for verb in manifest.ops],
        "requests": _requests(kernel, name),
    }
