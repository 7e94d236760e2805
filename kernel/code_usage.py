"""What a program uses, all its processes together, as Linux tells it. Source: proc(5)."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llmos.kernel import usage

_OWN = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)
_AT_ONCE = 4
"""Processes that are looked at before the loop goes on."""


class Usage(NamedTuple):
    """Megabytes of 10⁶ bytes, and seconds of all processors."""

    now_mb: float = 0.0
    """Of memory of its own; libraries that others have mapped too do not count."""
    peak_mb: float = 0.0
    cpu_s: float = 0.0
    held_bytes: int = 0
    """On the disk, of files that it has deleted and holds open, as far as that may be seen."""


def look(monitor: int, device: int, before: Usage) -> Generator[None, None, Usage]:
    """Of all that descends from `monitor`, some of it at a time; what has ended meanwhile is remembered by `before`.

    Args:
        device: where its project lies.
    """
    pids, memory, cpu_s, held = usage.members(monitor), 0.0, 0.0, 0
    for start in range(0, len(pids), _AT_ONCE):
        if start:
            yield
        some = pids[start : start + _AT_ONCE]
        for pid in some:
            with suppress(OSError):  # it has ended
                status = Path(f"/proc/{pid}/status").read_bytes()
                memory += sum(int(size) for size in _OWN.findall(status)) * 1024 / 1e6
        seen = usage.sample(some, device)
        cpu_s, held = cpu_s + seen.cpu_s, held + seen.held_disk
    return Usage(memory, max(before.peak_mb, memory), max(before.cpu_s, cpu_s), held)
