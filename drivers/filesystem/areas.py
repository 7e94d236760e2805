"""What a call may see: where the user's grants and the scope of the caller's capability overlap."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llmos.drivers.filesystem.beneath import open_directory, open_file, open_granted_file, opened
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
        """A descriptor of its directory. Raises `OSError`; ENOTDIR for an area that is one file."""
        with opened(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            if not self.within:
                yield root
            else:
                with opened(open_directory(root, self.within)) as base:
                    yield base


def areas_of(roots: Sequence[Path], scope: Mapping[str, Sequence[str]], home: Path) -> list[Area]:
    """The overlaps, outermost first, none inside another."""
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
        if not any(area.path.is_relative_to(outer.path) for outer in kept):
            kept.append(area)
    return kept


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


def locate(path: str, areas: Sequence[Area], home: Path) -> tuple[Area, str]:
    """The area a path lies in, and the path within it. Raises `OpError(DENIED)` for one that lies in none."""
    wanted = absolute(path, home)
    for area in areas:
        if wanted == area.path:
            return area, ""
        if wanted.is_relative_to(area.path):
            return area, str(wanted.relative_to(area.path))
    places = ", ".join(str(area.path) for area in areas) or "nothing"
    raise OpError(
        Code.DENIED,
        f"argument path: {wanted} is outside of what may be read here ({places})",
        f"llmosctl perm grant filesystem 'fs.read(path={wanted.parent})' lets this driver read it",
    )


@contextmanager
def file_in(area: Area, within: str) -> Iterator[int]:
    """A descriptor of a regular file, found also by another spelling of its name. Raises `OSError`."""
    if not within and not area.within:  # the grant itself is one file
        with opened(open_granted_file(area.root)) as descriptor:
            yield descriptor
        return
    with opened(os.open(area.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        if area.within and within:
            with (
                opened(open_directory(root, area.within)) as base,
                opened(_respelled(open_file, base, within)) as descriptor,
            ):
                yield descriptor
        else:
            with opened(_respelled(open_file, root, area.within or within)) as descriptor:
                yield descriptor


@contextmanager
def directory_in(area: Area, within: str) -> Iterator[int]:
    """A descriptor of a directory, likewise."""
    with area.base() as base, opened(_respelled(open_directory, base, within)) as descriptor:
        yield descriptor


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
            wanted = unicodedata.normalize("NFC", part)
            with opened(open_directory(base, spelled)) as descriptor, os.scandir(descriptor) as entries:
                same = (entry.name for entry in entries if unicodedata.normalize("NFC", shown(entry.name)) == wanted)
                found = next(same, None)
            if found is None:
                raise
            spelled = f"{spelled}/{found}" if spelled else found
        return open_(base, spelled)
