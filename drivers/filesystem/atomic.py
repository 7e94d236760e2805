"""A file's content put in place in one step: whoever looks, and whatever dies, sees the old or the new, never a mix.

Everything happens in one folder, held open: a temporary file is filled, made durable, and swapped with the file. What came
out by the swap is compared with what was expected, and swapped back when somebody was faster: so nothing is overwritten
that was not seen. Source: renameat2(2), open(2), fsync(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

from llmos.drivers.filesystem.beneath import open_file, opened
from llmos.drivers.sdk import Code, OpError

MAX_FILE = 16 * 1024 * 1024
"""Bytes of a file that is replaced or appended to: its old content is held in memory and kept for the undo."""
_NOREPLACE, _EXCHANGE = 1, 2
_ACL = "system.posix_acl_access"
_AGAIN = 8
"""Attempts to put something back while it is renamed."""
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a file, and of its state what is kept."""

    data: bytes
    mode: int | None = None
    """Permission bits; None for those of any new file."""
    mtime_ns: int | None = None
    """None for now."""
    gid: int | None = None

    @property
    def digest(self) -> str:
        return blake2b(self.data, digest_size=16).hexdigest()


def content_of(folder: int, name: str) -> Content | None:
    """Of the regular file of that name, never through a link; None where there is nothing.

    Raises `OSError` as `open_file`, and `OpError` for a file that could not be put back as it is.
    """
    try:
        descriptor = open_file(folder, name, follow=False)
    except FileNotFoundError:
        return None
    with opened(descriptor):
        status = os.fstat(descriptor)
        refuse_unkeepable(descriptor, name, status)
        data = _read(descriptor)
    if len(data) > MAX_FILE:
        raise OpError(Code.TOO_LARGE, f"argument path: {name} is larger than {MAX_FILE:,} bytes")
    return Content(data, status.st_mode & 0o777, status.st_mtime_ns, status.st_gid)


def refuse_unkeepable(descriptor: int, name: str, status: os.stat_result) -> None:
    """Raises `OpError` for a file of which a copy would not be the same: another's, one of several names, with special rights."""
    if status.st_uid != os.geteuid():
        raise OpError(Code.DENIED, f"argument path: {name} belongs to another user")
    if status.st_nlink > 1:
        raise OpError(Code.INVALID_ARGUMENT, f"argument path: {name} has {status.st_nlink} names (hard links)")
    if status.st_mode & 0o7000 or _has_acl(descriptor):
        detail = f"argument path: {name} has special permissions or an access control list, which would be lost"
        raise OpError(Code.INVALID_ARGUMENT, detail)


def fill(folder: int, temporary: str, content: Content) -> int:
    """Makes a file that is not there yet, durable on the disk; gives its permission bits. Raises `OSError`, leaving nothing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if content.mode is None else 0o600, dir_fd=folder)
    try:
        with opened(descriptor):
            rest = memoryview(content.data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if content.gid is not None and content.gid != os.fstat(descriptor).st_gid:
                os.fchown(descriptor, -1, content.gid)
            if content.mode is not None:
                os.fchmod(descriptor, content.mode)
            if content.mtime_ns is not None:
                os.utime(descriptor, ns=(content.mtime_ns, content.mtime_ns))
            os.fsync(descriptor)
            return os.fstat(descriptor).st_mode & 0o777
    except BaseException:
        discard(folder, temporary)
        raise


def put(folder: int, temporary: str, name: str, expected: str | None) -> None:
    """The temporary file becomes `name`, whose content has the digest `expected`, or which is not there (None).

    Raises `OpError(CONFLICT)` when that has changed, and `OSError`; then the file is as it was.
    """
    try:
        if expected is None:
            rename_new(folder, temporary, name)
        else:
            _swap(folder, temporary, name, expected)
    except (FileExistsError, FileNotFoundError) as error:
        raise changed(name) from error
    os.fsync(folder)


def take_away(folder: int, name: str, temporary: str, expected: str) -> None:
    """Removes the file whose content has the digest `expected`. Raises as `put`, and the file is there again."""
    rename_new(folder, name, temporary)
    try:
        if not _is(folder, temporary, expected):
            raise changed(name)
    except BaseException:
        rename_new(folder, temporary, name)
        raise
    os.unlink(temporary, dir_fd=folder)
    os.fsync(folder)


def changed(name: str) -> OpError:
    """The error for a file that is not as expected."""
    detail = f"{name} has been changed by somebody else meanwhile; it was left as it is"
    return OpError(Code.CONFLICT, detail, "look at it with filesystem.read")


def discard(folder: int, temporary: str) -> None:
    """Removes a temporary file, if it is there."""
    try:
        os.unlink(temporary, dir_fd=folder)
    except FileNotFoundError:
        return


def rename_new(folder: int, name: str, new_name: str) -> None:
    """Renames in one folder, replacing nothing. Raises `OSError`; EEXIST where the new name is taken."""
    try:
        _renameat2(folder, name, new_name, _NOREPLACE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        os.link(name, new_name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        os.unlink(name, dir_fd=folder)


def swap_back(folder: int, temporary: str, name: str) -> None:
    """Puts back what a swap brought out, whatever others do with the name meanwhile. Raises `OSError`."""
    for _ in range(_AGAIN):
        try:
            _renameat2(folder, temporary, name, _EXCHANGE)
        except FileNotFoundError:  # what was put in has been taken away
            with contextlib.suppress(FileExistsError):
                rename_new(folder, temporary, name)
                return
        else:
            return
    raise OSError(errno.EAGAIN, "is renamed all the time", name)


def _swap(folder: int, temporary: str, name: str, expected: str) -> None:
    try:
        _renameat2(folder, temporary, name, _EXCHANGE)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if not _is(
            folder, name, expected
        ):  # a file system that cannot swap leaves a moment between this and the next line
            raise changed(name) from error
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        return
    try:
        if not _is(folder, temporary, expected):
            raise changed(name)
    except BaseException:
        swap_back(folder, temporary, name)
        raise
    os.unlink(temporary, dir_fd=folder)


def _is(folder: int, name: str, expected: str) -> bool:
    try:
        found = content_of(folder, name)
    except (OpError, OSError):
        return False
    return found is not None and found.digest == expected


def _read(descriptor: int) -> bytes:
    pieces, size = [], 0
    while size <= MAX_FILE and (piece := os.read(descriptor, 1 << 20)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _has_acl(descriptor: int) -> bool:
    try:
        return _ACL in os.listxattr(descriptor)
    except OSError:  # a file system without attributes
        return False


def _renameat2(folder: int, name: str, new_name: str, flags: int) -> None:
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), new_name)
    old, new = ctypes.c_char_p(os.fsencode(name)), ctypes.c_char_p(os.fsencode(new_name))
    if call(ctypes.c_int(folder), old, ctypes.c_int(folder), new, ctypes.c_uint(flags)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name, None, new_name)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
