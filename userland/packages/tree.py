"""What was unpacked, looked at as data: what it is, what it holds, and whether it may stay."""

from __future__ import annotations

import configparser
import json
import re
import stat
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import GROUPS, load_agent, load_driver
from llmos.userland.packages.removal import remove

HOST = {
    "llmos": "llmos",
    "msgpack": "msgpack",
    "msgspec": "msgspec",
    "pluggy": "pluggy",
    "structlog": "structlog",
    "zmq": "pyzmq",
}
"""Modules that what runs a driver is made of, and the distributions they come with."""
MAX_METADATA = 1 << 20
"""Bytes of one file that describes a distribution."""
MAX_POINTS = 128 << 10
"""Bytes of entry points of a package and all it needs: the kernel reads them at every boot."""
MAX_DISTRIBUTIONS = 500
"""In one package: it and what it needs."""
MAX_PROGRAMS = 16
"""Drivers and agents in one package: each is a process."""
ORIGIN = "llmos-origin.json"
"""Written beside the modules of a package: where it came from. No wheel may bring one."""

_METADATA = (".dist-info", ".egg-info")
"""As what looks for distributions has it: whatever the case."""
_PROGRAM = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Origin:
    """Where a package came from, and may come from again."""

    source: Literal["index", "file", "directory", "unknown"] = "unknown"
    what: str = ""
    """A name on the package index, or a path."""
    name: str = ""
    """Of the distribution that was asked for."""


@dataclass(frozen=True)
class Package:
    """One that is installed, or about to be."""

    name: str
    version: str
    programs: tuple[str, ...]
    """Names of its drivers and agents, those of its dependencies included."""
    directory: Path
    origin: Origin = Origin()


def look(directory: Path, wanted: str = "") -> Package | None:
    """What a directory holds; None when that is no driver and no agent.

    Args:
        wanted: the distribution that was asked for, which names the whole; otherwise the first with a program.
    """
    origin = _origin(directory)
    wanted = normal(wanted or origin.name)
    programs: set[str] = set()
    chosen: tuple[str, str] | None = None
    for distribution in metadata.distributions(path=[str(directory)]):
        try:
            name, version = str(distribution.name), str(distribution.version)
            own = {point.name for point in distribution.entry_points if point.group in GROUPS}
        except (
            ValueError,
            OSError,
            AttributeError,
            TypeError,
            KeyError,
            configparser.Error,
        ):  # somebody else's broken file
            continue
        programs |= own
        if normal(name) == wanted or (own and chosen is None and not wanted):
            chosen = name, version
    if chosen is None or not programs:
        return None
    return Package(_file_name(chosen[0]), chosen[1], tuple(sorted(programs)), directory, origin)


def examine(directory: Path, wanted: str) -> Package:
    """What was unpacked for the distribution `wanted`, without what would shadow the system's own modules.

    Raises `OpError(INVALID_ARGUMENT)` when it is no driver and no agent, or not a sound one.
    """
    check(directory)
    drop_own(directory)
    found = look(directory, wanted)
    if found is None:
        raise _refused(f"it holds no driver and no agent called {wanted}", f"groups: {', '.join(GROUPS)}")
    if found.name.lower().endswith(".egg"):  # in a directory of that name more would be found than was looked at here
        raise _refused("its name ends with .egg")
    if len(found.programs) > MAX_PROGRAMS:
        raise _refused(f"it holds {len(found.programs)} drivers and agents; a package may hold {MAX_PROGRAMS}")
    check_programs(directory, found.programs)
    return found


def check(directory: Path) -> None:
    """Raises `OpError(INVALID_ARGUMENT)` for what no honest wheel leaves behind."""
    points = 0
    for path in _walk(directory):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or mode & (stat.S_ISUID | stat.S_ISGID):
            raise _refused(f"{path.name} in it is neither a plain file nor a directory")
        in_metadata = path.parent.name.lower().endswith(_METADATA) and path.name != "RECORD"
        if in_metadata and path.lstat().st_size > MAX_METADATA:
            raise _refused(f"its {path.name} is larger than {MAX_METADATA >> 20} MiB")
        points += path.lstat().st_size if in_metadata and path.name == "entry_points.txt" else 0
    if points > MAX_POINTS:
        raise _refused(f"its entry points are larger than {MAX_POINTS >> 10} KiB")
    if sum(path.name.lower().endswith(_METADATA) for path in directory.iterdir()) > MAX_DISTRIBUTIONS:
        raise _refused(f"it needs more than {MAX_DISTRIBUTIONS} others")
    if (directory / ORIGIN).exists():
        raise _refused(f"it brings a file called {ORIGIN}")
    for module in _modules(directory):
        if module == "llmos":
            raise _refused("it brings `llmos`, which is there already", "take it out of the package's dependencies")
        if module in sys.stdlib_module_names:
            raise _refused(f"it brings a module `{module}`, which is the name of one of Python's own")


def drop_own(directory: Path) -> None:
    """Remove modules that the driver host is made of: the system's own are used, and nothing stands in their way."""
    for path in list(directory.iterdir()):
        if _module(path) in HOST:
            remove(path)


def check_programs(directory: Path, programs: tuple[str, ...]) -> None:
    """Raises `OpError(INVALID_ARGUMENT)` for a driver or an agent without a sound manifest of its own name."""
    for group, name, place in points(directory):
        if name not in programs:
            continue
        if not _PROGRAM.fullmatch(name):
            raise _refused(f"{name!r:.80} cannot name a driver or an agent", "lowercase letters, digits, `_`")
        if not place.is_file():
            hint = "the manifest belongs into the package that the entry point names, and into its package data"
            raise _refused(f"{name}: there is no {place.relative_to(directory)}", hint)
        try:
            found = load_driver(place) if group == "llmos.drivers" else load_agent(place)
        except OpError as error:
            raise _refused(error.detail.replace(f"{directory}/", "")) from None
        if found.name != name:
            raise _refused(f"its entry point is called {name}, and its manifest {found.name}")


def points(directory: Path) -> list[tuple[str, str, Path]]:
    """Group, name, and where the manifest should be, of every driver and agent; broken distributions are left out."""
    found = []
    for distribution in metadata.distributions(path=[str(directory)]):
        try:
            own = [
                (point.group, point.name, point.module) for point in distribution.entry_points if point.group in GROUPS
            ]
        except (ValueError, OSError, AttributeError, TypeError, configparser.Error):  # as the kernel does
            continue
        found += [
            (group, name, directory.joinpath(*filter(None, module.split("."))) / GROUPS[group])
            for group, name, module in own
        ]
    return found


def write_origin(directory: Path, origin: Origin) -> None:
    """Note where a package came from."""
    (directory / ORIGIN).write_text(json.dumps(asdict(origin)))


def normal(name: str) -> str:
    """A distribution's name as indexes compare it. Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _origin(directory: Path) -> Origin:
    try:
        return Origin(**json.loads((directory / ORIGIN).read_text()))
    except (OSError, ValueError, TypeError):
        return Origin()


def _walk(directory: Path) -> list[Path]:
    """Everything below; links are not followed."""
    found, waiting = [], [directory]
    while waiting:
        for path in waiting.pop().iterdir():
            found.append(path)
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)
    return found


def _modules(directory: Path) -> set[str]:
    return {_module(path) for path in directory.iterdir()}


def _module(path: Path) -> str:
    """What an import would call it; empty for what is none."""
    if path.suffix.lower() in _METADATA:
        return ""
    if path.is_dir():
        return path.name
    return path.name.partition(".")[0] if path.suffix in (".py", ".so", ".pyc") else ""


def _file_name(name: str) -> str:
    """A distribution's name as the name of a directory, and of nothing else."""
    cleaned = "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
    return cleaned.strip(".") or "unnamed"


def _refused(detail: str, hint: str = "tell its author") -> OpError:
    return OpError(Code.INVALID_ARGUMENT, detail, hint)
