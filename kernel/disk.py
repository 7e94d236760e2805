"""How much a directory holds, counted a slice at a time while its owner goes on changing it, and may mean no good.

Nothing is followed: each directory is opened by its name in the one above it (O_NOFOLLOW), and only stat(2) is asked about the rest.
A file with two names counts twice; a hole counts nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmos.kernel import params
from llmos.kernel.usage import BLOCK

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Walk:
    """One walk through one directory.

    Args:
        bytes_limit, files_limit: beyond which it is over early.
    """

    def __init__(self, root: Path, bytes_limit: int, files_limit: int) -> None:
        self.bytes = 0
        self.files = 0
        self.hidden = False
        """Whether something in it cannot be counted: it lies too deep, or may not be opened."""
        self._limits = bytes_limit, files_limit
        self._open: list[tuple[int, Any]] = []  # a directory, and the iterator over it
        with suppress(OSError):
            self._enter(os.open(root, _FLAGS))

    @property
    def over(self) -> bool:
        """Whether there is more than there may be."""
        return self.bytes > self._limits[0] or self.files > self._limits[1] or self.hidden

    def step(self, entries: int) -> bool:
        """Look at so many more. → whether it is done, or `over`."""
        for _ in range(entries):
            if not self._open or self.over:
                self.close()
                return True
            fd, names = self._open[-1]
            entry = None
            with suppress(OSError):
                entry = next(names, None)
            if entry is None:
                self._leave()
                continue
            try:
                self._count(fd, entry)
            except PermissionError:
                self.hidden = True
            except OSError:  # it has gone since
                continue
        return False

    def close(self) -> None:
        """Idempotent."""
        while self._open:
            self._leave()

    def _count(self, fd: int, entry: os.DirEntry[str]) -> None:
        self.files += 1
        self.bytes += entry.stat(follow_symlinks=False).st_blocks * BLOCK
        if entry.is_dir(follow_symlinks=False):
            if len(self._open) >= params.WATCH_DEPTH:
                self.hidden = True
            else:
                self._enter(os.open(entry.name, _FLAGS, dir_fd=fd))

    def _leave(self) -> None:
        fd, names = self._open.pop()
        names.close()
        os.close(fd)

    def _enter(self, fd: int) -> None:
        try:
            self._open.append((fd, os.scandir(fd)))
        except OSError:
            os.close(fd)
