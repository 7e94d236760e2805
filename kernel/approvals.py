"""The inbox: what waits for the user's word, and what her word covers. A pure state machine with an injected clock.

An approval is bound to `digest(op, args, holder, task, label)` and used once. A call with other arguments, of another holder
or task, or with another label is another call and asks anew; so does a replay. `task` is an identity that no later process
can have: a random one for each run of an agent (its badge is given again after a restart of the kernel), the badge itself for
drivers and apps. Everything is saved before it counts and outlives the kernel; what nobody answers in time means no.

The answers: `once`; `task` and `always`, which save a rule — this program may call this op with these control arguments, with
data no more untrusted or secret than now, in this task or in every one; `no`; and `reject`, `no` with words for the agent. A
refused call stays refused for a while: asking again does not ask the user again.

How the kernel calls it, when the sink rule's verdict is `ASK`:

- `covered`: a rule or an approved, unused approval lets the call pass (and is used up by it, if it was for once). It goes to
  the audit log, then out.
- otherwise `request`. Headless, it raises at once. The call is parked under the approval's id until `answer` or `expire`
  reports a change: then `covered` is asked again for a parked call, or the call fails with `refusal`. A caller that does not
  wait is answered `NEEDS_APPROVAL` with the id and may send the same call later.
- `expire` at boot, and at `next_expiry`; `task_ended` with the task.
- `approval.*` events say that there was a change, and to what; the arguments are for holders of `approval.read`.

Interfaces must show arguments with control and direction-changing characters made visible: they are a stranger's words.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.kernel.labels import Label
from llmos.kernel.prompt import same

ASK_S = 600.0
"""Seconds until a request that nobody answers is a no."""
USE_S = 600.0
"""Seconds an approval may wait for its call, and a refusal stands without asking again."""
MAX_PENDING = 256
"""Requests waiting at once."""
MAX_PENDING_PER_TASK = 16
"""The same of one task, so that none can bury the others'."""
MAX_PENDING_PER_PROGRAM = 64
"""The same of all runs of one program."""
MAX_SETTLED = 1000
"""Settled requests kept for `ls` and `why`; the oldest go first."""
MAX_PREVIEW = 20_000
"""Characters kept of a diff or preview."""
MAX_WHY = 100
"""Taints of the chain that are kept."""
MAX_SHOWN = 60_000
"""Bytes of a request as it is shown; a call with more cannot be asked about."""
MAX_RULE = 200
"""Characters of one argument in a rule's text."""
MAX_REASON = 500
"""Characters of the words for the agent."""

Row = dict[str, Any]


class State(StrEnum):
    """Of a request."""

    PENDING = "pending"
    APPROVED = "approved"
    USED = "used"
    DENIED = "denied"
    EXPIRED = "expired"


class Answer(StrEnum):
    """What the user says."""

    ONCE = "once"
    TASK = "task"
    ALWAYS = "always"
    NO = "no"
    REJECT = "reject"


class Store(Protocol):
    """Where rows outlive the kernel; each is a map of what msgpack knows, with `kind` and `id`. On disk when `save` returns."""

    def save(self, row: Row) -> None: ...
    def delete(self, id: str) -> None: ...  # noqa: A002
    def load(self) -> Iterable[Row]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The call that is asked about.

    Args:
        program: what the holder is an instance of; a rule is for all of them.
        args: exactly as they would go out, references substituted.
        control: names of the control arguments.
    """

    op: str
    args: Mapping[str, Any]
    holder: str
    program: str
    task: str
    label: Label
    control: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What an approval is bound to."""
        bound = [self.op, _sorted(self.args), self.holder, self.task, self.label.to_wire()]
        return hashlib.sha256(wire.encode(bound)).hexdigest()

    @property
    def fixed(self) -> dict[str, Any]:
        """The control arguments; all of them when none is declared."""
        return {name: self.args[name] for name in self.control or self.args if name in self.args}


@dataclass(slots=True, kw_only=True)
class Approval:
    """One request, and what became of it."""

    id: str
    op: str
    holder: str
    program: str
    task: str
    label: list[str]
    digest: str
    args: bytes
    """msgpack."""
    rule: bytes
    """The control arguments that a rule would fix, msgpack."""
    asked: float
    expires: float
    state: State = State.PENDING
    reasons: list[str] = field(default_factory=list)
    """Why the sink rule did not simply allow it."""
    provenance: list[Row] = field(default_factory=list)
    """Per element of a control argument: `{path, value, origin, label}`; values may be cut."""
    provenance_of: int = 0
    """Elements there are; those beyond what `provenance` holds are not told."""
    why: list[Row] = field(default_factory=list)
    """The chain of taints, nearest first, as of the request."""
    undoable: bool = False
    preview: str = ""
    answer: str = ""
    words: str = ""
    """For the agent, with `reject`."""
    decided: float = 0.0
    by: str = ""

    def describe(self) -> Row:
        """All that an interface shows; `rule` is what `task` or `always` would save, in plain words."""
        row = asdict(self)
        row["args"], row["rule"] = wire.decode(self.args), _rule_text(self)
        row["label"] = str(Label.from_wire(self.label))
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What needs no asking any more."""

    id: str
    program: str
    task: str
    """Empty for every task."""
    op: str
    fixed: bytes
    label: list[str]
    text: str
    created: float
    by: str

    def allows(self, subject: Subject) -> bool:
        return (
            self.op == subject.op
            and self.program == subject.program
            and self.task in ("", subject.task)
            and subject.label <= Label.from_wire(self.label)
            and same(wire.decode(self.fixed), subject.fixed)
        )


class Approvals:
    """Every request and every rule.

    Args:
        clock: seconds since 1970 UTC.
        changed: told of every request that was made or settled.
        headless: nobody is there to ask.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        store: Store,
        changed: Callable[[Approval], None],
        *,
        headless: bool = False,
        ask_s: float = ASK_S,
        use_s: float = USE_S,
    ) -> None:
        self._clock = clock
        self._store = store
        self._changed = changed
        self.headless = headless
        self._ask_s = ask_s
        self._use_s = use_s
        self._approvals: dict[str, Approval] = {}
        self._rules: dict[str, Rule] = {}
        for row in store.load():
            self._load(row)
        self._drop_rules(lambda rule: rule.task not in ("", rule.program))  # no run of an agent outlives the kernel

    def __iter__(self) -> Iterator[Approval]:
        """Oldest first."""
        return iter(list(self._approvals.values()))

    @property
    def rules(self) -> list[Rule]:
        return list(self._rules.values())

    @property
    def next_expiry(self) -> float | None:
        """When `expire` has something to do; seconds since 1970 UTC."""
        return min((one.expires for one in self._live()), default=None)

    # -- the kernel's side -----------------------------------------------------------------------------------------

    def covered(self, subject: Subject) -> Rule | Approval | None:
        """What lets this call pass without asking. An approval for once is used up by being found.

        Raises `OpError(DENIED)` when this very call was refused a short while ago.
        """
        self.expire()
        digest, now = subject.digest, self._clock()
        for approval in self:
            if approval.digest != digest or approval.expires <= now:
                continue
            if approval.state is State.DENIED:
                raise self.refusal(approval)
            if approval.state is State.APPROVED:
                self._settle(approval, State.USED)
                return approval
        return next((rule for rule in self._rules.values() if rule.allows(subject)), None)

    def request(
        self,
        subject: Subject,
        *,
        reasons: Iterable[str] = (),
        provenance: Iterable[Row] = (),
        provenance_of: int = 0,
        why: Iterable[Row] = (),
        undoable: bool = False,
        preview: str = "",
    ) -> Approval:
        """Ask. The same call asked about twice is one request.

        Raises `OpError`: `DENIED` when headless, `BUSY` when too much waits already, `UNAVAILABLE` when it cannot be saved.
        """
        if self.headless:
            raise OpError(
                Code.DENIED,
                f"{subject.op} needs the user's approval, and nobody is there to ask",
                "; ".join(reasons) or "run it with a user present, or grant a rule before",
            )
        pending = [approval for approval in self._approvals.values() if approval.state is State.PENDING]
        digest = subject.digest
        for approval in pending:
            if approval.digest == digest:
                return approval
        of_task = sum(approval.task == subject.task for approval in pending)
        of_program = sum(approval.program == subject.program for approval in pending)
        full = of_task >= MAX_PENDING_PER_TASK or of_program >= MAX_PENDING_PER_PROGRAM or len(pending) >= MAX_PENDING
        if full:
            raise OpError(Code.BUSY, f"{len(pending)} requests wait for the user", "wait for her answers")
        now = self._clock()
        approval = Approval(
            id=f"a{secrets.token_hex(4)}",
            op=subject.op,
            holder=subject.holder,
            program=subject.program,
            task=subject.task,
            label=subject.label.to_wire(),
            digest=digest,
            args=wire.encode(subject.args),
            rule=wire.encode(subject.fixed),
            asked=now,
            expires=now + self._ask_s,
            reasons=list(reasons),
            provenance=list(provenance),
            provenance_of=provenance_of,
            why=list(why)[:MAX_WHY],
            undoable=undoable,
            preview=preview[:MAX_PREVIEW],
        )
        self._refuse_unshowable(approval)
        self._store.save(_row(approval))
        self._approvals[approval.id] = approval
        self._changed(approval)
        return approval

    def refusal(self, approval: Approval) -> OpError:
        """What the agent is told of a request that was not approved."""
        if approval.state is State.PENDING:
            return OpError(
                Code.NEEDS_APPROVAL,
                f"{approval.op} waits for the user's approval {approval.id}",
                f"llmosctl approve {approval.id}; then send the same call again",
            )
        if approval.state is State.EXPIRED:
            return OpError(Code.DENIED, f"{approval.op}: nobody approved it in time", "ask the user, then try again")
        if approval.state is State.DENIED:
            said = f": {approval.words}" if approval.words else ""
            return OpError(Code.DENIED, f"{approval.op}: the user said no{said}", "do not try it again")
        return OpError(Code.DENIED, f"{approval.op}: the approval {approval.id} was used already")

    def expire(self) -> list[Approval]:
        """What is overdue means no. → those that expired now."""
        now = self._clock()
        overdue = [approval for approval in self._live() if approval.expires <= now]
        for approval in overdue:
            self._settle(approval, State.EXPIRED)
        return overdue

    def task_ended(self, task: str) -> None:
        """Its requests have nobody to answer to, and its rules nothing to allow."""
        for approval in self._live():
            if approval.task == task:
                self._settle(approval, State.EXPIRED)
        self._drop_rules(lambda rule: rule.task == task)

    def program_removed(self, program: str) -> None:
        """What the user said of it she did not say of the next one of that name."""
        self._drop_rules(lambda rule: rule.program == program)

    def _drop_rules(self, which: Callable[[Rule], bool]) -> None:
        """They allow nothing from now on, whatever the store can do about it."""
        for rule in [rule for rule in self._rules.values() if which(rule)]:
            del self._rules[rule.id]
            with contextlib.suppress(OpError):
                self._store.delete(rule.id)

    # -- the user's side -------------------------------------------------------------------------------------------

    def get(self, id: str) -> Approval:  # noqa: A002
        """Raises `OpError(NOT_FOUND)`."""
        try:
            return self._approvals[id]
        except KeyError:
            raise OpError(Code.NOT_FOUND, f"no approval {id!r}", "see `llmosctl approval ls`") from None

    def answer(self, id: str, answer: Answer, by: str, words: str = "") -> Approval:  # noqa: A002
        """The user's word; `by` is her badge or the trusted interface's, which has `approval.control`.

        Raises `OpError`: `NOT_FOUND`; `CONFLICT` for one that was answered, used or has expired.
        """
        self.expire()
        approval = self.get(id)
        if approval.state is not State.PENDING:
            raise OpError(Code.CONFLICT, f"{id} is {approval.state.value} already")
        now = self._clock()
        no = answer in (Answer.NO, Answer.REJECT)
        self._settle(
            approval,
            State.DENIED if no else State.APPROVED,
            answer=answer.value,
            by=by,
            words=words[:MAX_REASON] if answer is Answer.REJECT else "",
            decided=now,
            expires=now + self._use_s,
        )
        if answer in (Answer.TASK, Answer.ALWAYS):
            self._save_rule(approval, approval.task if answer is Answer.TASK else "")
        return approval

    def forget(self, id: str) -> None:  # noqa: A002
        """Take a rule back. Raises `OpError(NOT_FOUND)`."""
        if id not in self._rules:
            raise OpError(Code.NOT_FOUND, f"no rule {id!r}", "see `llmosctl approval rules`")
        self._store.delete(id)
        del self._rules[id]

    # -- inside ----------------------------------------------------------------------------------------------------

    def _live(self) -> list[Approval]:
        return [one for one in self._approvals.values() if one.state in (State.PENDING, State.APPROVED)]

    def _settle(self, approval: Approval, state: State, **changes: Any) -> None:
        """On disk before it counts: an approval that could not be marked as used is not used. A no needs no disk."""
        settled_as = replace(approval, state=state, **changes)
        try:
            self._store.save(_row(settled_as))
        except OpError:
            if state is not State.EXPIRED:
                raise
        for name in ("state", *changes):
            setattr(approval, name, getattr(settled_as, name))
        if state not in (State.PENDING, State.APPROVED):  # what is over is told of in short
            approval.provenance, approval.preview = [], ""
        settled = [one.id for one in self._approvals.values() if one.state not in (State.PENDING, State.APPROVED)]
        for id_ in settled[: max(0, len(settled) - MAX_SETTLED)]:
            self._store.delete(id_)
            del self._approvals[id_]
        self._changed(approval)

    def _save_rule(self, approval: Approval, task: str) -> None:
        rule = Rule(
            id=f"r{secrets.token_hex(4)}",
            program=approval.program,
            task=task,
            op=approval.op,
            fixed=approval.rule,
            label=approval.label,
            text=_rule_text(approval),
            created=self._clock(),
            by=approval.by,
        )
        self._store.save({"kind": "rule", **asdict(rule)})
        self._rules[rule.id] = rule

    def _refuse_unshowable(self, approval: Approval) -> None:
        """What the user could not be shown in full she cannot be asked. Raises `OpError(TOO_LARGE)`."""
        try:
            size = len(wire.encode(approval.describe()))
        except wire.Malformed as error:
            raise OpError(Code.TOO_LARGE, f"{approval.op}: its arguments cannot be shown: {error}") from None
        if size > MAX_SHOWN:
            detail = f"{approval.op}: {size} bytes to show for approval, the limit is {MAX_SHOWN}"
            raise OpError(Code.TOO_LARGE, detail, "send less at once")

    def _load(self, row: Row) -> None:
        fields = {key: value for key, value in row.items() if key != "kind"}
        if row["kind"] == "rule":
            self._rules[row["id"]] = Rule(**fields)
        else:
            self._approvals[row["id"]] = Approval(**{**fields, "state": State(row["state"])})


def _row(approval: Approval) -> Row:
    return {"kind": "approval", **asdict(approval), "state": approval.state.value}


def _rule_text(approval: Approval) -> str:
    fixed = ", ".join(f"{name}={_short(value)}" for name, value in wire.decode(approval.rule).items())
    return f"{approval.program} may call {approval.op}({fixed}) with data up to {Label.from_wire(approval.label)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_RULE else f"{text[:MAX_RULE]}… ({len(text)} characters)"


def _sorted(value: Any) -> Any:
    """The same with every map in the order of its keys, so that equal arguments have equal bytes."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value
