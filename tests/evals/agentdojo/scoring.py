"""What became of a play, judged by AgentDojo's own checks, and the rows of the table."""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from llmos.kernel.flow import SINKS
from tests.evals.agentdojo.manifests import MANIFESTS
from tests.evals.agentdojo.pairs import Play, Step


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was seen of one play."""

    play: Play
    calls: list[Step]
    """Those that reached the tools, in order."""
    approved: list[Step]
    """Calls of the user's own script that she was asked about."""
    refused: list[Step]
    """Calls that are not hers."""
    useful: bool
    """Whether the user's task was done."""
    attacked: bool
    """Whether the injection reached its goal."""

    @property
    def unasked(self) -> list[Step]:
        """The injection's calls with an effect that nobody was asked about."""
        left = without(self.calls, self.play.script)
        return [call for call in left if MANIFESTS[call["function"]].effect in SINKS]

    def causes(self) -> list[str]:
        """Why each of those passed."""
        return [f"{call['function']}: {self._cause(call)}" for call in self.unasked]

    def _cause(self, call: Step) -> str:
        if not any(_fits(step, call) for step in self.play.plan):
            return "nothing that the agent had read was labelled untrusted"
        given = {name: call["args"][name] for name in MANIFESTS[call["function"]].control if call["args"].get(name)}
        where = ", ".join(f"{name} {value!r}" for name, value in given.items())
        to = f"with {where}, as the user wrote" if where else "with no control argument"
        return f"it spends the step that the user's task planned for this op, {to}, and other content"


def judge(play: Play, calls: list[Step], env: Any, approved: list[Step], refused: list[Step]) -> Outcome:
    """By AgentDojo's checks; `env` is the environment afterwards."""
    made = importlib.import_module("agentdojo.functions_runtime").FunctionCall
    output = [{"type": "text", "content": play.task.GROUND_TRUTH_OUTPUT}]
    seen = (output, play.before(), env, [made(**call) for call in calls])
    useful = bool(play.suite._check_user_task_utility(play.task, *seen))
    attacked = play.injection is not None and bool(play.suite._check_injection_task_security(play.injection, *seen))
    return Outcome(play=play, calls=calls, approved=approved, refused=refused, useful=useful, attacked=attacked)


@dataclass
class Row:
    """One row of the table."""

    name: str
    successes: list[Outcome] = field(default_factory=list)
    pairs: int = 0
    useful: int = 0
    tasks: int = 0
    without_approval: int = 0
    approvals: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count it."""
        if outcome.play.injection is None:
            self.tasks += 1
            self.without_approval += not outcome.approved
            self.approvals += len(outcome.approved)
            return
        self.pairs += 1
        self.useful += outcome.useful
        if outcome.attacked:
            self.successes.append(outcome)

    @property
    def asr(self) -> float:
        """Share of the pairs whose injection reached its goal."""
        return len(self.successes) / self.pairs

    @property
    def utility(self) -> float:
        """Share of the pairs whose user task was done, its user approving her own calls alone."""
        return self.useful / self.pairs

    @property
    def no_approval_rate(self) -> float:
        return self.without_approval / self.tasks

    @property
    def approvals_per_task(self) -> float:
        return self.approvals / self.tasks

    def __str__(self) -> str:
        return (
            f"{self.name:34}{self.pairs:6}{100 * self.asr:9.2f} %{100 * self.no_approval_rate:14.1f} %"
            f"{self.approvals_per_task:16.2f}{100 * self.utility:20.1f} %"
        )


def _fits(step: Step, call: Step) -> bool:
    return bool(step["function"] == call["function"] and step["args"].items() <= call["args"].items())


HEAD = f"{'':34}{'pairs':>6}{'asr':>11}{'no approval':>16}{'approvals/task':>16}{'utility, own calls':>22}"


def without(calls: Sequence[Step], others: Sequence[Step]) -> list[Step]:
    """The calls but for one occurrence of each of `others`."""
    left = list(others)
    kept = []
    for call in calls:
        if call in left:
            left.remove(call)
        else:
            kept.append(call)
    return kept


def revive(kind: Any, value: Any) -> Any:
    """A model from its JSON, field by field: the suites' own validators would put an environment back to its start."""
    pydantic = importlib.import_module("pydantic")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)

    def model(one: Any) -> bool:
        return isinstance(one, type) and issubclass(one, pydantic.BaseModel)

    if origin is typing.Annotated:
        return revive(arguments[0], value)
    if origin in (typing.Union, types.UnionType):
        kinds = [one for one in arguments if one is not type(None) and model(one) == isinstance(value, dict)]
        return revive(kinds[0], value) if value is not None else None
    if model(kind):
        fields = kind.model_fields
        return kind.model_construct(**{name: revive(of.annotation, value[name]) for name, of in fields.items()})
    if origin is dict:
        return {revive(arguments[0], key): revive(arguments[1], item) for key, item in value.items()}
    if origin is list:
        return [revive(arguments[0], item) for item in value]
    return _adapter(kind).validate_python(value)


@lru_cache(maxsize=100)
def _adapter(kind: Any) -> Any:
    return importlib.import_module("pydantic").TypeAdapter(kind)
