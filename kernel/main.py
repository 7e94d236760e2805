"""Boot: a list of steps, and the loop. `python -m llmos.kernel [--home DIR] [--model NAME] [--tier A|B] [--ready-fd N]`."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import structlog

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.kernel import cgroup, guard, jail
from llmos.kernel.audit import Audit
from llmos.kernel.audit import Kind as AuditKind
from llmos.kernel.events import Events
from llmos.kernel.journal import Journal
from llmos.kernel.kernel import Kernel, Stores
from llmos.kernel.launch import Places, private_directory
from llmos.kernel.loop import Loop
from llmos.kernel.process import LogRing

LOCK_S = 0.3
"""Seconds to try for the lock: what a killed kernel was forking holds it until it executes something else."""
EXIT = {Code.CONFLICT: 8, Code.NOT_FOUND: 3}
"""Exit status by error; 1 for the others."""


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT or `sys.shutdown`."""
    arguments = _arguments(argv)
    ring = LogRing()
    _set_up_logs(ring)
    loop = Loop(failed=lambda error: structlog.get_logger().error("loop.bug", exc_info=error))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to end in order
    kernel, watcher = None, -1
    try:
        places = _places(arguments.home)  # directories of our own
        watcher = guard.start(guard.mark(places.runtime))  # ends what we leave behind, should we be killed
        lock = _lock(places)  # one kernel per runtime directory
        _tidy(places)  # what a kernel that was killed has left
        report = _sandbox(arguments.tier)  # what this machine can confine, by trying
        groups = cgroup.probe()  # whether Linux itself can hold what they may use
        journal = Journal(places.state / "journal.db")
        audit = Audit(places.state / "audit.db", journal)
        audit.append(AuditKind.BOOT, "kernel", "boot", "started", sync=True)
        events = Events(places.state / "events.db")
        stores = Stores(journal, audit, events)
        kernel = Kernel(loop, places, stores, report, ring, headless=arguments.headless, groups=groups)
        kernel.load_grants()  # who may do what
        kernel.topics.declare(kernel.programs.drivers.values())  # what is kept of what is published
        _write_token(places, kernel.peers.user_token)  # what a person's programs prove themselves with
        kernel.on_ready = lambda: _tell(
            arguments.ready_fd, {"ready": True, "pid": os.getpid(), "seconds": round(kernel.ready_s, 3)}
        )
        _set_up_signals(kernel)
        kernel.start_gates()  # from here on anybody can connect
        kernel.drivers.start_all()
        kernel.watch()
        kernel.engine.choose(arguments.model)  # loaded once the drivers are up
        loop.run()
        if kernel.failed is not None:
            raise kernel.failed
    except OpError as error:
        _fail(arguments.ready_fd, error)
    finally:
        if kernel is not None:
            kernel.close()
            runtime = kernel.places.runtime
            for path in (
                paths.token_file(runtime),
                paths.bus_socket(runtime),
                paths.apps_socket(runtime),
                paths.egress_socket(runtime),
            ):
                path.unlink(missing_ok=True)
        loop.close()
        if watcher >= 0:
            guard.dismiss(watcher)
    os.close(lock)
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llmos.kernel", description="The llmos kernel. People start it with `llmosctl up`."
    )
    parser.add_argument("--home", type=Path, default=Path.home(), help="the user's home: what ~ means in a capability")
    parser.add_argument("--model", help="name of the model to load, in place of the default")
    parser.add_argument(
        "--tier", type=jail.Tier, default=jail.Tier.A, help="the weakest sandbox to accept: A (default) or B"
    )
    parser.add_argument(
        "--headless", action="store_true", help="nobody is there to ask: what would need approval is denied"
    )
    parser.add_argument(
        "--ready-fd", type=int, default=-1, help="descriptor to write one line of JSON to, when ready or failed"
    )
    return parser.parse_args(argv)


def _sandbox(tier: jail.Tier) -> jail.Report:
    report = jail.probe()
    try:
        report.require(tier)
    except jail.JailError as error:
        raise OpError(Code.UNAVAILABLE, str(error), error.hint or None) from None
    return report


def _places(home: Path) -> Places:
    if not home.is_dir():
        raise OpError(Code.NOT_FOUND, f"{home} is not a directory", "give the user's home with --home")
    runtime = private_directory(paths.runtime_dir())
    bus = private_directory(paths.bus_socket(runtime).parent) / paths.bus_socket(runtime).name
    if len(os.fsencode(bus)) > paths.MAX_SOCKET_PATH:
        raise OpError(
            Code.INVALID_ARGUMENT,
            f"{bus} is longer than the {paths.MAX_SOCKET_PATH} bytes a socket's path may have",
            "choose a shorter LLMOS_HOME",
        )
    return Places(
        home.resolve(), private_directory(paths.state_dir()), runtime, paths.models_dir(), paths.packages_dir()
    )


def _lock(places: Places) -> int:
    lock = os.open(places.runtime / "kernel.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                detail = f"llmos is already running in {places.runtime}"
                raise OpError(Code.CONFLICT, detail, "use it, or end it with `llmosctl down`") from None
            time.sleep(0.02)
        else:
            return lock


def _tidy(places: Places) -> None:
    """Whoever holds the lock is alone: what is left of earlier kernels' jails is nobody's."""
    found = guard.sweep(f"{places.runtime}:")
    if found:
        structlog.get_logger().warning("boot.orphans", killed=found)


def _write_token(places: Places, token: str) -> None:
    path = paths.token_file(places.runtime)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(token)


def _set_up_signals(kernel: Kernel) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the loop hears of it through the wake-up descriptor
    kernel.supervisor.on_signal = lambda _: kernel.shutdown()


def _set_up_logs(ring: LogRing) -> None:
    renderer: Any = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()

    def keep(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        line = " ".join(f"{key}={value!r}" for key, value in event.items() if value is not None)
        ring.add(line)
        return event

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            keep,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if os.environ.get("LLMOS_DEBUG") else logging.INFO
        ),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=True,
    )


class _Stderr:
    """Where log lines go. A closed pipe or a full disk costs the line, not the system."""

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


def _tell(fd: int, message: dict[str, Any]) -> None:
    if fd >= 0:
        with suppress(OSError):  # whoever waited has gone
            os.write(fd, json.dumps(message).encode() + b"\n")
            os.close(fd)


def _fail(fd: int, error: OpError) -> NoReturn:
    if fd < 0:  # whoever gave the descriptor tells the person
        structlog.get_logger().error("boot.failed", err=error.code.value, detail=error.detail, hint=error.hint)
    _tell(fd, {"error": error.to_wire()})
    raise SystemExit(EXIT.get(error.code, 1))
