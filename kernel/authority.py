"""Authority: whether a call may go out, under which label, and what is written down before it does.

Puts the pure parts together. Capabilities say who may, labels what anybody has seen, the sink rule what follows from both, approvals
what the user says of it, and the audit log what came of it. Everything is decided here and nothing is sent.

The order for a call with an effect is always the same: `check` (the capability, one call charged) → `decide` (the sink rule, the
capability's ceiling and how often it asks) → the approval, where one is needed (`asking.py`) → `passing` (the audit log) → the call
goes out → `passed` (the plan's step is used up).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import structlog

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import SYSCALLS, Effect
from llmos.kernel import params
from llmos.kernel.approvals import Approval, Approvals, Rule, State, Subject
from llmos.kernel.audit import Audit, Kind
from llmos.kernel.capability import USER, Capability, Scope, Table, normal_value
from llmos.kernel.capability_quota import Account
from llmos.kernel.capability_right import Approval as Asks
from llmos.kernel.flow import Decision, Flow, Mode, Request, Verdict
from llmos.kernel.journal import Journal, Kept
from llmos.kernel.labels import BOTTOM, Label, Labels, Source
from llmos.kernel.scope import NO_KINDS, KeyKinds
from llmos.kernel.undo import Undo
from llmos.kernel.values import OUTCOME_BITS, Budget, Values

log = structlog.get_logger()

NO_VALUES: Mapping[str, Label] = MappingProxyType({})
ENDED = "ended"
"""Why a capability is gone: its holder has ceased to exist."""
_REFUSALS = frozenset({Code.DENIED, Code.REVOKED, Code.TAINTED, Code.BUDGET, Code.NEEDS_APPROVAL})
"""Errors that the audit log hears of."""
_SYNCED = frozenset({Effect.SEND, Effect.ACTUATE})
"""Effects that leave the machine: on the disk before they happen."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a program, which no later one can pretend to be."""

    id: str
    program: str
    budget: Budget


@dataclass(slots=True)
class _Denials:
    """How fast a holder's denials may fill the log."""

    tokens: float
    refilled: float
    unwritten: int = 0


class Authority:
    """All that is known of who may do what, and why.

    Args:
        clock: seconds since 1970 UTC.
        home: the user's home, what `~` means in a path.
        objects: object → the kinds of its scope keys; may grow.
        changed: told of every approval that was asked or settled.
        headless: nobody is there to ask.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        home: str,
        objects: Mapping[str, KeyKinds],
        journal: Journal,
        audit: Audit,
        changed: Callable[[Approval], None],
        *,
        headless: bool = False,
    ) -> None:
        self._clock = clock
        self._home = home
        self._objects = objects
        self._journal = journal
        self.audit = audit
        self.caps = Table(clock, objects)
        self.labels = Labels(clock)
        self.flow = Flow(home=home)
        self.values = Values()
        self.approvals = Approvals(clock, Kept(journal, "approval"), changed, headless=headless)
        self.undo = Undo(clock, Kept(journal, "undo"))
        self._app_labels = Kept(journal, "app_label")
        self._tasks: dict[str, Task] = {}
        self._asked: set[str] = set()
        """Capabilities with `approval=first` that the user has approved once."""
        self._denials: dict[str, _Denials] = {}
        self._heard: dict[str, Label] = {}
        self.judges: dict[str, Callable[[Request, Decision], Decision]] = {}
        """Op → what makes a decision of it stricter, by what the sink rule cannot know."""
        self.labels.born(USER, fixed=True)

    # -- who there is ----------------------------------------------------------------------------------------------

    def born(self, holder: str, label: Label, why: str, *, fixed: bool = False) -> None:
        """A driver (`fixed`: it keeps its callers' data apart) or an app; `why` it has that label, in two or three words."""
        self.labels.born(holder, label, Source(holder, why), fixed=fixed)
        self._tasks[holder] = Task(holder, holder, Budget())

    def app_born(self, holder: str) -> None:
        """A program from outside: what it says may come from anybody, unless the user has granted it `label.trust`.

        It keeps what it has seen: its label outlives the kernel.
        """
        known: list[str] = next((row["label"] for row in self._app_labels.load() if row["id"] == holder), [])
        own = BOTTOM if self.caps.can(holder, "label", "trust") else Label.make("untrusted", [holder])
        self.born(holder, own | Label.from_wire(known), "let in as an app")

    def app_trusted(self, holder: str) -> None:
        """The user takes it for trusted from now on, whatever it has seen before."""
        self._app_labels.delete(holder)
        self.app_born(holder)

    def app_removed(self, holder: str) -> list[Capability]:
        """The next one of this name has seen nothing. → the capabilities that went with it."""
        self._app_labels.delete(holder)
        self.approvals.program_removed(holder)
        return self.ended(holder)

    def agent_born(
        self, name: str, program: str, giver: str, label: Label, args: Mapping[str, Any], mode: Mode
    ) -> None:
        """One run of an agent: it has seen what its spawner and its arguments have; what a trusted spawner says, the user says."""
        self.labels.born(name, label, self.labels.source(giver, "spawn", label))
        strict = mode is Mode.STRICT or self.flow.mode_of(giver) is Mode.STRICT
        self.flow.begin(name, "\n".join(_texts(args)), label, Mode.STRICT if strict else Mode.DEFAULT)
        spawner = self._tasks.get(giver)  # what it may learn, and how strictly, its children may, all together
        self._tasks[name] = Task(secrets.token_hex(8), program, spawner.budget if spawner is not None else Budget())

    def ended(self, holder: str) -> list[Capability]:
        """It has ceased to exist. → the capabilities that went with it."""
        self.labels.ended(holder)
        self.flow.end(holder)
        self.values.ended(holder)
        task = self._tasks.pop(holder, None)
        if task is not None:
            self.approvals.task_ended(task.id)
        self._denials.pop(holder, None)
        return self.caps.drop(holder)

    def task(self, holder: str) -> Task:
        """Raises `OpError(NOT_FOUND)` for one that is no program's."""
        try:
            return self._tasks[holder]
        except KeyError:
            raise OpError(Code.NOT_FOUND, f"{holder or 'the caller'} is not a running program") from None

    # -- labels ----------------------------------------------------------------------------------------------------

    def stamp(self, holder: str, serving: Label | None) -> Label:
        """The label of what `holder` sends: what it has seen, and what the call has that it is serving."""
        own = self.labels.of(holder)
        return own if serving is None else own | serving

    def receive(self, holder: str, label: Label, source: Source) -> None:
        """Something is about to reach `holder`. Raises `OpError(UNAVAILABLE)` when that cannot be written down: then it must not."""
        added = self.labels.added(holder, label)
        if added is None:
            return
        if holder.startswith("app:"):
            self._app_labels.save({"id": holder, "label": (self.labels.of(holder) | label).to_wire()})
        self.audit.append(Kind.LABEL, holder, source.via, "raised", label=str(added), detail=_from(source, source.call))
        self.labels.receive(holder, label, source)

    def hear(self, driver: str, label: Label) -> None:
        """A driver was answered outside of any call it serves: all that it answers later may hold that."""
        self._heard[driver] = self.heard(driver) | label

    def heard(self, driver: str) -> Label:
        """What a driver has been told outside of the calls it served."""
        return self._heard.get(driver, BOTTOM)

    def spend_outcome(self, holder: str) -> None:
        """How a call ends tells a little of what a kept answer holds. Raises `OpError(BUDGET)` before it is made."""
        if self.labels.of(holder).trusted and holder in self._tasks:
            self._tasks[holder].budget.spend(OUTCOME_BITS)

    # -- capabilities ----------------------------------------------------------------------------------------------

    def scope_values(self, object_: str, scope: Mapping[str, str], args: Mapping[str, Any]) -> Scope:
        """Scope key → what the request names, in its one normal form; a key it leaves open is left out.

        Raises `OpError(INVALID_ARGUMENT)`.
        """
        values: dict[str, tuple[str, ...]] = {}
        kinds = self._objects.get(object_, NO_KINDS)
        for key, name in scope.items():
            given = args.get(name)
            if given is None or given == "" or given == []:
                continue
            texts = given if isinstance(given, list) else [given]
            values[key] = tuple(normal_value(key, str(text), self._home, kinds) for text in texts)
        return values

    def check(self, holder: str, object_: str, verb: str, values: Scope, handle: str = "") -> Capability:
        """The capability that allows a request; one call is charged to it. Raises `OpError` `DENIED`, `BUDGET`."""
        cap = self.caps.check(holder, object_, verb, values, handle)
        self.charge(cap)
        return cap

    def charge(self, cap: Capability | None, *, bytes: int = 0, tokens: int = 0) -> None:  # noqa: A002
        """What a request has used, remembered before it has any effect. Raises `OpError` `BUDGET`, `REVOKED`."""
        try:
            if cap is not None and cap.accounts and (bytes or tokens):
                self.caps.charge(cap, bytes=bytes, tokens=tokens)
        finally:
            if self.caps.unsaved:
                self._journal.set_spending(self.caps.take_unsaved())

    def tokens_left(self, cap: Capability | None) -> tuple[Account, int] | None:
        """The account that tokens under a capability are charged to, and what is left in it; None when they are not limited."""
        return self.caps.drawn(cap, "tokens") if cap is not None else None

    # -- the decision ----------------------------------------------------------------------------------------------

    def decide(self, request: Request, cap: Capability) -> Decision:
        """The sink rule's word and the capability's. Changes nothing. Raises `OpError(DENIED)`."""
        decision = self.flow.decide(request)
        if request.op in self.judges:
            decision = self.judges[request.op](request, decision)
        if cap.right.approval is Asks.EACH:
            decision = decision.at_least(Verdict.ASK, "the capability asks each time")
        elif cap.right.approval is Asks.FIRST and cap.id not in self._asked:
            decision = decision.at_least(Verdict.ASK, "the capability asks the first time")
        if decision.verdict is Verdict.DENY:
            raise OpError(Code.DENIED, f"{request.op}: {'; '.join(decision.reasons)}", f"llmosctl why {request.holder}")
        return decision

    def refuse_tainted(self, op: str, verb: str, label: Label) -> None:
        """What acts as the user is not for a caller that has read a stranger's words. Raises `OpError(TAINTED)`."""
        if verb in ("control", "kill") and not label.trusted:
            detail = f"{op} is not for a caller that has seen untrusted data"
            raise OpError(Code.TAINTED, detail, "the user may do it herself")

    @staticmethod
    def plain_request(
        holder: str,
        op: str,
        args: Mapping[str, Any],
        label: Label,
        cap: Capability,
        values: Mapping[str, Label] = NO_VALUES,
    ) -> Request:
        """A syscall, as the sink rule sees it: most have no effect outside, but a capability may ask, or have a ceiling."""
        return Request(
            holder=holder,
            op=op,
            effect=SYSCALLS[op].EFFECT,
            args=args,
            control=SYSCALLS[op].CONTROL,
            label=label,
            values=values,
            ceiling=cap.right.ceiling,
        )

    def subject(self, request: Request, decision: Decision, served_by: str = "") -> Subject:
        """What an approval of this call is bound to; a function that is lent, to who lends it."""
        task = self.task(request.holder)
        return Subject(
            op=f"{request.op}@{served_by}" if served_by else request.op,
            args=request.args,
            holder=request.holder,
            program=task.program,
            task=task.id,
            label=decision.label,
            control=request.control,
        )

    def passing(
        self,
        call: int,
        request: Request,
        decision: Decision,
        body: bytes,
        cap: Capability | None,
        by: Approval | Rule | None,
    ) -> None:
        """The call is about to go out with the arguments in `body`.

        Raises `OpError(UNAVAILABLE)` when that cannot be written down: then it must not.
        """
        if request.effect is not Effect.READ:
            self.labels.mark(call, request.holder, decision.label)
        self.audit.append(
            Kind.EFFECT,
            request.holder,
            request.op,
            "approved" if by is not None else "allowed",
            cap=cap.id if cap is not None else "",
            label=str(decision.label),
            args=body,
            detail=f"call {call}" + (f", {by.id}" if by is not None else ""),
            sync=request.effect in _SYNCED,
        )

    def passed(self, request: Request, decision: Decision, cap: Capability | None, by: Approval | Rule | None) -> None:
        """The call has gone out: its step of the plan is used up."""
        self.flow.commit(request.holder, decision)
        if by is not None and cap is not None and cap.right.approval is Asks.FIRST:
            self._asked.add(cap.id)

    # -- what is written down --------------------------------------------------------------------------------------

    def granted(self, cap: Capability) -> None:
        """Raises `OpError(UNAVAILABLE)` when it cannot be written down: then it must not be given."""
        self.audit.append(Kind.GRANT, cap.holder, "perm.grant", "given", cap=cap.id, detail=str(cap.right), sync=True)

    def handed(self, holder: str, giver: str, caps: Iterable[Capability]) -> None:
        """A process is born with these: one row. Raises `OpError(UNAVAILABLE)`: then it must not be."""
        held = ", ".join(str(cap.right) for cap in caps) or "nothing"
        self.audit.append(Kind.GRANT, holder, "proc.spawn", "handed on", detail=f"by {giver}: {held}")

    def revoked(self, caps: Iterable[Capability], how: str) -> None:
        """They are gone already, so a log that cannot be written does not hold it up. What ends with its holder needs no row."""
        for cap in caps:
            self._asked.discard(cap.id)
            if how != ENDED:
                self._note(Kind.GRANT, cap.holder, "perm.revoke", how, cap=cap.id, detail=str(cap.right))

    def settled(self, approval: Approval) -> None:
        """An approval was asked or settled."""
        label = str(Label.from_wire(approval.label))
        said = approval.answer if approval.state in (State.APPROVED, State.DENIED) else approval.state.value
        self._note(Kind.APPROVAL, approval.holder, approval.op, said, label=label, detail=approval.id, sync=True)

    def connecting(self, holder: str, cap: Capability, where: str) -> None:
        """A connection is about to be opened. Raises `OpError(UNAVAILABLE)` when that cannot be written down: then it must not.

        It does not wait for the disk, as the call that it is made for has: a driver could have the kernel wait for each of a hundred.
        """
        label = str(self.labels.of(holder))
        self.audit.append(Kind.EFFECT, holder, "net.connect", "allowed", cap=cap.id, label=label, detail=where)

    def disconnected(self, holder: str, cap: str, told: str) -> None:
        """A connection has ended."""
        self._note(Kind.EFFECT, holder, "net.connect", "ended", cap=cap, detail=told)

    def refused(self, holder: str, op: str, error: OpError, what: str = "") -> None:
        """A call was refused. A holder that is refused all the time is counted instead of filling the disk."""
        if error.code not in _REFUSALS:
            return
        now = self._clock()
        mine = self._denials.setdefault(holder, _Denials(params.AUDIT_DENIALS, now))
        refill = max(0.0, now - mine.refilled) * params.AUDIT_DENIALS / 60
        mine.tokens, mine.refilled = min(params.AUDIT_DENIALS, mine.tokens + refill), now
        if mine.tokens < 1:
            mine.unwritten += 1
            return
        mine.tokens -= 1
        more = f"{mine.unwritten} more before it were not written" if mine.unwritten else ""
        mine.unwritten = 0
        label = str(self.labels.of(holder)) if holder else str(BOTTOM)
        detail = "; ".join(filter(None, (what, more)))
        self._note(Kind.DENIAL, holder, op, error.code.value, label=label, detail=detail)

    def _note(self, kind: Kind, holder: str, op: str, decision: str, **fields: Any) -> None:
        try:
            self.audit.append(kind, holder, op, decision, **fields)
        except OpError as error:
            log.error("audit.unwritten", kind=kind.value, holder=holder, op=op, err=error.detail)


def _texts(value: Any) -> Iterable[str]:
    """Every text in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _from(source: Source, call: int) -> str:
    return f"from {source.sender}" + (f", call {call}" if call else "")
