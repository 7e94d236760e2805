"""A short run of `make races`: the file system driver against processes that rename and link beneath it."""

from __future__ import annotations

import time
from contextlib import closing
from itertools import takewhile
from pathlib import Path

import pytest

from tests.system.filesystem_races import KINDS, SECRET, by_name, by_the_driver, measure, racing, scene

READS = 500


@pytest.mark.parametrize("kind", KINDS)
def test_no_read_leaves_the_grant_in_a_race(kind: str, tmp_path: Path) -> None:
    """Neither the content nor the names of what lies outside of the caller's scope are ever shown; the race is a real one."""
    top = tmp_path.resolve()
    scene(top)
    with closing(by_the_driver(top)) as reads, racing(top, kind):
        seen = measure(reads, READS)
    assert seen["leaked"] == 0
    assert seen["shown"] > 10
    assert kind == "files" or seen["refused"] > 10


def test_the_race_would_show_a_check_that_is_followed_by_an_open(tmp_path: Path) -> None:
    """The control: a real path that was looked up and checked, and then opened by name, leaks before long."""
    top = tmp_path.resolve()
    scene(top)
    end = time.monotonic() + 60
    with closing(by_name(top)) as reads, racing(top, "files"):
        seen = takewhile(lambda _: time.monotonic() < end, reads)
        assert any(SECRET in shown for shown in seen), "nothing leaked within a minute: the race is none"
