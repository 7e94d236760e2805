"""Room on the disk: where downloads wait until their model is installed, and errors about too little of it."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmos.ipc import paths
from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError

KEPT_S = 14 * 86400.0
"""How long a download that nobody goes on with is kept."""

_ROOM = "make room, or choose another place with LLMOS_HOME or LLMOS_MODELS"


def downloads() -> Path:
    """Files and pieces of files, kept until their model is installed. Made where it is missing, with what is old removed."""
    folder = paths.models_dir() / ".downloads"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # its own pull has just ended
            if time.time() - file.lstat().st_mtime > KEPT_S:
                file.unlink()
    return folder


def need(nbytes: int, there: int) -> None:
    """Raises `ModelError` UNAVAILABLE unless `nbytes` fit on the disk, of which `there` are on it already."""
    free = shutil.disk_usage(paths.models_dir()).free
    if free < nbytes - there:
        raise ModelError(
            Code.UNAVAILABLE,
            f"the disk has {free / 1e6:.0f} MB free below {paths.models_dir()}, {(nbytes - there) / 1e6:.0f} MB are needed",
            _ROOM,
        )


@contextmanager
def explained_disk() -> Iterator[None]:
    """Around whatever writes: a full disk becomes `ModelError` UNAVAILABLE."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ModelError(Code.UNAVAILABLE, f"the disk is full ({paths.models_dir()})", _ROOM) from error
