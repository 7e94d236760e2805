"""Installing packages: from an index, a file or a directory; interrupted, failed, refused, and what pip gets to see of it all."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.userland import packages
from llmos.userland.packages import jailed, staging
from tests.system import wheels

pytestmark = pytest.mark.usefixtures("offline")


class Index(BaseHTTPRequestHandler):
    """A package index that wants a password, and looks who shows it to everybody."""

    def __init__(self, folder: Path, seen: list[str], *about: Any) -> None:
        self.folder = folder
        self.seen = seen
        super().__init__(*about)

    def do_GET(self) -> None:
        given = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        for shown in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                self.seen.extend(["shown"] if b"hunter2" in shown.read_bytes() else [])
        file = self.folder / self.path.rpartition("/")[2]
        found = file.is_file() and given == "me:hunter2"
        page = "".join(f'<a href="/{one.name}">{one.name}</a>' for one in self.folder.iterdir()).encode()
        self.seen.append(self.path if given == "me:hunter2" else "refused")
        self.send_response(200 if given == "me:hunter2" else 401)
        self.send_header("Content-Type", "application/octet-stream" if found else "text/html")
        self.end_headers()
        self.wfile.write(file.read_bytes() if found else page)

    def log_message(self, *words: object) -> None:
        pass


def test_by_name_from_an_index(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the network, with the index's password, which nobody sees in the list of processes."""
    wheels.make(offline, "named", "1")
    wheels.make(offline, "named", "2")
    seen: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, offline, seen)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        for name, value in {
            "INDEX_URL": f"http://me:hunter2@127.0.0.1:{server.server_address[1]}/simple",
            "NO_INDEX": "",
            "FIND_LINKS": "",
        }.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        made = packages.install("named>=1")
        newest = packages.newest(made)
        server.shutdown()
        thread.join()
    assert (made.version, made.origin, newest) == ("2", packages.Origin("index", "named>=1", "named"), "2")
    assert "/simple/named/" in seen
    assert "shown" not in seen


def test_what_pip_sees(tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel, the folders of wheels that it is configured with, and its own two directories: nothing else of the user's."""
    jobs: list[jailed.Job] = []

    def run(job: jailed.Job, said: object) -> jailed.Outcome:
        jobs.append(job)
        return jailed.Outcome(1, [])

    monkeypatch.setattr(jailed, "run", run)
    wheel = wheels.make(tmp_path, "x")
    wheels.refused(wheel, Code.UNAVAILABLE)
    assert set(jobs[0].read) == {wheel, offline}
    assert all(path.parent.name.startswith(".install-") for path in jobs[0].write)
    assert "SECRET" not in jobs[0].env
    assert jobs[0].env["PIP_CONFIG_FILE"] == os.devnull


def test_a_directory_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    """By the backend that is missing, or its own last word."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling>=1"]\nbuild-backend = "hatchling.build"\n'
    )
    assert "hatchling>=1, which is not installed beside llmos" in wheels.refused(source)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
    )
    (source / "setup.py").write_text("raise SystemExit('no \\x1b[31mway')")
    said = wheels.refused(source)
    assert "no " in said
    assert "\x1b" not in said


def test_a_failed_one_leaves_the_old(tmp_path: Path) -> None:
    """A newer wheel that turns out broken changes nothing."""
    wheels.unpacked(wheels.make(tmp_path / "1", "kept"), paths.packages_dir() / "kept")
    old = packages.find("kept")
    broken = wheels.driver_files("kept", "2") | {"kept_package/manifest.toml": "name = 'kept'"}
    assert "manifest.toml" in wheels.refused(wheels.make(tmp_path / "2", "kept", "2", files=broken))
    assert packages.installed() == [old]


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """`kill -9` leaves the old version and no process; the next one clears up."""
    wheels.unpacked(wheels.make(tmp_path / "1", "kept"), paths.packages_dir() / "kept")
    old = packages.find("kept")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            "PIP_INDEX_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/simple",
            "PIP_NO_INDEX": "",
            "PIP_TIMEOUT": "600",
        }
        command = [sys.executable, "-m", "llmos.userland.cli", "driver", "install", "kept"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        silent.settimeout(30)
        connection, _ = silent.accept()  # pip asks, in its jail, and is not answered
        with connection:
            with pytest.raises(OpError, match="already"):
                packages.install("kept")
            process.send_signal(signal.SIGKILL)
            process.wait()
            connection.settimeout(30)
            while connection.recv(4096):  # until it is gone with its jail
                pass
    assert packages.installed() == [old]
    assert list(paths.packages_dir().glob(".install-*"))
    packages.remove(old)
    assert list(paths.packages_dir().glob(".install-*")) == []


def test_two_versions_swap_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no moment without either: it is one call of the operating system."""
    place, made = tmp_path / "p", tmp_path / "new"
    for directory in (place, made):
        directory.mkdir()
        (directory / f"of-{directory.name}").touch()
    monkeypatch.delattr(Path, "rename")
    staging.replace(made, place, tmp_path)
    assert ([path.name for path in place.iterdir()], [path.name for path in made.iterdir()]) == (["of-new"], ["of-p"])


def test_without_a_swap_the_old_one_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems that cannot exchange two names, the next installation puts back what was moved aside."""
    monkeypatch.setattr(staging, "_exchanged", lambda one, other: False)
    place = tmp_path / "p"
    place.mkdir()
    (place / "old").touch()
    stage = tmp_path / ".install-x"
    stage.mkdir()
    with pytest.raises(FileNotFoundError):
        staging.replace(stage / "missing", place, stage)
    assert not place.exists()
    with staging.stage(tmp_path):
        assert (place / "old").exists()
    assert not stage.exists()


def test_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that never answers does not hold the user for ever."""
    monkeypatch.setattr(jailed, "TIME_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.setenv("PIP_NO_INDEX", "")
        wheels.refused("x", Code.TIMEOUT)
