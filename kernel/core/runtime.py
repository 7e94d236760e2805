"""How both models use this machine's processors."""

from __future__ import annotations

import os

SPINNING = ("session.intra_op.allow_spinning", "0")
"""Threads sleep while they wait: the kernel, the gate and the drivers share these cores, and a thread that spins for a
partner which has lost its core halves the speed of both (measured: 30 instead of 55 tokens/s next to one busy process).
"""


def threads() -> int:
    """One for each processor this process may use; left to itself, the runtime takes half of two."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
