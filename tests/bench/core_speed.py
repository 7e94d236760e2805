"""The core's engine alone, to measure: reads a task per line, prints tokens per second.

`python -m tests.bench.core_speed FOLDER`, then `prefill TOKENS` or `decode CONTEXT TOKENS` per line. No sampling, no grammar, no text:
what is timed is feeding tokens and having the scores of the next one, as in llama.cpp's `llama-bench`, with random tokens as there.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from llmos.kernel.core import limits
from llmos.kernel.core.engine import Row
from llmos.kernel.core.model import Model, load_model


def main() -> None:
    """Until the end of input. The first line printed says that the model is loaded."""
    model = load_model(Path(sys.argv[1]), "cpu")
    _say("ready")
    for line in sys.stdin:
        task, *numbers = line.split()
        speed = prefill if task == "prefill" else decode
        _say(str(speed(model, *map(int, numbers))))


def prefill(model: Model, count: int) -> float:
    """Tokens per second of reading `count` tokens into an empty row, up to the scores of what follows them."""
    row = _seat(model, count)
    tokens = _tokens(model, count)
    started = time.perf_counter()
    _read(model, row, tokens)
    seconds = time.perf_counter() - started
    model.engine.leave(row)
    return count / seconds


def decode(model: Model, depth: int, count: int) -> float:
    """Tokens per second of `count` single steps in a row that holds `depth` tokens."""
    row = _seat(model, depth + count)
    tokens = _tokens(model, depth + count)
    _read(model, row, tokens[:depth])
    started = time.perf_counter()
    for token in tokens[depth:]:
        model.engine.step([row], [token])
    seconds = time.perf_counter() - started
    model.engine.leave(row)
    return count / seconds


def _seat(model: Model, room: int) -> Row:
    row: Row | None = model.engine.seat(room)
    assert row is not None
    return row


def _read(model: Model, row: Row, tokens: Sequence[int]) -> None:
    """In slices, as the core reads a prompt."""
    for first in range(0, len(tokens), limits.PREFILL_SLICE):
        model.engine.extend(row, tokens[first : first + limits.PREFILL_SLICE])


def _tokens(model: Model, count: int) -> list[int]:
    return random.Random(count).choices(range(model.info.vocab), k=count)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
