"""What a hostile or broken peer tried against the kernel once, and must not get away with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header
from tests.system.conftest import System


@pytest.mark.parametrize(
    "cap",
    [
        "bus.subscribe(topics=mail.*)",
        "proc.kill(pid=5)",
        "filesystem.read(paht=~/Documents)",
        "fs.read(folder=~/Documents)",
        "llm.generat",
        "*.*(path=~/Documents)",
        "fs.read(path=~)",
        "fs.read(path=/)",
        "fs.read",
    ],
)
def test_a_grant_that_would_allow_more_than_it_says_is_refused(shared: System, cap: str) -> None:
    """A misspelt bound is none at all, and a directory that holds the system's own would hand over the user's token."""
    text = cap.replace("~)", f"{shared.root})")
    with pytest.raises(OpError) as caught:
        shared.connect().call("perm.grant", {"holder": "filesystem", "cap": text})
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_an_answer_that_cannot_be_read_is_its_callers_error(shared: System) -> None:
    """A server that replies with garbage costs its caller an error at once, not a wait."""
    owner, caller = shared.connect(), shared.connect()
    owner.call("fn.register", {"name": "garbage", "summary": "Answers with not-a-number"})
    outcome: list[OpError] = []

    def ask() -> None:
        try:
            caller.call("app.garbage", {}, timeout=10)
        except OpError as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    call = owner.next_call(timeout=5)
    assert call is not None
    header = pack_header(Header(kind=Kind.REPLY, id=call.header.id))
    owner._dealer.post([GREETING, header, b"\x81\xa1x\xcb\x7f\xf8\0\0\0\0\0\0"])
    thread.join(5)
    assert outcome[0].code is Code.INTERNAL
    owner.call("fn.unregister", {"name": "garbage"})


def test_a_reader_of_its_log_that_goes_away_does_not_end_the_kernel(system: System) -> None:
    """A closed pipe costs log lines, and nothing else."""
    read, write = os.pipe()
    ready_read, ready_write = os.pipe()
    command = [sys.executable, "-m", "llmos.kernel", "--home", str(system.home), "--ready-fd", str(ready_write)]
    system.process = subprocess.Popen(command, env=system.environment, pass_fds=(ready_write,), stderr=write)
    os.close(write)
    os.close(ready_write)
    with os.fdopen(ready_read, "rb") as ready:
        assert b'"ready": true' in ready.readline()
    os.close(read)
    connection = system.connect()
    for _ in range(20):
        connection.call("sys.status")
    assert connection.call("sys.ping") == {}


def test_a_driver_that_was_given_up_comes_back_when_it_is_told_to(running: System) -> None:
    """`proc.kill` of a driver that is down starts it again."""

    def dead() -> bool:
        row = running.process_named("filesystem")
        if row["os_pid"]:
            os.kill(row["os_pid"], signal.SIGKILL)
        return bool(row["state"] == "failed")

    running.until(dead, 60)
    connection = running.connect()
    connection.call("proc.kill", {"pid": running.process_named("filesystem")["pid"]})
    assert running.until(lambda: running.process_named("filesystem")["state"] == "ready", 10)


def test_many_functions_do_not_hide_the_ops(shared: System) -> None:
    """What one connection lends is bounded in number and size, so that the list of ops always fits an answer."""
    owner = shared.connect()
    with pytest.raises(OpError) as caught:
        owner.call("fn.register", {"name": "wordy", "summary": "x", "utterances": ["y" * 200] * 20})
    assert caught.value.code is Code.TOO_LARGE
    for number in range(16):
        owner.call("fn.register", {"name": f"f{number}", "summary": "x" * 300, "utterances": ["y" * 90] * 20})
    with pytest.raises(OpError) as caught:
        owner.call("fn.register", {"name": "more", "summary": "x"})
    assert caught.value.code is Code.BUSY
    assert len(wire.encode(shared.connect().call("sys.ops"))) < wire.MAX_BODY


def test_a_connection_that_is_dropped_without_a_word_does_not_hang_its_program(shared: System) -> None:
    """Nobody has to remember to close it."""
    code = "from llmos.ipc.connection import Connection\nConnection().call('sys.ping')"
    environment = {**shared.environment, "LLMOS_BUS": str(shared.socket)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=20)
    bad = {**environment, "LLMOS_TOKEN": "é" * 16}
    refused = subprocess.run([sys.executable, "-c", code], env=bad, timeout=20, capture_output=True)
    assert b"DENIED" in refused.stderr


def test_a_revoked_directory_is_gone_from_the_jail(running: System) -> None:
    """Even for a driver that says it is ready again while it is being ended."""
    folder = running.home / "Documents"
    folder.mkdir()
    connection = running.connect()
    granted = connection.call("perm.grant", {"holder": "filesystem", "cap": f"fs.read(path={folder})"})
    connection.call("filesystem.list", {"path": str(folder)}, timeout=10)
    before = running.process_named("filesystem")["os_pid"]
    connection.call("perm.revoke", {"id": granted["id"]})
    running.until(lambda: running.process_named("filesystem")["os_pid"] not in (0, before))
    os_pid = running.process_named("filesystem")["os_pid"]
    mounts = Path(f"/proc/{os_pid}/mountinfo").read_text() if os.access(f"/proc/{os_pid}/mountinfo", os.R_OK) else ""
    assert str(folder) not in mounts
