"""The sink rule: one rule for every op with an effect, and the plans that it may rely on. A pure state machine.

A *sink* is an op that changes something outside its caller: send, exec, actuate, delete, write. (Spawning is none: a child starts with
its parent's label and holds no more than its parent may hand on.) A call of one is **allowed** when

1. the caller's label is trusted and every control argument is trusted; or
2. the op is a step of a **plan** that the caller fixed while its label was trusted, no other call has used up that step, and
   every control argument is trusted;

and in both cases the secrecy of the call fits. Otherwise the user is **asked**; it is **denied** when the capability's ceiling
demands more integrity than the call has. Deny goes before ask, ask before allow. In `strict` mode 2 does not exist, and any
untrusted part of a call, control argument or not, means ask.

A control argument (those the manifest names; when it names none, *all* arguments) is trusted, element by element, when it

- was written by a caller whose label is trusted (`own`); or
- is what the plan's step fixes for it (`plan`); or
- was passed by reference, with a trusted label (`value`); or
- occurs in what the user said for this task (`quoted`, see `llmos.kernel.prompt`).

So a literal of a caller that has seen a stranger's words is trusted for two reasons only: it was fixed before, or the user
wrote it herself. Secrecy fits when the tags of the caller and of all referenced values lie within the capability's ceiling,
and, under 2, also within the plan's reach: the tags that the planned ops' results carry by their manifests. A plan that says
"look up hotels, then write to Jane" may not carry passports to Jane.

A step of a plan is used by one call, also by one that passed under 1 or was approved: what the caller has done itself, nobody
can make it do again.

Residual risk, under the default rule: a stranger whose words the caller reads can spend a planned step himself, with the
control arguments that were planned or quoted and *other content* (a different text to the planned recipient), in place of the
caller's own call; and can swap quoted values among the open arguments of planned steps (an amount the user wrote for one
payment in another), or leave open ones empty. All end at recipients and paths that the user named, or at none; the audit log
shows them. So a good plan fixes all it knows, control argument or not. A manifest that labels
strangers' data trusted removes the protection altogether.

How the kernel calls it:

- `begin` at spawn, with the prompt only when the spawner's label is trusted; `end`.
- `fix` for the syscall that fixes a plan, `tags` being the join of the manifests' labels of all its steps, reads included.
- `decide` after the capability check, the arguments' check and the substitution of values; the answer is pure.
- `Decision.at_least` for a capability that asks anyway; then approvals; then audit; then `commit`, and the call goes out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Any

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect
from llmos.kernel.labels import ANY, BOTTOM, Label, join, within
from llmos.kernel.prompt import Prompt, same
from llmos.kernel.values import inside

MAX_STEPS = 64
"""Steps of one plan."""
MAX_LOOKUPS = 256
"""Elements of one call that are looked for in the prompt; the rest counts as not quoted."""

SINKS = frozenset(Effect) - {Effect.READ}
SLOT = "$slot"
"""`{"$slot": NAME}` in a plan: a value passed by reference, trusted when it comes, the same wherever the name stands."""


class Mode(StrEnum):
    """How far a task's plan and prompt count."""

    DEFAULT = "default"
    STRICT = "strict"


class Verdict(IntEnum):
    """Larger goes before smaller."""

    ALLOW = 0
    ASK = 1
    DENY = 2


class Origin(StrEnum):
    """Where an element of a control argument came from."""

    OWN = "own"
    PLAN = "plan"
    QUOTED = "quoted"
    VALUE = "value"
    SEEN = "seen"
    """From a caller that had seen untrusted data; it may have been told to write this."""


@dataclass(frozen=True, slots=True)
class Given:
    """One element of a control argument, where it came from, and whether that is trusted."""

    path: str
    """`recipients[0]`."""
    value: Any
    origin: Origin
    label: Label

    @property
    def trusted(self) -> bool:
        return self.label.trusted


@dataclass(frozen=True, slots=True)
class Step:
    """One op of a plan, and what it fixes of its arguments. Arguments it does not name are open."""

    op: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What a process said it would do, while nothing untrusted had reached it."""

    steps: list[Step]
    """Those that no call has used up."""
    tags: frozenset[str]
    """The secrets it may come to hold by what it planned to read."""
    slots: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call, as it will go out.

    Args:
        args: with all references substituted.
        control: as the manifest declares them.
        label: the caller's.
        values: path of each argument, or part of one, that was passed by reference → its label.
        ceiling: the capability's; None for one without.
    """

    holder: str
    op: str
    effect: Effect
    args: Mapping[str, Any]
    control: tuple[str, ...] = ()
    label: Label = BOTTOM
    values: Mapping[str, Label] = field(default_factory=dict)
    ceiling: Label | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rule says of a call, and why."""

    verdict: Verdict
    label: Label
    """Of the call with all its arguments: what the message is stamped with."""
    reasons: tuple[str, ...] = ()
    """Why not simply yes, for people; names arguments and holds none of their values."""
    given: tuple[Given, ...] = ()
    step: Step | None = None
    """The step of the plan that this call uses up when it goes out."""
    binds: Mapping[str, Any] = field(default_factory=dict)
    """Slots of the plan that have their value from now on."""

    def at_least(self, verdict: Verdict, reason: str) -> Decision:
        """The same, made stricter for another reason."""
        if verdict <= self.verdict:
            return self
        return replace(self, verdict=verdict, reasons=(*self.reasons, reason))


@dataclass(slots=True)
class _Task:
    prompt: Prompt
    mode: Mode | None
    plan: Plan | None = None


class Flow:
    """The rule, and what it knows of every task.

    Args:
        mode: of tasks that are not begun with one of their own.
        home: where the user's paths start.
    """

    def __init__(self, mode: Mode = Mode.DEFAULT, home: str = "/") -> None:
        self.mode = mode
        self._home = home
        self._tasks: dict[str, _Task] = {}

    # -- tasks and plans -------------------------------------------------------------------------------------------

    def begin(self, holder: str, prompt: str = "", label: Label = BOTTOM, mode: Mode | None = None) -> None:
        """A new task. What came with an untrusted label was not said by the user and quotes nothing."""
        self._tasks[holder] = _Task(Prompt(prompt if label.trusted else "", self._home), mode)

    def end(self, holder: str) -> None:
        self._tasks.pop(holder, None)

    def fix(self, holder: str, label: Label, steps: list[Step], tags: frozenset[str]) -> None:
        """What `holder` is going to do, in place of what it said before.

        Raises `OpError`: `TAINTED` once untrusted data has reached it, `TOO_LARGE`, `NOT_FOUND` (no task of that holder).
        """
        task = self._tasks.get(holder)
        if task is None:
            raise OpError(Code.NOT_FOUND, f"{holder} has no task to plan for")
        if not label.trusted:
            hint = "fix the plan before reading, or start a new task"
            raise OpError(Code.TAINTED, f"{holder} has seen untrusted data and cannot fix a plan any more", hint)
        if len(steps) > MAX_STEPS:
            raise OpError(Code.TOO_LARGE, f"a plan of {len(steps)} steps, the limit is {MAX_STEPS}")
        task.plan = Plan(list(steps), tags | label.tags)

    def mode_of(self, holder: str) -> Mode:
        """Of its task; the default where it has none."""
        task = self._tasks.get(holder)
        return task.mode if task is not None and task.mode is not None else self.mode

    def plan(self, holder: str) -> Plan | None:
        """What is left of it."""
        task = self._tasks.get(holder)
        return task.plan if task is not None else None

    # -- the rule --------------------------------------------------------------------------------------------------

    def decide(self, request: Request) -> Decision:
        """What is to become of a call. Changes nothing: `commit` does."""
        label = join((request.label, *request.values.values()))
        if request.ceiling is not None and label.integrity > request.ceiling.integrity:
            reason = "the capability is for trusted calls only, and untrusted data is in this one"
            return Decision(Verdict.DENY, label, (reason,))
        if request.effect not in SINKS:
            too_secret = tuple(self._clearance(request, label))
            return Decision(Verdict.ASK if too_secret else Verdict.ALLOW, label, too_secret)
        task = self._tasks.get(request.holder)
        step = _step(task.plan if task is not None else None, request)
        given = tuple(self._provenance(request, task, step))
        reasons = [*self._integrity(request, label, step, given), *self._secrecy(request, label, task, step)]
        binds = _binds(step, request.args)
        return Decision(Verdict.ASK if reasons else Verdict.ALLOW, label, tuple(reasons), given, step, binds)

    def commit(self, holder: str, decision: Decision) -> None:
        """The call goes out, allowed or approved: its step is used up."""
        plan = self.plan(holder)
        if plan is not None and decision.step is not None:
            plan.steps = [step for step in plan.steps if step is not decision.step]
            plan.slots.update(decision.binds)

    def _integrity(self, request: Request, label: Label, step: Step | None, given: tuple[Given, ...]) -> Iterator[str]:
        if self.mode_of(request.holder) is Mode.STRICT:
            if not label.trusted:
                yield "untrusted data is in this call, and the mode is strict"
            return
        if not request.label.trusted and step is None:
            yield f"{request.holder} had seen untrusted data, and no step of a plan allows {request.op}"
        for name in dict.fromkeys(one.path for one in given if not one.trusted):
            yield f"{name}: it may have been chosen by a stranger"

    def _secrecy(self, request: Request, label: Label, task: _Task | None, step: Step | None) -> Iterator[str]:
        yield from self._clearance(request, label)
        plan = task.plan if task is not None else None
        if step is not None and plan is not None and not request.label.trusted and not within(label.tags, plan.tags):
            yield f"it would carry {_listed(label.tags - plan.tags)}, which the plan did not mean to read"

    def _clearance(self, request: Request, label: Label) -> Iterator[str]:
        if request.ceiling is not None and not within(label.tags, request.ceiling.tags):
            yield f"it would carry {_listed(label.tags - request.ceiling.tags)}, more than the capability is cleared for"

    def _provenance(self, request: Request, task: _Task | None, step: Step | None) -> Iterator[Given]:
        lookups = itertools.count()
        for name in request.control or tuple(request.args):
            slot = _slot(step, name)
            fixed = step is not None and name in step.args and slot is None
            for path, value in _elements(name, request.args.get(name), request.values):
                by_reference = request.values.get(path)
                if fixed:
                    yield Given(path, value, Origin.PLAN, BOTTOM)
                elif by_reference is not None and by_reference.trusted:
                    yield Given(path, value, Origin.VALUE, by_reference)
                elif by_reference is None and request.label.trusted:
                    yield Given(path, value, Origin.OWN, request.label)
                elif slot is None and task is not None and next(lookups) < MAX_LOOKUPS and task.prompt.quotes(value):
                    yield Given(path, value, Origin.QUOTED, BOTTOM)
                elif by_reference is not None:
                    yield Given(path, value, Origin.VALUE, by_reference)
                else:
                    yield Given(path, value, Origin.SEEN, request.label)


def _step(plan: Plan | None, request: Request) -> Step | None:
    """The step left that this call could be: the same op, with what the step fixes; the one that fixes most."""
    if plan is None:
        return None
    fitting = [step for step in plan.steps if step.op == request.op and _fits(step, plan, request)]
    return max(fitting, key=lambda step: len(step.args), default=None)


def _fits(step: Step, plan: Plan, request: Request) -> bool:
    for name, wanted in step.args.items():
        given, slot = request.args.get(name), _slot(step, name)
        if slot is None:
            if not same(wanted, given):
                return False
        elif given is None or not same(plan.slots.get(slot, given), given):
            return False
    return True


def _binds(step: Step | None, args: Mapping[str, Any]) -> dict[str, Any]:
    names = step.args if step is not None else ()
    return {slot: args[name] for name in names if (slot := _slot(step, name)) is not None}


def _slot(step: Step | None, name: str) -> str | None:
    wanted = step.args.get(name) if step is not None else None
    return str(wanted[SLOT]) if isinstance(wanted, dict) and wanted.keys() == {SLOT} else None


def _elements(path: str, value: Any, values: Mapping[str, Label]) -> Iterator[tuple[str, Any]]:
    """The single texts and numbers in an argument; what was passed by reference stays whole. An argument left empty has none."""
    if value is None or value == "":
        return
    if path not in values and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _elements(inside(path, number), item, values)
    elif path not in values and isinstance(value, dict):
        for key, item in value.items():
            yield f"{path}: name", key
            yield from _elements(inside(path, key), item, values)
    else:
        yield path, value


def _listed(tags: frozenset[str]) -> str:
    return "data of any kind" if ANY in tags else "data of " + ", ".join(sorted(tags))
