"""`up`, `down`, `status`: the system itself. `up` starts the kernel as a program; nothing here imports it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from llmos.ipc import paths
from llmos.ipc.connection import Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.userland import notifier
from llmos.userland.cli import session
from llmos.userland.cli.output import Column, Format, Output, as_json, note, record, rows

BOOT_S = 60.0
"""Seconds a boot may take until it says whether it worked."""
DOWN_S = 10.0
"""Seconds an orderly end may take."""
MAX_LOG = 8 * 1024 * 1024
"""Bytes of the kernel's log file beyond which the next start sets it aside as `kernel.log.1`."""


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl up -d --model smollm2-135m")(up)
    app.command(epilog="Example: llmosctl down")(down)
    app.command(epilog="Example: llmosctl status -o json")(status)


def log_file() -> Path:
    """Where a detached kernel writes its log."""
    return paths.state_dir() / "logs" / "kernel.log"


def up(
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return once the system is ready.")] = False,
    home: Annotated[
        Path | None, typer.Option(help="The home that ~ means in permissions; by default your own.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model to load; see `llmosctl model ls`.")] = None,
    tier: Annotated[str, typer.Option(help="The weakest sandbox to accept: A or B; see `llmosctl doctor`.")] = "A",
    headless: Annotated[
        bool, typer.Option("--headless", help="Nobody is there to ask: what would need approval is denied.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Start the system: in the foreground until Ctrl-C, or detached.

    One system runs per LLMOS_HOME; a second `up` ends with exit status 8.
    """
    command = [sys.executable, "-m", "llmos.kernel", "--tier", tier]
    if home is not None:
        command += ["--home", os.fspath(home.expanduser().absolute())]
    if model is not None:
        command += ["--model", model]
    if headless:
        command.append("--headless")
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as answer:
        kernel = _start([*command, "--ready-fd", str(write)], write, detach)
        if detach:
            told = {**_await_ready(kernel, answer), "log": os.fspath(log_file())}
            with log_file().open("ab") as log:
                notifier.start_beside(os.environ, log)
            if output is Format.TABLE:
                note(f"llmos is ready after {told['seconds']:.1f} s (pid {told['pid']}); its log is {told['log']}")
            else:
                record(told, output)
            return
        raise typer.Exit(_run_foreground(kernel, answer))


def _start(command: list[str], write: int, detach: bool) -> subprocess.Popen[bytes]:
    """The kernel, with one end of a pipe that only it holds afterwards."""
    try:
        if not detach:
            return subprocess.Popen(command, pass_fds=(write,), stdin=subprocess.DEVNULL)
        path = log_file()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and path.stat().st_size > MAX_LOG:
            path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as log:
            return subprocess.Popen(
                command, pass_fds=(write,), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        raise OpError(Code.UNAVAILABLE, f"{error.filename}: {error.strerror}", "choose another LLMOS_HOME") from None
    finally:
        os.close(write)


def _await_ready(kernel: subprocess.Popen[bytes], answer: IO[bytes]) -> dict[str, Any]:
    """What the kernel says once it has booted. Raises the `OpError` it failed with."""
    try:
        told = _read_line(answer, BOOT_S)
    except KeyboardInterrupt:
        kernel.terminate()
        raise
    if told is None:
        kernel.terminate()
        raise OpError(Code.TIMEOUT, f"the kernel is not ready after {BOOT_S:.0f} s", f"see {log_file()}")
    if "error" in told:
        kernel.wait()
        raise OpError.from_wire(told["error"])
    if not told:
        status = kernel.wait()
        raise OpError(Code.INTERNAL, f"the kernel ended with status {status} while booting", f"see {log_file()}")
    return told


def _read_line(answer: IO[bytes], seconds: float) -> dict[str, Any] | None:
    """The kernel's one line; empty when it ended without a word, None when none came in time."""
    ready, _, _ = select.select([answer], [], [], seconds)
    if not ready:
        return None
    line = answer.read(65536)
    return dict(json.loads(line)) if line else {}


def _run_foreground(kernel: subprocess.Popen[bytes], answer: IO[bytes]) -> int:
    """Waits for the kernel's end; Ctrl-C reaches it by itself, SIGTERM is passed on. Its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: kernel.terminate())
    told = _read_line(answer, BOOT_S)
    if told and "error" in told:
        kernel.wait()
        raise OpError.from_wire(told["error"])
    if told:
        note(
            f"llmos is ready after {told['seconds']:.1f} s; Ctrl-C ends it, `llmosctl --help` in another terminal helps"
        )
    beside = notifier.start_beside(os.environ) if told else None
    status = kernel.wait()
    if beside is not None:
        beside.terminate()
        beside.wait()
    return status if status >= 0 else 128 - status


def down() -> None:
    """End the system in order: agents, drivers, the model, the bus."""
    try:
        with session.connect() as client:
            pid = int(client.call("sys.status", timeout=5)["pid"])
            with suppress(OpError):  # it is going down already, and answers nobody any more
                client.call("sys.shutdown", timeout=5)
    except Unreachable:
        note("llmos is not running")
        return
    if not _wait_gone(pid, DOWN_S):
        raise OpError(Code.TIMEOUT, f"the kernel (pid {pid}) has not ended after {DOWN_S:.0f} s", f"kill -9 {pid}")


def _wait_gone(pid: int, seconds: float) -> bool:
    """Whether a process has ended, after at most `seconds`."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready, _, _ = select.select([fd], [], [], seconds)
        return bool(ready)
    finally:
        os.close(fd)


def status(output: Output = Format.TABLE) -> None:
    """Say whether the system runs, with which model and drivers."""
    with session.connect() as client:
        found = client.call("sys.status", timeout=5)
        drivers = client.call("driver.list", timeout=5)["drivers"]
    if output is not Format.TABLE:
        whole = {
            **found,
            "drivers": [{key: row.get(key, "") for key in ("name", "state", "status")} for row in drivers],
        }
        as_json(whole, output)
        return
    model = found["model"]
    said = f"{model['name']} ({model['state']})" if model.get("name") else "none: get one with `llmosctl model pull`"
    record(
        {
            "system": f"llmos {found['version']}, pid {found['pid']}, {found['rss_mb']:.0f} MB",
            "up": duration(found["uptime_s"]),
            "home": found["home"],
            "sandbox": f"tier {found['tier']}",
            "model": said + (f": {model['problem']}" if model.get("problem") else ""),
        },
        output,
    )
    print()
    rows(drivers, [Column("driver", lambda row: row["name"]), Column("state"), Column("status")], output, "no drivers")


def duration(seconds: float) -> str:
    """`42 s`, `3 min`, `5 h 20 min`, `2 d 3 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def since(timestamp: float) -> str:
    """How long ago, like `duration`; empty for the kernel's zero."""
    return duration(max(0.0, time.time() - timestamp)) if timestamp else ""
