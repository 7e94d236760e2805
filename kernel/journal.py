"""What must outlive the kernel, in one SQLite file: grants with what was spent of them, settings, the head of the audit log.

A change is on disk before it is acknowledged. Other parts of the kernel keep tables of their own here: they hand their
`create table if not exists` to the constructor and use `read`, `write` and `transaction`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmos.ipc.errors import Code, OpError
from llmos.kernel.capability_quota import Spending

_STEPS = (
    """
create table if not exists grants (
    id text primary key, holder text not null, cap text not null, origin text not null, created real not null
) strict;
create table if not exists settings (key text primary key, value text not null) strict;
""",
    """
alter table grants add column reason text not null default '';
create table spending (
    id text not null references grants (id) on delete cascade, unit text not null, window integer not null,
    spent integer not null, moved integer not null, primary key (id, unit)
) strict;
create table audit_head (one integer primary key check (one = 1), seq integer not null, hash blob not null) strict;
create table kept (part text not null, id text not null, row blob not null, primary key (part, id)) strict;
""",
)
"""What leads from each version of the file to the next; never changed, only added to."""


_LAST_GRANT = "grants.last"


class Grant(NamedTuple):
    """A capability that the user gave."""

    id: str
    holder: str
    cap: str
    """Its text form."""
    origin: str
    reason: str


class Journal:
    """Raises `OpError(UNAVAILABLE)` when the file cannot be used, with what to do about it.

    Args:
        schema: tables of other parts of the kernel: statements that do nothing when they have been executed before.
    """

    def __init__(self, path: Path, schema: Sequence[str] = ()) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=2)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.execute("pragma foreign_keys = on")
            self._migrate(path)
            for statements in schema:
                self._db.executescript(statements)
        except (OSError, sqlite3.Error) as error:
            hint = "free some space, or move the file away: grants have to be given again then"
            raise OpError(Code.UNAVAILABLE, f"the journal {path}: {error}", hint) from None

        self._granted = {str(id_) for (id_,) in self.read("select id from grants")}
        """Ids of what is in it, so that what never was costs no look at the disk."""

    def close(self) -> None:
        self._db.close()

    # -- grants ----------------------------------------------------------------------------------------------------

    def grants(self) -> Iterator[Grant]:
        """In the order they were given."""
        yield from map(Grant._make, self.read("select id, holder, cap, origin, reason from grants order by rowid"))

    def add_grant(self, id: str, holder: str, cap: str, origin: str, reason: str = "") -> None:  # noqa: A002
        """Its id is remembered beyond its end: nothing else is ever called that."""
        with self.transaction():
            self.write(
                "insert into grants (id, holder, cap, origin, created, reason) values (?, ?, ?, ?, ?, ?)",
                (id, holder, cap, origin, time.time(), reason),
            )
            self.set(_LAST_GRANT, id)
        self._granted.add(id)

    @property
    def last_grant(self) -> str | None:
        """Id of the latest there ever was."""
        return self.get(_LAST_GRANT)

    def remove_grants(self, ids: Iterable[str]) -> None:
        """Those that are in it, with what was spent of them; all or none."""
        gone = self._granted.intersection(ids)
        if gone:
            with self.transaction():
                for id_ in gone:
                    self.write("delete from grants where id = ?", (id_,))
            self._granted -= gone

    def spending(self, id: str) -> dict[str, Spending]:  # noqa: A002
        """Unit → what was spent of a grant."""
        rows = self.read("select unit, window, spent, moved from spending where id = ?", (id,))
        return {unit: Spending(window, spent, moved) for unit, window, spent, moved in rows}

    def set_spending(self, rows: Iterable[tuple[str, str, Spending]]) -> None:
        """(id, unit, spending) of each; all or none. What no longer is a grant is left out."""
        with self.transaction():
            for id_, unit, spending in rows:
                self.write(
                    "insert into spending select ?, ?, ?, ?, ? where exists (select 1 from grants where id = ?) "
                    "on conflict do update set window = excluded.window, spent = excluded.spent, moved = excluded.moved",
                    (id_, unit, *spending, id_),
                )

    # -- settings, the audit log's head ----------------------------------------------------------------------------

    def get(self, key: str) -> str | None:
        rows = self.read("select value from settings where key = ?", (key,))
        return rows[0][0] if rows else None

    def set(self, key: str, value: str) -> None:
        self.write(
            "insert into settings values (?, ?) on conflict (key) do update set value = excluded.value", (key, value)
        )

    def audit_head(self) -> tuple[int, bytes] | None:
        """Number and hash of the last row that the audit log told of."""
        rows = self.read("select seq, hash from audit_head")
        return (rows[0][0], rows[0][1]) if rows else None

    def set_audit_head(self, seq: int, hash: bytes) -> None:  # noqa: A002
        self.write("replace into audit_head values (1, ?, ?)", (seq, hash))

    # -- for every table -------------------------------------------------------------------------------------------

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._run(statement, values)

    def write(self, statement: str, values: Sequence[Any] = ()) -> None:
        """On disk when it returns, unless a transaction is open."""
        self._run(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing when it raises; on disk at its end. One inside another is part of it."""
        if self._db.in_transaction:
            yield
            return
        self._run("begin immediate")
        try:
            yield
            self._run("commit")
        except BaseException:
            self._db.rollback()
            raise

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OpError(
                Code.UNAVAILABLE, f"the journal could not be used: {error}", "free some space and try again"
            ) from None

    def _migrate(self, path: Path) -> None:
        version = self._db.execute("pragma user_version").fetchone()[0]
        if version > len(_STEPS):
            hint = "use that version of llmos, or move the file away: grants have to be given again then"
            raise OpError(Code.UNAVAILABLE, f"the journal {path} was written by a newer version of llmos", hint)
        for number, step in enumerate(_STEPS[version:], start=version + 1):
            self._db.executescript(f"begin; {step} pragma user_version = {number}; commit;")


class Kept:
    """Rows of one part of the kernel, each a map of what msgpack knows with an `id`; on disk when `save` returns."""

    def __init__(self, journal: Journal, part: str) -> None:
        self._journal = journal
        self._part = part

    def save(self, row: dict[str, Any]) -> None:
        """In place of what has the same id."""
        self._journal.write(
            "insert into kept values (?, ?, ?) on conflict do update set row = excluded.row",
            (self._part, row["id"], msgspec.msgpack.encode(row)),
        )

    def delete(self, id: str) -> None:  # noqa: A002
        self._journal.write("delete from kept where part = ? and id = ?", (self._part, id))

    def load(self) -> Iterator[dict[str, Any]]:
        """In the order they were first saved."""
        for (row,) in self._journal.read("select row from kept where part = ? order by rowid", (self._part,)):
            yield msgspec.msgpack.decode(row)
