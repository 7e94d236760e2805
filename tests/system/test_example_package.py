"""The example of a third party's driver: graded gold, built and installed as any user would, used, and gone again."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.userland.authoring import project, rules
from llmos.userland.cli import main
from tests.system.conftest import System

PACKAGE = Path(__file__).parents[1] / "packages" / "weather_station"


def test_it_is_gold() -> None:
    """What the guide points authors to has nothing left to better."""
    findings = rules.grade(project.read(PACKAGE))
    assert rules.reached(findings) is rules.Level.GOLD, [one for one in findings if not one.passed]


def test_its_own_tests_pass(tmp_path: Path) -> None:
    """Run as its author runs them."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "t")]
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_from_a_directory_to_an_answer(
    running: System, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file and nothing else is shown to it; lists page, a note is undone, and it leaves no trace."""
    folder = running.home / "WeatherStation"
    folder.mkdir()
    (folder / "log.csv").write_text("time,temperature,rain_mm\n2026-11-25T12:00,7,1.2\n2026-11-26T12:00,-1,0\n")
    monkeypatch.setenv("LLMOS_HOME", running.environment["LLMOS_HOME"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def ctl(*words: str) -> Any:
        capsys.readouterr()
        assert main.run([*words, "-o", "json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    source = {path: path.stat().st_mtime_ns for path in PACKAGE.rglob("*")}
    ctl("driver", "install", str(PACKAGE), "-y")
    assert {path: path.stat().st_mtime_ns for path in PACKAGE.rglob("*")} == source, "building it wrote into it"
    user = running.connect()
    caps = [row["cap"] for row in user.call("perm.list", {"holder": "weather_station"})["caps"]]
    assert caps == [f"fs.read(path={folder}/log.csv)"]
    first = ctl("call", "weather_station.readings", "k=1")
    assert [item["title"] for item in first["items"]] == ["-1.0 °C, 0 mm of rain"]
    rest = ctl("call", "weather_station.readings", f"cursor={first['next']}")
    assert [item["title"] for item in rest["items"]] == ["7.0 °C, 1.2 mm of rain"]
    done = ctl("call", "weather_station.note", "time=2026-11-26T12:00", "text=frost")
    assert ctl("call", "weather_station.readings", "k=1")["items"][0]["text"] == "frost"
    ctl("undo", done["undo"], "-y")
    assert ctl("call", "weather_station.readings", "k=1")["items"][0]["text"] == ""
    ctl("driver", "uninstall", "weather_station", "--purge", "-y")
    assert not (Path(running.environment["LLMOS_HOME"]) / "drivers" / "weather_station").exists()
