"""From the start of the kernel's process to a system that serves (gate and all drivers ready), without loading a model."""

from __future__ import annotations

import statistics
import time
from typing import Any

from tests.bench.figures import report
from tests.bench.live import booted

ROUNDS = 7


def main() -> None:
    """Print and keep the figures."""
    seconds: list[float] = []
    memory: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        told: dict[str, Any] = {}
        with booted(models=False, told=told) as client:
            seconds.append(told["at"] - started)
            for _ in range(1000):
                client.call("sys.ping")
            memory.append(client.call("sys.status")["rss_mb"])
    report(
        "boot",
        {
            "seconds": statistics.median(seconds),
            "seconds_max": max(seconds),
            "kernel_rss_mb": max(memory),
            "rounds": ROUNDS,
        },
    )


if __name__ == "__main__":
    main()
