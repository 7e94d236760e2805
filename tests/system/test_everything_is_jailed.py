"""Every process that the system starts, as Linux describes it: confined, without rights, in namespaces of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from llmos.kernel.jail import Tier, probe
from llmos.userland.cli.model import start_jailed
from tests.system.authority_world import World
from tests.system.conftest import System
from tests.system.processes import tree

pytestmark = pytest.mark.skipif(probe().tier is not Tier.A, reason="this machine cannot build a whole jail")

FILTERED = "2"
SLEEPS = "import time; time.sleep(600)"


def inmates(pid: int) -> dict[int, str]:
    """The processes below one but bubblewrap's own, with their command lines."""
    return {one.pid: one.words for one in tree(pid).all() if not one.is_monitor}


def weaknesses(pid: int) -> list[str]:
    """What a process has that a jailed one has not."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.strip() for name, _, value in lines}
    wrong = [
        f"{field} is {status[field]}"
        for field, wanted in (
            ("Seccomp", FILTERED),
            ("NoNewPrivs", "1"),
            *((field, "0" * 16) for field in ("CapInh", "CapPrm", "CapEff", "CapAmb")),
        )
        if status[field] != wanted
    ]
    for namespace in ("mnt", "net", "ipc", "uts"):
        with suppress(
            PermissionError, FileNotFoundError
        ):  # only root may look at what belongs to a process that hides its memory
            if os.stat(f"/proc/{pid}/ns/{namespace}").st_ino == os.stat(f"/proc/self/ns/{namespace}").st_ino:  # noqa: PTH116
                wrong.append(f"its {namespace} namespace is ours")
    return wrong


def _is_closed(pid: int, part: str) -> bool:
    """Whether this part runs below that process, and its jail is closed; the probe before it makes jails that come and go."""
    with suppress(FileNotFoundError):
        return any(part in line and not weaknesses(each) for each, line in inmates(pid).items())
    return False


def assert_all_jailed(pid: int, expected: set[str]) -> None:
    """Nothing below this process has a weakness, and every part that is expected is there to be looked at.

    Only the guard is excepted: the kernel's own code, forked, which waits for its end and reads nothing of anybody's.
    """
    found = inmates(pid)
    kernel = tree(pid).words
    guards = [each for each, line in found.items() if line == kernel]
    assert len(guards) <= 1
    for guard in guards:
        del found[guard]
    assert {part for part in expected if any(part in line for line in found.values())} == expected
    assert {line: wrong for each, line in found.items() if (wrong := _unexpected(each, line))} == {}


def _unexpected(pid: int, line: str) -> list[str]:
    """Its weaknesses; the egress broker is there to have the network."""
    wanted = {"its net namespace is ours"} if "llmos.kernel.egress" in line else set()
    return [weakness for weakness in weaknesses(pid) if weakness not in wanted]


def test_all_that_a_running_kernel_started_is_jailed(system: System) -> None:
    """Both gates, the drivers of the system and of strangers, and an agent."""
    world = World(system)
    world.boot()
    birth = {"program": "evil", "args": {"code": SLEEPS, "child": ""}, "allow": None}
    agent = world.user.call("proc.spawn", {**birth, "wait": False})["pid"]
    with world.app("visitor"):
        system.until(lambda: next(row for row in world.processes() if row["pid"] == agent)["os_pid"], 30)
        system.until(lambda: all(row["state"] != "starting" for row in world.processes()), 30)
        assert system.process is not None
        parts = {"llmos.kernel.gate", "--apps", "llmos.drivers.host", "llmos.userland.agent"}
        assert_all_jailed(system.process.pid, parts)


@pytest.mark.model
def test_the_core_is_jailed(with_model: System) -> None:
    """The process that reads model files and everybody's prompts."""
    assert with_model.process is not None
    assert_all_jailed(with_model.process.pid, {"llmos.kernel.core"})


def test_the_importer_is_jailed(system: System, tmp_path: Path) -> None:
    """The process that takes strangers' model files apart."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    command = [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", SLEEPS]
    importer = start_jailed(command, file.resolve(), (tmp_path / "models").resolve())
    try:
        system.until(lambda: _is_closed(importer.pid, "timeit"), 30)
        assert_all_jailed(importer.pid, {"timeit"})
    finally:
        importer.terminate()
        importer.wait()
        assert importer.stdout is not None
        importer.stdout.close()


def test_what_is_not_jailed_is_seen() -> None:
    """The control: an ordinary process has all of these weaknesses."""
    plain = subprocess.Popen([sys.executable, "-c", SLEEPS])
    try:
        assert len(weaknesses(plain.pid)) >= 6
    finally:
        plain.kill()
        plain.wait()
