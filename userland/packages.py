"""Packages of drivers and agents from outside: each in a directory of its own, with its own dependencies.

Only wheels are unpacked, and nothing of them runs outside of a jail: not while they are installed, not when the system looks at them
(manifests and entry points are read as data), and not in other programs of this Python, whose directories they never reach. A `.pth`
file in the kernel's own would be code in the kernel.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import GROUPS

PIP_S = 600.0
"""Seconds that fetching a package may take."""


@dataclass(frozen=True)
class Package:
    """One that is installed."""

    name: str
    version: str
    programs: tuple[str, ...]
    """Names of its drivers and agents."""
    directory: Path


def installed() -> list[Package]:
    """All of them, by name."""
    folders = sorted(path for path in paths.packages_dir().glob("*") if path.is_dir() and path.name[0] != ".")
    return [found for path in folders if (found := _look(path)) is not None]


def install(requirement: str) -> Package:
    """Fetch a wheel by name from the package index, or take one by path, with what it needs; in place of an older one.

    Raises `OpError`: `UNAVAILABLE` (pip could not), `INVALID_ARGUMENT` (no driver and no agent in it).
    """
    root = paths.packages_dir()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".install-", dir=root) as temporary:
        made = Path(temporary) / "package"
        _pip(requirement, made)
        found = _look(made)
        if found is None:
            raise OpError(Code.INVALID_ARGUMENT, f"{requirement}: it holds no driver and no agent", f"groups: {GROUPS}")
        place = root / found.name
        if place.exists():
            place.rename(Path(temporary) / "older")
        made.rename(place)
    return Package(found.name, found.version, found.programs, place)


def find(program: str) -> Package:
    """The package that a driver or an agent came with. Raises `OpError(NOT_FOUND)`."""
    found = next((one for one in installed() if program in (one.name, *one.programs)), None)
    if found is None:
        known = ", ".join(name for one in installed() for name in one.programs)
        raise OpError(Code.NOT_FOUND, f"no installed package holds {program!r}", f"installed: {known or 'none'}")
    return found


def remove(package: Package) -> None:
    """Delete it, with its dependencies."""
    shutil.rmtree(package.directory)


def _pip(requirement: str, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install"]
    command += ["--only-binary", ":all:", "--no-compile", "--target", str(target), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_S)
    except subprocess.TimeoutExpired:
        raise OpError(Code.TIMEOUT, f"{requirement}: pip has not ended after {PIP_S:.0f} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it gave no reason"]
        raise OpError(Code.UNAVAILABLE, f"{requirement}: pip: {said[-1]}", "is it a wheel, for this Python?")


def _look(directory: Path) -> Package | None:
    """What a directory holds; None when that is no driver and no agent."""
    for distribution in metadata.distributions(path=[str(directory)]):
        programs = tuple(point.name for point in distribution.entry_points if point.group in GROUPS)
        if programs:
            return Package(_file_name(distribution.name), distribution.version, programs, directory)
    return None


def _file_name(name: str) -> str:
    """A distribution's name as the name of a directory, and of nothing else."""
    cleaned = "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
    return cleaned.strip(".") or "unnamed"
