"""Asking: calls that wait for the user's word, and what becomes of them when she has given it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llmos.ipc.errors import Code, OpError
from llmos.kernel.approvals import ASK_S, Approval, Rule, State, Subject
from llmos.kernel.authority import Authority
from llmos.kernel.calls import Call, Calls
from llmos.kernel.capability import Capability
from llmos.kernel.flow import Decision, Request, Verdict

_ROWS, _SHOWN = 64, 200
"""Elements of arguments whose origin is told, and characters of each."""
Preview = Callable[[Callable[[str], None]], None]
"""Finds out what a call would change, and hands that on; later, and once."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call that was decided upon, and what makes it happen."""

    call: Call
    request: Request
    decision: Decision
    body: bytes
    """The arguments as they go out."""
    cap: Capability | None
    go: Callable[[], None]
    served_by: str = ""
    """Who lends the function, where it is one."""
    undoable: bool = False
    preview: Preview | None = None
    wait_s: float = 0.0
    """Seconds its caller is willing to wait; 0 for as long as the user may take."""


def _cut(value: object) -> object:
    """Of what an argument holds, what a row shows; the arguments themselves are shown in full."""
    return value if not isinstance(value, (str, bytes)) or len(value) <= _SHOWN else value[:_SHOWN]


class Asking:
    """What goes out at once, and what is parked under an approval until the user has answered."""

    def __init__(self, calls: Calls, authority: Authority) -> None:
        self._calls = calls
        self._authority = authority
        self._parked: dict[str, list[tuple[Attempt, Subject]]] = {}

    def attempt(self, attempt: Attempt) -> None:
        """Let it happen, now or once it is approved. Raises `OpError`: `DENIED`, `BUSY`, and what `go` raises."""
        if attempt.decision.verdict is Verdict.ALLOW:
            self._pass(attempt, None)
            return
        subject = self._authority.subject(attempt.request, attempt.decision, attempt.served_by)
        by = self._authority.approvals.covered(subject)
        if by is not None:
            self._pass(attempt, by)
        elif attempt.preview is None or self._authority.approvals.headless:
            self._ask(attempt, subject, "")
        else:
            attempt.preview(lambda text: self._try(attempt, lambda: self._ask(attempt, subject, text)))

    def settled(self, approval: Approval) -> None:
        """The user has answered, or her time is over: calls that waited for it go out, or fail."""
        if approval.state is State.PENDING:
            return
        for attempt, subject in self._parked.pop(approval.id, []):
            if not attempt.call.done:
                self._try(attempt, partial(self._resume, attempt, subject, approval))

    def _resume(self, attempt: Attempt, subject: Subject, approval: Approval) -> None:
        if approval.state is not State.APPROVED and approval.state is not State.USED:
            raise self._authority.approvals.refusal(approval)
        cap = attempt.cap
        if cap is not None and self._authority.caps.get(cap.id) is None:
            raise OpError(Code.REVOKED, f"{attempt.call.op}: the capability {cap.right} was taken back meanwhile")
        by = self._authority.approvals.covered(subject)
        if by is None:  # it was for once, and another call like this one has used it
            self._ask(attempt, subject, approval.preview)
        else:
            self._pass(attempt, by)

    def _ask(self, attempt: Attempt, subject: Subject, preview: str) -> None:
        authority, call = self._authority, attempt.call
        chain = authority.labels.chain(authority.labels.mark(call.id, call.holder, attempt.decision.label))
        approval = authority.approvals.request(
            subject,
            reasons=[reason[: 2 * _SHOWN] for reason in attempt.decision.reasons[:_ROWS]],
            provenance=[
                {
                    "path": one.path[:_SHOWN],
                    "value": _cut(one.value),
                    "origin": one.origin.value,
                    "label": str(one.label),
                }
                for one in attempt.decision.given[:_ROWS]
            ],
            provenance_of=len(attempt.decision.given),
            why=[taint.describe() for taint in chain],
            undoable=attempt.undoable,
            preview=preview,
        )
        waiting = [parked for parked in self._parked.get(approval.id, ()) if not parked[0].call.done]
        self._parked[approval.id] = [*waiting, (attempt, subject)]
        self._calls.expire(call, min(attempt.wait_s or ASK_S, ASK_S), lambda: authority.approvals.refusal(approval))

    def _pass(self, attempt: Attempt, by: Approval | Rule | None) -> None:
        """It is written down, then it happens, then its step of the plan is used up."""
        self._authority.passing(attempt.call.id, attempt.request, attempt.decision, attempt.body, attempt.cap, by)
        attempt.go()
        self._authority.passed(attempt.request, attempt.decision, attempt.cap, by)

    def _try(self, attempt: Attempt, step: Callable[[], None]) -> None:
        """Outside of the caller's own message: what is raised is its answer."""
        if attempt.call.done:
            return
        try:
            step()
        except OpError as error:
            self._authority.refused(attempt.call.holder, attempt.call.op, error)
            attempt.call.fail(error)
