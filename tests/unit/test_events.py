"""Durable topics: what was acknowledged is there, as it was, until its bounds."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Kind, parse_header
from llmos.kernel import params
from llmos.kernel.events import Event, Events, Stored
from llmos.kernel.labels import MAX_TAGS, TOP

T0 = 1_800_000_000.0
DAY = 86_400.0


class Clock:
    now = T0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Callable[[], Events]]:
    """Opens the store, again each time it is called."""
    opened: list[Events] = []

    def reopen() -> Events:
        for events in opened:
            events.close()
        opened[:] = [Events(path, clock)]
        return opened[0]

    yield reopen
    for events in opened:
        events.close()


def put(events: Events, topic: str = "mail.received", ts: float = T0, **data: object) -> Stored:
    return events.append(topic, ts, "mail", ["u", "mail"], wire.encode(data))


def refusal(events: Events, topic: str = "mail.received", **data: object) -> OpError | None:
    try:
        put(events, topic, T0, **data)
    except OpError as error:
        return error
    return None


def everything(events: Events, pattern: str = "*", limit: int = 100, since: float = 0.0) -> list[Event]:
    found, after = [], 0
    while True:
        rows, after = events.page(pattern, after, since, limit)
        found += rows
        if not after:
            return found


def test_an_event_is_given_back_as_it_was_stored(store: Callable[[], Events]) -> None:
    """With number, topic, sequence, time, sender, label and data; after a restart too."""
    events = store()
    label = ["u", "mail", "work.x-1", "a:b"]
    body = wire.encode({"subject": "Hello", "n": [1, 2.5, None, b"\x00"]})
    assert events.append("mail.received", T0 + 0.1, "mail", label, body) == Stored(1, 0)
    assert events.append("sys.x", T0 + 0.2, "kernel", [], wire.encode({})) == Stored(2, 0)
    reopened: tuple[Callable[[], Events], ...] = (lambda: events, store)
    for reopen in reopened:
        at = reopen()
        rows, next_ = at.page("*")
        assert next_ == 0
        assert rows[0] == Event(
            1, "mail.received", 0, T0 + 0.1, "mail", label, body, {"subject": "Hello", "n": [1, 2.5, None, b"\x00"]}
        )
        assert rows[1] == Event(2, "sys.x", 0, T0 + 0.2, "kernel", [], wire.encode({}), {})
        assert at.last("mail.received") == rows[0]
        assert at.last("mail.sent") is None
    header = parse_header(wire.decode_map(rows[0].header()))
    assert (header.kind, header.topic, header.number, header.label) == (Kind.EVENT, "mail.received", 1, label)
    assert rows[0].describe() == {
        "number": 1, "topic": "mail.received", "seq": 0, "ts": T0 + 0.1, "sender": "mail", "label": label,
        "data": {"subject": "Hello", "n": [1, 2.5, None, b"\x00"]},
    }  # fmt: skip


def test_pages_together_are_everything_in_order_once(store: Callable[[], Events]) -> None:
    """Of the topics that match, whatever the size of a page."""
    events = store()
    draw = random.Random(3)
    wanted = []
    for number in range(1, 401):
        topic = draw.choice(["mail.received", "mail.flag.set", "mail", "health.pulse"])
        put(events, topic, n=number)
        if topic.startswith("mail."):
            wanted.append(number)
    for limit in (1, 7, 100, 500):
        assert [event.number for event in everything(events, "mail.*", limit)] == wanted
    assert [event.number for event in events.page("mail.*", after=200)[0]] == [n for n in wanted if n > 200][:100]
    assert events.page("nothing.*") == ([], 0)


def test_since_finds_all_that_are_not_older(store: Callable[[], Events]) -> None:
    """Also where the clock was set back in between."""
    events = store()
    times = [T0, T0 + 1, T0 - 1000, T0 + 2, T0 - 999, T0 + 3]
    for at in times:
        put(events, ts=at)
    assert [event.ts for event in everything(events, since=T0 + 1, limit=1)] == [T0 + 1, T0 + 2, T0 + 3]


def test_numbers_go_on_after_a_restart(store: Callable[[], Events]) -> None:
    """In the whole store and in each topic, without gap or reuse."""
    for round_ in range(3):
        events = store()
        assert put(events, "a.x") == Stored(2 * round_ + 1, round_)
        assert put(events, "b.x") == Stored(2 * round_ + 2, round_)


def test_numbers_are_not_given_again_when_everything_is_gone(store: Callable[[], Events], clock: Clock) -> None:
    """Removing is no reason to begin again, not even of the last one, not even across a restart."""
    events = store()
    for _ in range(3):
        put(events)
    clock.now += (params.EVENTS_DAYS + 1) * DAY
    events.expire()
    assert events.page("*") == ([], 0)
    assert put(store(), ts=clock.now) == Stored(4, 3)


def test_a_topic_keeps_its_newest(store: Callable[[], Events], monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than the bound, not many fewer, and other topics keep theirs."""
    monkeypatch.setattr(params, "EVENTS_PER_TOPIC", 1000)
    events = store()
    put(events, "calm.x")
    for number in range(2500):
        put(events, "busy.x", n=number)
        assert events._topics["busy.x"].rows <= 1000
    kept = everything(events, "busy.x")
    assert 990 <= len(kept) <= 1000
    assert [event.seq for event in kept] == list(range(2500 - len(kept), 2500))
    assert len(everything(events, "calm.x")) == 1
    assert len(everything(store(), "busy.x")) == len(kept)
    assert put(store(), "busy.x").seq == 2500


def test_events_end_after_some_days(store: Callable[[], Events], clock: Clock) -> None:
    """They are not shown from that moment, nor as the last one, and are removed from the file soon after."""
    events = store()
    put(events, "old.x")
    clock.now += 20 * DAY
    put(events, "new.x", ts=clock.now)
    clock.now += (params.EVENTS_DAYS - 19) * DAY
    assert [event.topic for event in everything(events)] == ["new.x"]
    assert events.last("old.x") is None
    events = store()
    assert events._run("select topic from events") == [("new.x",)]
    for _ in range(600):
        put(events, "new.x", ts=clock.now)
    clock.now += (params.EVENTS_DAYS + 1) * DAY
    for _ in range(600):
        put(events, "newest.x", ts=clock.now)
    assert events._run("select distinct topic from events") == [("newest.x",)]


def test_all_events_together_are_bounded(
    store: Callable[[], Events], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes and on the disk; whoever floods loses its own oldest, and nobody else loses one."""
    monkeypatch.setattr(params, "EVENTS_BYTES", 4 << 20)
    events = store()
    for number in range(50):
        put(events, "calm.x", n=number)
    for number in range(600):
        put(events, f"flood.t{number % 7}", x="y" * 50_000, n=number)
        assert events._bytes <= params.EVENTS_BYTES
    assert len(everything(events, "calm.x")) == 50
    flood = [event.number for event in everything(events, "flood.*")]
    assert 75 <= len(flood) <= 84
    assert flood == list(range(651 - len(flood), 651))
    assert events._bytes == store()._bytes
    assert path.stat().st_size < 6 << 20


def test_topics_without_number_grow_nothing(store: Callable[[], Events]) -> None:
    """Beyond the bound a new topic is refused, and those that are known go on; what has nothing stored makes room."""
    events = store()
    tracemalloc.start()
    for number in range(params.EVENTS_TOPICS):
        put(events, f"flood.t{number}")
    before = tracemalloc.get_traced_memory()[0]
    for number in range(params.EVENTS_TOPICS, 100_000):
        refused = refusal(events, f"flood.t{number}")
        assert refused is not None
        assert refused.code is Code.BUSY
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 1 << 20
    assert put(events, "flood.t3").seq == 1
    events._remove(["flood.t5"])
    assert put(events, "calm.x").seq == 0
    with pytest.raises(OpError):
        put(events, "flood.t5")


@pytest.mark.parametrize(
    "body",
    [
        wire.encode({"x": "y" * params.EVENT_BYTES}),
        wire.encode({"x": [0] * (wire.MAX_ITEMS - 10)}),
        wire.encode({"x": [[[[[[[[[]]]]]]]]]}),
        b"\xc1",
        b"",
        wire.encode([1]),
    ],
    ids=["bytes", "items", "depth", "no msgpack", "empty", "no map"],
)
def test_what_no_answer_could_carry_is_not_stored(store: Callable[[], Events], body: bytes) -> None:
    """Otherwise one event would end every replay at it."""
    events = store()
    with pytest.raises(OpError) as caught:
        events.append("mail.received", T0, "mail", [], body)
    assert caught.value.code is Code.TOO_LARGE
    assert put(events) == Stored(1, 0)


def test_every_page_fits_an_answer(store: Callable[[], Events]) -> None:
    """Of the largest, the deepest and the most numerous events that are stored, under the longest labels."""
    events = store()
    topic, label = "t." + "x" * 126, ["u", *(f"{number:060d}" for number in range(MAX_TAGS))]
    largest = 0
    for data in (
        {"x": "y" * (params.EVENT_BYTES - 6)},
        {"x": [0] * (wire.MAX_ITEMS - 330)},
        {"x": [[[[[[[[]]]]]]]]},
        *({"x": list(range(90))} for _ in range(300)),
        *({} for _ in range(300)),
    ):
        body = wire.encode(data)
        largest = max(largest, len(body))
        events.append(topic, T0, "s" * 60, label, body)
        events.append("short.x", T0, "s", [], body)
    assert largest >= params.EVENT_BYTES - 2
    count = after = 0
    while True:
        rows, after = events.page("*", after, limit=500)
        answer = wire.encode({"events": [event.describe() for event in rows], "next": after})
        assert wire.decode_map(answer)
        count += len(rows)
        if not after:
            break
    assert count == 2 * 603


def test_a_damaged_row_is_at_the_top_and_stops_nothing(store: Callable[[], Events]) -> None:
    """A label, a text or a body that cannot be read: what it was is not known, so anything could be in it."""
    events = store()
    for number in range(8):
        put(events, n=number)
    damage = {
        1: "label = 'nonsense'", 2: "label = '[\"x\"]'", 3: "label = '{}'", 4: "label = '[\"u\", 3]'",
        5: "label = cast(x'ff5b5d' as text)", 6: "body = x'c1'", 7: "sender = cast(x'fffe' as text)",
    }  # fmt: skip
    for number, change in damage.items():
        events._run(f"update events set {change} where number = {number}")
    rows = everything(store())
    assert [event.number for event in rows] == list(range(1, 9))
    assert [event.label for event in rows[:6]] == [TOP.to_wire()] * 6
    assert [event.data for event in rows[:6]] == [{"n": number} for number in range(5)] + [{}]
    assert [event.label for event in rows[6:]] == [["u", "mail"]] * 2
    assert all(wire.decode_map(event.body) == event.data and event.header() for event in rows)


def test_a_full_disk_acknowledges_nothing(store: Callable[[], Events]) -> None:
    """No number is used, what was there stays readable, and the store goes on when there is room again."""
    events = store()
    put(events)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        stored, failed = 1, None
        while failed is None and stored < 100:
            failed = refusal(events, x="y" * 10_000)
            stored += failed is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed is not None
    assert failed.code is Code.UNAVAILABLE
    assert failed.hint
    assert 1 < stored < 100
    assert len(everything(events)) == stored
    assert put(events) == Stored(stored + 1, stored)
    assert [event.seq for event in everything(store())] == list(range(stored + 1))


def test_a_file_that_is_none_of_ours_is_named(path: Path) -> None:
    """With what to do about it."""
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(OpError, match=r"events\.db") as caught:
        Events(path)
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.hint


def test_nobody_else_writes_the_file(store: Callable[[], Events], path: Path) -> None:
    """While the kernel runs, SQLite's lock keeps others out."""
    put(store())
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(path, timeout=0).execute("select * from events")


KILLED = """
import os, sys
from pathlib import Path
from llmos.kernel import params
from llmos.kernel.events import Events
from llmos.ipc import wire
params.EVENTS_PER_TOPIC = 600
events = Events(Path(sys.argv[1]))
while True:
    number = events._next
    stored = events.append(f"t.{number % 3}", 2e9, "mail", ["u", "mail"], wire.encode({"n": number}))
    os.write(1, b"%d %d\\n" % stored)
"""


def test_a_kill_loses_nothing_that_was_acknowledged(path: Path, store: Callable[[], Events], clock: Clock) -> None:
    """SIGKILL at any moment, also while old ones are removed: the numbers go on without gap or reuse, and at most one event more is
    there than was told."""
    clock.now = 2e9
    total = 0
    for round_ in range(4):
        with subprocess.Popen([sys.executable, "-c", KILLED, os.fspath(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(700 + 90 * round_)]
            process.send_signal(signal.SIGKILL)
            lines += [line for line in process.stdout if line.endswith(b"\n")]
        told = [Stored(*map(int, line.split())) for line in lines]
        assert [stored.number for stored in told] == list(range(total + 1, total + 1 + len(told)))
        events = store()
        there = {event.number: event for event in everything(events, limit=500)}
        for number, seq in told[-500:]:
            assert there[number].seq == seq
            assert there[number].data == {"n": number}
        assert told[-1].number <= max(there) <= told[-1].number + 1
        total = max(there)
        for topic in range(3):
            seqs = [event.seq for event in there.values() if event.topic == f"t.{topic}"]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        events.close()
