"""Builds a wheel of a source directory, in this very process: started in a jail without a network, for whatever a `setup.py` says is run.

python -m llmos.userland.packages.build SOURCE DIRECTORY

The working directory gets a copy of the source, `DIRECTORY` the wheel. The build backend is the one that is installed here: nothing
is fetched. Source: PEP 517, PEP 518.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

MAX_SOURCE = 256 << 20
"""Bytes of a source directory."""
_LEFT_OUT = ("build", "dist", "__pycache__", "node_modules", "*.egg-info", ".*")


def main() -> int:
    """Exit status 1, with the reason as the last line, when there is no wheel."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        if sum(path.lstat().st_size for path in source.rglob("*")) > MAX_SOURCE:
            raise ValueError(f"it holds more than {MAX_SOURCE >> 20} MiB: is it the directory of one package?")
        copy = Path("source").absolute()
        shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        os.chdir(copy)
        backend = _backend(copy)
        backend.build_wheel(str(out), {}, None)
    except SystemExit as error:  # setuptools' way to say that something is wrong
        return _failed(str(error))
    except Exception as error:  # noqa: BLE001  (somebody else's code: whatever it raises is the reason)
        return _failed(f"{type(error).__name__}: {error}")
    return 0


def _failed(why: str) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"\nERROR: {' '.join(why.split())}\n")
    return 1


def _backend(source: Path) -> Any:
    """The build backend's object. Raises `ValueError` for one that is not installed."""
    project = tomllib.loads((source / "pyproject.toml").read_text())
    system = project.get("build-system", {})
    missing = [need for need in system.get("requires", ["setuptools"]) if not _installed(need)]
    if missing:
        raise ValueError(f"it is built with {', '.join(missing)}, which is not installed beside llmos")
    name = system.get("build-backend", "setuptools.build_meta:__legacy__")
    sys.path[:0] = [str(source / path) for path in system.get("backend-path", [])]
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part)
    return found


def _installed(requirement: str) -> bool:
    name = re.match(r"[A-Za-z0-9._-]*", requirement)
    try:
        return bool(name) and bool(metadata.version(name[0] if name else ""))
    except (metadata.PackageNotFoundError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(main())
