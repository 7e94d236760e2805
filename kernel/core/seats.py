"""Who sits in the engine's rows, and what a text finds there of what was read before."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from llmos.kernel.core import limits
from llmos.kernel.core.cache import PrefixCache, shared_length
from llmos.kernel.core.engine import Engine, Row
from llmos.kernel.core.spill import Spill


class Seats(Protocol):
    """The rows of one model. Labels keep texts apart: nothing read under one is found under another."""

    def seat(self, label: str, tokens: Sequence[int], room: int) -> Row | None:
        """A row for a text of up to `room` tokens, perhaps holding some of its beginning already; None when all are taken."""

    def known(self, label: str, tokens: Sequence[int]) -> int:
        """How many of a text's first tokens a row could be given."""

    def catch_up(self, row: Row, label: str, tokens: Sequence[int]) -> int:
        """Give a row what is known of `tokens` beyond what it holds, of which it is the continuation; how many tokens."""

    def keep(self, row: Row, label: str) -> None:
        """Remember what a row holds."""

    def leave(self, row: Row, label: str) -> None:
        """Give a row back; what it holds is remembered as far as there is room."""

    def measure(self, tokens: int, seconds: float) -> None:
        """Note that a slice of a prompt was read, and how long it took."""

    def adopt(self, source: str, target: str, tokens: Sequence[int]) -> None:
        """What a text found under one label it may find under another too: its owner has been raised to that."""


class Memory:
    """How much all models together may hold of keys and values, and where the rest goes.

    Attributes:
        kv_bytes: in memory, rows and caches together.
        spill: the files; None for none.
    """

    def __init__(self, kv_bytes: int = limits.KV_BYTES, spill_folder: Path | None = None, spill_bytes: int = 0) -> None:
        self.kv_bytes = kv_bytes
        self.spill = Spill(spill_folder, spill_bytes) if spill_folder is not None and spill_bytes else None
        self._members: list[CachedSeats] = []

    def join(self, seats: CachedSeats) -> None:
        self._members.append(seats)

    def part(self, seats: Seats) -> None:
        """A model has gone; what it held goes with it, files too."""
        if isinstance(seats, CachedSeats):
            seats.cache.clear()
        self._members = [member for member in self._members if member is not seats]

    def make_room(self, nbytes: int) -> None:
        """Let caches go until `nbytes` more fit; rows stay, whoever admitted them saw to that."""
        excess = sum(member.rows_bytes + member.cache.bytes for member in self._members) + nbytes - self.kv_bytes
        if excess <= 0:
            return
        excess += int(self.kv_bytes * limits.KV_SLACK)  # so that it is not one token's worth each time
        for member in sorted(self._members, key=lambda member: -member.cache.bytes):
            before = member.cache.bytes
            member.cache.shrink(before - excess)
            excess -= before - member.cache.bytes
            if excess <= 0:
                break

    def usage(self) -> dict[str, int]:
        """Bytes: of rows, of caches in memory, and in files."""
        caches = [member.cache for member in self._members]
        return {
            "rows": sum(member.rows_bytes for member in self._members),
            "cache": sum(cache.bytes for cache in caches),
            "spilled": sum(cache.spilled for cache in caches),
        }


class CachedSeats:
    """Rows whose keys and values can be copied: a prefix cache stands behind them."""

    def __init__(self, engine: Engine[Any], kv_bytes: int, memory: Memory) -> None:
        self.cache = PrefixCache(kv_bytes, memory.spill)
        self._engine, self._memory = engine, memory
        self._rows: list[Row] = []
        memory.join(self)

    @property
    def rows_bytes(self) -> int:
        return sum(len(row.tokens) for row in self._rows) * self.cache.kv_bytes

    def seat(self, label: str, tokens: Sequence[int], room: int) -> Row | None:  # noqa: ARG002
        row: Row | None = self._engine.seat(room)
        if row is not None:
            self._rows.append(row)
        return row

    def known(self, label: str, tokens: Sequence[int]) -> int:
        return self.cache.match(label, tokens)

    def catch_up(self, row: Row, label: str, tokens: Sequence[int]) -> int:
        held = len(row.tokens)
        known = self.cache.match(label, tokens)
        if known <= held:
            return 0
        self._memory.make_room((known - held) * self.cache.kv_bytes)
        known = self._even(label, tokens)  # some of it may have had to go
        try:
            at = held
            for count, kv in self.cache.read(label, tokens, held, known):
                self._engine.put(row, tokens[at : at + count], kv)
                at += count
        except OSError:  # a file that fails is as good as never written
            self._engine.cut(row, max(held, len(row.tokens) & ~1))
        self._memory.make_room(0)
        return len(row.tokens) - held

    def keep(self, row: Row, label: str) -> None:
        fresh = len(row.tokens) - self.cache.match(label, row.tokens)
        if fresh > 0:
            self._memory.make_room(fresh * self.cache.kv_bytes)
            with contextlib.suppress(OSError):  # no memory, or a file that fails: it is read again when it is wanted
                self.cache.insert(label, row.tokens, self._engine.take(row, 0, len(row.tokens)))
            self._memory.make_room(0)  # the beginning of this text may have had to go, and was copied again

    def leave(self, row: Row, label: str) -> None:
        self._rows.remove(row)
        self.keep(row, label)
        self._engine.leave(row)

    def measure(self, tokens: int, seconds: float) -> None:
        if tokens >= limits.PREFILL_SLICE_MIN:
            self.cache.read_s += (seconds / tokens - self.cache.read_s) * limits.READ_LEARNS

    def adopt(self, source: str, target: str, tokens: Sequence[int]) -> None:
        with contextlib.suppress(OSError):  # a file that fails: it is read again
            self.cache.adopt(source, target, tokens)
        self._memory.make_room(0)

    def _even(self, label: str, tokens: Sequence[int]) -> int:
        """How much of a text is known, but for all of it an even number: what is read begins at an even place."""
        known = self.cache.match(label, tokens)
        return known if known == len(tokens) else known & ~1


class KeptSeats:
    """Rows that cannot be copied: the last ones left stay as they are, and the next text that begins alike goes on in one."""

    def __init__(self, engine: Engine[Any]) -> None:
        self._engine = engine
        self._kept: list[tuple[str, Row, int]] = []
        """Label, row, and tokens it has room for; oldest first."""
        self._rooms: dict[int, int] = {}

    def seat(self, label: str, tokens: Sequence[int], room: int) -> Row | None:
        # More than is asked for, so that the next turn of this text finds place too.
        room = 1 << max(room - 1, limits.KEPT_ROOM - 1).bit_length()
        fitting = [kept for kept in self._kept if kept[0] == label and kept[2] >= room]
        best = max(fitting, key=lambda kept: shared_length(kept[1].tokens, tokens), default=None)
        shared = 0 if best is None else shared_length(best[1].tokens, tokens[:-2]) & ~1
        if best is not None and shared:
            self._kept.remove(best)
            self._engine.cut(best[1], shared)
            return best[1]
        row: Row | None = self._engine.seat(room)
        while row is None and self._kept:
            self._drop()
            row = self._engine.seat(room)
        if row is not None:
            self._rooms[id(row)] = room
        return row

    def known(self, label: str, tokens: Sequence[int]) -> int:
        beginnings = (shared_length(row.tokens, tokens) for kept, row, _ in self._kept if kept == label)
        return max(beginnings, default=0)

    def catch_up(self, row: Row, label: str, tokens: Sequence[int]) -> int:  # noqa: ARG002
        return 0

    def measure(self, tokens: int, seconds: float) -> None:
        pass

    def keep(self, row: Row, label: str) -> None:
        pass

    def leave(self, row: Row, label: str) -> None:
        self._kept.append((label, row, self._rooms[id(row)]))
        while len(self._kept) > limits.KEPT_ROWS:
            self._drop()

    def adopt(self, source: str, target: str, tokens: Sequence[int]) -> None:
        self._kept = [
            (target if label == source and list(row.tokens) == list(tokens[: len(row.tokens)]) else label, row, room)
            for label, row, room in self._kept
        ]

    def _drop(self) -> None:
        _, row, _ = self._kept.pop(0)
        del self._rooms[id(row)]
        self._engine.leave(row)


def seats_for(engine: Engine[Any], kv_bytes: int, memory: Memory) -> Seats:
    """What suits an engine."""
    return CachedSeats(engine, kv_bytes, memory) if engine.portable else KeptSeats(engine)
