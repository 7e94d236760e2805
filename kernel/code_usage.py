"""What a program uses, as Linux tells it. No more than a few short files of `/proc` are read. Source: proc(5)."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_TICK = os.sysconf("SC_CLK_TCK")
_MOST = 256
"""Processes of one program that are looked at."""
_OWN = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)


class Usage(NamedTuple):
    """Megabytes of 10⁶ bytes, and seconds of all processors."""

    now_mb: float = 0.0
    """Of memory of its own."""
    peak_mb: float = 0.0
    cpu_s: float = 0.0


def usage(pid: int, init: int | None, before: Usage) -> Usage:
    """Of one process, or of all that descend from `init`; what has ended meanwhile is remembered by `before`."""
    memory, spent = 0.0, 0.0
    for one in [pid] if init is None else _family(init):
        with suppress(OSError, IndexError, ValueError):  # it has ended
            status = Path(f"/proc/{one}/status").read_bytes()
            memory += sum(int(size) for size in _OWN.findall(status)) * 1024 / 1e6
            fields = Path(f"/proc/{one}/stat").read_bytes().rpartition(b")")[2].split()
            spent += sum(map(int, fields[11:15])) / _TICK
    return Usage(memory, max(before.peak_mb, memory), max(before.cpu_s, spent))


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        if len(found) > _MOST:
            break
    return found
