"""A system for a benchmark: booted on an empty home of its own, ended afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmos.ipc import paths
from llmos.ipc.connection import Connection


@contextmanager
def booted(
    *, models: bool, model: str | None = None, told: dict[str, Any] | None = None, log: Path | None = None
) -> Iterator[Connection]:
    """A connection as the user. `told` takes what the kernel said when it was ready, and where its bus is; its log goes to the file `log`.

    `model` is the one to load instead of the default.
    """
    store = paths.models_dir()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "user"
        home.mkdir()
        environment = {
            **os.environ,
            "LLMOS_HOME": str(Path(directory) / "os"),
            "LLMOS_MODELS": str(store if models else Path(directory) / "none"),
        }
        read, write = os.pipe()
        command = [sys.executable, "-m", "llmos.kernel", "--home", str(home), "--ready-fd", str(write)]
        command += ["--model", model] if model else []
        with (log or Path(os.devnull)).open("ab") as stderr:
            kernel = subprocess.Popen(command, env=environment, pass_fds=(write,), stderr=stderr)
        os.close(write)
        try:
            with os.fdopen(read, "rb") as stream:
                ready = json.loads(stream.readline())
            if told is not None:
                told.update(ready, at=time.perf_counter())
            runtime = Path(environment["LLMOS_HOME"]) / "run"
            if told is not None:
                told["runtime"] = runtime
            with connect(runtime) as connection:
                while models and connection.call("sys.status")["model"]["state"] != "ready":
                    time.sleep(0.05)
                yield connection
        finally:
            kernel.terminate()
            kernel.wait(15)


def connect(runtime: Path) -> Connection:
    """Another connection as the user."""
    return Connection(paths.bus_socket(runtime), paths.token_file(runtime).read_text())
