"""What the model has been doing: counters since boot, and rates of the last seconds. Pure, with an injected clock."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmos.kernel import params


class PerSecond:
    """Things per second, averaged with weights that fall by 1/e every `RATE_S`.

    Source: the load averages of Unix: an exponentially weighted moving average over unevenly spaced events.
    """

    def __init__(self, clock: Callable[[], float], seconds: float = params.RATE_S) -> None:
        self._clock = clock
        self._seconds = seconds
        self._value = 0.0
        self._at = clock()

    def add(self, count: float) -> None:
        """So many more, now."""
        self._value = self.now() + count / self._seconds
        self._at = self._clock()

    def now(self) -> float:
        """Per second."""
        return self._value * math.exp(-max(0.0, self._clock() - self._at) / self._seconds)


@dataclass
class Statistics:
    """Of all models together."""

    clock: Callable[[], float]
    turns: int = 0
    steps: int = 0
    rows: int = 0
    """Job-rows over all steps: `rows / steps` is how full the batches were."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    """`prefill`, `cached`, `decode` and, of these, `forced`."""
    ended: Counter[str] = field(default_factory=Counter)
    """Jobs by their finish, or by the code of their error."""
    kv: dict[str, int] = field(default_factory=lambda: {"rows": 0, "cache": 0, "spilled": 0})
    """Bytes, as the core said last."""

    def __post_init__(self) -> None:
        self._prefill, self._decode = PerSecond(self.clock), PerSecond(self.clock)

    def read(self, tokens: int, cached: int) -> None:
        """So many tokens of prompts were computed, and so many found in the cache."""
        self.tokens.update(prefill=tokens, cached=cached)
        self._prefill.add(tokens)

    def made(self, tokens: int, forced: int) -> None:
        """So many tokens of answers, of which a grammar forced some."""
        self.tokens.update(decode=tokens, forced=forced)
        self._decode.add(tokens)

    def turn(self, ran: Mapping[str, Any]) -> None:
        """One turn is over: the core's `ran`."""
        self.turns += 1
        self.steps += int(ran["steps"])
        self.rows += int(ran["rows"])
        self.prefill_s += float(ran["prefill_s"])
        self.decode_s += float(ran["decode_s"])
        self.kv = {name: int(ran["kv"][name]) for name in self.kv}

    def core_gone(self) -> None:
        """What it held is no more."""
        self.kv = dict.fromkeys(self.kv, 0)

    def describe(self) -> dict[str, Any]:
        """Their part of `llm.stats`."""
        looked = self.tokens["prefill"] + self.tokens["cached"]
        return {
            "turns": self.turns,
            "steps": self.steps,
            "rows": self.rows,
            "prefill_s": round(self.prefill_s, 3),
            "decode_s": round(self.decode_s, 3),
            "tokens": {name: self.tokens[name] for name in ("prefill", "cached", "decode", "forced")},
            "tokens_s": {"prefill": round(self._prefill.now(), 1), "decode": round(self._decode.now(), 1)},
            "ended": dict(self.ended),
            "hit_rate": round(self.tokens["cached"] / looked, 4) if looked else 0.0,
        }
