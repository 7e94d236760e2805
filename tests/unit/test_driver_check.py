"""`driver new` writes what `driver check` finds good, and each of its rules finds what it is about."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos.ipc.errors import OpError
from llmos.userland.authoring import project, rules, scaffold
from llmos.userland.cli import main

Edit = Callable[[Path], None]


def edit(file: str, old: str, new: str) -> Edit:
    """Replaces text that must be there."""

    def change(root: Path) -> None:
        path = root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def manifest(old: str, new: str) -> Edit:
    return edit("src/llmos_shed/manifest.toml", old, new)


def more(text: str) -> Edit:
    """Adds to the manifest."""

    def change(root: Path) -> None:
        with (root / "src/llmos_shed/manifest.toml").open("a") as stream:
            stream.write(text)

    return change


WRITE = '[ops.paint]\neffect = "write"\nsummary = "x"\nutterances = ["a", "b", "c"]\ntimeout_s = 1\n'
COLOUR = '[ops.paint.args.colour]\ntype = "string"\nmax_length = 9\ndescription = "x"\n'
UNDO = '[ops.undo]\neffect = "write"\nsummary = "x"\n[ops.undo.args.token]\ntype = "string"\nrequired = true\n'


def both(*edits: Edit) -> Edit:
    def change(root: Path) -> None:
        for one in edits:
            one(root)

    return change


BROKEN: dict[str, tuple[str, Edit]] = {
    "entry-point": ("no driver", edit("pyproject.toml", 'shed = "llmos_shed"', "")),
    "entry-point, elsewhere": ("no package nowhere", edit("pyproject.toml", 'shed = "llmos_shed"', 'shed = "nowhere"')),
    "manifest": ("effect", manifest('effect = "read"', 'effect = "reed"')),
    "manifest, named otherwise": ("the manifest hut", manifest('name = "shed"', 'name = "hut"')),
    "entry": ("there is no llmos_shed.driver:Shed", edit("src/llmos_shed/driver.py", "class Shed", "class Hut")),
    "package-data": ("package's data", edit("pyproject.toml", '"*.toml"', '"*.txt"')),
    "version": ("0.2.0", edit("pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"')),
    "control": ("no control argument", more(WRITE + COLOUR)),
    "control, of nothing": ("does not take", more(WRITE + 'control = ["color"]\n' + COLOUR)),
    "labels": ("no tag", manifest('tags = ["shed"]', "")),
    "labels, too good": ("trusted", manifest('tags = ["shed"]', 'tags = ["shed"]\nintegrity = "trusted"')),
    "permissions": ("half the world", manifest('read = ["~/Shed"]', 'read = ["~/Shed"]\nhosts = ["*.com"]')),
    "permissions, all": ("~ is too much", manifest('read = ["~/Shed"]', 'read = ["~/Shed", "~"]')),
    "settings": ("expected integer", more('[settings.n]\ntype = "integer"\ndefault = "x"\n')),
    "settings, undescribed": ("no description", more('[settings.n]\ntype = "integer"\ndefault = 3\n')),
    "utterances": ("2 utterances", manifest(', "what did I write down about shed"', "")),
    "timeouts": ("no timeout_s", manifest("timeout_s = 5\n", "")),
    "paging": (
        "no cursor",
        both(manifest("[ops.notes.args.cursor]", "[ops.notes.args.from_]"), manifest('role = "cursor"\n', "")),
    ),
    "paging, endless": ("no count", manifest("maximum = 100\n", "")),
    "arguments": ("k has no description", manifest('description = "How many lines"', "")),
    "tests": ("no tests/", edit("tests/test_shed.py", "llmos.drivers", "nothing")),
    "docs": ("`shed.notes`", edit("README.md", "notes", "lines")),
    "licence": ("no licence", edit("pyproject.toml", 'license = "MIT"\n', "")),
    "undo": ("cannot be undone", more(WRITE + 'control = ["colour"]\n' + COLOUR)),
    "previews": ("no preview", more(WRITE + 'undo = true\ncontrol = ["colour"]\n' + COLOUR + UNDO)),
    "bounds": ("query has no bounds", manifest("max_length = 200\n", "")),
    "scopes": ("no scope bounds colour", more(WRITE + 'control = ["colour"]\n' + COLOUR)),
    "topics": ("shed.full has no summary", more('[topics."shed.full"]\n')),
    "python": ("no requires-python", edit("pyproject.toml", 'requires-python = ">=3.11"\n', "")),
}


@pytest.fixture
def shed(tmp_path: Path) -> Path:
    return scaffold.write("shed", tmp_path / "shed")[0]


def test_what_is_scaffolded_is_gold(shed: Path) -> None:
    """Nothing is left to say of it."""
    findings = rules.grade(project.read(shed))
    assert rules.reached(findings) is rules.Level.GOLD
    assert {one.rule for one in findings} == {name.partition(",")[0] for name in BROKEN}, "a rule without an example"


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_finds_what_it_is_about(name: str, shed: Path) -> None:
    """It says what is wrong and what to do, and the level falls."""
    said, change = BROKEN[name]
    change(shed)
    findings = rules.grade(project.read(shed))
    found = next(one for one in findings if one.rule == name.partition(",")[0])
    assert not found.passed
    assert said in found.problem
    assert found.hint
    reached = rules.reached(findings)
    assert reached is None or list(rules.Level).index(reached) < list(rules.Level).index(found.level)


def test_the_command_says_the_level(shed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0 from bronze on, 1 below; for programs as JSON."""
    manifest("timeout_s = 5\n", "")(shed)
    assert main.run(["driver", "check", str(shed), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["level"] == "bronze"
    manifest('tags = ["shed"]', "")(shed)
    assert main.run(["driver", "check", str(shed)]) == 1
    out = capsys.readouterr().out
    assert out.endswith("\nbelow bronze\n")
    assert "labels: shed.notes: its results have no tag\n  hint: tags = " in out
    assert main.run(["driver", "check", str(shed / "src")]) == 3


def test_nothing_of_it_runs_or_is_followed(shed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is read as data, what a link leads to outside is not read, and its words cannot steer a terminal."""
    marker = tmp_path / "ran"
    for file in ("setup.py", "src/llmos_shed/__init__.py", "src/llmos_shed/driver.py", "tests/conftest.py"):
        (shed / file).write_text(f"open({str(marker)!r}, 'w')")
    assert main.run(["driver", "check", str(shed)]) == 1
    assert not marker.exists()
    assert "llmos_shed" not in sys.modules
    capsys.readouterr()
    manifest('version = "0.1.0"', 'version = "\\u001b[31m"')(shed)
    main.run(["driver", "check", str(shed)])
    assert "\x1b" not in capsys.readouterr().out
    for file in ("tests/test_pipe.py", "README.fifo", "src/llmos_shed/manifest.toml"):
        (shed / file).unlink(missing_ok=True)
        os.mkfifo(shed / file)  # which would be waited for
    assert "no plain file" in rules.grade(project.read(shed))[1].problem
    (shed / "src/llmos_shed").rename(tmp_path / "elsewhere")
    (shed / "src/llmos_shed").symlink_to(tmp_path / "elsewhere")
    assert "no package" in rules.grade(project.read(shed))[0].problem


@pytest.mark.parametrize("name", ["Shed", "../x", "", "a" * 41, "1a", "a-b", "sys", "driver", "kernel"])
def test_names_that_cannot_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot name a driver is refused before anything is written."""
    monkeypatch.chdir(tmp_path)
    assert main.run(["driver", "new", name]) == 2
    assert list(tmp_path.iterdir()) == []


def test_new_writes_over_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that holds something is left alone; by default it is named after the driver."""
    monkeypatch.chdir(tmp_path)
    assert main.run(["driver", "new", "garden_shed"]) == 0
    assert os.listdir(tmp_path) == ["llmos-garden-shed"]  # noqa: PTH208
    assert main.run(["driver", "new", "garden_shed"]) == 8


@pytest.mark.parametrize("line", ["a = " + "9" * 100_000, ".".join(["a"] * 100_000) + " = 1", "a = " + "[" * 60_000])
def test_settings_made_to_break_their_reader_are_refused(tmp_path: Path, line: str) -> None:
    """A stranger's `pyproject.toml` is an error in words, and soon."""
    (tmp_path / "pyproject.toml").write_text(line)
    with pytest.raises(OpError, match=r"pyproject\.toml"):
        project.read(tmp_path)
