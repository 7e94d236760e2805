"""Deletes what processes leave behind, in a process of its own: a tree may be as deep and as wide as its owner liked to make it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import deque
from pathlib import Path

import structlog

from llmos.kernel.loop import Loop

log = structlog.get_logger()

_COMMAND = ("rm", "-rf", "--one-file-system", "--")


class Sweeper:
    """One tree at a time, in the order they came."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[Path] = deque()
        self._running: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    def sweep(self, path: Path) -> None:
        """Does not wait."""
        self._waiting.append(path)
        if self._running is None:
            self._next()

    def close(self) -> None:
        """What is not gone yet goes at the next boot."""
        self._waiting.clear()
        if self._running is not None:
            self._running.kill()
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
