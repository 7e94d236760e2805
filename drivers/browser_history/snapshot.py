"""A consistent copy of an SQLite database that another program holds open, made without its locks.

Opening the original is no way: a running Firefox keeps it locked, `immutable=1` ignores the write-ahead log and shows no
rows, and the backup API waits for a lock that never ends. So the file is copied together with its write-ahead log or
rollback journal; when none of them changed meanwhile the copy is what a power cut would have left, and SQLite's own
recovery makes that consistent when the copy is opened.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Literal

State = Literal["ok", "busy", "denied", "damaged", "unknown_format", "missing"]

_PARTS = ("", "-wal", "-journal")
_ATTEMPTS = 6
_PAUSE_S = 0.05
"""Seconds before the first new attempt; each pause is twice as long as the one before."""

Fingerprint = tuple[tuple[int, int] | None, ...]
"""(mtime in ns, bytes) of the database, its write-ahead log and its journal; None for one that is not there."""


class UnreadableError(Exception):
    """A history that cannot be read now. `detail` is one line for people, `hint` what they can do."""

    def __init__(self, state: State, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.state: State = state
        self.detail = detail
        self.hint = hint


def fingerprint(database: Path) -> Fingerprint:
    """Changes whenever the database does. Raises `UnreadableError`."""
    try:
        return tuple(_stat(database.with_name(database.name + part)) for part in _PARTS)
    except PermissionError as error:
        raise _denied(database) from error


def copy_database(database: Path, folder: Path) -> Path:
    """Copies into `folder`, replacing what is there. Returns the copy. Blocks up to a few seconds.

    Raises `UnreadableError`: `busy` for a database that changes all the time, `denied`, `missing`.
    """
    copy = folder / database.name
    pause = _PAUSE_S
    for _ in range(_ATTEMPTS):
        before = fingerprint(database)
        if before[0] is None:
            raise UnreadableError(
                "missing", f"{database.name} is gone", "start the browser once, or forget the profile"
            )
        try:
            for part, there in zip(_PARTS, before, strict=True):
                target = copy.with_name(copy.name + part)
                target.unlink(missing_ok=True)
                if there:
                    shutil.copyfile(database.with_name(database.name + part), target)
        except PermissionError as error:
            raise _denied(database) from error
        except FileNotFoundError:
            pass  # a journal came or went: what the fingerprints show, too
        if fingerprint(database) == before:
            copy.with_name(copy.name + "-shm").unlink(missing_ok=True)
            return copy
        time.sleep(pause)
        pause *= 2
    raise UnreadableError("busy", f"{database.name} changed during every copy", "try again when the browser is idle")


def open_copy(copy: Path) -> sqlite3.Connection:
    """The copy, recovered. Raises `UnreadableError` for what is no database."""
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA trusted_schema = OFF")  # a schema may name functions: the file is not ours
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise damaged(copy.name, error) from error
    return connection


def damaged(name: str, error: sqlite3.DatabaseError) -> UnreadableError:
    """What SQLite says about a file that is cut, overwritten or not a database."""
    return UnreadableError(
        "damaged",
        f"{name} is damaged: {error}",
        "the browser repairs it when it starts; what was read before stays searchable",
    )


def _denied(database: Path) -> UnreadableError:
    return UnreadableError(
        "denied",
        f"{database.name} may not be read",
        "check the file's permissions; on macOS, give this program Full Disk Access",
    )


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size
