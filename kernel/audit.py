"""The audit log: what was decided and done, written before it happens, and made so that a change to it shows.

Rows are only ever appended. Each holds the hash of the one before, and its own hash over everything in it; the first one's
predecessor is a number drawn when the file is made. The number and hash of the last row are kept a second time, in the journal.
So a row that was changed, removed or moved, and an end that was cut off, are found and named. What this cannot show: a forgery by
somebody who rewrites every row that follows *and* the journal, which takes the user's own account with the kernel stopped (no jail
shows either file; while the kernel runs, SQLite's exclusive lock keeps everybody else out). Against that there is only a head that
was noted elsewhere: an export ends with it.

No payload is kept: of arguments there are the size and a hash keyed with the file's own secret, so that guessing what they were takes
that too.

Durability: `append` returns when SQLite has handed the row to the operating system, so a kernel that is killed loses nothing that
happened; what the power takes with it is at most what came since the last `anchor`. Where that is not enough (what the user decided,
what leaves the machine), `sync` waits for the disk.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from llmos.ipc.errors import Code, OpError

MAX_DETAIL = 500
"""Characters of a row's detail; the rest is cut."""
SLICE = 500
"""Rows that `verifying` reads between two chances to do something else; about 5 ms."""

_PAGE = 1024  # bytes; a commit writes whole pages, and a row fills a third of one
_WAL_PAGES = 16_384  # of the write-ahead log before it is folded in without being asked; `anchor` does it sooner

_COLUMNS = "seq, ts, kind, holder, op, cap, label, args_hash, bytes, decision, detail, prev, hash"
_SCHEMA = """
create table if not exists log (
    seq integer primary key, ts real not null, kind text not null, holder text not null, op text not null, cap text not null,
    label text not null, args_hash blob not null, bytes integer not null, decision text not null, detail text not null,
    prev blob not null, hash blob not null
) strict;
create table if not exists origin (secret blob not null) strict;
create trigger if not exists only_append_update before update on log begin select raise(abort, 'the log is append-only'); end;
create trigger if not exists only_append_delete before delete on log begin select raise(abort, 'the log is append-only'); end;
"""
_INSERT = f"insert into log ({_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  (a literal)

_encode = msgspec.msgpack.Encoder().encode


class Kind(StrEnum):
    """What a row is about."""

    BOOT = "boot"
    GRANT = "grant"
    """Given, taken back, expired."""
    DENIAL = "denial"
    APPROVAL = "approval"
    """Asked, approved, denied, used, timed out."""
    EFFECT = "effect"
    """An op that was let through."""
    LABEL = "label"
    """A process's label was raised, or something was declassified."""


Hash = bytes
"""32 bytes of SHA-256; of arguments, 16 bytes that are keyed."""


class Head(NamedTuple):
    """The last row."""

    seq: int
    hash: bytes


class HeadStore(Protocol):
    """Where the head is kept a second time; the journal."""

    def audit_head(self) -> tuple[int, bytes] | None:
        """None before there was any."""

    def set_audit_head(self, seq: int, hash: bytes) -> None:  # noqa: A002
        """On disk when it returns."""


class Row(NamedTuple):
    """One row, as `_COLUMNS` orders it."""

    seq: int
    """From 1, without gaps."""
    ts: float
    """Seconds since 1970 UTC."""
    kind: str
    holder: str
    op: str
    cap: str
    """Id of the capability that allowed it."""
    label: str
    args_hash: Hash
    bytes: int
    """Of the arguments."""
    decision: str
    detail: str
    """A few words that name no content."""
    prev: Hash
    hash: Hash

    def to_json(self) -> dict[str, Any]:
        """With hashes in hexadecimal."""
        return {**self._asdict(), "args_hash": self.args_hash.hex(), "prev": self.prev.hex(), "hash": self.hash.hex()}


class Fault(NamedTuple):
    """The first row that is not what it was."""

    seq: int
    what: str
    """In words for the user."""


class Audit:
    """The log in `path`, open for this process alone.

    When the file does not continue what the head store remembers, the gap stays: the next row continues the *remembered* one, so that
    `verify` names what is missing for as long as the file exists.

    Args:
        heads: where the head is kept a second time.
        clock: seconds since 1970 UTC.

    Raises `OpError(UNAVAILABLE)` when the file cannot be used, with what to do about it.
    """

    def __init__(self, path: Path, heads: HeadStore, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._heads = heads
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=2)
            for pragma in (
                f"page_size = {_PAGE}",
                "locking_mode = exclusive",
                "journal_mode = wal",
                "synchronous = normal",
                f"wal_autocheckpoint = {_WAL_PAGES}",
            ):
                self._db.execute(f"pragma {pragma}").fetchone()
            self._db.executescript(_SCHEMA)
            self._secret = self._origin()
        except (OSError, sqlite3.Error) as error:
            hint = "free some space, or move the file away: a new log begins then"
            raise OpError(Code.UNAVAILABLE, f"the audit log {path}: {error}", hint) from None
        self._first = hashlib.sha256(self._secret).digest()
        self.head = self._resume()
        self._anchored = self.head

    def append(
        self,
        kind: Kind,
        holder: str,
        op: str,
        decision: str,
        *,
        cap: str = "",
        label: str = "",
        args: bytes | None = None,
        detail: str = "",
        sync: bool = False,
    ) -> int:
        """Write a row, before what it tells of happens; the row's number.

        Args:
            args: the arguments as they came; their size and keyed hash are kept.
            sync: wait for the disk, and keep the head.

        Raises `OpError(UNAVAILABLE)`: then what it tells of must not happen.
        """
        seq, prev = self.head.seq + 1, self.head.hash
        hashed = self.digest(args) if args is not None else b""
        size = len(args) if args is not None else 0
        fields = (
            seq,
            float(self._clock()),
            kind.value,
            holder,
            op,
            cap,
            label,
            hashed,
            size,
            decision,
            detail[:MAX_DETAIL],
        )
        made = _row_hash(fields, prev)
        try:
            if sync:
                self._db.execute("pragma synchronous = full")
            self._db.execute(_INSERT, (*fields, prev, made))
        except sqlite3.Error as error:
            raise OpError(
                Code.UNAVAILABLE, f"the audit log could not be written: {error}", "free some space and try again"
            ) from None
        finally:
            if sync:
                self._db.execute("pragma synchronous = normal")
        self.head = Head(seq, made)
        if sync:
            self._heads.set_audit_head(seq, made)
            self._anchored = self.head
        return seq

    def digest(self, args: bytes) -> bytes:
        """16 bytes: what the log keeps of arguments."""
        return hashlib.blake2b(args, digest_size=16, key=self._secret).digest()

    def anchor(self) -> None:
        """Bring everything to disk, then keep the head; takes as long as the disk does. To be called every few seconds while rows come."""
        if self._heads.audit_head() != self.head:
            try:
                self._db.execute("pragma wal_checkpoint(passive)").fetchone()
            except sqlite3.Error as error:
                detail = f"the audit log could not be brought to disk: {error}"
                raise OpError(Code.UNAVAILABLE, detail, "free some space") from None
            self._heads.set_audit_head(*self.head)
        self._anchored = self.head

    @property
    def unanchored(self) -> bool:
        """Whether rows have come since the head was last kept."""
        return self._anchored is not self.head

    def close(self) -> None:
        self.anchor()
        self._db.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def rows(self, *, last: int = 100, holder: str = "", kind: str = "", since: float = 0.0) -> list[Row]:
        """The last ones that fit, oldest first; `holder` and `kind` empty for any, `since` in seconds since 1970."""
        found = self._db.execute(
            f"select {_COLUMNS} from log where (? = '' or holder = ?) and (? = '' or kind = ?) and ts >= ? "  # noqa: S608
            "order by seq desc limit ?",
            (holder, holder, kind, kind, since, last),
        )
        return [Row(*row) for row in found][::-1]

    def page(self, after: int, limit: int) -> list[Row]:
        """Those that follow row `after`, oldest first."""
        found = self._db.execute(f"select {_COLUMNS} from log where seq > ? order by seq limit ?", (after, limit))  # noqa: S608
        return [Row(*row) for row in found]

    def verify(self) -> Fault | None:
        """The first row that was changed, removed or moved, if any."""
        steps = self.verifying()
        try:
            while True:
                next(steps)
        except StopIteration as end:
            return cast(Fault | None, end.value)

    def verifying(self) -> Generator[int, None, Fault | None]:
        """`verify` in slices, for a loop that must not stand still: yields how far it is, returns the fault.

        Rows that are appended meanwhile are left for the next time.
        """
        until, kept = self.head, self._heads.audit_head()
        before = Head(0, self._first)
        rows = self._all()
        while (row := _next_of(rows, before)) is not None:
            if isinstance(row, Fault):
                return row
            if row.seq > until.seq:
                break
            fault = _look_at(row, before)
            if fault is None and kept is not None and row.seq == kept[0] and row.hash != kept[1]:
                fault = Fault(
                    row.seq, "is not the row that the journal remembers: this one and others before it were rewritten"
                )
            if fault is not None:
                return fault
            before = Head(row.seq, row.hash)
            if row.seq % SLICE == 0:
                yield row.seq
        if before.seq < until.seq:
            return _missing(before.seq + 1, until.seq)
        return None

    # -- inside ----------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[Row]:
        """In slices, so that no statement stays open while rows are appended."""
        after = -(1 << 62)
        while rows := self._slice(after):
            yield from map(Row._make, rows)
            after = rows[-1][0]

    def _slice(self, after: int) -> list[Any]:
        """Some rows; only the next where a later one cannot be read, so that it is that one which fails. Raises `sqlite3.Error`."""
        query = f"select {_COLUMNS} from log where seq > ? order by seq limit ?"  # noqa: S608
        try:
            return self._db.execute(query, (after, SLICE)).fetchall()
        except sqlite3.OperationalError:
            return self._db.execute(query, (after, 1)).fetchall()

    def _origin(self) -> bytes:
        row = self._db.execute("select secret from origin").fetchone()
        if row is None:
            row = (secrets.token_bytes(32),)
            self._db.execute("insert into origin values (?)", row)
        return bytes(row[0])

    def _resume(self) -> Head:
        """Where to go on: after the last row, but with the hash that the head store remembers where the file has another."""
        row = self._db.execute("select seq, hash from log order by seq desc limit 1").fetchone()
        last = Head(*row) if row is not None else Head(0, self._first)
        kept = self._heads.audit_head()
        if kept is None:
            return last
        there = self._db.execute("select hash from log where seq = ?", (kept[0],)).fetchone()
        if there is not None and there[0] == kept[1]:
            return last
        return Head(max(kept[0], last.seq), kept[1])


def _row_hash(fields: tuple[Any, ...], prev: bytes) -> bytes:
    """SHA-256 over the row before and this one, each field with its type and length."""
    return hashlib.sha256(prev + _encode(fields)).digest()


def _look_at(row: Row, before: Head) -> Fault | None:
    if row.seq <= 0:
        return Fault(row.seq, "was put in: rows are numbered from 1")
    if row.seq > before.seq + 1:
        return _missing(before.seq + 1, row.seq - 1)
    if _row_hash(row[:11], row.prev) != row.hash:
        return Fault(row.seq, "was changed, or moved from another place")
    if row.prev != before.hash:
        if row.seq == 1:
            return Fault(1, "belongs to another log")
        return Fault(before.seq, f"was rewritten: it is not the row that row {row.seq} continues")
    return None


def _next_of(rows: Iterator[Row], before: Head) -> Row | Fault | None:
    """The next row; a fault when it cannot be read; None at the end."""
    try:
        return next(rows, None)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        return Fault(before.seq + 1, f"cannot be read: {error}")


def _missing(first: int, last: int) -> Fault:
    if first == last:
        return Fault(first, "is missing")
    return Fault(first, f"and all up to row {last} are missing")
