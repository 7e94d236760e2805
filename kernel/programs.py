"""What can run here: the drivers and agents that are installed, by their manifests alone."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import AgentManifest, DriverManifest, discover, load_agent, load_driver
from llmos.ipc.protocol import SYSCALLS
from llmos.kernel import jail, net
from llmos.kernel.capability import Capability, Right
from llmos.kernel.scope import KeyKinds

log = structlog.get_logger()

_M = TypeVar("_M", DriverManifest, AgentManifest)

RESERVED = {op.partition(".")[0] for op in SYSCALLS} | {
    "app",
    "fs",
    "user",
    "kernel",
    "gate",
    "apps_gate",
    "core",
    "egress",
    "net",
}
"""Names that mean something already."""


@dataclass(frozen=True)
class Changes:
    """Drivers that a scan found new, different, or gone."""

    added: list[str]
    changed: list[str]
    removed: list[str]


class Programs:
    """Read at boot and when somebody installs something. A broken package is reported and left out; it never stops the others.

    Args:
        packages: where packages have a directory of their own.
    """

    def __init__(self, packages: Path) -> None:
        self._packages = packages
        self.drivers: dict[str, DriverManifest] = {}
        self.agents: dict[str, AgentManifest] = {}
        self.broken: dict[str, str] = {}
        self._shipped: frozenset[str] = frozenset()
        self.known_tags: frozenset[str] = frozenset()
        """Tags that some manifest names."""
        self.scope_kinds: dict[str, KeyKinds] = {}
        """Object → the kinds of its scope keys."""
        self.scan()

    def scan(self) -> Changes:
        """Read the manifests of what is installed now."""
        before = self.drivers
        self.drivers, self.agents, self.broken = {}, {}, {}
        importlib.invalidate_caches()
        for name, path in discover("llmos.drivers", self._packages):
            self._take(name, path, self.drivers, load_driver)
        for name, path in discover("llmos.agents", self._packages):
            self._take(name, path, self.agents, load_agent)
        self.scope_kinds.clear()
        self.scope_kinds.update({name: one.scope_kinds for name, one in self.drivers.items() if one.scope_kinds})
        self._shipped = frozenset(name for name, one in self.drivers.items() if jail.is_own(Path(one.directory)))
        self.known_tags = frozenset(
            tag
            for name, one in self.drivers.items()
            for tag in (name, *one.tags, *(tag for op in one.ops.values() if op.label for tag in op.label.tags))
        )
        return Changes(
            [name for name in self.drivers if name not in before],
            [name for name, manifest in self.drivers.items() if name in before and manifest != before[name]],
            [name for name in before if name not in self.drivers],
        )

    def agent(self, name: str) -> AgentManifest:
        """Raises `OpError(NOT_FOUND)`."""
        try:
            return self.agents[name]
        except KeyError:
            raise OpError(
                Code.NOT_FOUND, f"no agent is called {name!r}", f"installed: {', '.join(self.agents) or 'none'}"
            ) from None

    def shipped(self, name: str) -> bool:
        """Whether a driver comes with the system, by where it lies: what its manifest says is its author's word."""
        return name in self._shipped

    def manifest(self, name: str) -> DriverManifest | AgentManifest | None:
        return self.drivers.get(name) or self.agents.get(name)

    def check_right(self, right: Right) -> None:
        """Raises `OpError(INVALID_ARGUMENT)` for a scope that bounds nothing: a misspelt restriction would be none at all."""
        by_verb = [self._scope_keys(right.object, verb) for verb in sorted(right.verbs)]
        known = set.intersection(*(keys for keys in by_verb if keys is not None)) if None not in by_verb else None
        if known is None:
            rights = {call.RIGHT for call in SYSCALLS.values() if call.RIGHT} | {
                "label.trust",
                "app.call",
                "fs.read",
                "fs.write",
                "net.connect",
            }
            some = ", ".join(sorted({*rights, *(f"{name}.read" for name in self.drivers)}))
            raise OpError(
                Code.INVALID_ARGUMENT, f"nothing answers to {right.object}.{right.verb}", f"for instance: {some}"
            )
        if right.object == "net":
            net.check_right(right)
        for key in right.scope:
            if key not in known:
                bounds = f"it takes {', '.join(sorted(known))}" if known else "it takes no scope"
                raise OpError(Code.INVALID_ARGUMENT, f"{right}: {key!r} bounds nothing there", bounds)

    def requests(self, name: str, home: str, held: Iterable[Capability]) -> list[dict[str, Any]]:
        """What a program asks for, and whether it holds it. A path that does not exist is not asked for."""
        manifest, holds = self.manifest(name), list(held)
        rows = []
        for text in manifest.permissions.capabilities() if manifest is not None else []:
            try:
                right = Right.parse(text, home, self.scope_kinds)
            except OpError:  # it means nothing to the driver whose it would be: nobody can grant it
                rows.append({"holder": name, "cap": text, "granted": False, "present": False})
                continue
            granted = any(cap.right.reaches(right) for cap in holds)
            paths = right.scope.get("path", ()) if right.object == "fs" else ()
            present = all(os.path.exists(path) for path in paths)  # noqa: PTH110  (a name too long is not there)
            rows.append({"holder": name, "cap": str(right), "granted": granted, "present": present})
        return rows

    def _scope_keys(self, object_: str, verb: str) -> set[str] | None:
        """The keys that bound every request under this right; None for a right that nothing needs."""
        scopes = [set(call.SCOPE) for call in SYSCALLS.values() if call.RIGHT and _fits(call.RIGHT, object_, verb)]
        if object_ in self.drivers:
            ops = self.drivers[object_].ops.values()
            scopes += [set(op.scope) for op in ops if verb in ("*", op.effect.value)]
        if object_ == "fs" and verb in ("read", "write", "*"):
            scopes.append({"path"})
        if object_ == "net" and verb in ("connect", "*"):
            scopes.append({"host", "port", "private"})
        if object_ == "app" and verb in ("call", "*"):
            scopes.append({"name"})
        if object_ == "label" and verb in ("trust", "*"):
            scopes.append(set())
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
                refuse_control(Right.parse(text))
                net.refuse_others(Right.parse(text), driver=isinstance(manifest, DriverManifest))
            if isinstance(manifest, DriverManifest):
                self._check_driver(manifest)
        except OpError as error:
            self.broken[name] = error.detail[:500]
            log.error("program.broken", name=name, err=error.detail)
        else:
            into[name] = manifest

    def _check_driver(self, manifest: DriverManifest) -> None:
        """Raises `OpError` `INVALID_ARGUMENT`, `CONFLICT`."""
        others = {**self.drivers, **self.agents}
        for topic in manifest.topics:
            first = topic.partition(".")[0]
            taken = first != manifest.name and (first in RESERVED or first in others)
            if taken or any(topic in other.topics for other in self.drivers.values()):
                raise OpError(Code.CONFLICT, f"{manifest.name}: the topic {topic} is another's to publish")


def refuse_control(right: Right) -> None:
    """What lets a program act as the user is not for drivers and agents. Raises `OpError(DENIED)`."""
    if right.object in ("*", "perm", "approval", "undo") or (right.object == "sys" and right.does("control")):
        raise OpError(Code.DENIED, f"{right} is for the user, and programs from outside that she lets act for her")


def _fits(right: str, object_: str, verb: str) -> bool:
    needed_object, _, needed_verb = right.partition(".")
    return object_ == needed_object and verb in ("*", needed_verb)
