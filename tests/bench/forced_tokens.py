"""How much sooner a tool call under a JSON Schema is there when tokens that the schema forces are not decoded one by one.

The same calls with and without, alternating; the prompt has been read before. `python -m tests.bench.forced_tokens [MODEL]`.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from llmos.kernel.core.model import Model
from llmos.kernel.core.request import Message
from tests.bench import core_work
from tests.bench.figures import report

ROUNDS = 5
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "op": {"const": "calendar.create_event"},
        "arguments": {
            "type": "object",
            "properties": {
                "title": {"type": "string", "maxLength": 24},
                "start": {"enum": ["today", "tomorrow", "next week"]},
                "duration_minutes": {"type": "integer", "minimum": 5, "maximum": 480},
                "all_day": {"type": "boolean"},
            },
            "required": ["title", "start", "duration_minutes", "all_day"],
            "additionalProperties": False,
        },
    },
    "required": ["op", "arguments"],
    "additionalProperties": False,
}
ASKED = ("Lunch with Ann tomorrow, one hour.", "Call the dentist today.", "Team meeting next week, half an hour.")


def call(name: str, model: Model, asked: str, *, skip: bool) -> tuple[float, int, int]:
    """Seconds from the read prompt to the whole call, its tokens, and how many of them were forced."""
    said = [Message("user", f"{asked} Answer with the tool call that does it, as JSON.")]
    for _ in range(2):  # the first reads the prompt
        job = core_work.generation(name, model, said, 120, schema=SCHEMA, skip_forced=skip)
        started = time.perf_counter()
        core_work.read([job])
        forced = job.forced
        core_work.decode([job])
        seconds = time.perf_counter() - started
        forced += job.forced
        core_work.leave([job])
    return seconds, len(job.passage.output), forced


def main() -> None:
    """Print and keep the figures."""
    name = core_work.chosen()
    model = core_work.loaded(name)
    speedups, tokens, forced = [], 0, 0
    for _ in range(ROUNDS):
        for asked in ASKED:
            without, _, _ = call(name, model, asked, skip=False)
            with_, tokens, forced = call(name, model, asked, skip=True)
            speedups.append(without / with_)
    figures: dict[str, float | int | str] = {
        "speedup": statistics.median(speedups),
        "least": min(speedups),
        "tokens": tokens,
        "forced": forced,
    }
    report("forced_tokens", figures, model=name)


if __name__ == "__main__":
    main()
