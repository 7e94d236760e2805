"""The drivers and the agent as installed packages: a directory for the kernel's `PYTHONPATH`, made from scratch."""

from __future__ import annotations

import compileall
import shutil
from pathlib import Path

from tests.evals.agentdojo import program
from tests.evals.agentdojo.manifests import Labels, driver_manifest, driver_name
from tests.evals.agentdojo.program.worlds import suites

AGENT = "adojo_agent"
_AGENT_MANIFEST = f"""\
name = "{AGENT}"
version = "0.1.0"
summary = "Does a task by a script, and whatever an injection asks"
entry = "adojo.agent:run"
[args.prompt]
type = "string"
required = true
description = "What the user asked"
[args.driver]
type = "string"
required = true
description = "The driver whose ops it is about"
"""


def write(root: Path, labels: Labels) -> None:
    """Everything that `root` must hold; jails see it read-only, so it is compiled here."""
    shutil.copytree(Path(program.__file__).parent, root / "adojo", ignore=shutil.ignore_patterns("__pycache__"))
    drivers = {driver_name(name): driver_manifest(suite, labels) for name, suite in suites().items()}
    for name, manifest in drivers.items():
        _package(root / name, "manifest.toml", manifest)
    _package(root / AGENT, "agent.toml", _AGENT_MANIFEST)
    distribution = root / "adojo-1.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: adojo\nVersion: 1\n")
    points = ["[llmos.drivers]", *(f"{name} = {name}" for name in drivers), "[llmos.agents]", f"{AGENT} = {AGENT}"]
    (distribution / "entry_points.txt").write_text("\n".join(points) + "\n")
    compileall.compile_dir(root, quiet=1)


def _package(directory: Path, file_name: str, manifest: str) -> None:
    directory.mkdir()
    (directory / "__init__.py").touch()
    (directory / file_name).write_text(manifest)
