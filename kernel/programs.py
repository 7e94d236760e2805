"""What can run here: the drivers and agents that are installed, by their manifests alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import AgentManifest, DriverManifest, discover, load_agent, load_driver
from llmos.ipc.protocol import SYSCALLS

log = structlog.get_logger()

_M = TypeVar("_M", DriverManifest, AgentManifest)

RESERVED = {op.partition(".")[0] for op in SYSCALLS} | {"app", "fs", "user", "kernel", "gate", "core"}
"""Names that mean something already."""


class Programs:
    """Read once, at boot. A broken package is reported and left out; it never stops the others."""

    def __init__(self) -> None:
        self.drivers: dict[str, DriverManifest] = {}
        self.agents: dict[str, AgentManifest] = {}
        self.broken: dict[str, str] = {}
        for name, path in discover("llmos.drivers", "manifest.toml"):
            self._take(name, path, self.drivers, load_driver)
        for name, path in discover("llmos.agents", "agent.toml"):
            self._take(name, path, self.agents, load_agent)

    def agent(self, name: str) -> AgentManifest:
        """Raises `OpError(NOT_FOUND)`."""
        try:
            return self.agents[name]
        except KeyError:
            raise OpError(
                Code.NOT_FOUND, f"no agent is called {name!r}", f"installed: {', '.join(self.agents) or 'none'}"
            ) from None

    def manifest(self, name: str) -> DriverManifest | AgentManifest | None:
        return self.drivers.get(name) or self.agents.get(name)

    def _take(self, name: str, path: Path, into: dict[str, _M], load: Callable[[Path], _M]) -> None:
        try:
            manifest = load(path)
            if manifest.name != name:
                raise OpError(
                    Code.CONFLICT, f"{path}: it calls itself {manifest.name!r}, its entry point says {name!r}"
                )
            if name in RESERVED or name in self.drivers or name in self.agents:
                raise OpError(Code.CONFLICT, f"{path}: the name {name!r} is taken")
        except OpError as error:
            self.broken[name] = error.detail
            log.error("program.broken", name=name, err=error.detail)
        else:
            into[name] = manifest
