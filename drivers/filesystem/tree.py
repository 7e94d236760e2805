"""Whole files, links and folders measured, copied and removed, by descriptors and without following a link."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from llmos.drivers.filesystem.atomic import refuse_unkeepable
from llmos.drivers.filesystem.beneath import open_directory, open_file, opened
from llmos.drivers.sdk import Code, OpError

MAX_ENTRIES = 10_000
"""Files and folders that go to the trash at once."""
MAX_DEPTH = 32
_BLOCK = 1 << 20
_EACH = 512
"""Bytes an entry counts besides its content."""


@dataclass(slots=True)
class Extent:
    """What a file or a folder amounts to."""

    names: list[tuple[str, int]] = field(default_factory=list)
    """(path, bytes) of every entry, folders with a slash at the end; the thing itself comes first."""

    @property
    def size(self) -> int:
        """Bytes, with something for every entry."""
        return sum(size + _EACH for _, size in self.names)


def measure(folder: int, name: str, check: Callable[[], None]) -> Extent:
    """Raises `OSError`, and `OpError` for something that could not be put back as it was."""
    extent = Extent()
    for path, size in _walk(folder, name, name, 0):
        check()
        extent.names.append((path, size))
        if len(extent.names) > MAX_ENTRIES:
            raise OpError(Code.TOO_LARGE, f"argument path: {name} holds more than {MAX_ENTRIES:,} files and folders")
    return extent


def _walk(folder: int, name: str, path: str, depth: int) -> Iterator[tuple[str, int]]:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if status.st_uid != os.geteuid():
        raise OpError(Code.DENIED, f"argument path: {path} belongs to another user")
    if stat.S_ISLNK(status.st_mode):
        yield path, status.st_size
    elif stat.S_ISREG(status.st_mode):
        with opened(open_file(folder, name, follow=False)) as descriptor:
            status = os.fstat(descriptor)
            refuse_unkeepable(descriptor, path, status)
        yield path, status.st_size
    elif stat.S_ISDIR(status.st_mode):
        if depth >= MAX_DEPTH:
            raise OpError(Code.TOO_LARGE, f"argument path: {path}: folders in folders, more than {MAX_DEPTH}")
        if status.st_mode & 0o700 != 0o700:
            raise OpError(Code.DENIED, f"argument path: {path}: the folder's own permissions forbid it")
        yield f"{path}/", 0
        with opened(open_directory(folder, name, follow=False)) as descriptor:
            if os.fstat(descriptor).st_ino != status.st_ino:
                raise OSError(errno.EAGAIN, "is replaced while it is looked at", path)
            for inner in _names(descriptor):
                yield from _walk(descriptor, inner, f"{path}/{inner}", depth + 1)
    else:
        raise OpError(Code.INVALID_ARGUMENT, f"argument path: {path} is neither a file nor a folder nor a link")


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def copy(source: int, name: str, target: int, new_name: str, check: Callable[[], None], budget: int) -> int:
    """With permission bits and times, durable on the disk; gives the bytes written. Raises `OSError`, and EFBIG beyond `budget`."""
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    times = (status.st_atime_ns, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), new_name, dir_fd=target)
        os.utime(new_name, ns=times, dir_fd=target, follow_symlinks=False)
        return _EACH
    if not stat.S_ISDIR(status.st_mode):
        return _EACH + _copy_file(source, name, target, new_name, check, budget - _EACH)
    os.mkdir(new_name, 0o700, dir_fd=target)
    done = _EACH
    with (
        opened(open_directory(source, name, follow=False)) as old,
        opened(open_directory(target, new_name, follow=False)) as new,
    ):
        for inner in _names(old):
            done += copy(old, inner, new, inner, check, budget - done)
        os.fchmod(new, stat.S_IMODE(status.st_mode))
        os.utime(new, ns=times)
        os.fsync(new)
    return done


def _copy_file(source: int, name: str, target: int, new_name: str, check: Callable[[], None], budget: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    size = 0
    with (
        opened(open_file(source, name, follow=False)) as old,
        opened(os.open(new_name, flags, 0o600, dir_fd=target)) as new,
    ):
        status = os.fstat(old)
        while block := os.read(old, _BLOCK):
            check()
            size += len(block)
            if size > budget:  # it has grown since it was measured
                raise OSError(errno.EFBIG, "grows while it is copied", name)
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(new, rest) :]
        if status.st_gid != os.fstat(new).st_gid:
            os.fchown(new, -1, status.st_gid)
        os.fchmod(new, stat.S_IMODE(status.st_mode))
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(new)
    return size


def remove(folder: int, name: str) -> None:
    """With all that is in it; nothing where it is not there. Raises `OSError`."""
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)
