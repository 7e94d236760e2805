"""What a call may see: where the user's grants and the scope of the caller's capability overlap."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from llmos.drivers.filesystem.beneath import (
    open_directory,
    open_file,
    open_granted_directory,
    open_granted_file,
    opened,
)
from llmos.drivers.sdk import Code, OpError


@dataclass(frozen=True, slots=True)
class Area:
    """A place that may be read with all beneath it. `within` leads there from `root`, which the user granted."""

    root: Path
    within: str

    @property
    def path(self) -> PurePosixPath:
        """Where it is, for people and for arguments."""
        return PurePosixPath(self.root, self.within)

    @contextmanager
    def base(self) -> Iterator[int]:
        """A descriptor of its directory. Raises `OSError`; ENOTDIR for an area that is one file.

        No link is followed: it would lead to another part of the root, which whoever asks may have no right to.
        """
        with opened(open_granted_directory(self.root)) as root:
            if not self.within:
                yield root
            else:
                with opened(open_directory(root, self.within, follow=False)) as base:
                    yield base


def areas_of(roots: Sequence[Path], scope: Mapping[str, Sequence[str]], home: Path) -> list[Area]:
    """The overlaps, outermost first, none inside another unless it can only be entered by itself, as a mount of its own."""
    bounds = [absolute(bound, home) for bound in scope["path"]] if "path" in scope else [PurePosixPath("/")]
    found = set()
    for root in roots:
        for bound in bounds:
            if bound.is_relative_to(root):
                found.add(Area(root, "" if bound == PurePosixPath(root) else str(bound.relative_to(root))))
            elif root.is_relative_to(bound):
                found.add(Area(root, ""))
    kept: list[Area] = []
    for area in sorted(found, key=lambda area: area.path):
        outer = next((outer for outer in reversed(kept) if area.path.is_relative_to(outer.path)), None)
        if outer is None or _is_apart(area, outer):
            kept.append(area)
    return kept


def _is_apart(area: Area, outer: Area) -> bool:
    """Whether a granted folder is mounted inside another, as a jail does where the one may be written and the other only read."""
    if area.root == outer.root:
        return False
    try:
        with outer.base() as base, opened(open_directory(base, str(area.path.relative_to(outer.path)))):
            return False
    except OSError as error:
        return error.errno in (errno.EXDEV, errno.ENOTDIR)


def absolute(path: str, home: Path) -> PurePosixPath:
    """What a person or a capability means by a path: `~` and relative ones from home, `..` taken by the letter.

    The kernel checks capabilities on the same reading. Raises `OpError(INVALID_ARGUMENT)`.
    """
    if "\0" in path:
        raise OpError(Code.INVALID_ARGUMENT, "argument path: holds a NUL byte")
    bare = path.removesuffix("/**").removesuffix("/*") or "/"
    if bare == "~" or bare.startswith("~/"):
        bare = f"{home}{bare[1:]}"
    return PurePosixPath(os.path.normpath(f"{home}/{bare}" if not bare.startswith("/") else f"/{bare.lstrip('/')}"))


def locate(path: str, areas: Sequence[Area], home: Path, verb: str = "read") -> tuple[Area, str]:
    """The innermost area a path lies in, and the path within it. Raises `OpError(DENIED)` for one that lies in none."""
    wanted = absolute(path, home)
    for area in reversed(areas):
        if wanted == area.path:
            return area, ""
        if wanted.is_relative_to(area.path):
            return area, str(wanted.relative_to(area.path))
    places = ", ".join(str(area.path) for area in areas) or "nothing"
    raise OpError(
        Code.DENIED,
        f"argument path: {wanted} is outside of what may be {'read' if verb == 'read' else 'changed'} here ({places})",
        f"llmosctl perm grant filesystem 'fs.{verb}(path={wanted.parent})' lets this driver {verb} it",
    )


@contextmanager
def file_in(area: Area, within: str) -> Iterator[int]:
    """A descriptor of a regular file, found also by another spelling of its name. Raises `OSError`."""
    if not within and not area.within:  # the grant itself is one file
        with opened(open_granted_file(area.root)) as descriptor:
            yield descriptor
        return
    if within:
        with area.base() as base, opened(_respelled(open_file, base, within)) as descriptor:
            yield descriptor
        return
    with (
        opened(open_granted_directory(area.root)) as root,
        opened(_respelled(partial(open_file, follow=False), root, area.within)) as descriptor,
    ):
        yield descriptor


@contextmanager
def directory_in(area: Area, within: str) -> Iterator[int]:
    """A descriptor of a directory, likewise."""
    with area.base() as base, opened(_respelled(open_directory, base, within)) as descriptor:
        yield descriptor


@contextmanager
def parent_in(area: Area, within: str) -> Iterator[tuple[int, str]]:
    """The folder that something lies in or would lie in, and its name there as the disk spells it; no link is followed on the way.

    Raises `OSError`: EBUSY for a granted place itself, which cannot be replaced.
    """
    folder, _, name = "/".join(filter(None, (area.within, within))).rpartition("/")
    if not name:
        raise OSError(errno.EBUSY, "is itself what was granted", str(area.root))
    with (
        opened(open_granted_directory(area.root)) as root,
        opened(_respelled(partial(open_directory, follow=False), root, folder)) as descriptor,
    ):
        yield descriptor, _spelled(descriptor, name)


def shown(name: str) -> str:
    """A name as text: bytes that are no UTF-8 as `\\xe9`. The functions above find the file again."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _respelled(open_: Callable[[int, str], int], base: int, within: str) -> int:
    """Opens a path as it is written, or else as the disk spells it: in another Unicode form, or with raw bytes."""
    try:
        return open_(base, within)
    except FileNotFoundError:
        spelled = ""
        for part in within.split("/"):
            with opened(open_directory(base, spelled)) as descriptor:
                found = _same_name(descriptor, part)
            if found is None:
                raise
            spelled = f"{spelled}/{found}" if spelled else found
        return open_(base, spelled)


def _spelled(folder: int, name: str) -> str:
    """A name as it stands in the folder, or as it was given where there is none like it."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return _same_name(folder, name) or name
    return name


def _same_name(folder: int, name: str) -> str | None:
    wanted = unicodedata.normalize("NFC", name)
    with os.scandir(folder) as entries:
        return next((one.name for one in entries if unicodedata.normalize("NFC", shown(one.name)) == wanted), None)


def refusal(path: str, error: OSError) -> OpError:
    """The system's error in this driver's words."""
    match error.errno:
        case errno.ENOENT:
            return OpError(
                Code.NOT_FOUND, f"argument path: {path} does not exist", "filesystem.search finds files by name"
            )
        case errno.EXDEV:
            return OpError(
                Code.DENIED, f"argument path: {path} leads out of what was granted", "grant the place it leads to"
            )
        case errno.ELOOP:
            return OpError(Code.DENIED, f"argument path: {path} is a symbolic link that is not followed")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return OpError(Code.DENIED, f"argument path: {path}: the file's own permissions forbid it")
        case errno.ENOTDIR:
            return OpError(
                Code.INVALID_ARGUMENT, f"argument path: {path} is not a folder", "filesystem.read reads a file"
            )
        case errno.EINVAL | errno.EISDIR | errno.ENXIO:
            return OpError(Code.INVALID_ARGUMENT, f"argument path: {path} is not a regular file")
        case errno.EBUSY:
            detail = f"argument path: {path} is itself what was granted and cannot be replaced"
            return OpError(Code.INVALID_ARGUMENT, detail, "grant the folder it lies in")
        case errno.ENAMETOOLONG:
            return OpError(Code.INVALID_ARGUMENT, f"argument path: {path[:80]}… is longer than the system allows")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return OpError(
                Code.UNAVAILABLE, f"argument path: {path}: {error.strerror}; nothing was changed", "make room"
            )
    return OpError(Code.UNAVAILABLE, f"argument path: {path}: {error.strerror}")
