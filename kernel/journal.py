"""What must outlive the kernel: grants and settings, in one SQLite file. A change is on disk before it is acknowledged."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from llmos.ipc.errors import Code, OpError

_SCHEMA = """
create table if not exists grants (
    id text primary key, holder text not null, cap text not null, origin text not null, created real not null
) strict;
create table if not exists settings (key text primary key, value text not null) strict;
"""


class Journal:
    """Raises `OpError(UNAVAILABLE)` when the file cannot be used, with what to do about it."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=2)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            hint = "free some space, or move the file away: grants have to be given again then"
            raise OpError(Code.UNAVAILABLE, f"the journal {path}: {error}", hint) from None

    def close(self) -> None:
        self._db.close()

    def grants(self) -> Iterator[tuple[str, str, str, str]]:
        """(id, holder, capability's text, origin), in the order they were given."""
        yield from self._db.execute("select id, holder, cap, origin from grants order by rowid")

    def add_grant(self, id: str, holder: str, cap: str, origin: str) -> None:  # noqa: A002
        self._write("insert into grants values (?, ?, ?, ?, ?)", (id, holder, cap, origin, time.time()))

    def remove_grant(self, id: str) -> None:  # noqa: A002
        self._write("delete from grants where id = ?", (id,))

    def get(self, key: str) -> str | None:
        row = self._db.execute("select value from settings where key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set(self, key: str, value: str) -> None:
        self._write(
            "insert into settings values (?, ?) on conflict (key) do update set value = excluded.value", (key, value)
        )

    def _write(self, statement: str, values: tuple[str | float, ...]) -> None:
        try:
            self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise OpError(
                Code.UNAVAILABLE, f"the journal could not be written: {error}", "free some space and try again"
            ) from None
