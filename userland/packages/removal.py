"""Removes trees that a stranger has made, as deep and as closed as he liked: `shutil.rmtree` calls itself once for each level."""

from __future__ import annotations

import errno
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: Path) -> None:
    """Whatever it is; a link is removed and not followed. What cannot be removed, or comes back meanwhile, stays."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        parent = os.open(path.parent, _FLAGS & ~os.O_NOFOLLOW)
        try:
            top = _open(parent, path.name)
            try:
                _empty(top)
            finally:
                os.close(top)
            os.rmdir(path.name, dir_fd=parent)
        finally:
            os.close(parent)


def _empty(top: int) -> None:
    """Directories further down are moved up here before they are emptied, so that no depth is too deep."""
    waiting = _without_files(top, top)
    while waiting:
        name = waiting.pop()
        with suppress(OSError):
            inner = _open(top, name)
            try:
                waiting += _without_files(inner, top)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)


def _without_files(directory: int, top: int) -> list[str]:
    """Remove what is no directory; the directories, by their names in `top`."""
    moved = []
    for name in os.listdir(directory):
        with suppress(OSError):
            try:
                os.close(_open(directory, name))  # it may be moved once it may be written to
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                os.unlink(name, dir_fd=directory)
                continue
            new = name if directory == top else secrets.token_hex(8)
            if directory != top:
                os.rename(name, new, src_dir_fd=directory, dst_dir_fd=top)
            moved.append(new)
    return moved


def _open(parent: int, name: str) -> int:
    """A directory, opened for us if it is closed. Raises `OSError`, with ENOTDIR or ELOOP for anything else."""
    try:
        found = os.open(name, _FLAGS, dir_fd=parent)
    except PermissionError:
        if sys.platform != "linux":
            raise
        seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod(f"/proc/self/fd/{seen}", 0o700)  # noqa: PTH101  (its name could be a link by now)
        finally:
            os.close(seen)
        found = os.open(name, _FLAGS, dir_fd=parent)
    if os.fstat(found).st_mode & 0o700 != 0o700:
        os.fchmod(found, 0o700)
    return found
