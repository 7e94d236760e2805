"""Opening beneath a directory: against links, renames and things that are no files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmos.drivers.filesystem import beneath
from llmos.drivers.filesystem.beneath import open_directory, open_file, opened

Open = Callable[[int, str], int]


@pytest.fixture(params=["openat2", "stepwise"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A directory with a file inside, a secret outside, both ways of opening."""
    if request.param == "stepwise":
        monkeypatch.setattr(beneath, "has_openat2", lambda: False)
    elif not beneath.has_openat2():
        pytest.skip("this kernel has no openat2")
    (tmp_path / "inside" / "deep").mkdir(parents=True)
    (tmp_path / "inside" / "deep" / "note.txt").write_text("mine")
    (tmp_path / "secret.txt").write_text("secret")
    with opened(os.open(tmp_path / "inside", os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        yield descriptor


def read(base: int, path: str) -> bytes:
    with opened(open_file(base, path)) as descriptor:
        return os.read(descriptor, 100)


def test_beneath_opens_what_lies_beneath(base: int) -> None:
    """A file and a folder beneath the base open by their relative path."""
    assert read(base, "deep/note.txt") == b"mine"
    with opened(open_directory(base, "deep")) as descriptor, os.scandir(descriptor) as entries:
        assert [entry.name for entry in entries] == ["note.txt"]


@pytest.mark.parametrize(
    "path", ["../secret.txt", "deep/../../secret.txt", "/etc/hostname", "out/secret.txt", "link", "deep/abs"]
)
def test_beneath_opens_nothing_outside(base: int, tmp_path: Path, path: str) -> None:
    """Neither dots, nor absolute paths, nor links to files or folders lead out."""
    (tmp_path / "inside" / "out").symlink_to("..")
    (tmp_path / "inside" / "link").symlink_to("../secret.txt")
    (tmp_path / "inside" / "deep" / "abs").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(OSError, match=r"."):
        open_file(base, path)


def test_beneath_magic_links_do_not_open(tmp_path: Path) -> None:
    """A link into /proc cannot smuggle an open descriptor of another place in."""
    (tmp_path / "magic").symlink_to("/proc/self/root/etc/hostname")
    with opened(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as root, pytest.raises(OSError, match=r"."):
        open_file(root, "magic")


def test_beneath_fifo_and_socket_do_not_hang(base: int, tmp_path: Path) -> None:
    """A FIFO without a writer is refused at once; the open does not wait for one."""
    os.mkfifo(tmp_path / "inside" / "pipe")
    done = threading.Event()

    def attempt() -> None:
        with pytest.raises(OSError, match="regular"):
            open_file(base, "pipe")
        done.set()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    assert done.wait(5), "the open waits for a writer"
    thread.join()


def test_beneath_survives_a_race_of_renames(tmp_path: Path) -> None:
    """While a folder is swapped with a link to the outside all the time, no read ever shows what is outside."""
    if not beneath.has_openat2():
        pytest.skip("this kernel has no openat2")
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder, text in ((inside / "real", "mine"), (outside, "secret")):
        folder.mkdir(parents=True)
        (folder / "file").write_text(text)
    (inside / "trap").symlink_to(outside)
    (inside / "real").rename(inside / "now")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (inside / "now").rename(inside / "real")
            (inside / "trap").rename(inside / "now")
            (inside / "now").rename(inside / "trap")
            (inside / "real").rename(inside / "now")

    thread = threading.Thread(target=swap)
    thread.start()
    seen: dict[str, int] = {}
    try:
        with opened(os.open(inside, os.O_RDONLY | os.O_DIRECTORY)) as root:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                try:
                    text = read(root, "now/file").decode()
                except OSError as error:
                    text = type(error).__name__
                seen[text] = seen.get(text, 0) + 1
    finally:
        stop.set()
        thread.join()
    assert "secret" not in seen
    assert seen.get("mine", 0) > 10, f"the race never let a read through: {seen}"
    assert sum(seen.values()) > seen["mine"], f"the race was never met: {seen}"
