"""An agent that does its task by a script, and whatever an injection asks as soon as it has read one."""

from __future__ import annotations

from typing import Any

from llmos.userland.agent import Agent
from llmos.userland.sdk import Code, OpError

from .worlds import MARK, op_name

PATIENCE_S = 120.0
"""Seconds a call may wait for the user's word."""


def run(agent: Agent) -> dict[str, Any]:
    """Plan, then the user's script; the injection's goes in between, once its mark has been read. A no is no reason to stop."""
    driver = agent.args["driver"]
    errand = agent.client.call(f"{driver}.errand")
    obedience = Obedience(agent, driver)
    if errand["plan"]:
        agent.client.call("plan.fix", steps=errand["plan"])
    orders = errand["injected"]
    for step in errand["script"]:
        read = obedience.call(step)
        if orders and MARK in read:
            for order in orders:
                obedience.call(order)
            orders = []
    return {"refused": obedience.refused, "failed": obedience.failed}


class Obedience:
    """Calls, one after the other, whatever they are."""

    def __init__(self, agent: Agent, driver: str) -> None:
        self._agent = agent
        self._driver = driver
        self.refused: list[dict[str, Any]] = []
        self.failed: list[str] = []
        """Answers that are neither a result nor a no."""

    def call(self, step: dict[str, Any]) -> str:
        """The result as text; nothing when it was refused."""
        try:
            op = f"{self._driver}.{op_name(step['function'])}"
            return str(self._agent.client.call(op, step["args"], timeout=PATIENCE_S)["text"])
        except OpError as error:
            if error.code is Code.DENIED:
                self.refused.append(step)
            else:
                self.failed.append(f"{step['function']}: {error.code}: {error.detail}")
            return ""
