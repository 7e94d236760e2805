"""What is played: every user task alone, and with every injection that has scripted steps.

The plan is what a planner could write that has read the prompt and nothing else: the ops of the task, each with the arguments
that the prompt quotes, control or not; the others are left open. The tasks of `OPEN_ENDED` hand the agent over to a text it
has not read; nothing can be planned for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llmos.kernel.flow import SINKS
from llmos.kernel.prompt import Prompt
from tests.evals.agentdojo.manifests import MANIFESTS
from tests.evals.agentdojo.program.worlds import MARK, Runner, environment, suites

Step = dict[str, Any]
"""A call: `{function, args}`."""

OPEN_ENDED = {
    ("workspace", "user_task_13"), ("workspace", "user_task_19"),  # "do the actions specified in the email"
    ("slack", "user_task_18"), ("slack", "user_task_19"),  # "do all the tasks I have on my TODO list at URL"
    ("banking", "user_task_12"),  # "read the file and follow the instructions"
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Play:
    """One user task, alone or with an injection."""

    suite: Any
    task: Any
    injection: Any | None
    vectors: dict[str, str]
    """Places of the environment → what is put there."""
    script: list[Step]
    plan: list[Step]
    injected: list[Step]

    @property
    def name(self) -> str:
        alone = f"{self.suite.name} {self.task.ID}"
        return alone if self.injection is None else f"{alone} × {self.injection.ID}"

    def before(self) -> Any:
        """The environment at the start; the caller's own."""
        return environment(self.suite, self.task, self.vectors)


def plays(name: str) -> Iterator[Play]:
    """All of a suite: each task alone, then its pairs."""
    suite = suites()[name]
    for task in suite.user_tasks.values():
        yield _play(suite, task, None, {})
        for injection in _scripted(name):
            yield _play(suite, task, injection, _visible_vectors(name, task.ID))


def _play(suite: Any, task: Any, injection: Any | None, vectors: dict[str, str]) -> Play:
    env = environment(suite, task, vectors)
    script = _steps(task.ground_truth(env.model_copy(deep=True)))
    injected = _steps(injection.ground_truth(env)) if injection is not None else []
    plan = _quoted_plan(suite.name, task, script)
    return Play(
        suite=suite, task=task, injection=injection, vectors=vectors, script=script, plan=plan, injected=injected
    )


def _steps(calls: Sequence[Any]) -> list[Step]:
    """As they travel: what JSON knows; an argument that is null is one that was not given."""
    return [
        {"function": call["function"], "args": {key: value for key, value in call["args"].items() if value is not None}}
        for call in json.loads(json.dumps([call.model_dump(mode="json") for call in calls]))
    ]


def _quoted_plan(suite: str, task: Any, script: Sequence[Step]) -> list[Step]:
    if (suite, task.ID) in OPEN_ENDED:
        return []
    prompt = Prompt(task.PROMPT)
    return [
        {
            "function": step["function"],
            "args": {name: value for name, value in step["args"].items() if _all_quoted(prompt, value)}
            if MANIFESTS[step["function"]].effect in SINKS
            else {},
        }
        for step in script
    ]


def _all_quoted(prompt: Prompt, value: Any) -> bool:
    return all(_all_quoted(prompt, item) for item in value) if isinstance(value, list) else prompt.quotes(value)


@lru_cache(maxsize=256)
def _visible_vectors(name: str, task_id: str) -> dict[str, str]:
    """The places of the environment that the task's script reads, each holding an injection."""
    suite = suites()[name]
    task, defaults = suite.user_tasks[task_id], suite.get_injection_vector_defaults()
    env = environment(suite, task, {place: f"<{MARK}-{place}>" for place in defaults})
    script = _steps(task.ground_truth(env.model_copy(deep=True)))
    runner = Runner(suite, env)
    seen = "".join(runner.run(step["function"], step["args"]) for step in script)
    return {place: f"{default}<{MARK}>" for place, default in defaults.items() if f"<{MARK}-{place}>" in seen}


@lru_cache(maxsize=8)
def _scripted(name: str) -> list[Any]:
    suite = suites()[name]
    env = suite.load_and_inject_default_environment({})
    return [one for one in suite.injection_tasks.values() if one.ground_truth(env.model_copy(deep=True))]
