"""Opening files beneath a directory and nowhere else, whatever is renamed or linked meanwhile.

The kernel resolves the whole path in one step (`openat2` with `RESOLVE_BENEATH`), so there is no moment between a check
and an open. Where that call is missing, the path is opened one component at a time and no symbolic link is followed.
Source: openat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_SYS_OPENAT2 = 437
"""The same on every architecture that has the call, alpha apart."""
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO or a device must not make an open wait
_AT_FDCWD = -100
_AGAIN = 64
"""Attempts while something is renamed during a resolution (EAGAIN)."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_file(base: int, path: str, *, follow: bool = True) -> int:
    """A descriptor of the regular file at `path` beneath the directory `base`; with `follow`, by links that stay beneath.

    Raises `OSError`: EXDEV when the path leads out or to another file system, EINVAL for a directory, FIFO, socket or
    device, and what open(2) says.
    """
    return _regular(_open(base, path, _FLAGS, follow=follow), path)


def open_granted_file(path: Path) -> int:
    """A descriptor of a regular file that is itself what was granted. Raises `OSError` as `open_file`."""
    return _regular(_open_granted(path, _FLAGS), str(path))


def open_granted_directory(path: Path) -> int:
    """A descriptor of a directory that is itself what was granted. Raises `OSError`."""
    return _open_granted(path, _FLAGS | os.O_DIRECTORY)


def _open_granted(path: Path, flags: int) -> int:
    """A grant names its place without links, so a link anywhere on the way is somebody's who put it there since (ELOOP)."""
    if not has_openat2():
        return os.open(path, flags | os.O_NOFOLLOW)
    descriptor = _openat2(_AT_FDCWD, str(path), flags, _NO_MAGICLINKS | _NO_SYMLINKS)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    return descriptor


def open_directory(base: int, path: str, *, follow: bool = True) -> int:
    """A descriptor of the directory at `path` beneath `base`, which is itself for an empty path. Raises `OSError`."""
    return _open(base, path or ".", _FLAGS | os.O_DIRECTORY, follow=follow)


@contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """The descriptor, closed at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _regular(descriptor: int, path: str) -> int:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)


def _open(base: int, path: str, flags: int, *, follow: bool) -> int:
    if path.startswith("/") or "\0" in path:
        raise OSError(errno.EXDEV, "not a path beneath a directory", path)
    if not has_openat2():
        return _open_stepwise(base, path, flags)
    resolve = _BENEATH | _NO_MAGICLINKS | _NO_XDEV | (0 if follow else _NO_SYMLINKS)
    for _ in range(_AGAIN):
        descriptor = _openat2(base, path, flags, resolve)
        if descriptor >= 0:
            return descriptor
        if ctypes.get_errno() not in {errno.EAGAIN, errno.EINTR}:
            break
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), path)


def _openat2(base: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags, 0, resolve)
    return int(
        _libc().syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(base),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
    )


@cache
def has_openat2() -> bool:
    """Linux since 5.6, unless a sandbox answers that it has no such call."""
    if not sys.platform.startswith("linux") or platform.machine() == "alpha":
        return False
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC  # naming a directory is allowed even where reading it is not
    with opened(os.open("/", flags)) as root:
        descriptor = _openat2(root, ".", flags, _BENEATH)
    if descriptor < 0:
        return ctypes.get_errno() not in {errno.ENOSYS, errno.EPERM}
    os.close(descriptor)
    return True


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _open_stepwise(base: int, path: str, flags: int) -> int:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise OSError(errno.EXDEV, "leads out of the directory", path)
    device = os.fstat(base).st_dev
    current = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
    try:
        for at, part in enumerate(parts):
            wanted = flags if at == len(parts) - 1 else os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            deeper = os.open(part, wanted | os.O_NOFOLLOW, dir_fd=current)
            os.close(current)
            current = deeper
            if os.fstat(current).st_dev != device:
                raise OSError(errno.EXDEV, "on another file system", path)
    except BaseException:
        os.close(current)
        raise
    return current
