"""The guard: a process that does nothing but wait for the kernel's end, and then ends whatever is left of its jails.

A jail dies with the kernel by itself (`bwrap --die-with-parent`, and its inner half finds nobody to report to), but for a moment while
it is being built: bubblewrap's monitor has asked to die with us and has not yet let its child go on. If the kernel is killed just then,
the child waits for ever. So every process of a jail carries a mark in its environment, and what still carries it once the kernel is gone
is killed: by the guard at once, and by the next boot, should somebody have killed the guard.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "LLMOS_RUN"
"""Environment variable of everything in a jail: `RUNTIME:NUMBER`, of the kernel that started it."""
_SWEEPS_S = (0.0, 0.02, 0.1, 0.3, 0.6)
"""Seconds before each look: what was being forked at the kernel's end has its environment, and shows it, soon after."""


def mark(runtime: Path) -> str:
    """Give this kernel a mark of its own, which its jails inherit."""
    os.environ[VARIABLE] = made = f"{runtime}:{secrets.token_hex(8)}"
    return made


def carries(pid: int, wanted: str) -> bool:
    """Whether a process's mark begins like this. Source: proc(5)."""
    line = f"{VARIABLE}={wanted}".encode()
    with suppress(OSError):
        return any(one.startswith(line) for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return False


def sweep(wanted: str) -> int:
    """Kill all processes whose mark begins like this; how many there were."""
    count = 0
    for entry in os.listdir("/proc"):  # noqa: PTH208  (names, some hundred of them)
        if not entry.isdigit() or not carries(int(entry), wanted):
            continue
        with suppress(OSError):
            fd = os.pidfd_open(int(entry))
            try:
                if carries(int(entry), wanted):  # the number is still that process's
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    count += 1
            finally:
                os.close(fd)
    return count


def start(wanted: str) -> int:
    """Fork the guard, before there are threads, locks and sockets. → the descriptor that keeps it waiting.

    When its last copy is closed the guard sweeps; `dismiss` spares it that.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(read)
        return write
    try:
        _wait(read, wanted)
    finally:
        os._exit(0)


def dismiss(fd: int) -> None:
    """There is nothing left to look after."""
    with suppress(OSError):  # somebody has killed it
        os.write(fd, b".")
    os.close(fd)


def _wait(read: int, wanted: str) -> None:
    os.setsid()  # a Ctrl-C is for the kernel
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(0, read)
    os.closerange(read + 1, os.sysconf("SC_OPEN_MAX"))
    if os.read(read, 1):
        return
    for pause in _SWEEPS_S:
        time.sleep(pause)
        sweep(wanted)
