"""What a text of 1,000 tokens costs that was read before: found in memory, found in a file, and read again.

`python -m tests.bench.eviction [MODEL]`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from llmos.ipc import paths
from llmos.kernel.core.model import load_model
from llmos.kernel.core.seats import CachedSeats, Memory
from tests.bench import core_work
from tests.bench.figures import report

TOKENS, ROUNDS = 1000, 5


def main() -> None:
    """Print and keep the figures."""
    name = core_work.chosen()
    seconds: dict[str, list[float]] = {"reread": [], "from_memory": [], "from_file": []}
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(paths.models_dir() / name, "cpu", Memory(1 << 30, Path(folder), 1 << 30))
        seats = model.seats
        assert isinstance(seats, CachedSeats)
        for text in core_work.passages(model, ROUNDS, TOKENS):
            for kind, taken in seconds.items():
                if kind == "reread":
                    seats.cache.clear()
                elif kind == "from_file":
                    seats.cache.shrink(0)
                job = core_work.generation(name, model, text, 1)
                started = time.perf_counter()
                core_work.read([job])
                taken.append(time.perf_counter() - started)
                core_work.leave([job])
    medians = {kind: statistics.median(taken) for kind, taken in seconds.items()}
    figures: dict[str, float | int | str] = {
        "file_speedup": medians["reread"] / medians["from_file"],
        "memory_speedup": medians["reread"] / medians["from_memory"],
        **{f"{kind}_s": taken for kind, taken in medians.items()},
        "tokens": TOKENS,
    }
    report("eviction", figures, model=name)


if __name__ == "__main__":
    main()
