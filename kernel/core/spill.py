"""Keys and values that memory has no room for, in files that have no name and end with the process."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmos.kernel.core import limits
from llmos.kernel.core.engine import KV


class SpillFull(Exception):
    """There is no room for it, even with everything else gone."""


class Spilled:
    """An array in a file of its own."""

    def __init__(self, spill: Spill, descriptor: int, shape: tuple[int, ...], nbytes: int) -> None:
        self._spill, self._descriptor, self._shape = spill, descriptor, shape
        self.nbytes = nbytes

    def read(self) -> KV:
        """The array. Raises `OSError`, `MemoryError`."""
        kv = np.empty(self._shape, np.float32)
        view, at = kv.data.cast("B"), 0
        started = time.monotonic()
        while at < self.nbytes:
            count = os.preadv(self._descriptor, [view[at:]], at)
            if count == 0:
                raise OSError("a file of keys and values has become shorter")
            at += count
        self._spill.measure(self.nbytes, time.monotonic() - started)
        return kv

    def close(self) -> None:
        """Give its room back."""
        self._spill.used -= self.nbytes
        self._spill.files -= 1
        with contextlib.suppress(OSError):  # a disk that fails now has nothing left that matters
            os.close(self._descriptor)


class Spill:
    """A bounded amount of files, and no more of them than half of what this process may open.

    Args:
        folder: where they lie; nobody else can write there.
        capacity: bytes of all of them together.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self._folder, self._capacity = folder, capacity
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # the rest is for loading models
        self.used = self.files = 0
        self.read_s = limits.SPILL_READ_S
        """Seconds that reading one byte back takes, as measured lately."""

    def pays(self, tokens: int, read_s: float, kv_bytes: int) -> bool:
        """Whether some tokens come back sooner from a file than by reading their text again, at `read_s` each."""
        return tokens * kv_bytes * self.read_s + limits.SPILL_S < tokens * read_s

    def write(self, kv: KV, make_room: Callable[[], bool]) -> Spilled:
        """Put an array into a file.

        Args:
            make_room: lets something go, and says whether there was anything.

        Raises:
            SpillFull, OSError: it could not be put; nothing is left of it.
        """
        while self.used + kv.nbytes > self._capacity or self.files >= self._most:
            if kv.nbytes > self._capacity or not make_room():
                raise SpillFull
        descriptor = _nameless(self._folder)
        try:
            view, at = kv.data.cast("B"), 0
            while at < kv.nbytes:
                at += os.write(descriptor, view[at : at + limits.SPILL_BLOCK])
        except BaseException:
            os.close(descriptor)
            raise
        self.used += kv.nbytes
        self.files += 1
        return Spilled(self, descriptor, kv.shape, kv.nbytes)

    def measure(self, nbytes: int, seconds: float) -> None:
        """Note how long reading back took."""
        self.read_s += (seconds / nbytes - self.read_s) * limits.SPILL_LEARNS


def _nameless(folder: Path) -> int:
    """A descriptor of a file that is gone when it is closed, whatever becomes of this process. Raises `OSError`."""
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:  # a file system that has none
            pass
    descriptor, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)  # noqa: PTH108
    return descriptor
