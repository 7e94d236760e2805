"""The escape battery: real processes try to get out of a real jail, and each attempt is shown to work outside of one.

The attempts are in `jail_escapes.py`. Each runs three times over: outside (it must succeed, or it proves nothing),
inside the whole jail (it must fail), and inside jails that lack one layer (some must succeed, or the layer is idle).
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmos.kernel.jail import ALL_LAYERS, Layer, Limits, Policy, Tier, probe, spawn


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("jail_escapes", Path(__file__).with_name("jail_escapes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ESCAPES = _load()
ROOT = os.geteuid() == 0

pytestmark = pytest.mark.skipif(probe().tier is not Tier.A, reason="this machine cannot build a whole jail")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What the attempts are after, and a copy of them where a jail may read it."""
    top = tmp_path_factory.mktemp("escapes").resolve()
    token = secrets.token_hex(16)
    for name in ("granted", "state", "outside", "program"):
        (top / name).mkdir()
    (top / "granted" / "note").write_text("a note")
    (top / "secret").write_text(token)
    shutil.copy(Path(__file__).with_name("jail_escapes.py"), top / "program" / "jail_escapes.py")
    os.environ["TOKEN"] = token  # what a kernel process may have in its environment
    victim = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", "victim"],
        stdin=subprocess.DEVNULL,
    )
    left_open = os.open(top / "secret", os.O_RDONLY)
    os.set_inheritable(left_open, True)
    abstract = f"llmos-{token}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as unnamed,
    ):
        udp.bind(("127.0.0.1", 0))
        named.bind(str(top / "socket"))
        named.listen(64)
        unnamed.bind("\0" + abstract)
        unnamed.listen(64)
        yield ESCAPES.Stage(
            token=token,
            secret=str(top / "secret"),
            granted=str(top / "granted"),
            state=str(top / "state"),
            victim=victim.pid,
            tcp=tcp.getsockname()[1],
            udp=udp.getsockname()[1],
            abstract=abstract,
            socket=str(top / "socket"),
            hostname=os.uname().nodename,
        )
    del os.environ["TOKEN"]
    os.close(left_open)
    victim.kill()
    victim.wait()


def _escapes_outside(name: str, stage: Any) -> bool:
    """The positive control: the same program without a jail."""
    top = Path(stage.granted).parent
    free = replace(stage, state=str(top / "outside"))
    program = str(top / "program" / "jail_escapes.py")
    outside = subprocess.run(
        # a shell in between is a parent with the environment of this process
        ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, program, name, json.dumps(asdict(free))],
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=20,
    )
    return bool(outside.returncode == ESCAPES.ESCAPED)


def _escapes(name: str, stage: Any, layers: frozenset[Layer] = ALL_LAYERS, *, share_pid: bool) -> bool:
    top = Path(stage.granted).parent
    policy = Policy(
        read=(Path(stage.granted),),
        write=(Path(stage.state),),
        path=(top / "program",),
        limits=Limits(**ESCAPES.LIMITS),
        scratch=ESCAPES.SCRATCH,
        share_pid=share_pid,
        tier=Tier.A if layers == ALL_LAYERS else Tier.C,
    )
    jailed = spawn(policy, "jail_escapes", [name, json.dumps(asdict(stage))], layers=layers, stderr=subprocess.DEVNULL)
    jailed.started(20)
    return bool(jailed.wait(20) == ESCAPES.ESCAPED)


@pytest.mark.parametrize("name", ESCAPES.ATTEMPTS)
def test_attempt_succeeds_outside_and_fails_in_the_jail(name: str, stage: Any) -> None:
    """Every attempt works without a jail, so that its failure inside is the jail's doing, and fails inside."""
    attempt = ESCAPES.ATTEMPTS[name]
    possible = _escapes_outside(name, stage)
    assert not _escapes(name, stage, share_pid=False), f"{name} got out of the jail"
    assert not _escapes(name, stage, share_pid=True), f"{name} got out of the jail that keeps the host's process ids"
    if not possible:
        assert attempt.depends or (attempt.root and not ROOT), f"{name} does not even work outside: it shows nothing"
        pytest.skip("this machine holds it back from everybody; the jail does too")


@pytest.mark.parametrize("layer", Layer)
def test_every_layer_carries_weight(layer: Layer, stage: Any) -> None:
    """With any one layer taken away some attempt gets out: no layer is idle, and the battery would notice its loss."""
    names = list(ESCAPES.ATTEMPTS)
    less = ALL_LAYERS - {layer}
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda name: _escapes(name, stage, less, share_pid=layer is Layer.LANDLOCK), names))
    escaped = [name for name, out in zip(names, outcomes, strict=True) if out]
    print(f"without {layer}: {len(escaped)} of {len(names)} get out: {', '.join(escaped)}")
    assert escaped
