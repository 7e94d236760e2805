"""Projects: a directory each for programs to run in, and the label of all that was ever put into it.

A label is on disk before what it is about is in the directory. A directory that nothing is known of may hold anything: its label is the
highest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from llmos.ipc.errors import Code, OpError
from llmos.kernel import code_files, params
from llmos.kernel.journal import Journal, Kept
from llmos.kernel.labels import BOTTOM, TOP, Label
from llmos.kernel.launch import private_directory

log = structlog.get_logger()

_RUBBISH = ".rubbish"
"""Where what was removed waits for its end; no project's name."""


@dataclass(slots=True)
class Project:
    """One of them."""

    name: str
    label: Label
    made: float
    """Seconds since 1970 UTC."""
    changed: int = 0
    """Another number whenever something may have been put into it, in this kernel's life."""
    taints: tuple[int, ...] = ()
    """What explains its label, as far as it was raised in this kernel's life."""

    def to_row(self) -> dict[str, Any]:
        return {"id": self.name, "label": self.label.to_wire(), "made": self.made}


class Projects:
    """All of them, below one directory.

    Args:
        root: where; it is made by the first project.
    """

    def __init__(self, root: Path, journal: Journal) -> None:
        self._path = root
        self._kept = Kept(journal, "code")
        self._known: dict[str, Project] = {}
        for row in self._kept.load():
            self._known[row["id"]] = Project(row["id"], Label.from_wire(row["label"]), row["made"])
        self._changes = 0
        self._root = -1
        self.rubbish = -1
        """Descriptor of the directory of what was removed; -1 while there are no projects."""
        if root.is_dir():
            self._prepare()

    def __iter__(self) -> Iterator[Project]:
        return iter(sorted(self._known.values(), key=lambda project: project.name))

    def get(self, name: str) -> Project:
        """Raises `OpError(NOT_FOUND)`."""
        project = self._known.get(name)
        if project is None:
            known = ", ".join(list(self._known)[:20]) or "none"
            raise OpError(Code.NOT_FOUND, f"no project is called {name!r}", f"there are: {known}")
        return project

    def label(self, name: str) -> Label:
        """Of what is in it; `BOTTOM` where nothing is."""
        project = self._known.get(name)
        return project.label if project is not None else BOTTOM

    def taints(self, name: str) -> tuple[int, ...]:
        """What explains its label."""
        project = self._known.get(name)
        return project.taints if project is not None else ()

    def touch(self, name: str) -> None:
        """Something may have been put into it."""
        if name in self._known:
            self._changes += 1
            self._known[name].changed = self._changes

    def pin(self, name: str) -> Callable[[], None]:
        """What the user is asked about is what it holds now. → raises `OpError(CONFLICT)` once it may hold something else."""
        seen = self._known.get(name)
        changed = seen.changed if seen is not None else 0

        def check() -> None:
            if self._known.get(name) is not seen or (seen is not None and seen.changed != changed):
                raise OpError(Code.CONFLICT, f"the project {name} was changed while the user was asked", "ask again")

        return check

    def path(self, name: str) -> Path:
        return self._path / name

    def open(self, name: str) -> int:
        """A descriptor of its directory. Raises `OpError` `NOT_FOUND`, `UNAVAILABLE`."""
        self.get(name)
        try:
            return code_files.open_directory(self._root, name)
        except OSError as error:
            raise OpError(Code.UNAVAILABLE, f"the project {name}: {error.strerror}") from None

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """The same, closed at the end."""
        descriptor = self.open(name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def enter(self, name: str, label: Label, taints: tuple[int, ...] = ()) -> Project:
        """Something with this label is about to go into it; it is made if there is none. Raises `OpError` `BUSY`, `UNAVAILABLE`."""
        if self._root < 0:
            private_directory(self._path)
            self._prepare()
        project = self._known.get(name)
        if project is None:
            if len(self._known) >= params.CODE_PROJECTS:
                raise OpError(Code.BUSY, f"there are {len(self._known)} projects", "llmosctl code rm PROJECT")
            unknown = os.path.lexists(self.path(name))
            project = Project(name, TOP if unknown else BOTTOM, time.time())
            self._kept.save(project.to_row())
            self._known[name] = project
        self.touch(name)
        raised = project.label | label
        if raised != project.label:
            self._kept.save({**project.to_row(), "label": raised.to_wire()})
            project.label, project.taints = raised, (*project.taints, *taints)
        try:
            self.path(name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OpError(Code.UNAVAILABLE, f"the project {name}: {error.strerror}") from None
        return project

    def remove(self, name: str) -> None:
        """It is gone at once; what was in it is `rubbish`. Raises `OpError` `NOT_FOUND`, `UNAVAILABLE`."""
        self.get(name)
        try:
            if os.path.lexists(self.path(name)):
                code_files.throw(self._root, name, self.rubbish)
        except OSError as error:
            raise OpError(Code.UNAVAILABLE, f"the project {name}: {error.strerror}") from None
        self._kept.delete(name)
        del self._known[name]

    def thrown(self) -> list[Path]:
        """What was removed and is not deleted yet."""
        return list((self._path / _RUBBISH).iterdir()) if self.rubbish >= 0 else []

    def room(self) -> str:
        """Why programs cannot go on, in words, when the disk is nearly full; empty while it is not."""
        disk = os.fstatvfs(self._root)
        if disk.f_bavail * disk.f_frsize < params.CODE_DISK_LEFT:
            return "the disk is nearly full"
        if disk.f_files and disk.f_favail < params.CODE_INODES_LEFT:
            return "the disk has hardly room for more files"
        return ""

    def close(self) -> None:
        for descriptor in (self._root, self.rubbish):
            if descriptor >= 0:
                os.close(descriptor)
        self._root = self.rubbish = -1

    def _prepare(self) -> None:
        try:
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            private_directory(self._path / _RUBBISH)
            self.rubbish = code_files.open_directory(self._root, _RUBBISH)
        except OSError as error:
            log.error("code.unusable", err=error.strerror)
