"""What every test gets: its own place for the system's files, and a check that it leaves nothing running."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.processes import children

collect_ignore_glob = ["packages/*"]
"""Packages of their own: their tests run as their authors run them."""

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as a shell starts what it runs in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves a process, a thread or a descriptor to a socket behind."""
    before, threads = children(), set(threading.enumerate())
    yield
    end = time.monotonic() + 3
    while time.monotonic() < end:
        left_children = children() - before
        left_threads = [thread for thread in threading.enumerate() if thread not in threads and not thread.daemon]
        if not left_children and not left_threads:
            return
        gc.collect()
        time.sleep(0.02)
    pytest.fail(f"left behind: processes {sorted(left_children)}, threads {[thread.name for thread in left_threads]}")


@pytest.fixture
def llmos_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own for state, sockets and models; short, because a socket's path must be."""
    home = tmp_path_factory.mktemp("os")
    monkeypatch.setenv("LLMOS_HOME", os.fspath(home))
    return home
