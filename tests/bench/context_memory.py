"""What contexts cost in memory, and whether it comes back.

64 idle contexts of 512 tokens against the bytes of their keys and values; then contexts are opened, forked, cancelled and closed at
random for some time, and the memory before and after is compared. `python -m tests.bench.context_memory [MODEL] [--minutes N]`
(`make soak`: an hour).
"""

from __future__ import annotations

import argparse
import random
import time

from tests.bench import core_work
from tests.bench.core_process import CoreProcess
from tests.bench.figures import report

CONTEXTS, TOKENS = 64, 512


def idle(core: CoreProcess) -> float:
    """Bytes of memory for each byte of keys and values that idle contexts hold."""
    words = core_work.TEXT.read_text(encoding="utf-8").split(" ")
    text = " ".join(words[: int(TOKENS * 0.72)])
    core.admit(prompt=text, max_tokens=1)  # what the first run of a size allocates for good is not a context's
    core.finish()
    before, held = core.rss(), core.kv["cache"]
    for number in range(CONTEXTS):
        core.admit(context=core.open(), prompt=f"{number}. {text}", max_tokens=1)
        core.finish()
    return float((core.rss() - before) / (core.kv["cache"] - held))


def churn(core: CoreProcess, seconds: float, chance: random.Random) -> tuple[int, int]:
    """What random use leaves behind, in bytes of memory and in descriptors, once it has used everything once."""
    words = core_work.TEXT.read_text(encoding="utf-8").split(" ")
    contexts: list[int] = []
    measured: list[tuple[int, int]] = []
    started = marked = time.monotonic()
    while (now := time.monotonic()) - started < seconds:
        what = chance.random()
        if what < 0.3 or not contexts:
            contexts.append(core.open())
        elif what < 0.45:
            contexts.append(core.open(chance.choice(contexts)))
        elif what < 0.6 or len(contexts) > CONTEXTS:
            core.close(contexts.pop(chance.randrange(len(contexts))))
        elif what < 0.7 and core.states:
            core.cancel(chance.choice(list(core.states)))
        else:
            at = chance.randrange(len(words) - 400)
            text = " ".join(words[at : at + chance.randrange(1, 400)])
            core.admit(context=chance.choice(contexts), prompt=text, max_tokens=chance.randrange(24), temperature=1.0)
        while core.states and (chance.random() < 0.8 or len(core.states) > 12):
            core.turn()
        if now - marked > seconds / 20:
            marked = now
            measured.append((core.rss(), core.descriptors()))
    early, late = measured[len(measured) // 4 : len(measured) // 2], measured[-len(measured) // 4 :]
    return tuple(max(each[at] for each in late) - max(each[at] for each in early) for at in (0, 1))  # type: ignore[return-value]  # two


def main() -> None:
    """Print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--minutes", type=float, default=1.0, help="of random use (default 1)")
    options = parser.parse_args()
    with CoreProcess(options.model) as core:
        overhead = idle(core)
    with CoreProcess(options.model, kv_bytes=256 << 20, spill_bytes=256 << 20) as core:
        drift, descriptors = churn(core, options.minutes * 60, random.Random(1))
    figures: dict[str, float | int | str] = {
        "overhead_ratio": overhead,
        "rss_drift_mb": drift / 1e6,
        "descriptor_drift": descriptors,
        "minutes": options.minutes,
        "contexts": CONTEXTS,
        "tokens": TOKENS,
    }
    report("context_memory", figures, model=options.model)


if __name__ == "__main__":
    main()
