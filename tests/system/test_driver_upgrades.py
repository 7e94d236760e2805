"""Installed drivers over time: newer versions, switching off and on, settings, and removal without a trace."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.userland import packages
from llmos.userland.cli import main
from llmos.userland.packages import tree
from tests.system import wheels
from tests.system.conftest import System

SETTINGS = '[settings.station]\ntype = "string"\ndefault = "Garden"\ndescription = "Which one"\nmax_length = 20\n'

Ctl = Callable[..., Any]


@pytest.fixture
def ctl(shared: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """`llmosctl driver …` with nobody at the terminal: what it prints, or says when it ends with another status than 0."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LLMOS_HOME", shared.environment["LLMOS_HOME"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*words: str, status: int = 0) -> Any:
        capsys.readouterr()
        ended = main.run(["driver", *words, "-o", "json"])
        out, err = capsys.readouterr()
        assert ended == status, err
        return json.loads(out) if status == 0 else err

    return run


@pytest.fixture
def index(shared: System, ctl: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of wheels that is all that pip knows; the driver `weather` 1 in it is installed and may see `~/A`."""
    folder = tmp_path / "wheels"
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    installed(shared, publish(folder, "1", ["A", "B"]))
    yield folder
    user = shared.connect()
    for one in packages.installed():
        packages.remove(one)
    user.call("driver.scan")
    for row in user.call("perm.list", {"holder": "weather"})["caps"]:
        user.call("perm.revoke", {"id": row["id"]})
    user.call("driver.forget", {"name": "weather"})
    shutil.rmtree(paths.state_dir() / "drivers" / "weather", ignore_errors=True)


def installed(system: System, wheel: Path) -> None:
    """`weather`, as if it had been installed from the index, with one of its requests granted."""
    for name in "ABC":
        (system.home / name).mkdir(exist_ok=True)
    place = Path(system.environment["LLMOS_HOME"]) / "packages" / "weather"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    tree.write_origin(place, packages.Origin("index", "weather", "weather"))
    system.connect().call("driver.scan")
    system.connect().call("perm.grant", {"holder": "weather", "cap": f"fs.read(path={system.home}/A)"})


def publish(folder: Path, version: str, reads: list[str]) -> Path:
    more = f"[permissions]\nread = {json.dumps([f'~/{name}' for name in reads])}\n{SETTINGS}"
    return wheels.make(folder, "weather", version, files=wheels.driver_files("weather", version, more))


def answers(system: System) -> dict[str, Any]:
    """What the driver says once it is up."""

    def ask() -> dict[str, Any] | None:
        try:
            return system.connect().call("weather.now")
        except OpError as error:
            if error.code is Code.PEER_DIED:  # it was asked while it ended
                return None
            raise

    answer: dict[str, Any] = system.until(ask)
    return answer


def granted(system: System) -> set[str]:
    caps = system.connect().call("perm.list", {"holder": "weather"})["caps"]
    return {row["cap"].removeprefix(f"fs.read(path={system.home}/").removesuffix(")") for row in caps}


def test_an_upgrade_asks_about_what_is_new_and_keeps_the_rest(shared: System, ctl: Ctl, index: Path) -> None:
    """What was refused before is not asked again; refused news leave it running with what it had; state and settings stay."""
    assert ctl("ls", "--outdated") == []
    ctl("set", "weather", "station", "Orchard")
    before = shared.until(lambda: (found := answers(shared))["station"] == "Orchard" and found)
    publish(index, "2", ["A", "B", "C"])
    assert ctl("ls", "--outdated") == [{"package": "weather", "installed": "1", "newest": "2"}]
    asked = ctl("upgrade", "weather", status=5)
    assert f"see the files in {shared.home}/C" in asked
    assert f"{shared.home}/B" not in asked
    after = shared.until(lambda: (found := answers(shared))["version"] == "2" and found)
    assert granted(shared) == {"A"}
    assert after["starts"] > before["starts"]
    assert after["station"] == "Orchard"
    publish(index, "3", ["A", "B", "C"])
    assert ctl("upgrade", "-y") == [{"package": "weather", "from": "2", "to": "3", "result": "upgraded"}]
    assert granted(shared) == {"A"}, "C was asked for by the version before"
    assert ctl("upgrade")[0]["result"] == "newest"


def test_offline_says_so(shared: System, ctl: Ctl, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that cannot be reached is not one that has nothing newer."""
    for name, value in {"NO_INDEX": "", "FIND_LINKS": "", "INDEX_URL": "http://127.0.0.1:9/simple"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    assert "cannot be reached" in ctl("ls", "--outdated", status=1)
    assert "cannot be reached" in ctl("upgrade", "weather", status=1)
    assert answers(shared)["version"] == "1"


def test_what_came_from_a_file_is_not_taken_from_the_index(
    shared: System, ctl: Ctl, index: Path, tmp_path: Path
) -> None:
    """Where a stranger may have a package of the same name."""
    local = wheels.make(tmp_path / "local", "local")
    ctl("install", str(local), "-y")
    wheels.make(index, "local", "9")
    assert ctl("ls", "--outdated") == []
    assert "may mean another" in ctl("upgrade", "local", status=2)


def test_disabled_stays_so(running: System, tmp_path: Path) -> None:
    """Its calls say how to enable it, the assistant is not offered them, and `kill -9` of the kernel changes nothing."""
    installed(running, publish(tmp_path, "1", ["A", "B"]))
    answers(running)
    running.connect().call("driver.disable", {"name": "weather"})
    for _ in range(2):
        user = running.connect()
        with pytest.raises(OpError, match="driver enable weather") as caught:
            user.call("weather.now")
        assert caught.value.code is Code.UNAVAILABLE
        assert "weather.now" not in [row["op"] for row in user.call("sys.ops")["ops"]]
        states = {row["name"]: row["state"] for row in user.call("driver.list")["drivers"]}
        assert states["weather"] == "disabled"
        assert "weather" not in [row["name"] for row in user.call("proc.list")["processes"]]
        user.call("perm.grant", {"holder": "weather", "cap": f"fs.read(path={running.home}/B)"})
        running.stop(kill=True)
        assert running.start()["ready"], running.log()
    user = running.connect()
    user.call("driver.enable", {"name": "weather"})
    assert answers(running)["version"] == "1"


ALONE = """
import fcntl, time
from llmos.drivers.sdk import Driver, op

class Made(Driver):
    def setup(self, env):
        self.file = (env.state / "lock").open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self):
        time.sleep(0.5)

    @op
    def now(self, call):
        return {"alone": True}
"""


def test_two_never_share_a_directory(running: System, tmp_path: Path) -> None:
    """Enabled at once after it was disabled, it starts when the one before has gone, and calls wait for that."""
    files = wheels.driver_files("weather") | {"weather_package/driver.py": ALONE}
    installed(running, wheels.make(tmp_path, "weather", files=files))
    user = running.connect()
    running.until(lambda: user.call("driver.show", {"name": "weather"})["state"] == "ready")
    user.call("driver.disable", {"name": "weather"})
    user.call("driver.enable", {"name": "weather"})
    assert user.call("weather.now", timeout=20) == {"alone": True}
    assert running.process_named("weather")["restarts"] == 0


def test_the_switch_from_the_command_line(ctl: Ctl, index: Path) -> None:
    """`disable`, `enable`, and a driver that is not there."""
    assert ctl("disable", "weather") == {"name": "weather", "state": "disabled"}
    assert ctl("enable", "weather") == {"name": "weather", "state": "starting"}
    assert "no driver is called" in ctl("disable", "nothing", status=3)


def test_settings_are_checked(shared: System, ctl: Ctl, index: Path) -> None:
    """By the manifest's schema; without a value it is the default again."""
    assert "longer than 20" in ctl("set", "weather", "station", "x" * 21, status=2)
    assert "its settings: station" in ctl("set", "weather", "nothing", "x", status=3)
    assert ctl("set", "weather", "station", "Orchard") == {"station": "Orchard"}
    assert shared.connect().call("driver.show", {"name": "weather"})["settings"] == {"station": "Orchard"}
    assert ctl("set", "weather", "station") == {"station": "Garden"}


def test_purged_without_a_trace(shared: System, ctl: Ctl, index: Path) -> None:
    """`uninstall` keeps what was stored, `--purge` does not; settings and the switch end with either."""
    answers(shared)
    state = Path(shared.environment["LLMOS_HOME"]) / "drivers" / "weather"
    ctl("set", "weather", "station", "Orchard")
    ctl("disable", "weather")
    ctl("uninstall", "weather", "-y")
    assert (state / "starts").exists()
    ctl("install", "weather", status=5)
    assert answers(shared)["station"] == "Garden"
    assert granted(shared) == set()
    assert "with all it has stored" in ctl("uninstall", "weather", "--purge", status=5)
    ctl("uninstall", "weather", "--purge", "-y")
    assert [path.name for path in state.parent.iterdir() if "weather" in path.name] == []


def test_the_same_manifest_with_other_code(shared: System, ctl: Ctl, index: Path, tmp_path: Path) -> None:
    """Installed again while it is being written: the new code runs, though nothing else has changed."""
    files = wheels.driver_files("weather")
    ctl("install", str(wheels.make(tmp_path, "weather", files=files)), "-y")
    assert answers(shared)["version"] == "1"
    files["weather_package/driver.py"] = wheels.DRIVER.format(version="other")
    ctl("install", str(wheels.make(tmp_path, "weather", files=files)), "-y")
    assert shared.until(lambda: answers(shared)["version"] == "other")
