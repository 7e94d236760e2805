"""A driver's source directory, read as data: nothing of it is imported or run."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import MAX_DOTS, MAX_MANIFEST, DriverManifest, load_driver

_MAX_TEXT = 1 << 20
"""Bytes read of one file."""
_MAX_TESTS = 200


@dataclass(frozen=True)
class DriverSource:
    """One driver of a package."""

    point: str
    """Its entry point's name."""
    module: str
    directory: Path | None
    """Of its module; None when it is not there."""
    manifest: DriverManifest | None
    raw: dict[str, Any]
    """The manifest's tables as they are written."""
    trouble: str
    """Why there is no manifest."""


@dataclass(frozen=True)
class Project:
    """A source directory."""

    root: Path
    settings: dict[str, Any]
    """`pyproject.toml`."""
    drivers: list[DriverSource]
    readme: str
    tests: list[Path] = field(default_factory=list)

    @property
    def project(self) -> dict[str, Any]:
        """Its table `[project]`."""
        return _table(self.settings, "project")


def read(root: Path) -> Project:
    """Raises `OpError` `NOT_FOUND`, `INVALID_ARGUMENT` for a directory that is no Python project at all."""
    root = root.expanduser().resolve()
    if not (root / "pyproject.toml").is_file():
        hint = "llmosctl driver new NAME writes a whole package"
        raise OpError(Code.NOT_FOUND, f"{root} holds no pyproject.toml", hint)
    try:
        about = text(root / "pyproject.toml")
        if any(line.count(".") > MAX_DOTS for line in about.split("\n")):
            raise OpError(Code.INVALID_ARGUMENT, f"pyproject.toml: a line with more than {MAX_DOTS} dots")
        settings = tomllib.loads(about)
    except (ValueError, RecursionError) as error:  # of TOML, or a number too long
        raise OpError(Code.INVALID_ARGUMENT, f"pyproject.toml: {error}") from None
    points = _table(settings, "project", "entry-points", "llmos.drivers")
    drivers = [_driver(root, str(name), str(module)) for name, module in points.items()]
    tests = [path for path in sorted(root.glob("tests/**/test_*.py"))[:_MAX_TESTS] if "llmos.drivers" in text(path)]
    readme = next((text(path) for path in sorted(root.glob("README*"))), "")
    return Project(root, settings, drivers, readme, tests)


def text(path: Path) -> str:
    """The beginning of a file; empty for what is none, or is not text."""
    try:
        if not path.is_file():  # to open a pipe would wait for its writer
            return ""
        with path.open("rb") as stream:
            return stream.read(_MAX_TEXT).decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _driver(root: Path, point: str, module: str) -> DriverSource:
    parts = [part for part in module.split(".") if part]
    places = [root.joinpath(above, *parts) for above in ("src", ".")]
    directory = next((path for path in places if (path / "__init__.py").is_file()), None)
    if directory is None or not directory.resolve().is_relative_to(root):
        return DriverSource(point, module, None, None, {}, f"there is no package {module} here, nor below src/")
    path = directory / "manifest.toml"
    if path.exists() and not path.is_file():
        return DriverSource(point, module, directory, None, {}, f"{path.relative_to(root)}: no plain file")
    try:
        manifest = load_driver(path)
        raw = tomllib.loads(path.read_bytes()[:MAX_MANIFEST].decode())
    except OpError as error:
        return DriverSource(point, module, directory, None, {}, error.detail.replace(f"{root}/", ""))
    return DriverSource(point, module, directory, manifest, raw, "")


def _table(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    found: Any = settings
    for key in keys:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}
