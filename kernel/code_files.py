"""The directories of projects, which hostile programs fill as they like: nothing in them is believed, followed, or waited for.

Every name is opened from the directory above it, never a path, and never a link: what is renamed or linked meanwhile leads nowhere else.
What is opened is a regular file with one name, or it is refused; it is opened so that neither a FIFO nor a lease holds up who opens it.
What takes long is a generator that yields every few entries, so that the loop goes on between them.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.usage import BLOCK

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_NEW = ".new-"
"""What a file is called until it is whole."""
_LIST = "`code.ls` lists those that there are"
_REMOVE = "`code.rm` removes it, whatever it is"


class Entry(NamedTuple):
    """A regular file, as far as one must know to see that it has changed: a program sets its own times, but not this one."""

    bytes: int
    changed: int
    """Nanoseconds since 1970 UTC of its last change of any kind (`st_ctime`)."""
    inode: int
    modified: float


@dataclass
class Listing:
    """What is in a project."""

    files: dict[str, Entry] = field(default_factory=dict)
    """By path."""
    entries: int = 0
    bytes: int = 0
    """On the disk."""
    hidden: int = 0
    """Links, sockets, what has no name in UTF-8."""
    over: str = ""
    """The bound that it exceeds, in words; then not everything is listed."""


def scan(project: int) -> Generator[None, None, Listing]:
    """List a directory, until it exceeds a bound. By a descriptor of its own: two may read it at once, each at its own pace."""
    found = Listing()
    if os.fstat(project).st_mode & 0o700 != 0o700:
        os.fchmod(project, 0o700)
    with _opened(os.open(".", _DIRECTORY, dir_fd=project)) as directory:
        yield from _scan(directory, "", 1, found)
    return found


def _scan(directory: int, prefix: str, depth: int, found: Listing) -> Generator[None, None, None]:
    with os.scandir(directory) as entries:
        for entry in entries:
            found.entries += 1
            if found.entries > params.CODE_FILES:
                found.over = f"more than {params.CODE_FILES:,} files are in the project"
                return
            if found.entries % params.CODE_SLICE == 0:
                yield
            with suppress(OSError):  # it is gone by now
                yield from _look(directory, entry, prefix + entry.name, depth, found)
            if found.over:
                return


def _look(
    directory: int, entry: os.DirEntry[str], path: str, depth: int, found: Listing
) -> Generator[None, None, None]:
    status = entry.stat(follow_symlinks=False)
    found.bytes += status.st_blocks * BLOCK
    if found.bytes > params.CODE_BYTES:
        found.over = f"more than {params.CODE_BYTES >> 20} MiB are in the project"
    elif stat.S_ISDIR(status.st_mode) and depth >= params.CODE_DEPTH:
        found.over = f"more than {params.CODE_DEPTH} folders are inside one another in the project"
    elif stat.S_ISDIR(status.st_mode):
        try:
            inner = open_directory(directory, entry.name)
        except PermissionError:  # it was shut again while we opened it: somebody hides what is in there
            found.over = "a folder of the project cannot be read"
            return
        with _opened(inner):
            yield from _scan(inner, path + "/", depth + 1, found)
    elif stat.S_ISREG(status.st_mode) and _is_text(path):
        found.files[path] = Entry(status.st_size, status.st_ctime_ns, status.st_ino, status.st_mtime)
    else:
        found.hidden += 1


def changes(before: Listing, after: Listing) -> Iterator[dict[str, Any]]:
    """What became of each file, by path, as far as both are complete."""
    for path in sorted({**before.files, **after.files}):
        old, new = before.files.get(path), after.files.get(path)
        if new is None and not after.over:
            yield {"path": path, "bytes": 0, "change": "removed"}
        elif new is not None and (old is None or new[:3] != old[:3]):
            yield {"path": path, "bytes": new.bytes, "change": "new" if old is None else "changed"}


def read(project: int, path: str, offset: int, limit: int) -> tuple[bytes, int]:
    """A part of a file, and the size of the whole. Raises `OpError`: `NOT_FOUND`, `DENIED`, `BUSY`, `INVALID_ARGUMENT`."""
    with (
        _plainly(path),
        _parent(project, path) as (directory, name),
        _opened(os.open(name, os.O_RDONLY | _FILE, dir_fd=directory)) as file,
    ):
        size = _regular(file, path)
        return os.pread(file, limit, offset), size


def write(project: int, path: str, data: bytes, *, append: bool) -> None:
    """Put a file there, whole or not at all, or add to one. Raises `OpError` as `read`."""
    with _plainly(path), _parent(project, path, make=True) as (directory, name):
        if append:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FILE
            with _opened(os.open(name, flags, 0o600, dir_fd=directory)) as file:
                _regular(file, path)
                _put(file, data)
            return
        temporary = _NEW + secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE
        with _opened(os.open(temporary, flags, 0o600, dir_fd=directory)) as file:
            try:
                _put(file, data)
                os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                os.unlink(temporary, dir_fd=directory)
                raise


def discard(project: int, path: str, rubbish: int) -> None:
    """Take what has this path, whatever it is, out of sight at once, for `Sweeper` to delete. Raises `OpError` as `read`."""
    with _plainly(path), _parent(project, path) as (directory, name):
        throw(directory, name, rubbish)


def open_directory(parent: int, name: str) -> int:
    """A directory of ours, whatever a program has made of its mode. Raises `OSError`."""
    _openable(parent, name)
    return os.open(name, _DIRECTORY, dir_fd=parent)


def throw(directory: int, name: str, rubbish: int) -> None:
    """Move it there under a name of its own. Raises `OSError`."""
    _openable(directory, name)  # a directory that may not be written cannot be moved to another
    os.rename(name, secrets.token_hex(8), src_dir_fd=directory, dst_dir_fd=rubbish)


def _openable(directory: int, name: str) -> None:
    """Give ourselves what we may do to a directory of our own, if it is one. By a descriptor, for a name could be a link by now."""
    with suppress(OSError), _opened(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as seen:
        mode = os.fstat(seen).st_mode
        if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{seen}", 0o700)  # noqa: PTH101


@contextmanager
def _parent(project: int, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """The directory that a path's last name is in, and that name. Raises `OSError`, `OpError(INVALID_ARGUMENT)`."""
    *above, name = _names(path)
    directory = os.dup(project)
    try:
        for one in above:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(one, 0o700, dir_fd=directory)
            deeper = os.open(one, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = deeper
        if os.fstat(directory).st_dev != os.fstat(project).st_dev:
            raise OSError(errno.EXDEV, "on another file system")
        yield directory, name
    finally:
        os.close(directory)


def _names(path: str) -> list[str]:
    names = path.split("/")
    if "\0" in path or not all(names) or {".", ".."} & set(names) or len(names) > params.CODE_DEPTH:
        hint = f"give it from the project's directory on, without `.` and `..`, at most {params.CODE_DEPTH} deep"
        raise OpError(Code.INVALID_ARGUMENT, f"{path[:80]!r} is not a path beneath the project", hint)
    return names


def _regular(file: int, path: str) -> int:
    """Its size. One with a second name could be anybody's file that was linked here."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OpError(Code.DENIED, f"{path}: it is not a regular file", _REMOVE)
    if status.st_nlink != 1:
        raise OpError(Code.DENIED, f"{path}: the file has other names beside this one", _REMOVE)
    return status.st_size


def _put(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


@contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _plainly(path: str) -> Iterator[None]:
    """What Linux says of a path, as an error for its caller."""
    try:
        yield
    except OSError as error:
        _refuse(path, error)


def _refuse(path: str, error: OSError) -> NoReturn:
    match error.errno:
        case errno.ENOENT:
            raise OpError(Code.NOT_FOUND, f"{path}: there is no such file in the project", _LIST) from None
        case errno.ELOOP | errno.ENOTDIR | errno.EISDIR | errno.ENXIO | errno.EXDEV:
            raise OpError(Code.DENIED, f"{path}: it is not a regular file, or leads through a link", _REMOVE) from None
        case errno.EAGAIN | errno.ETXTBSY:
            raise OpError(Code.BUSY, f"{path}: a program holds it", "try again when it has ended") from None
        case errno.ENAMETOOLONG:
            raise OpError(Code.INVALID_ARGUMENT, f"{path[:80]}…: a name is too long", "at most 255 bytes") from None
    raise OpError(Code.UNAVAILABLE, f"{path}: {error.strerror}") from None


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
