"""How models of both kinds use this machine's processors."""

from __future__ import annotations

import os

SPINNING = (("session.intra_op.allow_spinning", "1"), ("session.intra_op.spin_duration_us", "50"))
"""A thread that waits for its partners spins for as long as a hand-over between two operators takes, and then sleeps.

Measured at 135M: a quarter more tokens/s than without spinning on an idle machine, as many as with endless spinning. Beside one busy
process, with whom the processors are shared, endless spinning loses 38 %, this 22 %.
"""


def threads() -> int:
    """One for each processor this process may use; left to itself, the runtime takes half of two."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
