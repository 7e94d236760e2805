"""The events of durable topics, in a SQLite file: stored before they are published, found again by `bus.replay`.

Who may read is not known here: the kernel checks the capability for a pattern before it asks for a page.

Durability: `append` returns when SQLite has handed the event to the operating system, so a kernel that is killed loses nothing it
acknowledged; what the power takes with it is at most the last events since SQLite's last checkpoint, never one in the middle. The file
is not the journal's, because that waits for the disk at each change (ten times as long), and because what strangers wrote should
neither fill nor damage the file that holds the user's grants.

Bounds are kept by removing a little more than needed at a time, so that most appends remove nothing.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Header, Kind, pack_header, topic_matches
from llmos.kernel import params
from llmos.kernel.labels import TOP, Label

_DEPTH = wire.MAX_DEPTH - 3
"""Of an event's body: it stands in the answer's map, array and map."""
_ITEMS = 160
"""Of a row of the answer beyond those of its body, label included; also left for the answer itself."""
_ROW = 128
"""Bytes that a row takes in the file or in an answer beyond its texts and body."""
_SLACK = 512
"""A bound is kept by removing this fraction of it at once."""
_EXPIRE_EVERY = 256
"""Appends between two looks for events that are too old."""
_EXPIRE_AT_ONCE = 1_000

_SCHEMA = """
create table if not exists events (
    number integer primary key, topic text not null, seq integer not null, ts real not null, size integer not null,
    sender text not null, label text not null, body blob not null
) strict;
create index if not exists events_by_topic on events (topic, number, ts, size);
create table if not exists counters (topic text primary key, next integer not null) strict;
"""
# `counters` has the next `seq` of topics of which rows were removed, and under '' the next number of all


class Event(NamedTuple):
    """A stored event."""

    number: int
    """From 1, rising over all topics, never given twice."""
    topic: str
    seq: int
    """From 0 in its topic, without gaps."""
    ts: float
    """Seconds since 1970 UTC."""
    sender: str
    label: list[str]
    """Exactly as it was stored; `TOP`'s for a row that was damaged."""
    body: bytes
    data: dict[str, Any]
    """The body, decoded; empty for a row that was damaged."""

    def header(self) -> bytes:
        """As it was delivered."""
        return pack_header(
            Header(
                kind=Kind.EVENT,
                topic=self.topic,
                seq=self.seq,
                ts=self.ts,
                sender=self.sender,
                label=self.label,
                number=self.number,
            )
        )

    def describe(self) -> dict[str, Any]:
        """A row of `bus.replay`."""
        return {
            "number": self.number,
            "topic": self.topic,
            "seq": self.seq,
            "ts": self.ts,
            "sender": self.sender,
            "label": self.label,
            "data": self.data,
        }


class Stored(NamedTuple):
    """What `append` acknowledges."""

    number: int
    seq: int


@dataclass(slots=True)
class _Topic:
    rows: int = 0
    bytes: int = 0
    next: int = 0


class Events:
    """The store in `path`, open for this process alone.

    Args:
        clock: seconds since 1970 UTC.

    Raises `OpError(UNAVAILABLE)` when the file cannot be used, with what to do about it.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=2)
            self._db.text_factory = lambda raw: raw.decode(errors="replace")
            for pragma in (
                "locking_mode = exclusive",
                "journal_mode = wal",
                "synchronous = normal",
                f"journal_size_limit = {8 << 20}",
            ):
                self._db.execute(f"pragma {pragma}").fetchone()
            self._db.executescript(_SCHEMA)
            self._count()
            self.expire()
        except (OSError, sqlite3.Error) as error:
            hint = "free some space, or move the file away: stored events are gone then"
            raise OpError(Code.UNAVAILABLE, f"the event store {path}: {error}", hint) from None

    def close(self) -> None:
        self._db.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, topic: str, ts: float, sender: str, label: Sequence[str], body: bytes) -> Stored:
        """Store an event, before it is published. → its number in the store and its `seq` in its topic.

        Raises `OpError(TOO_LARGE)` for one that could not be given back, `OpError(BUSY)` for a topic too many, `OpError(UNAVAILABLE)`
        when it cannot be written. Then it must not be published, and no number was used.
        """
        _check(body)
        held = self._topics.get(topic)
        if held is None:
            self._make_room()
            held = _Topic()
        label_text = json.dumps(list(label), separators=(",", ":"))
        size = len(body) + len(label_text) + len(topic) + len(sender) + _ROW
        if held.rows >= params.EVENTS_PER_TOPIC:
            self._remove([topic], rows=held.rows - params.EVENTS_PER_TOPIC + params.EVENTS_PER_TOPIC // _SLACK + 1)
        if self._bytes + size > params.EVENTS_BYTES:
            self._shrink(params.EVENTS_BYTES - params.EVENTS_BYTES // _SLACK - size)
        if self._next % _EXPIRE_EVERY == 0:
            self.expire()
        stored = Stored(self._next, held.next)
        self._run(
            "insert into events values (?, ?, ?, ?, ?, ?, ?, ?)",
            (stored.number, topic, stored.seq, ts, size, sender, label_text, body),
        )
        self._topics[topic] = held
        held.rows, held.bytes, held.next = held.rows + 1, held.bytes + size, held.next + 1
        self._bytes += size
        self._next += 1
        return stored

    def expire(self) -> None:
        """Remove what is too old, a bounded number at a time; neither `page` nor `last` ever shows it."""
        oldest = self._run("select topic, number, size, ts from events order by number limit ?", (_EXPIRE_AT_ONCE,))
        horizon = self._horizon()
        self._delete([row[:3] for row in itertools.takewhile(lambda row: row[3] < horizon, oldest)])

    def _shrink(self, target: int) -> None:
        """The first level that holds most gives up its oldest, until all together are within `target`."""
        before = -1
        while self._bytes > target and self._bytes != before:
            before = self._bytes
            levels: dict[str, int] = {}
            for topic, held in self._topics.items():
                level = topic.partition(".")[0]
                levels[level] = levels.get(level, 0) + held.bytes
            most = max(levels, key=lambda level: levels[level])
            topics = [topic for topic in self._topics if topic.partition(".")[0] == most]
            self._remove(topics, size=self._bytes - target)

    def _remove(self, topics: list[str], rows: int = 1 << 62, size: int = 1 << 62) -> None:
        """The oldest of these topics, until so many rows or bytes have gone."""
        old: list[tuple[str, int, int]] = []
        with closing(self._merged(topics, -(1 << 62), -math.inf)) as found:
            for number, row_size, topic in found:
                old.append((topic, number, row_size))
                rows, size = rows - 1, size - row_size
                if rows <= 0 or size <= 0:
                    break
        self._delete(old)

    def _delete(self, old: Sequence[tuple[Any, ...]]) -> None:
        """(topic, number, size) of each, and remember how far the numbers were: all or none."""
        if not old:
            return
        touched = {topic for topic, _, _ in old}
        try:
            self._db.execute("begin immediate")
            self._db.executemany("delete from events where number = ?", ((number,) for _, number, _ in old))
            self._db.executemany(
                "replace into counters values (?, ?)",
                [("", self._next), *((topic, self._topics[topic].next) for topic in touched)],
            )
            self._db.execute("commit")
        except sqlite3.Error as error:
            self._db.rollback()
            raise _unavailable(error) from None
        for topic, _, size in old:
            held = self._topics[topic]
            held.rows, held.bytes = held.rows - 1, held.bytes - size
            self._bytes -= size

    def _make_room(self) -> None:
        """For one more topic: one that has nothing stored any more starts again when it comes back. Raises `OpError(BUSY)`."""
        if len(self._topics) < params.EVENTS_TOPICS:
            return
        empty = next((topic for topic, held in self._topics.items() if held.rows == 0), None)
        if empty is None:
            raise OpError(
                Code.BUSY, f"the events of {params.EVENTS_TOPICS} topics are stored", "declare fewer as durable"
            )
        self._run("delete from counters where topic = ?", (empty,))
        del self._topics[empty]

    # -- reading ---------------------------------------------------------------------------------------------------

    def page(
        self, pattern: str, after: int = 0, since: float = 0.0, limit: int = 100, max_bytes: int = wire.MAX_BODY - 1024
    ) -> tuple[list[Event], int]:
        """Events of the topics that match, oldest first, and the `after` of the next page, 0 when there is none.

        Args:
            after: a number; events above it.
            since: seconds since 1970; events not older.
            max_bytes: of the answer; one event always fits the default.
        """
        topics = [topic for topic, held in self._topics.items() if held.rows and topic_matches(pattern, topic)]
        events: list[Event] = []
        items_left, bytes_left = wire.MAX_ITEMS - _ITEMS, max_bytes
        with closing(self._merged(topics, after, max(since, self._horizon()))) as found:
            for number, size, _ in found:
                event = self._event(number)
                if event is None:
                    continue
                items_left, bytes_left = items_left - _shape(event.data)[0] - _ITEMS, bytes_left - size
                if events and (len(events) >= limit or items_left < 0 or bytes_left < 0):
                    return events, events[-1].number
                events.append(event)
        return events, 0

    def last(self, topic: str) -> Event | None:
        """The newest event of a topic, for `Bus.retain` after a restart."""
        rows = self._run("select max(number) from events where topic = ? and ts >= ?", (topic, self._horizon()))
        return self._event(rows[0][0]) if rows[0][0] is not None else None

    def _merged(self, topics: Sequence[str], after: int, since: float) -> Generator[tuple[int, int, str], None, None]:
        """(number, size, topic) of these topics' rows, oldest first; reads as far as it is asked."""
        yield from heapq.merge(*(self._numbers(topic, after, since) for topic in topics))

    def _numbers(self, topic: str, after: int, since: float) -> Iterator[tuple[int, int, str]]:
        try:
            yield from self._db.execute(
                "select number, size, topic from events where topic = ? and number > ? and ts >= ? order by number",
                (topic, after, since),
            )
        except sqlite3.Error as error:
            raise _unavailable(error) from None

    def _event(self, number: int) -> Event | None:
        """None when only the index has it."""
        rows = self._run("select topic, seq, ts, sender, label, body from events where number = ?", (number,))
        if not rows:
            return None
        topic, seq, ts, sender, label, body = rows[0]
        try:
            made, data = json.loads(label), wire.decode_map(body)
            Label.from_wire(made)
        except (OpError, ValueError, RecursionError):  # damaged: what it was is not known, so anything could be in it
            made, data = TOP.to_wire(), _readable(body)
        return Event(number, topic, seq, ts, sender, made, body if data else wire.encode({}), data)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _horizon(self) -> float:
        return self._clock() - params.EVENTS_DAYS * 86_400

    def _count(self) -> None:
        """What there is, for the bounds, and where the numbers go on."""
        self._topics: dict[str, _Topic] = {}
        self._next = 1
        for topic, next_ in self._db.execute("select topic, next from counters"):
            if topic:
                self._topics[topic] = _Topic(next=next_)
            else:
                self._next = next_
        counted = "select topic, count(*), sum(size), max(number) from events indexed by events_by_topic group by topic"
        for topic, rows, size, number in self._db.execute(counted).fetchall():
            seq = self._db.execute("select seq from events where number = ?", (number,)).fetchone()[0]
            next_ = max(seq + 1, self._topics.get(topic, _Topic()).next)
            self._topics[topic] = _Topic(rows, size, next_)
            self._next = max(self._next, number + 1)
        self._bytes = sum(held.bytes for held in self._topics.values())

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _unavailable(error) from None


def _check(body: bytes) -> None:
    """Raises `OpError(TOO_LARGE)` for a body that an answer to `bus.replay` could not carry."""
    try:
        if len(body) > params.EVENT_BYTES:
            raise wire.Malformed(f"{len(body)} bytes, the limit is {params.EVENT_BYTES}")
        items, depth = _shape(wire.decode_map(body))
        if items > wire.MAX_ITEMS - 2 * _ITEMS:
            raise wire.Malformed(f"{items} items, the limit is {wire.MAX_ITEMS - 2 * _ITEMS}")
        if depth > _DEPTH:
            raise wire.Malformed(f"deeper than {_DEPTH} levels")
    except wire.Malformed as error:
        raise OpError(
            Code.TOO_LARGE, f"an event that is stored: {error}", "publish where the data is instead"
        ) from None


def _readable(body: bytes) -> dict[str, Any]:
    try:
        return wire.decode_map(body)
    except wire.Malformed:
        return {}


def _shape(value: Any) -> tuple[int, int]:
    """Items and levels, as `wire` counts them."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if children is None:
        return 0, 0
    items, depth = len(children), 0
    for child in children:
        if isinstance(child, (dict, list)):
            inner, below = _shape(child)
            items, depth = items + inner, max(depth, below)
    return items, depth + 1


def _unavailable(error: sqlite3.Error) -> OpError:
    return OpError(Code.UNAVAILABLE, f"the event store could not be used: {error}", "free some space and try again")
