"""The agent."""

from __future__ import annotations

import time
from typing import Any

from llmos.userland.agent import Agent


def run(agent: Agent) -> dict[str, Any]:
    """Until it is ended, a call every `pause` seconds; at once without a pause."""
    agent.emit(runs=True)
    while agent.args["pause"]:
        time.sleep(agent.args["pause"])
        agent.client.call("sys.ping")
    return {}
