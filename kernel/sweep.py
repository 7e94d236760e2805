"""Deletes what processes leave behind, in a process of its own: a tree may be as deep and as wide as its owner liked to make it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from pathlib import Path

import structlog

from llmos.kernel.loop import Loop

log = structlog.get_logger()

_COMMAND = ("sh", "-c", '[ -L "$1" ] || chmod -R u+rwx -- "$1"; rm -rf -- "$1"', "sh")  # chmod would follow a link
_LONGEST_S = 2.0
"""Seconds that what is left may take at the end; the rest goes at the next boot."""


class Sweeper:
    """One tree at a time, in the order they came."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[Path] = deque()
        self._running: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    def sweep(self, path: Path) -> None:
        """Does not wait. A link is deleted itself."""
        with contextlib.suppress(OSError):  # most have nothing in them
            path.rmdir()
            return
        if path not in self._waiting:
            self._waiting.append(path)
        if self._running is None:
            self._next()

    def close(self) -> None:
        """Wait a moment for it; what is not gone then goes at the next boot."""
        end = time.monotonic() + _LONGEST_S
        while self._running is not None:
            try:
                self._running.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._waiting.clear()
                os.killpg(self._running.pid, signal.SIGKILL)  # it is not reaped yet, and its commands are in its group
            self._over()

    def _next(self) -> None:
        if not self._waiting:
            return
        path = self._waiting.popleft()
        try:
            self._running = subprocess.Popen(
                (*_COMMAND, str(path)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._running.pid)
        except OSError as error:  # it stays until the next boot
            log.warning("sweep.failed", err=str(error))
            if self._running is not None:  # nobody would notice its end
                os.killpg(self._running.pid, signal.SIGKILL)
                self._running.wait()
                self._running = None
            return
        self._loop.watch(self._pidfd, self._over)

    def _over(self) -> None:
        """The tree is gone, or what is left of it stays until the next boot."""
        if self._running is not None:
            self._running.wait()
            self._running = None
        with contextlib.suppress(KeyError, ValueError):
            self._loop.unwatch(self._pidfd)
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self._next()
