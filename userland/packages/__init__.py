"""Packages of drivers and agents from outside: each in a directory of its own, with its own dependencies.

Only wheels are unpacked, and nothing of them runs outside of a jail: not while they are fetched, built or unpacked, not when the
system looks at them (manifests and entry points are read as data), and not in other programs of this Python, whose directories they never
reach. A `.pth` file in the kernel's own would be code in the kernel.
"""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from pathlib import Path

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import GROUPS, discover
from llmos.ipc.protocol import SYSCALLS
from llmos.userland.packages import jailed, pip, staging, tree
from llmos.userland.packages.pip import Report
from llmos.userland.packages.tree import Origin, Package
from llmos.userland.visible import cut, visible

__all__ = [
    "Origin",
    "Package",
    "Report",
    "fetch",
    "find",
    "install",
    "installed",
    "manifests",
    "newest",
    "remove",
    "upgrade",
]

_NAME = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(\[[A-Za-z0-9,._-]+\])?( *(===?|[<>!~]=|[<>]) *[A-Za-z0-9.*+!_-]+,?)*"
)
_SOURCES = (".tar.gz", ".tgz", ".zip", ".tar.bz2", ".tar.xz", ".tar")


def _quiet(_what: str, _done: int, _total: int) -> None:
    """For whoever wants to hear nothing."""


def installed() -> list[Package]:
    """All of them, by name."""
    folders = sorted(path for path in paths.packages_dir().glob("*") if path.is_dir() and path.name[0] != ".")
    return [found for path in folders if (found := tree.look(path)) is not None]


def install(what: str, report: Report = _quiet, *, instead_of: Package | None = None) -> Package:
    """Take a package by name from the index, from a wheel or from its source directory, with what it needs; in place of an older one.

    Whatever goes wrong, the older one stays. With `instead_of`, the one installed is kept when what was found is the same version.

    Raises `OpError`: `UNAVAILABLE` (pip could not, or there is no jail), `NOT_FOUND`, `INVALID_ARGUMENT` (no driver and no agent in
    it, or not a sound one), `CONFLICT` (another package holds a driver of that name), `TOO_LARGE`, `TIMEOUT`, `BUSY`.
    """
    root = paths.packages_dir()
    with staging.stage(root) as stage:
        found = fetch(what, stage, report)
        if instead_of is not None:
            if found.name != instead_of.name:
                raise OpError(
                    Code.CONFLICT, f"{what} is now called {visible(found.name)}", "uninstall it and install that"
                )
            if found.version == instead_of.version and found.origin.source == "index":
                return instead_of
        _refuse_taken(found)
        place = root / found.name
        staging.replace(found.directory, place, stage)
    return replace(found, directory=place)


def upgrade(package: Package, report: Report = _quiet) -> Package:
    """The newest there is of a package, installed; itself when that is what it is.

    Raises `OpError` as `install` does; `INVALID_ARGUMENT` for one that was installed from a file.
    """
    origin = package.origin
    if origin.source == "index":
        return install(f"{package.name}>={package.version}", report, instead_of=package)
    if origin.source == "directory" and Path(origin.what).is_dir():
        return install(origin.what, report, instead_of=package)
    came = f"the file {origin.what}" if origin.source == "file" else origin.what or "somewhere unknown"
    detail = f"{visible(package.name)} came from {visible(came)}, so the package index may mean another by that name"
    raise OpError(Code.INVALID_ARGUMENT, detail, "llmosctl driver install the newer file")


def newest(package: Package) -> str:
    """The newest version on the index; empty for a package that did not come from it. Raises `OpError` `UNAVAILABLE`, `NOT_FOUND`."""
    if package.origin.source != "index":
        return ""
    with staging.stage(paths.packages_dir()) as stage:
        return pip.newest(package.name, stage)


def find(program: str) -> Package:
    """The package that a driver or an agent came with. Raises `OpError(NOT_FOUND)`."""
    found = next((one for one in installed() if program in (one.name, *one.programs)), None)
    if found is None:
        known = ", ".join(name for one in installed() for name in one.programs)
        raise OpError(Code.NOT_FOUND, f"no installed package holds {program!r}", f"installed: {known or 'none'}")
    return found


def manifests(package: Package) -> list[tuple[str, Path]]:
    """Name and manifest of each of its drivers."""
    return [(name, place) for group, name, place in tree.points(package.directory) if group == "llmos.drivers"]


def remove(package: Package) -> None:
    """Delete it, with its dependencies; at once, as far as others see. Raises `OpError(BUSY)`."""
    with staging.stage(paths.packages_dir()) as stage:
        package.directory.rename(stage / "removed")


def fetch(what: str, stage: Path, report: Report = _quiet) -> Package:
    """Take a package and what it needs into `stage / "made" / "package"`, and look at it. Raises `OpError` as `install` does."""
    scratch, made = stage / "scratch", stage / "made" / "package"
    scratch.mkdir()
    made.parent.mkdir()
    origin, wheel = _source(what)
    if origin.source == "directory":
        report(f"building {visible(what)}", 0, 0)
        wheel = _built(Path(origin.what), stage)
    pip.install(what, wheel, made, scratch, report)
    wanted = re.split(r"[^A-Za-z0-9._]" if wheel else r"[^A-Za-z0-9._-]", wheel.name if wheel else what, maxsplit=1)[0]
    try:
        found = tree.examine(made, wanted)
    except OpError as error:
        raise OpError(error.code, f"{visible(what)}: {visible(cut(error.detail, 500))}", error.hint) from None
    origin = replace(origin, name=found.name)
    tree.write_origin(made, origin)
    return replace(found, origin=origin)


def _source(what: str) -> tuple[Origin, Path | None]:
    """What the user meant: where it comes from, and the wheel if it is one. Raises `OpError` `NOT_FOUND`, `INVALID_ARGUMENT`."""
    path = Path(what).expanduser()
    if what.endswith(".whl"):
        if not path.is_file():
            raise OpError(Code.NOT_FOUND, f"{visible(what)} is not there, or no file", "give the path of a wheel")
        path = path.resolve()
        return Origin("file", str(path)), path
    if "://" in what or what.endswith(_SOURCES):
        hint = "install a wheel, by path or by name; a directory is built into one in a jail"
        raise OpError(Code.INVALID_ARGUMENT, f"{visible(what)}: neither a name, a wheel nor a directory", hint)
    if "/" in what or what.startswith((".", "~")):
        path = path.resolve()
        if not path.is_dir():
            detail = f"{visible(what)} is not there, or neither a wheel nor a directory"
            raise OpError(Code.NOT_FOUND, detail, "give the path of a wheel, or of a package's own directory")
        if not (path / "pyproject.toml").is_file():
            raise OpError(
                Code.INVALID_ARGUMENT, f"{visible(what)} holds no pyproject.toml", "is it the package's own directory?"
            )
        if paths.state_dir().resolve().is_relative_to(path):
            detail = f"{visible(what)} holds the system's own directory"
            raise OpError(Code.INVALID_ARGUMENT, detail, "give the package its own directory, elsewhere")
        return Origin("directory", str(path)), None
    if not _NAME.fullmatch(what):
        hint = "a name such as llmos-weather or 'llmos-weather==1.2', or a path such as ./weather"
        raise OpError(Code.INVALID_ARGUMENT, f"{visible(cut(what, 80))}: neither a name, a wheel nor a directory", hint)
    return Origin("index", what), None


def _built(source: Path, stage: Path) -> Path:
    """The wheel of a source directory, made in a jail without a network. Raises `OpError`."""
    work, out = stage / "build", stage / "wheel"
    work.mkdir()
    out.mkdir()
    job = jailed.Job(
        "llmos.userland.packages.build", (str(source), str(out)), (work, out), (source,), env={"TMPDIR": str(work)}
    )
    done = jailed.run(job)
    wheels = list(out.iterdir())
    if done.status or len(wheels) != 1 or not stat.S_ISREG(wheels[0].lstat().st_mode) or wheels[0].suffix != ".whl":
        reason = done.reason if done.status else "it did not leave one wheel"
        hint = "build the wheel yourself and install that; it was tried in a jail without a network, where nothing can be fetched"
        raise OpError(
            Code.INVALID_ARGUMENT, f"{visible(str(source))} could not be built: {cut(visible(reason), 300)}", hint
        )
    return wheels[0]


def _refuse_taken(found: Package) -> None:
    """Nobody takes over another's name, for grants and a state directory belong to it. Raises `OpError(CONFLICT)`."""
    nowhere = paths.packages_dir() / ".none"
    own = {name: "the system" for group in GROUPS for name, _ in discover(group, nowhere)}
    own |= {op.partition(".")[0]: "the system" for op in SYSCALLS}
    others = {name: one.name for one in installed() if one.name != found.name for name in one.programs}
    for name in found.programs:
        holder = {**others, **own}.get(name)
        if holder is not None:
            detail = f"{visible(found.name)}: {visible(holder)} has {visible(name)} already"
            raise OpError(Code.CONFLICT, detail, f"llmosctl driver uninstall {name}" if name in others else None)
    for one in installed():
        if tree.normal(one.name) == tree.normal(found.name) and one.name != found.name:
            raise OpError(
                Code.CONFLICT,
                f"{one.name} is the same package, under another spelling",
                f"llmosctl driver uninstall {one.name}",
            )
