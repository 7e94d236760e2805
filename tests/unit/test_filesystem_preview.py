"""What the filesystem driver says a write would do: as diff(1) would show it, quickly, and without doing it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.drivers.filesystem.driver import Filesystem
from llmos.drivers.sdk import Call, Code, DriverEnv, OpError


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    notes = tmp_path / "home" / "Notes"
    notes.mkdir(parents=True)
    return notes


@pytest.fixture
def driver(notes: Path, tmp_path: Path) -> Iterator[Filesystem]:
    (tmp_path / "state").mkdir()
    driver = Filesystem()
    driver.setup(DriverEnv(tmp_path / "state", tmp_path / "home", (notes,), (notes,)))
    yield driver
    driver.close()


def test_previews_show_and_change_nothing(driver: Filesystem, notes: Path) -> None:
    """A diff as `diff -u` would show it; sizes for binary; and no trace on the disk."""
    file = notes / "a.txt"
    old = "".join(f"line {n}\n" for n in range(30))
    file.write_text(old)
    before = file.stat()
    new = old.replace("line 3\n", "line three\n").replace("line 20\n", "") + "end"
    (notes.parent / "new").write_text(new)
    command = ["diff", "-u", "--label", str(file), "--label", str(file), str(file), str(notes.parent / "new")]
    wanted = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout
    assert driver._preview_write(Call(), path=str(file), content=new) == wanted.rstrip("\n")
    assert "+++" in wanted
    assert driver._preview_write(Call(), path="~/Notes/b", content="x\n").splitlines() == [
        "--- /dev/null",
        f"+++ {notes}/b",
        "@@ -0,0 +1 @@",
        "+x",
    ]
    assert "no change" in driver._preview_write(Call(), path=str(file), content=old)
    (notes / "bin").write_bytes(b"\0\1\2")
    assert "binary, 3 bytes, becomes 1 bytes" in driver._preview_write(Call(), path="~/Notes/bin", content="x")
    with pytest.raises(OpError, check=lambda error: error.code == Code.CONFLICT):
        driver._preview_write(Call(), path=str(file), content="x", mode="create")
    assert sorted(path.name for path in notes.iterdir()) == ["a.txt", "bin"]
    assert (file.read_text(), file.stat().st_mtime_ns, file.stat().st_ino) == (old, before.st_mtime_ns, before.st_ino)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("lines", [("a\n", "b\n"), ("a\nb\n", "b\na\n"), ("x\n", "x\ny\n")])
def test_preview_of_hostile_files_is_quick(driver: Filesystem, notes: Path, lines: tuple[str, str]) -> None:
    """Files made to be slow to compare are not compared for long."""
    (notes / "a").write_text(lines[0] * 500_000)
    for n in (240, 29_000):
        assert driver._preview_write(Call(), path="~/Notes/a", content=lines[1] * n).startswith("--- ")
    (notes / "a").write_text(lines[0] * 250)
    assert driver._preview_write(Call(), path="~/Notes/a", content=lines[1] * 250).startswith("--- ")


def test_preview_names_cannot_look_like_lines(driver: Filesystem, notes: Path) -> None:
    """A line feed in a name does not begin a line of the preview."""
    assert "\n+y" not in driver._preview_write(Call(), path="~/Notes/a\n+y", content="x")
