"""Folders under construction: visible under their final name only when complete, gone when their maker is."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = ".incoming-"


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, deleted with all that is still in it when the block ends, however it ends.

    Its maker holds a lock on it as long as it lives. That tells folders in use from those whose maker was killed, across
    pid namespaces too; the latter are removed first. Raises `OSError`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent):  # so that nobody sweeps a folder between its making and its locking
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(hold, fcntl.LOCK_EX)
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(hold, fcntl.LOCK_EX)
        yield
    finally:
        os.close(hold)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(hold)
