"""Files and folders moved to the trash by the filesystem driver, and brought back."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.filesystem import tree
from llmos.drivers.filesystem.driver import Filesystem
from llmos.drivers.sdk import Call, Code, DriverEnv, OpError


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    notes = tmp_path / "Notes"
    (notes / "folder" / "deep").mkdir(parents=True)
    (notes / "folder" / "deep" / "x.bin").write_bytes(bytes(range(256)) * 9000)
    (notes / "folder" / "empty").mkdir()
    (notes / "folder" / "link").symlink_to("/etc/hostname")
    (notes / "folder" / "deep" / "x.bin").chmod(0o751)
    (notes / "folder" / "deep").chmod(0o705)
    for path in (notes / "folder" / "deep" / "x.bin", notes / "folder" / "deep", notes / "folder"):
        os.utime(path, ns=(1_500_000_000_000_000_007, 1_500_000_000_000_000_009))
    (notes / "a.txt").write_text("a")
    return notes


@pytest.fixture
def driver(tmp_path: Path, notes: Path) -> Iterator[Filesystem]:
    (tmp_path / "state").mkdir()
    driver = Filesystem()
    driver.setup(DriverEnv(tmp_path / "state", tmp_path, (notes,), (notes,)))
    yield driver
    driver.close()


def refused(code: Code, match: str | None = None) -> Any:
    return pytest.raises(OpError, match=match, check=lambda error: error.code == code)


def state_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything in a folder that an undo has to bring back."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def test_trash_and_back(driver: Filesystem, notes: Path) -> None:
    """A folder goes with all that is in it, and comes back with contents, permission bits, times and links."""
    before = state_of(notes)
    answer = driver.move_to_trash(Call(), path="~/Notes/folder")
    assert (answer["entries"], answer["path"]) == (5, str(notes / "folder"))
    assert list(state_of(notes)) == ["a.txt"]
    driver.undo(Call(), token=answer["undo"])
    assert state_of(notes) == before
    driver.undo(Call(), token=answer["undo"])
    assert state_of(notes) == before


def test_trash_of_a_link_leaves_what_it_leads_to(driver: Filesystem, notes: Path, tmp_path: Path) -> None:
    """A link goes by itself, whether it leads to a file, a folder, out of the grant or nowhere."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text("x")
    for name, to in (("one", "a.txt"), ("two", "folder"), ("three", str(tmp_path / "outside")), ("four", "nowhere")):
        (notes / name).symlink_to(to)
    before = state_of(notes)
    tokens = [driver.move_to_trash(Call(), path=f"~/Notes/{name}")["undo"] for name in ("one", "two", "three", "four")]
    assert (tmp_path / "outside" / "x").exists()
    assert sorted(path.name for path in notes.iterdir()) == ["a.txt", "folder"]
    with refused(Code.NOT_FOUND):
        driver.move_to_trash(Call(), path="~/Notes/one")
    for token in tokens:
        driver.undo(Call(), token=token)
    assert state_of(notes) == before


def test_trash_undo_replaces_nothing(driver: Filesystem, notes: Path) -> None:
    """Where something else has the name by now, both are kept; once it has gone, the undo works."""
    token = driver.move_to_trash(Call(), path="~/Notes/a.txt")["undo"]
    (notes / "a.txt").write_text("another")
    with refused(Code.CONFLICT, "still in the trash"):
        driver.undo(Call(), token=token)
    assert (notes / "a.txt").read_text() == "another"
    (notes / "a.txt").rename(notes / "b.txt")
    driver.undo(Call(), token=token)
    assert {path.name for path in notes.iterdir()} == {"a.txt", "b.txt", "folder"}
    assert (notes / "a.txt").read_text() == "a"


def test_trash_only_where_it_was_granted(driver: Filesystem, notes: Path, tmp_path: Path) -> None:
    """Neither what lies outside, nor the granted folder itself, nor anything by a link on the way goes."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    (notes / "way").symlink_to(tmp_path / "other")
    (notes / "in").symlink_to("folder")
    for path, code in (("~/other", Code.DENIED), ("~/Notes/way/x", Code.DENIED), ("~/Notes/in/deep", Code.DENIED)):
        with refused(code):
            driver.move_to_trash(Call(), path=path)
    for path in ("~/Notes/folder/*", "~/Notes/folder/**/"):
        with refused(Code.INVALID_ARGUMENT, "pattern"):
            driver.move_to_trash(Call(), path=path)
    with refused(Code.INVALID_ARGUMENT, "itself what was granted"):
        driver.move_to_trash(Call(), path="~/Notes")
    with refused(Code.DENIED):
        driver.move_to_trash(Call(scope={"path": [str(notes / "folder")]}), path="~/Notes/a.txt")
    assert (tmp_path / "other" / "x").exists()


@pytest.mark.parametrize("what", ["fifo", "hard link", "too many", "too large", "cancelled", "disk full"])
def test_trash_that_fails_leaves_all_in_place(
    driver: Filesystem, notes: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be kept is not taken, and what fails half-way is put back."""
    call = Call()
    if what == "fifo":
        os.mkfifo(notes / "folder" / "deep" / "pipe")
    elif what == "hard link":
        os.link(notes / "a.txt", notes / "folder" / "second")
    elif what == "too many":
        monkeypatch.setattr(tree, "MAX_ENTRIES", 4)
    elif what == "too large":
        monkeypatch.setattr(driver._backups, "_max_bytes", 1_000_000)
    else:
        write, wrote = os.write, threading.Event()

        def failing(descriptor: int, data: Any) -> int:
            if what == "cancelled":
                call.cancelled.set()
            elif wrote.is_set():
                raise OSError(28, "No space left on device")
            wrote.set()
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", failing)
    before = {path for path in notes.rglob("*") if stat.S_IFMT(path.lstat().st_mode)}
    with pytest.raises(OpError):
        driver.move_to_trash(call, path="~/Notes/folder")
    assert set(notes.rglob("*")) == before
    assert (notes / "folder" / "deep" / "x.bin").stat().st_size == 256 * 9000
    assert not list((tmp_path / "state" / "undo" / "items").iterdir())


def test_trash_preview_lists(driver: Filesystem, notes: Path) -> None:
    """A preview names what would go, with sizes, and takes nothing."""
    before = state_of(notes)
    assert driver._preview_trash(Call(), path="~/Notes/a.txt") == f"{notes}/a.txt: moved to the trash, 1 bytes"
    lines = driver._preview_trash(Call(), path="~/Notes/folder").splitlines()
    assert lines[0].endswith("2 files, 2,304,013 bytes")
    assert lines[1:] == ["  folder/deep/x.bin  2,304,000 bytes", "  folder/link  13 bytes"]
    assert state_of(notes) == before
