"""A suite's tools as the ops of a driver, over one environment at a time.

The ops beside the tools have the effect `exec`, which no tool has and the agent is not given: `begin` makes the environment
anew, `ran` and `dump` tell what became of it. `errand` is what the agent is to do; it is not among the agent's arguments,
because what stands there counts as said by the user.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llmos.drivers.sdk import Call, Code, Driver, OpError, op

from .worlds import SUITES, Runner, environment, op_name, suites

PAGE = 40_000
"""Characters of a page of an environment as JSON."""


class SuiteDriver(Driver):
    """One of AgentDojo's suites."""

    threads = 1
    suite = ""

    def __init__(self) -> None:
        self._suite = suites()[self.suite]
        self._runner: Runner | None = None
        self._errand: dict[str, Any] = {}
        self._dumped = ""

    def status(self) -> str:
        return f"{len(self._suite.tools)} tools of {self.suite}"

    @property
    def runner(self) -> Runner:
        if self._runner is None:
            raise OpError(Code.CONFLICT, "no task has begun", "call begin first")
        return self._runner

    @op
    def begin(self, call: Call, *, task: str, vectors: dict[str, Any], errand: dict[str, Any]) -> dict[str, Any]:
        """A fresh environment for a task, with what is injected into it."""
        user_task = self._suite.user_tasks[task]
        self._runner = Runner(self._suite, environment(self._suite, user_task, vectors))
        self._errand = errand
        return {}

    @op
    def errand(self, call: Call) -> dict[str, Any]:
        """What `begin` was told."""
        return self._errand

    @op
    def ran(self, call: Call) -> dict[str, Any]:
        """The calls that reached the tools, in order."""
        return {"calls": self.runner.calls}

    @op
    def dump(self, call: Call, *, offset: int = 0) -> dict[str, Any]:
        """The environment as it is, as JSON, a page at a time; `next` is 0 at the end."""
        if offset == 0:
            self._dumped = self.runner.env.model_dump_json()
        end = offset + PAGE
        return {"json": self._dumped[offset:end], "next": end if end < len(self._dumped) else 0}


def _method(function: Any) -> Callable[..., dict[str, Any]]:
    """A tool as an op's method: what the host compares with the manifest is its signature."""

    def run(self: SuiteDriver, call: Call, **args: Any) -> dict[str, Any]:
        return {"text": self.runner.run(function.name, args)}

    def parameter(name: str) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Any)

    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ("self", "call")]
    names = list(function.parameters.model_fields)
    run.__signature__ = inspect.Signature(first + [parameter(name) for name in names])  # type: ignore[attr-defined]
    return op(name=op_name(function.name))(run)


def _driver(suite: str) -> type[SuiteDriver]:
    methods = {f"tool_{tool.name}": _method(tool) for tool in suites()[suite].tools}
    return type(suite.capitalize(), (SuiteDriver,), {"suite": suite, **methods})


Workspace, Travel, Banking, Slack = (_driver(suite) for suite in SUITES)
