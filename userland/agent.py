"""Agents: a program that gets a task, uses the ops it may, and returns a result. And the host that runs it in its jail.

    def run(agent: Agent) -> dict[str, Any]:
        agent.emit(stage="looking")
        found = agent.client.call("browser_history.most_read", period="this week", k=5)
        titles = "\\n".join(item["title"] for item in found["items"])
        week = agent.client.generate(messages=[{"role": "user", "content": f"Sum up my week of reading:\\n{titles}"}])
        return {"text": week.text, "cards": found["items"]}

and an `agent.toml` beside it that names it and what it asks for. Started as `python -m llmos.userland.agent`.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from llmos.ipc import log as logs
from llmos.ipc import manifest as manifests
from llmos.ipc import orders
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect
from llmos.ipc.signals import on_terminate
from llmos.userland.sdk import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    import structlog

log = logs.get_logger()


class Config(msgspec.Struct, frozen=True):
    """`LLMOS_CONFIG`, as JSON."""

    kind: str
    name: str
    manifest: Path
    home: Path
    state: Path = msgspec.field(default_factory=Path.cwd)
    args: dict[str, Any] = {}
    tz: str = ""


@dataclass(frozen=True)
class Agent:
    """What an agent has of the world."""

    client: Client
    args: dict[str, Any]
    """As the manifest types them, defaults filled in."""
    state: Path
    """A directory of its own."""
    home: Path
    """The user's home, for words only: nothing of it is visible here."""
    tz: str = ""
    """IANA name of the user's time zone; empty for the machine's."""
    log: structlog.typing.FilteringBoundLogger = field(default_factory=logs.get_logger)

    def emit(self, **data: Any) -> None:
        """Tells whoever waits for the agent how it is doing; blocks while they are slow to read."""
        self.client.call("proc.emit", {"data": data})

    def now(self) -> datetime:
        """The time in the user's zone; aware."""
        try:
            return datetime.now(ZoneInfo(self.tz)) if self.tz else datetime.now().astimezone()
        except (ZoneInfoNotFoundError, ValueError):
            return datetime.now().astimezone()


def load(manifest: manifests.AgentManifest) -> Callable[[Agent], dict[str, Any] | None]:
    """The agent's function. Raises `OpError` when the package does not hold what its manifest says."""
    module_name, _, name = manifest.entry.partition(":")
    run = getattr(importlib.import_module(module_name), name, None)
    if not callable(run):
        raise OpError(Code.INVALID_ARGUMENT, f"{manifest.entry} is not a function")
    return run  # type: ignore[no-any-return]  # what it returns is checked when it does


def fill(manifest: manifests.AgentManifest, args: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their defaults. Raises `OpError(INVALID_ARGUMENT)` that names the argument."""
    manifests.Op(effect=Effect.EXEC, summary=manifest.summary, args=manifest.args).check(args)
    return {name: args.get(name, arg.default) for name, arg in manifest.args.items()}


def run_agent(client: Client, config: Config) -> OpError | None:
    """Runs it from hello to `proc.exit`; the error it ended with, if any."""
    client.call("sys.ping")
    try:
        manifest = manifests.load_agent(config.manifest)
        args = fill(manifest, config.args)
        run = load(manifest)
        client.call("sys.ready")
        agent = Agent(client=client, args=args, state=config.state, home=config.home, tz=config.tz)
        result = run(agent)
        if result is not None and not isinstance(result, dict):
            raise OpError(Code.INTERNAL, f"{config.name} returned {type(result).__name__}, not a dict")
        client.call("proc.exit", {"result": result or {}})
    except OpError as error:
        failure = error
    except Exception as error:  # the agent's own code: whoever waits learns the type, the log the rest
        log.exception("agent.crashed")
        hint = f"the agent's log says more: llmosctl logs {config.name}"
        failure = OpError(Code.INTERNAL, f"{config.name}: {type(error).__name__}", hint)
    else:
        return None
    client.call("proc.exit", {"error": failure.to_wire()})
    return failure


def main() -> int:
    """0 when the agent returned, 1 when it failed or lost the system."""
    orders.follow()
    try:
        config = msgspec.json.decode(os.environ["LLMOS_CONFIG"], type=Config, dec_hook=lambda kind, value: kind(value))
    except (KeyError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"LLMOS_CONFIG: {error}; this program is started by the kernel\n")
        return 2
    logs.configure(agent=config.name)
    try:
        with Client(name=f"agent {config.name}") as client:
            on_terminate(client.close)
            failure = run_agent(client, config)
    except OpError as error:
        failure = error
    if failure is not None:
        log.error("agent.failed", code=failure.code, detail=failure.detail)
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
