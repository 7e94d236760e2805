"""What can run here: the drivers and agents that are installed, by their manifests alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import AgentManifest, DriverManifest, discover, load_agent, load_driver
from llmos.ipc.protocol import SYSCALLS
from llmos.kernel.capability import Right

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

    def check_right(self, right: Right) -> None:
        """Raises `OpError(INVALID_ARGUMENT)` for a scope that bounds nothing: a misspelt restriction would be none at all."""
        known = self._scope_keys(right.object, right.verb)
        if known is None:
            objects = ", ".join(sorted({*self.drivers, *(op.partition(".")[0] for op in SYSCALLS), "fs", "app"}))
            raise OpError(
                Code.INVALID_ARGUMENT, f"{right}: nothing answers to {right.object}.{right.verb}", f"objects: {objects}"
            )
        for key in right.scope:
            if key not in known:
                bounds = f"it takes {', '.join(sorted(known))}" if known else "it takes no scope"
                raise OpError(Code.INVALID_ARGUMENT, f"{right}: {key!r} bounds nothing there", bounds)

    def _scope_keys(self, object_: str, verb: str) -> set[str] | None:
        """The keys that bound every request under this right; None for a right that nothing needs."""
        scopes = [set(call.SCOPE) for call in SYSCALLS.values() if call.RIGHT and _fits(call.RIGHT, object_, verb)]
        if object_ in self.drivers:
            ops = self.drivers[object_].ops.values()
            scopes += [set(op.scope) for op in ops if verb in ("*", op.effect.value)]
        if object_ == "fs" and verb in ("read", "write", "*"):
            scopes.append({"path"})
        if object_ == "app" and verb in ("call", "*"):
            scopes.append({"name"})
        if object_ == "*":
            return set()
        return set().union(*scopes) if scopes else None

    def _take(self, name: str, path: Path, into: dict[str, _M], load: Callable[[Path], _M]) -> None:
        try:
            manifest = load(path)
            if manifest.name != name:
                raise OpError(
                    Code.CONFLICT, f"{path}: it calls itself {manifest.name!r}, its entry point says {name!r}"
                )
            if name in RESERVED or name in self.drivers or name in self.agents:
                raise OpError(Code.CONFLICT, f"{path}: the name {name!r} is taken")
            for text in manifest.permissions.capabilities():
                Right.parse(text)
        except OpError as error:
            self.broken[name] = error.detail
            log.error("program.broken", name=name, err=error.detail)
        else:
            into[name] = manifest


def _fits(right: str, object_: str, verb: str) -> bool:
    needed_object, _, needed_verb = right.partition(".")
    return object_ == needed_object and verb in ("*", needed_verb)
