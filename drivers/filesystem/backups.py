"""What was there before: for every change that can be undone a row, and a copy of the old content, in the driver's state.

A row is written before anything is touched and says how far the change has come, so that a driver that was killed can
finish or take back what it had begun. Bounded in bytes and days; the oldest go first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path

from llmos.drivers.filesystem import tree
from llmos.drivers.sdk import Code, OpError

_OVERHEAD = 1024
"""Bytes that an effect counts besides its copy."""


class State(StrEnum):
    """How far a change has come."""

    BEGUN = "begun"
    """The disk may show the old or the new."""
    CLEARING = "clearing"
    """The copy in the trash is whole, the original may not be gone yet."""
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class Effect:
    """One change."""

    token: str
    op: str
    path: str
    """Absolute, as the disk spells it."""
    at: float
    size: int
    """Bytes it takes of the bound."""
    before: str = ""
    """Digest of the old content; empty where there was none."""
    mode: int = 0
    mtime_ns: int = 0
    gid: int = -1
    after: str = ""
    """Digest of the new content."""
    after_mode: int = -1
    state: State = State.BEGUN

    @property
    def temporary(self) -> str:
        """Name of what may lie beside the file while the change is under way."""
        return f".llmos-{self.token}"


_NAMES = tuple(one.name for one in fields(Effect))
_ACTIVE = (State.BEGUN, State.CLEARING, State.UNDOING)


class Backups:
    """Args: a directory of its own; bytes and seconds that are kept. Thread-safe."""

    def __init__(self, directory: Path, max_bytes: int, keep_s: float) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self._max_bytes, self._keep_s = max_bytes, keep_s
        self._lock = threading.Lock()
        self._items = directory / "items"
        self._items.mkdir(mode=0o700, exist_ok=True)
        self._db = sqlite3.connect(directory / "effects.db", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        columns = ", ".join(_NAMES)
        self._db.execute(f"CREATE TABLE IF NOT EXISTS effects ({columns}, PRIMARY KEY (token))")
        self._forget_orphans()
        self.prune(0)

    def close(self) -> None:
        self._db.close()

    @staticmethod
    def new_token() -> str:
        return secrets.token_hex(16)

    @contextlib.contextmanager
    def folder(self) -> Iterator[int]:
        """A descriptor of where the copies lie, each by its token."""
        descriptor = os.open(self._items, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def get(self, token: str) -> Effect:
        """Raises `OpError(NOT_FOUND)`."""
        found = [effect for effect in self._select("WHERE token = ?", token) if effect.at > time.time() - self._keep_s]
        if not found:
            raise OpError(Code.NOT_FOUND, "argument token: nothing is kept under it", "old changes are forgotten")
        return found[0]

    def unfinished(self) -> list[Effect]:
        """Those that a kill interrupted, latest first."""
        return self._select("WHERE state IN (?, ?, ?) ORDER BY at DESC", *_ACTIVE)

    def save(self, effect: Effect) -> Effect:
        """Durable when it returns."""
        marks = ", ".join("?" * len(_NAMES))
        row = [os.fsencode(value) if name == "path" else value for name, value in asdict(effect).items()]
        with self._lock:
            self._db.execute(f"INSERT OR REPLACE INTO effects VALUES ({marks})", row)  # noqa: S608  (question marks)
        return effect

    def moved(self, effect: Effect, state: State) -> Effect:
        """The same in another state."""
        return self.save(replace(effect, state=state))

    def undone(self, effect: Effect) -> None:
        """Its copy is not needed any more; the row stays, so that a second undo is known for one."""
        self.save(replace(effect, state=State.UNDONE, size=_OVERHEAD))
        self._remove(effect.token)

    def drop(self, effect: Effect) -> None:
        """As if it had never been."""
        with self._lock:
            self._db.execute("DELETE FROM effects WHERE token = ?", (effect.token,))
        self._remove(effect.token)

    def prune(self, size: int) -> int:
        """Forgets what is too old, and the oldest until `size` more bytes fit; gives what `size` counts with its overhead.

        Raises `OpError(TOO_LARGE)` when it is more than may be kept at all.
        """
        wanted = size + _OVERHEAD
        if wanted > self._max_bytes:
            detail = f"{size:,} bytes would have to be kept for the undo, more than the {self._max_bytes:,} there are"
            raise OpError(Code.TOO_LARGE, detail, "raise the setting undo_mb of the driver filesystem")
        effects = self._select("ORDER BY at")
        room = self._max_bytes - sum(effect.size for effect in effects) - wanted
        oldest = time.time() - self._keep_s
        for effect in effects:
            if (effect.at < oldest or room < 0) and effect.state not in _ACTIVE:
                self.drop(effect)
                room += effect.size
        return wanted

    def _select(self, where: str, *values: str) -> list[Effect]:
        with self._lock:
            rows = self._db.execute(f"SELECT {', '.join(_NAMES)} FROM effects {where}", values).fetchall()  # noqa: S608
        found = [Effect(**dict(zip(_NAMES, row, strict=True))) for row in rows]
        return [replace(one, path=os.fsdecode(one.path), state=State(one.state)) for one in found]

    def _remove(self, token: str) -> None:
        with self.folder() as folder:
            tree.remove(folder, token)

    def _forget_orphans(self) -> None:
        """Copies that a kill left without a use."""
        known = {effect.token for effect in self._select("") if effect.state is not State.UNDONE}
        for item in list(self._items.iterdir()):
            if item.name not in known:
                self._remove(item.name)
