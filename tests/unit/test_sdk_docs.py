"""The guides of drivers and userland say what is there, and their examples work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer.main

from llmos.drivers import hooks
from llmos.ipc.manifest import DriverManifest, Op, load_agent
from llmos.userland.cli import failure, main

ROOT = Path(__file__).parents[2]
AUTHORING = (ROOT / "drivers" / "AUTHORING.md").read_text()
USERLAND = (ROOT / "userland" / "README.md").read_text()


def _block(page: str, language: str, holding: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return next(str(block) for block in blocks if holding in block)


def test_every_field_of_a_manifest_is_documented() -> None:
    """The guide's tables name each field of a driver's manifest and of an op."""
    tables = re.findall(r"^\| (`.*?) \|", AUTHORING, re.MULTILINE)
    named = {part for row in tables for part in re.findall(r"\w+", row)}
    fields = {name for kind in (DriverManifest, Op) for name in kind.__struct_fields__}
    assert fields - named == {"directory"}, "which is filled in by the loader"


def test_agent_example_is_whole(tmp_path: Path) -> None:
    """The guide's agent compiles, is short, and its manifest loads."""
    code = _block(USERLAND, "python", "def run(agent")
    compile(code, "my_week", "exec")
    assert len([line for line in code.splitlines() if line]) <= 10
    (tmp_path / "agent.toml").write_text(_block(USERLAND, "toml", "my_week"))
    assert load_agent(tmp_path / "agent.toml").args["days"].default == 7


def test_hooks_are_documented() -> None:
    """Every hook stands in the guide, and no other."""
    real = {name for name in vars(hooks.Hooks) if not name.startswith("__")}
    assert set(re.findall(r"^\| `(llmos_driver_\w+)\(", AUTHORING, re.MULTILINE)) == real


def _words(command: Any, path: str = "") -> list[str]:
    inner = getattr(command, "commands", None)
    return (
        [path.strip()] if inner is None else [w for name, one in inner.items() for w in _words(one, f"{path} {name}")]
    )


def test_commands_are_documented() -> None:
    """Every command and every exit status of llmosctl stands in the README."""
    section = USERLAND.partition("## llmosctl")[2]
    for command in _words(typer.main.get_command(main.app)):
        assert re.search(rf"`({command.split()[0]} )?{command.split()[-1]}\b", section), command
    statuses = {status for _, status in failure.CODES.values()} | {failure.UNREACHABLE, failure.NO_MODEL}
    assert statuses <= {int(found) for found in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}
