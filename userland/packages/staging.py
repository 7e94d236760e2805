"""Where packages are put together, and how one takes another's place: at once, or not at all.

Everything happens below `.install-*` in the packages' directory, which nobody else looks into. Whatever ends an installation, power
cuts included, what was installed before stays, and the next one clears up.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmos.ipc.errors import Code, OpError
from llmos.userland.packages.removal import remove

_PREFIX = ".install-"
_OLDER = "older"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def stage(root: Path) -> Iterator[Path]:
    """A directory of one's own below `root` until the block ends; one at a time. Raises `OpError(BUSY)`."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OpError(Code.BUSY, "packages are being installed or removed already", "wait for that") from None
        clean(root)
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root)).resolve()
        try:
            yield made
        finally:
            clean(root)


def clean(root: Path) -> None:
    """Remove what unfinished installations left, once a package that one of them had moved aside is back."""
    for left in root.glob(f"{_PREFIX}*"):
        for older in (left / _OLDER).glob("*"):
            if not (root / older.name).exists():
                older.rename(root / older.name)
        remove(left)


def replace(made: Path, place: Path, stage: Path) -> None:
    """Put a directory in another's place. Where the file system can swap two names, no moment goes without either."""
    if not place.exists():
        made.rename(place)
    elif not _exchanged(made, place):
        (stage / _OLDER).mkdir()
        place.rename(stage / _OLDER / place.name)
        made.rename(place)


def _exchanged(one: Path, other: Path) -> bool:
    """Source: renameat2(2)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # another system, or an old C library
        return False
    swap = ctypes.c_uint(_RENAME_EXCHANGE)
    return int(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), swap)) == 0
