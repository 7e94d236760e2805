"""The kernel's one loop: wait for any of its descriptors or the next timer, then call what belongs to it."""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections.abc import Callable
from typing import Protocol

_MOST_FAILURES = 1000  # callbacks in a row that raise before the loop gives up: nothing works then
_LONGEST_WAIT_S = 3600.0  # the operating system refuses to wait for weeks


class HasFileno(Protocol):
    """A socket, a pipe, a file."""

    def fileno(self) -> int:
        """The descriptor."""


class Timer:
    """A call that is to happen; `cancel` makes it not happen."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class Loop:
    """Single-threaded; every callback runs to its end and must not block.

    Args:
        failed: told what a callback raised, so that one bug does not end everything else; None raises it.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, failed: Callable[[Exception], None] | None = None
    ) -> None:
        self.clock = clock
        self._failed = failed
        self._failures = 0
        """In a row."""
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._kept = 1000
        self._order = itertools.count()
        self._running = False

    def watch(self, source: HasFileno | int, read: Callable[[], None]) -> None:
        """Call `read` whenever `source` has something to read, or has been closed by its other end."""
        self._selector.register(source, selectors.EVENT_READ, (read, None))

    def unwatch(self, source: HasFileno | int) -> None:
        """Before it is closed."""
        self._selector.unregister(source)

    def want_write(self, source: HasFileno | int, write: Callable[[], None] | None) -> None:
        """Also call `write` when `source` takes more; None: no more."""
        key = self._selector.get_key(source)
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
        self._selector.modify(source, events, (key.data[0], write))

    def later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action` once, not before `seconds` have passed."""
        timer = Timer(action)
        if len(self._timers) > 2 * self._kept:  # most are cancelled long before their time
            self._timers = [entry for entry in self._timers if entry[2].action is not None]
            heapq.heapify(self._timers)
            self._kept = max(len(self._timers), 1000)
        heapq.heappush(self._timers, (self.clock() + seconds, next(self._order), timer))
        return timer

    def run(self) -> None:
        """Until `stop`."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """End `run` after this turn."""
        self._running = False

    def close(self) -> None:
        self._selector.close()

    def turn(self) -> None:
        """Wait once, then serve what is ready."""
        for key, events in self._selector.select(self._until_next()):
            current = self._selector.get_map().get(key.fd)
            if current is None or current.data is not key.data:
                continue  # a callback of this very turn has closed or changed it; what is still ready comes again
            read, write = key.data
            if events & selectors.EVENT_READ:
                self._call(read)
            if events & selectors.EVENT_WRITE and write is not None:
                self._call(write)
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            action = heapq.heappop(self._timers)[2].action
            if action is not None:
                self._call(action)

    def _call(self, callback: Callable[[], None]) -> None:
        if self._failed is None:
            callback()
            return
        try:
            callback()
        except Exception as error:
            self._failures += 1
            if self._failures > _MOST_FAILURES:
                raise
            self._failed(error)
        else:
            self._failures = 0

    def _until_next(self) -> float | None:
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        return min(max(0.0, self._timers[0][0] - self.clock()), _LONGEST_WAIT_S) if self._timers else None
