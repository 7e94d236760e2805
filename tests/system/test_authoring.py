"""AUTHORING.md works: every block of it is carried out, in order, by one author with a fresh home and a real kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmos.userland.authoring.rules import RULES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "drivers" / "AUTHORING.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: (added to )?(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def script() -> str:
    """The page as one program: shell blocks as they stand, files written where their first line says."""
    lines = ["set -eu"]
    for number, (language, added, file, content) in enumerate(BLOCK.findall(PAGE)):
        lines.append(f"echo '=== block {number}: {language} {file}'")
        if language == "sh":
            lines.append(content)
        elif language == "text":
            lines.append(
                f"diff <(find . -type f -not -path '*/.*' | sed 's|^./||' | LC_ALL=C sort) - <<'END'\n{content}END"
            )
        else:
            assert file, f"block {number} is of {language}, and names no file"
            lines.append(f"cat {'>>' if added else '>'} {file} <<'END'\n{content}END")
    return "\n".join(lines)


def test_every_block_is_one_of_these() -> None:
    """A shell's, a listing, or the content of a file: there is none that nothing checks."""
    assert PAGE.count("\n```") == 2 * len(BLOCK.findall(PAGE))


@pytest.mark.timeout(240)
def test_an_author_can_follow_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From nothing to a published driver that was upgraded, with undo, topics and hooks."""
    root = tmp_path_factory.mktemp("a")
    home, system = root / "home", root / "os"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "LLMOS_"))}
    environment |= {
        "HOME": str(home),
        "LLMOS_HOME": str(system),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
    }
    try:
        done = subprocess.run(["bash", "-c", script()], cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run([sys.executable, "-m", "llmos.userland.cli", "down"], env=environment, capture_output=True)
    assert "12 °C" in done.stdout
    assert "58.1 °F" in done.stdout
    assert re.search(r"llmos-weather +0\.1\.0 +0\.2\.0", done.stdout)
    assert done.stdout.count("\ngold\n") == 4
    assert list((system / "packages").glob("[!.]*")) == []
    assert [path.name for path in (system / "drivers").iterdir() if "weather" in path.name] == []


def test_every_rule_is_on_the_page() -> None:
    """With its level, and no other."""
    said = dict(re.findall(r"^\| `([a-z-]+)` \| (bronze|silver|gold) \|", PAGE, re.MULTILINE))
    assert said == {rule.name: rule.level.value for rule in RULES}
