"""Removing what a stranger has made, and counting it."""

from __future__ import annotations

import os
from pathlib import Path

from llmos.userland.packages import jailed, staging
from llmos.userland.packages.removal import remove

LEVELS = 3000


def nested(top: Path, levels: int = LEVELS) -> None:
    """Directories in one another, with a file in the last; too deep for a path."""
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=at)
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)


def test_no_tree_is_too_deep_to_be_removed(tmp_path: Path) -> None:
    """What an installation left in a hostile shape does not keep the next one from starting."""
    nested(tmp_path / ".install-old")
    with staging.stage(tmp_path) as stage:
        assert not (tmp_path / ".install-old").exists()
        nested(stage / "build")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_closed_directories_go_and_links_are_not_followed(tmp_path: Path) -> None:
    """Nothing outside of the tree changes, its modes included."""
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "kept").write_text("kept")
    closed = tmp_path / "tree" / "closed"
    closed.mkdir(parents=True)
    (closed / "file").touch()
    (closed / "directory").mkdir(mode=0o000)
    (closed / "link").symlink_to(outside)
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    os.mkfifo(tmp_path / "tree" / "fifo")
    closed.chmod(0o000)
    remove(tmp_path / "tree")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "outside"]
    assert outside.stat().st_mode & 0o777 == 0o500


def test_what_cannot_be_counted_is_too_much(tmp_path: Path) -> None:
    """Directories too deep for a path hide nothing from the bound on what an installation may write."""
    nested(tmp_path / "work", 10)
    assert jailed.usage([tmp_path / "work"])[2]
    nested(tmp_path / "deep")
    assert not jailed.usage([tmp_path / "deep"])[2]
    remove(tmp_path / "deep")
