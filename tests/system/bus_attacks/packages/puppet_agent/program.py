"""An agent that does what the attacker tells it."""

from __future__ import annotations

from typing import Any

from bus_puppet.puppet import Puppet  # type: ignore[import-not-found]  # put there by the arena

from llmos.userland.agent import Agent


def run(agent: Agent) -> dict[str, Any]:
    """Until it is told to end."""
    (agent.state / "badge").write_text(agent.client.connection.badge)
    Puppet(agent.state).run()
    return {"done": True}
