"""The syscall table, second half: what is allowed, what waits for the user, what was done, and who may come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos.ipc import paths, protocol, wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect
from llmos.kernel import apps, launch, net
from llmos.kernel.approvals import Answer, Approval
from llmos.kernel.asking import Attempt
from llmos.kernel.capability import USER, Capability, Right
from llmos.kernel.flow import Request as Attempted
from llmos.kernel.flow import Step, Verdict
from llmos.kernel.labels import BOTTOM, Label, join
from llmos.kernel.process import now
from llmos.kernel.programs import refuse_control
from llmos.kernel.syscalls import ANSWER_BYTES, STRANGERS, Request, Result, fitting, syscall

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel

_UNDO_S = 60.0
"""Seconds a driver may take to undo."""
_VERIFY_S = 600.0
"""Seconds a look at the whole audit log may take."""


# -- perm --------------------------------------------------------------------------------------------------------------


@syscall(protocol.Grant)
def _grant(kernel: Kernel, request: Request, args: protocol.Grant) -> Result:
    known = kernel.programs.manifest(args.holder) is not None
    if not known and all(apps.holder(app.name) != args.holder for app in kernel.apps):
        names = [*kernel.programs.drivers, *kernel.programs.agents, *(apps.holder(app.name) for app in kernel.apps)]
        raise OpError(
            Code.NOT_FOUND, f"no driver, agent or app is called {args.holder!r}", f"known: {', '.join(names)}"
        )
    right = _right(kernel, args.cap)
    if not args.holder.startswith("app:"):
        refuse_control(right)
    net.refuse_others(right, driver=args.holder in kernel.programs.drivers)
    for held in kernel.caps.held(args.holder):
        if held.right.covers(right):
            return {"id": held.id, "cap": str(held.right)}
    cap = _give(kernel, request, args.holder, right, args.reason)
    return {"id": cap.id, "cap": str(cap.right)}


def _right(kernel: Kernel, text: str) -> Right:
    right = Right.parse(text, str(kernel.places.home), kernel.programs.scope_kinds)
    kernel.programs.check_right(right)
    launch.refuse_own(right, kernel.places)
    return right


def _give(kernel: Kernel, request: Request, holder: str, right: Right, reason: str) -> Capability:
    """On disk and in the audit log before it counts. Raises `OpError`: then nothing was given."""
    by = (
        request.peer.holder
    )  # the user, or an app that she lets act for her: what is granted is hers, and outlives the app
    cap = kernel.caps.derive(USER, right, holder, f"granted by {by}", reason=reason)
    try:
        kernel.authority.granted(cap)
        kernel.journal.add_grant(cap.id, holder, str(cap.right), cap.origin, reason)
    except OpError:
        kernel.caps.revoke(cap.id)
        raise
    kernel.caps.keep(cap)
    kernel.granted(cap)
    return cap


@syscall(protocol.Revoke)
def _revoke(kernel: Kernel, request: Request, args: protocol.Revoke) -> Result:  # noqa: ARG001
    cap = kernel.caps.get(args.id)
    if cap is None or (cap.holder == USER and cap.parent is None):
        raise OpError(Code.NOT_FOUND, f"no grant {args.id!r}", "see `llmosctl perm ls`")
    gone = kernel.caps.revoke(args.id)
    failure = kernel.revoked(gone, "taken back")
    if failure is not None:
        detail = f"{args.id} is taken back, but will be there again after a restart: {failure.detail}"
        raise OpError(Code.UNAVAILABLE, detail, failure.hint)
    return {"revoked": len(gone)}


@syscall(protocol.ListGrants)
def _grants(kernel: Kernel, request: Request, args: protocol.ListGrants) -> Result:  # noqa: ARG001
    rows = [_row(cap) for cap in kernel.caps if args.holder in ("", cap.holder)]
    requests = [
        row
        for name in [*kernel.programs.drivers, *kernel.programs.agents]
        if args.holder in ("", name)
        for row in kernel.programs.requests(name, str(kernel.places.home), kernel.caps.held(name))
    ]
    shown, asked = fitting(rows, ANSWER_BYTES // 2), fitting(requests, ANSWER_BYTES // 2)
    return {"caps": shown, "requests": asked, "more": len(rows) - len(shown) + len(requests) - len(asked)}


def _row(cap: Capability) -> dict[str, Any]:
    return {
        "id": cap.id,
        "parent": cap.parent or "",
        "holder": cap.holder,
        "cap": str(cap.right),
        "origin": cap.origin,
        "reason": cap.reason,
    }


@syscall(protocol.WhyRight)
def _why_right(kernel: Kernel, request: Request, args: protocol.WhyRight) -> Result:  # noqa: ARG001
    cap = kernel.caps.get(args.id)
    if cap is None:
        raise OpError(Code.NOT_FOUND, f"no grant {args.id!r}", "see `llmosctl perm ls`")
    left = {account.unit: kernel.caps.left(cap, account.unit) for account in cap.accounts}
    return {"chain": _chain(kernel, cap), "left": left}


def _chain(kernel: Kernel, cap: Capability | None) -> list[dict[str, Any]]:
    """From a capability back to the user's own."""
    rows = []
    while cap is not None:
        rows.append(_row(cap))
        cap = kernel.caps.get(cap.parent) if cap.parent is not None else None
    return rows


@syscall(protocol.OwnRights)
def _own(kernel: Kernel, request: Request, args: protocol.OwnRights) -> Result:  # noqa: ARG001
    held = kernel.caps.held(request.peer.holder)
    return {"caps": fitting({"handle": cap.handle, "cap": str(cap.right)} for cap in held)}


@syscall(protocol.CheckRight)
def _check(kernel: Kernel, request: Request, args: protocol.CheckRight) -> Result:  # noqa: ARG001
    program = args.holder.partition("#")[0]
    app = args.holder in {apps.holder(app.name) for app in kernel.apps}
    if kernel.programs.manifest(program) is None and not app and args.holder != USER:
        raise OpError(Code.NOT_FOUND, f"no driver, agent or app is called {args.holder!r}", "see `llmosctl perm ls`")
    verdict, cap, reasons, hint = kernel.forwarder.foresee(args.holder, args.op, args.args)
    return {
        "verdict": verdict.name.lower(),
        "cap": str(cap.right) if cap is not None else "",
        "chain": _chain(kernel, cap),
        "reasons": list(reasons),
        "hint": hint,
    }


# -- plan, value -------------------------------------------------------------------------------------------------------


@syscall(protocol.FixPlan)
def _fix(kernel: Kernel, request: Request, args: protocol.FixPlan) -> Result:
    steps = [Step(step.op, step.args) for step in args.steps]
    tags = join(kernel.forwarder.stated_label(step.op) for step in steps).tags
    kernel.authority.flow.fix(request.peer.holder, request.call.label, steps, tags)
    return {"steps": len(steps)}


@syscall(protocol.DescribeValue)
def _describe_value(kernel: Kernel, request: Request, args: protocol.DescribeValue) -> Result:
    return kernel.authority.values.get(request.peer.holder, args.value).describe()


@syscall(protocol.ProjectValue)
def _project(kernel: Kernel, request: Request, args: protocol.ProjectValue) -> Result:
    """Nothing is told of a part but that it is one: its type and size, asked for often enough, would spell out the whole."""
    return kernel.authority.values.project(request.peer.holder, args.value, args.path).describe()


@syscall(protocol.OpenValue)
def _open_value(kernel: Kernel, request: Request, args: protocol.OpenValue) -> Result:
    value = kernel.authority.values.get(request.peer.holder, args.value)
    request.call.reply({"value": wire.decode(value.body)}, value.label, value.source)
    return None


@syscall(protocol.DropValue)
def _drop_value(kernel: Kernel, request: Request, args: protocol.DropValue) -> Result:
    kernel.authority.values.drop(request.peer.holder, args.value)
    return {}


@syscall(protocol.EndorseValue)
def _endorse(kernel: Kernel, request: Request, args: protocol.EndorseValue) -> Result:
    """The user is asked whatever anybody's label is: that is the point of it."""
    authority, holder, call = kernel.authority, request.peer.holder, request.call
    value = authority.values.get(holder, args.value)
    shown = {"value": wire.decode(value.body)}
    attempted = Attempted(
        holder=holder, op=call.op, effect=Effect.WRITE, args=shown, label=call.label, values={"value": value.label}
    )
    decision = authority.flow.decide(attempted).at_least(Verdict.ASK, "it is to be taken for trusted from now on")

    def go() -> None:
        trusted = Label.make("trusted", value.label.tags)
        call.reply(authority.values.endorse(holder, args.value, trusted).describe())

    kernel.asking.attempt(Attempt(call, attempted, decision, value.body, None, go))
    return None


# -- approval, undo ----------------------------------------------------------------------------------------------------


@syscall(protocol.ListApprovals)
def _approvals(kernel: Kernel, request: Request, args: protocol.ListApprovals) -> Result:
    newest = [one for one in kernel.authority.approvals if args.state in ("", one.state.value)][::-1][: args.limit]
    said_by = join(Label.from_wire(one.label) for one in newest)
    source = kernel.authority.labels.source("approvals", request.call.op, said_by)
    request.call.reply({"approvals": fitting(map(_summary, newest))}, said_by, source)
    return None


def _summary(approval: Approval) -> dict[str, Any]:
    """What a list shows: no arguments."""
    return {
        "id": approval.id,
        "op": approval.op,
        "holder": approval.holder,
        "program": approval.program,
        "state": approval.state.value,
        "asked": approval.asked,
        "expires": approval.expires,
        "reasons": approval.reasons,
        "undoable": approval.undoable,
        "label": str(Label.from_wire(approval.label)),
    }


@syscall(protocol.ShowApproval)
def _show_approval(kernel: Kernel, request: Request, args: protocol.ShowApproval) -> Result:
    return _shown(kernel, request, kernel.authority.approvals.get(args.id))


def _shown(kernel: Kernel, request: Request, approval: Approval) -> Result:
    """With arguments that came from wherever the call's did, and its driver's word of what it would change."""
    label, driver = Label.from_wire(approval.label), approval.op.partition(".")[0]
    if driver in kernel.programs.drivers:
        label = label | kernel.forwarder.driver_label(driver)
    source = kernel.authority.labels.source(approval.holder, approval.op, label)
    request.call.reply(approval.describe(), label, source)
    return None


@syscall(protocol.AnswerApproval)
def _answer(kernel: Kernel, request: Request, args: protocol.AnswerApproval) -> Result:
    approvals = kernel.authority.approvals
    if approvals.get(args.id).holder == request.peer.holder:
        raise OpError(Code.DENIED, f"{request.peer.holder} asked for it, and cannot answer itself")
    return _shown(kernel, request, approvals.answer(args.id, Answer(args.answer), request.peer.holder, args.words))


@syscall(protocol.ListRules)
def _rules(kernel: Kernel, request: Request, args: protocol.ListRules) -> Result:  # noqa: ARG001
    names = ("id", "program", "task", "op", "text", "created", "by")
    rules = kernel.authority.approvals.rules
    said_by = join(Label.from_wire(rule.label) for rule in rules)
    source = kernel.authority.labels.source("approvals", request.call.op, said_by)
    request.call.reply(
        {"rules": fitting({name: getattr(rule, name) for name in names} for rule in rules)}, said_by, source
    )
    return None


@syscall(protocol.ForgetRule)
def _forget_rule(kernel: Kernel, request: Request, args: protocol.ForgetRule) -> Result:  # noqa: ARG001
    kernel.authority.approvals.forget(args.id)
    return {}


@syscall(protocol.ListUndo)
def _undoable(kernel: Kernel, request: Request, args: protocol.ListUndo) -> Result:  # noqa: ARG001
    names = ("id", "holder", "op", "at", "expires")
    effects = [{name: getattr(effect, name) for name in names} for effect in kernel.authority.undo]
    return {"effects": fitting(effects[: args.limit])}


@syscall(protocol.RunUndo)
def _undo(kernel: Kernel, request: Request, args: protocol.RunUndo) -> Result:
    undo, call = kernel.authority.undo, request.call
    op, undo_args = undo.take(args.id)

    def done(ok: bool, answer: dict[str, Any], label: Label) -> None:
        source = kernel.authority.labels.source(op.partition(".")[0], op, label)
        if ok:
            undo.done(args.id)
            call.reply(answer, label, source)
        else:
            undo.failed(args.id)
            call.fail(OpError.from_wire(answer), label, source)

    kernel.forwarder.ask(op, undo_args, BOTTOM, done, _UNDO_S)
    if not call.done:
        kernel.calls.expire(call, _UNDO_S + 1)
    return None


# -- label, audit ------------------------------------------------------------------------------------------------------


@syscall(protocol.Why)
def _why(kernel: Kernel, request: Request, args: protocol.Why) -> Result:  # noqa: ARG001
    labels, approvals = kernel.authority.labels, kernel.authority.approvals
    if args.id.isdecimal():
        return _explained(args.id, "", [taint.describe() for taint in labels.why_call(int(args.id))])
    approval = next((one for one in approvals if one.id == args.id), None)
    if approval is not None:
        return _explained(args.id, str(Label.from_wire(approval.label)), approval.why)
    if not labels.known(args.id):
        hint = "give an approval's id, a call's number from `llmosctl audit ls`, or a badge such as assistant#7"
        raise OpError(Code.NOT_FOUND, f"nothing is known of {args.id!r}", hint)
    return _explained(args.id, str(labels.last_of(args.id)), [taint.describe() for taint in labels.why(args.id)])


def _explained(id_: str, label: str, chain: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": id_, "label": label, "chain": fitting(chain)}


@syscall(protocol.ListAudit)
def _audit(kernel: Kernel, request: Request, args: protocol.ListAudit) -> Result:
    """It repeats what refused callers called things."""
    rows = kernel.authority.audit.rows(last=args.last, holder=args.holder, kind=args.kind, since=args.since)
    newest = fitting(row.to_json() for row in reversed(rows))
    source = kernel.authority.labels.source("audit", request.call.op, STRANGERS)
    request.call.reply({"rows": newest[::-1]}, STRANGERS, source)
    return None


@syscall(protocol.ExportAudit)
def _export(kernel: Kernel, request: Request, args: protocol.ExportAudit) -> Result:
    audit = kernel.authority.audit
    rows = fitting(row.to_json() for row in audit.page(args.after, 200))
    last = rows[-1]["seq"] if rows else args.after
    following = last if rows and last < audit.head.seq else 0
    answer = {"rows": rows, "next": following, "head": {"seq": audit.head.seq, "hash": audit.head.hash.hex()}}
    request.call.reply(answer, STRANGERS, kernel.authority.labels.source("audit", request.call.op, STRANGERS))
    return None


@syscall(protocol.VerifyAudit)
def _verify(kernel: Kernel, request: Request, args: protocol.VerifyAudit) -> Result:  # noqa: ARG001
    """In slices, so that the system does not stand still meanwhile."""
    audit, call = kernel.authority.audit, request.call
    steps, head = audit.verifying(), audit.head

    def go_on() -> None:
        if call.done:
            return
        try:
            next(steps)
        except StopIteration as end:
            fault = end.value and {"seq": end.value.seq, "what": end.value.what}
            call.reply({"rows": head.seq, "head": {"seq": head.seq, "hash": head.hash.hex()}, "fault": fault})
        else:
            kernel.loop.later(0, go_on)

    kernel.loop.later(0, go_on)
    kernel.calls.expire(call, _VERIFY_S)
    return None


# -- apps --------------------------------------------------------------------------------------------------------------


@syscall(protocol.AddApp)
def _add_app(kernel: Kernel, request: Request, args: protocol.AddApp) -> Result:
    server = kernel.apps.server_key
    if server is None:
        raise OpError(Code.UNAVAILABLE, "the gate is not up yet", "try again in a moment")
    rights = [_right(kernel, text) for text in args.allow]
    for right in rights:
        net.refuse_others(right, driver=False)
    holder, old = apps.holder(args.name), kernel.apps.get(args.name)
    given: list[Capability] = []
    try:
        for right in rights:
            if not any(held.right.covers(right) for held in kernel.caps.held(holder)):
                cap = _give(kernel, request, holder, right, "asked for when it was let in")
                given.append(cap)  # one by one: what was given before one fails is taken back
        app = kernel.apps.add(args.name, args.key, now())
    except OpError:
        kernel.revoked([gone for cap in given for gone in kernel.caps.revoke(cap.id)], "not let in")
        raise
    if old is not None and old.key != args.key:
        kernel.app_removed(args.name, old.key)
    kernel.authority.app_born(holder)
    answer = {
        "name": args.name,
        "address": f"ipc://{paths.apps_socket(kernel.places.runtime)}",
        "server_key": server[0],
        "caps": [_row(cap) for cap in kernel.caps.held(holder)],
    }

    def listening() -> None:
        kernel.gates.let_in(app.key, app.name)
        request.call.reply(answer)

    kernel.start_apps_gate(listening)
    return None


@syscall(protocol.ListApps)
def _apps(kernel: Kernel, request: Request, args: protocol.ListApps) -> Result:  # noqa: ARG001
    rows = [
        {
            "name": app.name,
            "created": app.created,
            "connections": sum(peer.holder == apps.holder(app.name) for peer in kernel.peers),
            "label": str(kernel.authority.labels.of(apps.holder(app.name))),
            "caps": [str(cap.right) for cap in kernel.caps.held(apps.holder(app.name))],
        }
        for app in kernel.apps
    ]
    public = kernel.apps.server_key[0] if kernel.apps.server_key is not None else ""
    return {
        "apps": fitting(rows),
        "address": f"ipc://{paths.apps_socket(kernel.places.runtime)}",
        "server_key": public,
    }


@syscall(protocol.RemoveApp)
def _remove_app(kernel: Kernel, request: Request, args: protocol.RemoveApp) -> Result:  # noqa: ARG001
    app = kernel.apps.remove(args.name)
    kernel.app_removed(app.name, app.key)
    gone = kernel.authority.app_removed(apps.holder(app.name))
    kernel.revoked(gone, "taken back")
    return {"revoked": len(gone)}
