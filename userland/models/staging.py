"""Folders under construction: visible under their final name only when complete, gone when their maker is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".incoming-"


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, deleted with all that is still in it when the block ends, however it ends.

    Its maker holds a lock on it as long as it lives. That tells folders in use from those whose maker was killed, across
    pid namespaces too; the latter are removed first. Raises `OSError`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    folder, hold = _make(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(hold)


def publish(folder: Path, target: Path) -> None:
    """Give a complete folder its final name, atomically. Raises `FileExistsError` when `target` exists and is not empty."""
    try:
        folder.rename(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(f"{target} exists already") from error
        raise


def _make(parent: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor by which it is locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # somebody swept it before it was locked: make another
            hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(hold, fcntl.LOCK_EX)
            if folder.exists():
                return folder, hold
            os.close(hold)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # gone meanwhile, or in use
            hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(hold)
