"""The guides of drivers and userland say what is there, and their examples work."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llmos.drivers import hooks
from llmos.drivers.host import DriverHost
from llmos.drivers.sdk import Call, DriverEnv
from llmos.ipc.errors import OpError
from llmos.ipc.manifest import DriverManifest, Op, load_agent, load_driver
from llmos.userland.cli import failure, main

ROOT = Path(__file__).parents[2]
AUTHORING = (ROOT / "drivers" / "AUTHORING.md").read_text()
USERLAND = (ROOT / "userland" / "README.md").read_text()


def _block(page: str, language: str, holding: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return next(str(block) for block in blocks if holding in block)


def test_driver_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's smallest driver fits its manifest and answers."""
    package = tmp_path / "weather"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "manifest.toml").write_text(_block(AUTHORING, "toml", "weather"))
    (package / "driver.py").write_text(_block(AUTHORING, "python", "class Weather"))
    (tmp_path / "log.csv").write_text("12 C\n14 C\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    host = DriverHost(load_driver(package / "manifest.toml"))
    host.setup(DriverEnv(state=tmp_path, home=tmp_path, roots=(tmp_path,)))
    assert host.methods["latest"](Call(), k=1)["items"] == [{"uid": "0", "text": "14 C"}]
    host.close()
    del sys.modules["weather"], sys.modules["weather.driver"]


def test_undo_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's driver with an undo and a preview fits its manifest, and does what the guide says of it; so do its topics load."""
    package = tmp_path / "stations"
    package.mkdir()
    (package / "__init__.py").touch()
    head = 'name = "stations"\nversion = "1"\nsummary = "x"\nentry = "stations.driver:Stations"\n'
    tables = _block(AUTHORING, "toml", "[ops.rename]") + _block(AUTHORING, "toml", "durable").replace(
        "weather", "stations"
    )
    (package / "manifest.toml").write_text(head + tables)
    code = "import json\nfrom typing import Any\n" + _block(AUTHORING, "python", "class Stations")
    (package / "driver.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    host = DriverHost(load_driver(package / "manifest.toml"))
    host.setup(DriverEnv(state=tmp_path, home=tmp_path))
    args = {"station": "1", "name": "Orchard"}
    shown = host.methods["preview"](Call(), op="rename", args=args)
    assert shown == {"preview": "station 1: Garden becomes Orchard"}
    token = host.methods["rename"](Call(), **args)["undo"]
    host.methods["undo"](Call(), token=token)
    assert host.driver.names == {"1": "Garden"}  # type: ignore[attr-defined]
    with pytest.raises(OpError, match="since"):
        host.methods["undo"](Call(), token=token)
    assert host.manifest.topics["stations.storm"].durable
    assert host.manifest.topics["stations.latest"].retain
    host.close()
    del sys.modules["stations"], sys.modules["stations.driver"]


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
