"""A real system for a test: kernel, gate, drivers in their jails."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc import paths
from llmos.ipc.connection import Connection

STORE = paths.models_dir()
"""The models that `make models` pulled; taken before a test moves `LLMOS_HOME`."""


class System:
    """One kernel, from `start` to `stop`, and connections to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "user"
        self.home.mkdir()
        self.environment = {**os.environ, "LLMOS_HOME": str(root / "os"), "LLMOS_MODELS": str(root / "no-models")}
        self.params: dict[str, Any] = {}
        """Limits of `llmos.kernel.params` that are to be others, shorter times above all."""
        self.process: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []

    def use_models(self) -> None:
        """Boot with the real models."""
        self.environment["LLMOS_MODELS"] = str(STORE)

    def start(self, *flags: str) -> dict[str, Any]:
        """Boot; what the kernel said on its ready descriptor."""
        read, write = os.pipe()
        kernel = ["-m", "llmos.kernel"]
        if self.params:
            changes = "; ".join(f"params.{name} = {value!r}" for name, value in self.params.items())
            kernel = ["-c", f"import sys; from llmos.kernel import main, params; {changes}; sys.exit(main.main())"]
        command = [sys.executable, *kernel, "--home", str(self.home), "--ready-fd", str(write), *flags]
        with (self.root / "kernel.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, pass_fds=(write,), stderr=log)
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            assert select.select([stream], [], [], 30)[0], "the kernel did not get ready in 30 s"
            told: dict[str, Any] = json.loads(stream.readline() or b"{}")
        return told

    def stop(self, *, kill: bool = False) -> int:
        """End it; its exit status."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        status = self.process.wait(40)
        self.process = None
        return status

    @property
    def socket(self) -> Path:
        return paths.bus_socket(Path(self.environment["LLMOS_HOME"]) / "run")

    def connect(self, token: str | None = None) -> Connection:
        """As the user, or whoever `token` belongs to."""
        connection = Connection(self.socket, token or paths.token_file(self.socket.parent.parent).read_text())
        self._connections.append(connection)
        return connection

    def process_named(self, name: str) -> dict[str, Any]:
        """Its row of `proc.list`."""
        rows: list[dict[str, Any]] = self.connect().call("proc.list")["processes"]
        return next(row for row in rows if row["name"] == name)

    def until(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """What `condition` gives once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := condition():
                return value
            time.sleep(0.02)
        raise AssertionError("it did not come about in time")

    def await_subscriber(self, topic: str) -> None:
        """Until somebody listens to this topic."""
        user = self.connect()
        self.until(lambda: topic in {one["topic"] for one in user.call("bus.list")["subscriptions"]})

    def log(self) -> str:
        return (self.root / "kernel.log").read_text()


def _boot(system: System) -> Iterator[System]:
    assert system.start()["ready"], system.log()
    yield system
    system.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Booted once for all tests of a module that leave it as they found it; without a model."""
    yield from _boot(System(tmp_path_factory.mktemp("s")))


@pytest.fixture(scope="module")
def with_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The same with the real models, loaded."""
    system = System(tmp_path_factory.mktemp("s"))
    system.use_models()
    booted = _boot(system)
    next(booted)
    connection = system.connect()
    system.until(lambda: connection.call("sys.status")["model"]["state"] == "ready", 60)
    yield system
    next(booted, None)


@pytest.fixture
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Not started yet; stopped at the end."""
    made = System(tmp_path_factory.mktemp("s"))
    yield made
    if made.process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            made.stop()
        if made.process is not None:
            made.stop(kill=True)


@pytest.fixture
def running(system: System) -> System:
    """Booted, without a model."""
    assert system.start()["ready"], system.log()
    return system


@pytest.fixture
def offline(llmos_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip knows one folder of wheels, this one, and no index; the user's home and environment hold a secret."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("SECRET", "hunter2")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret").write_text("hunter2")
    return folder
