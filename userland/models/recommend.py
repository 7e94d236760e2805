"""Which model of the catalogue suits a machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llmos.userland.models.catalog import Entry

SHARE = 0.5
"""Of the memory that is available now: the rest is for everything else that runs, and for longer contexts."""
PARAMETERS_PER_CORE = 1_000_000_000
"""So that an answer comes about as fast as one reads: 1.5 billion make 15 to 25 tokens/s on two cores."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes of memory that are available now, and processors this process may use."""

    memory: int
    cores: int


def this_machine(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Machine:
    """What Linux says is available, and what a control group (a container's, say) leaves of it; elsewhere all memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit, used = ((groups / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        memory = min(memory, max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no group of its own, or one without a limit ("max")
        pass
    return Machine(memory, cores)


def fits(entry: Entry, machine: Machine) -> bool:
    """Whether half of the memory that is available holds it."""
    return entry.ram <= machine.memory * SHARE


def quick(entry: Entry, machine: Machine) -> bool:
    """Whether it would answer about as fast as one reads."""
    return entry.parameters <= machine.cores * PARAMETERS_PER_CORE


def recommended(entries: Iterable[Entry], machine: Machine) -> Entry | None:
    """The most capable generator that fits and is quick, and whose licence asks for nothing. `entries` in the catalogue's order."""
    generators = (entry for entry in entries if entry.kind == "generator" and not entry.terms)
    suitable = [entry for entry in generators if fits(entry, machine) and quick(entry, machine)]
    return suitable[-1] if suitable else None
