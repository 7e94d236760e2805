"""The prefix cache against a plain dictionary, and what becomes of it when files and memory fail."""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmos.kernel.core import limits
from llmos.kernel.core.cache import PrefixCache
from llmos.kernel.core.engine import KV
from llmos.kernel.core.seats import CachedSeats, KeptSeats, Memory
from llmos.kernel.core.spill import Spill, Spilled, SpillFull
from tests.unit.core_doubles import KV_BYTES, CountingEngine, CountingRow, keys_and_values

LABELS = st.sampled_from(["", "a", "b"])
TEXTS = st.lists(st.integers(0, 2), max_size=14)


def read(cache: PrefixCache, label: str, tokens: list[int], start: int, stop: int) -> KV:
    """All that `read` gives, in one array."""
    parts = [kv for count, kv in cache.read(label, tokens, start, stop) if count == kv.shape[2]]
    return np.concatenate([keys_and_values([])[:, :, :0], *parts], axis=2)


def insert(cache: PrefixCache, label: str, tokens: list[int]) -> None:
    cache.insert(label, tokens, keys_and_values(tokens))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def break_file(spilled: Spilled) -> None:
    """From now on its file cannot be read."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, spilled._descriptor)
    os.close(null)


def cut_file(spilled: Spilled) -> None:
    os.ftruncate(spilled._descriptor, spilled.nbytes // 2)


def spilled_nodes(cache: PrefixCache) -> list[Spilled]:
    return [node.kv for node in cache._nodes() if isinstance(node.kv, Spilled)]


class CacheMachine(RuleBasedStateMachine):
    """Whatever is done, what is found was inserted under that label, and its numbers are those that were inserted."""

    capacity = 0

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.spill = Spill(self.folder, self.capacity) if self.capacity else None
        self.cache = PrefixCache(KV_BYTES, self.spill)
        self.cache.read_s = 10.0  # a file always pays
        self.known: dict[str, set[tuple[int, ...]]] = {}
        """Beginnings that were inserted, of any length, by label."""
        self.lossless = True
        """Whether nothing had to be forgotten yet."""

    def beginnings(self, label: str, tokens: list[int]) -> None:
        self.known.setdefault(label, set()).update(tuple(tokens[:stop]) for stop in range(1, len(tokens) + 1))

    @rule(label=LABELS, tokens=TEXTS)
    def insert(self, label: str, tokens: list[int]) -> None:
        insert(self.cache, label, tokens)
        self.beginnings(label, tokens)
        assert self.cache.match(label, tokens) == len(tokens)

    @rule(label=LABELS, tokens=TEXTS, cut=st.integers(0, 14))
    def look_up(self, label: str, tokens: list[int], cut: int) -> None:
        found = self.cache.match(label, tokens)
        known = self.known.get(label, set())
        expected = max((stop for stop in range(len(tokens) + 1) if tuple(tokens[:stop]) in known), default=0)
        assert found == expected if self.lossless else found <= expected
        start = min(cut, found)
        assert np.array_equal(read(self.cache, label, tokens, start, found), keys_and_values(tokens)[:, :, start:found])

    @rule(source=LABELS, other=LABELS, tokens=TEXTS)
    def adopt(self, source: str, other: str, tokens: list[int]) -> None:
        before = self.cache.match(source, tokens)
        self.cache.adopt(source, other, tokens)
        self.beginnings(other, tokens[:before])
        assert self.cache.match(other, tokens) >= before

    @rule(tokens=st.integers(0, 30))
    def shrink(self, tokens: int) -> None:
        self.cache.shrink(tokens * KV_BYTES)
        assert self.cache.bytes <= tokens * KV_BYTES
        self.lossless = False

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.known.clear()

    @invariant()
    def every_byte_is_counted(self) -> None:
        if not hasattr(self, "cache"):
            return
        nodes = list(self.cache._nodes())
        assert self.cache.bytes == sum(node.kv.nbytes for node in nodes if isinstance(node.kv, np.ndarray))
        assert self.cache.spilled == sum(kv.nbytes for kv in spilled_nodes(self.cache))
        assert self.spill is None or self.cache.spilled == self.spill.used <= self.capacity
        assert all(node.tokens and node.kv is not None for node in nodes)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            shutil.rmtree(self.folder)
            self.cache.clear()
            assert (self.cache.bytes, self.cache.spilled) == (0, 0)


class SpillingMachine(CacheMachine):
    """The same with room for 20 tokens in files, some of which fail."""

    capacity = 20 * KV_BYTES

    @rule(seed=st.integers(0, 5), tokens=TEXTS, label=LABELS, broken=st.booleans())
    def fail(self, seed: int, tokens: list[int], label: str, broken: bool) -> None:
        if nodes := spilled_nodes(self.cache):
            (break_file if broken else cut_file)(random.Random(seed).choice(nodes))
            for name, path in [(name, path) for name, paths in self.known.items() for path in paths]:
                found = self.cache.match(name, list(path))
                try:
                    got = read(self.cache, name, list(path), 0, found)
                except OSError:
                    continue
                assert np.array_equal(got, keys_and_values(path[:found]))
            assert not spilled_nodes(self.cache) or self.cache.spilled <= self.capacity


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSpillingCache = SpillingMachine.TestCase
TestSpillingCache.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[Spill]:
    """Room for 100 tokens; fails a test that leaves a file open when its caches are empty."""
    before = descriptors()
    made = Spill(tmp_path, 100 * KV_BYTES)
    yield made
    gc.collect()
    assert (made.used, descriptors()) == (0, before)
    assert list(tmp_path.iterdir()) == []


def spilling(spill: Spill) -> PrefixCache:
    """A cache for which a file always pays."""
    cache = PrefixCache(KV_BYTES, spill)
    cache.read_s = 10.0
    return cache


def test_what_was_spilled_comes_back(spill: Spill) -> None:
    """It is known while it lies in a file, comes back as it was, in part too, and its room is free again then."""
    cache, text = spilling(spill), list(range(60))
    insert(cache, "", text)
    cache.shrink(0)
    assert (cache.bytes, cache.spilled, cache.match("", text)) == (0, 60 * KV_BYTES, 60)
    assert np.array_equal(read(cache, "", text, 31, 57), keys_and_values(text)[:, :, 31:57])
    assert (cache.bytes, cache.spilled, spill.used) == (60 * KV_BYTES, 0, 0)


def test_a_spilled_text_can_be_left_in_the_middle(spill: Spill) -> None:
    """A text that leaves another in the middle of what lies in a file finds the common part, and both are whole."""
    cache, one, other = spilling(spill), [*range(60)], [*range(33), *range(100, 120)]
    insert(cache, "", one)
    cache.shrink(0)
    insert(cache, "", other)
    for text in (one, other):
        assert np.array_equal(read(cache, "", text, 0, len(text)), keys_and_values(text))
    cache.clear()


@pytest.mark.parametrize("damage", [break_file, cut_file])
def test_a_file_that_fails_is_forgotten(spill: Spill, damage: object) -> None:
    """The error is told once; after that its tokens are not known, those before it are, and its room is free."""
    cache, text = spilling(spill), list(range(60))
    insert(cache, "", text[:20])
    insert(cache, "", text)
    cache.shrink(20 * KV_BYTES)
    (broken,) = spilled_nodes(cache)
    damage(broken)  # type: ignore[operator]
    with pytest.raises(OSError, match="file"):
        read(cache, "", text, 0, 60)
    assert (cache.match("", text), cache.spilled, spill.used) == (20, 0, 0)
    insert(cache, "", text)
    assert np.array_equal(read(cache, "", text, 0, 60), keys_and_values(text))
    cache.clear()


def test_files_take_no_more_than_they_may(spill: Spill) -> None:
    """When their room is used up the least worthy file goes; what is larger than all of it is forgotten at once."""
    cache = spilling(spill)
    for start in range(5):
        insert(cache, "", list(range(1000 * start, 1000 * start + 30)))
        cache.shrink(0)
        assert spill.used <= 100 * KV_BYTES
    known = [cache.match("", list(range(1000 * start, 1000 * start + 30))) for start in range(5)]
    assert (sum(known), known[-1]) == (90, 30)
    insert(cache, "big", list(range(101)))
    cache.shrink(0)
    assert cache.match("big", list(range(101))) == 0
    with pytest.raises(SpillFull):
        spill.write(keys_and_values(range(101)), lambda: True)
    cache.clear()


@pytest.mark.parametrize("step", ["open", "write"])
def test_a_full_disk_forgets(spill: Spill, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """What cannot be written is forgotten and no descriptor stays open; nothing is raised."""

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    cache, text = spilling(spill), list(range(40))
    insert(cache, "", text)
    with monkeypatch.context() as patched:
        if step == "open":
            patched.setattr("llmos.kernel.core.spill._nameless", full)
        else:
            patched.setattr("llmos.kernel.core.spill.os.write", full)
        cache.shrink(0)
    assert (cache.match("", text), cache.bytes, cache.spilled) == (0, 0, 0)


def test_short_writes_and_reads_are_gone_on_with(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that takes and gives a few bytes at a time changes nothing."""
    cache, text, write, preadv = spilling(spill), list(range(40)), os.write, os.preadv
    insert(cache, "", text)
    monkeypatch.setattr("llmos.kernel.core.spill.os.write", lambda where, data: write(where, data[:7]))
    monkeypatch.setattr(
        "llmos.kernel.core.spill.os.preadv", lambda where, views, at: preadv(where, [views[0][:13]], at)
    )
    cache.shrink(0)
    assert cache.spilled == 40 * KV_BYTES
    assert np.array_equal(read(cache, "", text, 0, 40), keys_and_values(text))


def test_a_file_is_used_where_it_pays(spill: Spill) -> None:
    """A text that is read in less time than its file takes is forgotten, a slower one is kept."""
    cache, text = spilling(spill), list(range(40))
    for read_s, kept in ((1e-6, 0), (1e-2, 40)):
        cache.read_s = read_s
        insert(cache, "", text)
        cache.shrink(0)
        assert cache.match("", text) == kept
    cache.clear()


def test_no_label_finds_what_another_read(tmp_path: Path) -> None:
    """Nothing is found under a label but what was read under it, known label or not, in cached rows and in kept ones."""
    cache = PrefixCache(KV_BYTES)
    insert(cache, "a", [1, 2, 3])
    insert(cache, "b", [1, 5])
    assert [cache.match(label, [1, 2, 3]) for label in ("a", "b", "")] == [3, 1, 0]
    engine = CountingEngine(portable=False)
    seats = KeptSeats(engine)
    row = seats.seat("a", [1, 2, 3, 4], 8)
    assert isinstance(row, CountingRow)
    engine.extend(row, [1, 2, 3, 4])
    seats.leave(row, "a")
    seats.adopt("x", "b", [1, 2, 3, 4])
    assert [seats.known(label, [1, 2, 3, 4]) for label in ("a", "b")] == [4, 0]
    assert seats.seat("b", [1, 2, 3, 4, 5], 8) is not row
    seats.adopt("a", "b", [1, 2, 3, 4, 5])
    assert [seats.known(label, [1, 2, 3, 4]) for label in ("a", "b")] == [0, 4]
    again = seats.seat("b", [1, 2, 3, 4, 5], 8)
    assert again is row
    assert row.tokens == [1, 2]


def test_kept_rows_are_few_and_make_way(tmp_path: Path) -> None:
    """Of rows that cannot be copied `KEPT_ROWS` stay after their texts; they go when somebody else needs a row."""
    engine = CountingEngine(rows=6, portable=False)
    seats = KeptSeats(engine)

    def sit(first: int) -> CountingRow:
        row = seats.seat("", [first, 1, 2, 3], 8)
        assert isinstance(row, CountingRow)
        engine.extend(row, [first, 1, 2, 3])
        return row

    for row in [sit(first) for first in range(6)]:
        seats.leave(row, "")
    assert len(engine.taken) == limits.KEPT_ROWS
    rows = [sit(first) for first in range(10, 16)]
    assert seats.seat("", [9], 8) is None
    assert len(rows) == len(engine.taken) == 6


def test_what_is_given_ends_at_an_even_place(tmp_path: Path) -> None:
    """Where some of a known text has to go for the row that wants it, the rest is given up to an even place."""
    memory, engine = Memory(100 * KV_BYTES), CountingEngine()
    seats, text = CachedSeats(engine, KV_BYTES, memory), list(range(61))
    for length in (21, 61):
        insert(seats.cache, "", text[:length])
    row = seats.seat("", text, 70)
    assert isinstance(row, CountingRow)
    assert seats.catch_up(row, "", text) == 20
    assert len(row.tokens) == 20


def test_what_was_used_lately_stays(tmp_path: Path) -> None:
    """Of texts of one cost, those go first that were not looked at since others had to go."""
    cache = PrefixCache(KV_BYTES)
    texts = [list(range(100 * at, 100 * at + 10)) for at in range(6)]
    for text in texts[:3]:
        insert(cache, "", text)
    cache.shrink(20 * KV_BYTES)
    kept = [text for text in texts[:3] if cache.match("", text)]
    read(cache, "", kept[1], 0, 10)
    insert(cache, "", texts[3])
    cache.shrink(20 * KV_BYTES)
    assert [cache.match("", text) for text in (*kept, texts[3])] == [0, 10, 10]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.booleans()), max_size=25), st.integers(0, 150))
def test_memory_is_never_more_than_allowed_beyond_the_rows(steps: list[tuple[int, int, bool]], kept: int) -> None:
    """Rows that come, grow, are remembered and leave: after each, rows and cache together are within the limit, or the
    cache is empty; what a row is given is what it would have computed (its engine looks)."""
    memory, engine = Memory(kept * KV_BYTES), CountingEngine()
    seats = CachedSeats(engine, KV_BYTES, memory)
    for which, length, leaves in steps:
        text = [which, *range(length)]
        row = seats.seat("", text, len(text) + 2)
        assert isinstance(row, CountingRow)
        known = seats._even("", text)
        given = seats.catch_up(row, "", text[:known])
        assert len(row.tokens) == given == known or (len(row.tokens) % 2 == 0 and given < known)
        if len(row.tokens) < len(text):
            engine.extend(row, text[len(row.tokens) :])
        seats.keep(row, "")
        if leaves or len(engine.taken) == engine.rows:
            seats.leave(row, "")
        usage = memory.usage()
        assert usage["rows"] + usage["cache"] <= kept * KV_BYTES or usage["cache"] == 0
        assert usage["rows"] == sum(len(row.tokens) for row in engine.taken) * KV_BYTES


def test_a_file_that_fails_costs_a_second_reading_only(tmp_path: Path) -> None:
    """A row whose text lay in broken files is left at an even place, before which all is right; nothing is raised."""
    memory, engine = Memory(200 * KV_BYTES, tmp_path, 200 * KV_BYTES), CountingEngine()
    seats, text = CachedSeats(engine, KV_BYTES, memory), list(range(61))
    seats.cache.read_s = 10.0
    for length in (21, 61):
        insert(seats.cache, "", text[:length])
    seats.cache.shrink(0)
    break_file(spilled_nodes(seats.cache)[0 if len(spilled_nodes(seats.cache)[0].read()[0, 0]) == 40 else 1])
    row = seats.seat("", text, 70)
    assert isinstance(row, CountingRow)
    assert seats.catch_up(row, "", text) == 20
    engine.extend(row, text[20:])
    seats.leave(row, "")
    assert seats.known("", text) == 61
    memory.part(seats)
    assert (memory.usage()["cache"], seats.cache.spilled) == (0, 0)


def test_a_model_that_goes_takes_its_files_along(tmp_path: Path) -> None:
    """After `part` no descriptor is open, and the files' room is for others."""
    before = descriptors()
    memory = Memory(1 << 20, tmp_path, 1 << 20)
    seats = CachedSeats(CountingEngine(), KV_BYTES, memory)
    seats.cache.read_s = 10.0
    insert(seats.cache, "", list(range(50)))
    seats.cache.shrink(0)
    assert descriptors() == before + 1
    memory.part(seats)
    assert memory.spill is not None
    assert (descriptors(), memory.spill.used) == (before, 0)


def test_no_memory_left_is_no_fault_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose keys and values cannot be copied for want of memory leaves all the same, and its text is forgotten."""
    memory, engine = Memory(), CountingEngine()
    seats = CachedSeats(engine, KV_BYTES, memory)
    row = seats.seat("", [1, 2], 8)
    assert isinstance(row, CountingRow)
    engine.extend(row, [1, 2])

    def none(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("llmos.kernel.core.cache.mmap.mmap", none)
    seats.leave(row, "")
    assert (engine.taken, seats.known("", [1, 2]), memory.usage()["cache"]) == ([], 0, 0)


def test_what_is_spilled_leaves_files_to_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small pieces in files take half of the descriptors that the process may have: a model can be loaded beside them."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (20, 20))
    cache = PrefixCache(KV_BYTES, Spill(tmp_path, 1 << 20))
    cache.read_s = 10.0  # a file always pays
    before = descriptors()
    for text in range(40):
        insert(cache, "", [text, 1])
        cache.shrink(0)
    assert len(spilled_nodes(cache)) == 10
    assert descriptors() == before + 10
