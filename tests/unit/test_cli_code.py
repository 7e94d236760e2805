"""`llmosctl code` on a double of the wire: what it sends, shows and ends with."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.userland.cli import code, main, words

ENDED: dict[str, Any] = {"exit": 0, "reason": "", "files": [], "more": 0}


@pytest.fixture
def kernel(gate_double: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The double, where llmosctl looks for the system."""
    monkeypatch.setenv("LLMOS_BUS", str(gate_double.path))
    monkeypatch.setenv("LLMOS_TOKEN", "t")
    return gate_double


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ({}, 0),
        ({"exit": 3}, 3),
        ({"exit": -9, "reason": "it took longer than 30 s"}, 124),
        ({"exit": -9, "reason": "it needed more than 512 MB"}, 137),
        ({"exit": -11, "reason": "it was ended by SIGSEGV"}, 139),
        ({"exit": 0, "reason": "more than 2,000 files are in the project"}, 1),
    ],
    ids=str,
)
def test_it_ends_like_the_program(kernel: Any, tmp_path: Path, ended: dict[str, Any], status: int) -> None:
    """With its status as a shell has it, and 124 for one that took too long; one that broke a limit never ends with 0."""
    (tmp_path / "x.py").write_text("pass")
    kernel.answers["code.run"] = lambda _: {**ENDED, **ended}
    assert main.run(["code", "run", str(tmp_path / "x.py")]) == status


def test_a_program_too_large_for_a_message_goes_into_the_project(kernel: Any, tmp_path: Path) -> None:
    """In parts, the first in place of what was there, and is run from there; what is no text too."""
    got: list[dict[str, Any]] = []

    def answer(args: dict[str, Any]) -> dict[str, Any]:
        got.append(args)
        return ENDED

    kernel.answers["code.write"] = kernel.answers["code.run"] = answer
    content = b"#" * (code.PART + 10)
    for source in (content, b"# \xff"):
        (tmp_path / "big.py").write_bytes(source)
        assert main.run(["code", "run", str(tmp_path / "big.py"), "-p", "p"]) == 0
    *parts, ran, small, ran_small = got
    assert b"".join(part["data"] for part in parts) == content
    assert [part["append"] for part in parts] == [False, True]
    assert (ran["file"], "source" in ran) == ("big.py", False)
    assert (small["data"], ran_small["file"]) == (b"# \xff", "big.py")


def test_a_terminal_obeys_no_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What would move the cursor or set the title is written out; lines and tabs are what they are. A pipe gets it as it is."""
    evil = "one\ttwo\r\n\x1b]0;title\x07\n"
    code._show(evil, sys.stdout)
    assert capsys.readouterr().out == evil
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    code._show(evil, terminal)
    assert terminal.getvalue() == "one\ttwo\n\\x1b]0;title\\x07\n"


def test_capabilities_for_programs_in_words() -> None:
    """What one is for, and which project."""
    assert words.of_capability("code.exec(project=p)").endswith("cut off from everything else, in the code project p")
    assert words.of_capability("code.read") == "read what is in any code project"
