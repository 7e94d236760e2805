"""`python -m llmos.kernel.jail run` for programs of userland that jail something: what its options let in, and that it ends with them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [sys.executable, "-m", "llmos.kernel.jail", "run"]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A directory with the module `program`, which does what its argument says."""
    (tmp_path / "program.py").write_text(
        "import os, socket, sys, time\n"
        "what, value = sys.argv[1:]\n"
        "if what == 'env': print(os.environ.get(value))\n"
        "if what == 'connect': socket.create_connection(('127.0.0.1', int(value))).close(); print('connected')\n"
        "if what == 'wait': print('up', flush=True); time.sleep(600)\n"
    )
    return tmp_path


def test_a_variable_by_name(module: Path) -> None:
    """Its value comes from the environment, where the list of processes does not show it."""
    command = [*RUN, "--path", str(module), "--env", "TOLD", "--", "-m", "program", "env", "TOLD"]
    done = subprocess.run(command, env={**os.environ, "TOLD": "hunter2"}, capture_output=True, text=True)
    assert done.stdout == "hunter2\n"
    untold = [*RUN, "--path", str(module), "--", "-m", "program", "env", "TOLD"]
    done = subprocess.run(untold, env={**os.environ, "TOLD": "hunter2"}, capture_output=True, text=True)
    assert done.stdout == "None\n"
    assert subprocess.run([*RUN, "--env", "UNSET_OF_ALL", "--", "-m", "program"], capture_output=True).returncode == 2


def test_the_network_only_when_asked_for(module: Path) -> None:
    """`--network`, and not without."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = ["--", "-m", "program", "connect", str(server.getsockname()[1])]
        given = subprocess.run([*RUN, "--network", "--path", str(module), *words], capture_output=True, text=True)
        assert given.stdout == "connected\n"
        denied = subprocess.run([*RUN, "--path", str(module), *words], capture_output=True, text=True)
        assert "PermissionError" in denied.stderr


def test_it_ends_with_its_parent(module: Path) -> None:
    """Killed with -9, whoever jailed something leaves nothing of it; one that is gone already gets nothing started."""
    command = [*RUN, "--path", str(module), "--die-with-parent", "{}", "--", "-m", "program", "wait", ""]
    parent = f"import os, subprocess; subprocess.Popen([w.format(os.getpid()) for w in {command!r}]).wait()"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == b"", "the pipe is closed once nothing holds it any more"
    orphan = [word.format(1) for word in command]
    assert subprocess.run(orphan, capture_output=True).returncode == 128 + signal.SIGKILL
