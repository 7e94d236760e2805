"""Picking the next token from a row of logits: pure, in NumPy, with a generator of its own for every job."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from llmos.kernel.core.request import Sampling

Logits = NDArray[np.float32]
"""One row of scores over the vocabulary, shape `(vocab,)`; a token that is ruled out has -inf."""


class Sampler:
    """One job's way of picking tokens.

    Args:
        sampling: the parameters.
        seen: tokens of the prompt, which the repetition penalty counts as already there.
    """

    def __init__(self, sampling: Sampling, seen: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self._penalised = sampling.repetition_penalty != 1.0
        self._seen = set(seen) if self._penalised else set()
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))

    def see(self, tokens: Iterable[int]) -> None:
        """Count tokens as already there: those that were picked, and those that a grammar forced."""
        if self._penalised:
            self._seen.update(tokens)

    def pick(self, logits: Logits) -> int:
        """The next token. May write into `logits`; at least one entry must be finite."""
        if self._penalised and self._seen:
            self._penalise(logits)
        if self._sampling.temperature == 0.0:
            return int(logits.argmax())
        return self._draw(logits)

    def _penalise(self, logits: Logits) -> None:
        """Source: Keskar et al. 2019, CTRL, section 4.1, with the sign rule that later implementations agree on."""
        seen = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))
        penalty = np.float32(self._sampling.repetition_penalty)
        scores = logits[seen]
        logits[seen] = np.where(scores > 0, scores / penalty, scores * penalty)

    def _draw(self, logits: Logits) -> int:
        """Temperature, then top-k, top-p and min-p, each over what the one before left, then one draw."""
        chosen = self._sampling
        tokens = likeliest(logits, chosen.top_k) if 0 < chosen.top_k < logits.size else None
        scores = logits if tokens is None else logits[tokens]
        # float64: at a high temperature a vocabulary's worth of small float32 weights does not add up to their sum.
        weights = np.exp((scores - scores.max()).astype(np.float64) / chosen.temperature)
        if chosen.top_p < 1.0:
            kept = nucleus(weights, chosen.top_p)
            tokens, weights = (kept if tokens is None else tokens[kept]), weights[kept]
        if chosen.min_p > 0.0:
            weights = np.where(weights >= chosen.min_p * weights.max(), weights, 0.0)
        reached = np.cumsum(weights)
        drawn = min(self._random.random() * reached[-1], np.nextafter(reached[-1], 0.0))
        index = int(np.searchsorted(reached, drawn, side="right"))
        return index if tokens is None else int(tokens[index])


# Both below look for the few largest of a vocabulary by lowering a threshold until enough stand above it: a pass over
# 49,152 numbers takes 10 µs, numpy's partition of them 700.


def likeliest(scores: Logits, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest scores, largest first; of equal ones, the first."""
    top = scores.max()
    for depth in (4.0, 8.0, 16.0, 32.0):
        found = np.flatnonzero(scores >= top - depth)
        if found.size >= count:
            break
    else:
        found = np.arange(scores.size)
    return found[np.argsort(-scores[found], kind="stable")[:count]]


def nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Indices of the fewest weights, largest first, that reach `top_p` of their sum; at least one.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1.
    """
    top, wanted = weights.max(), top_p * float(weights.sum())
    for share in (1e-2, 1e-4, 1e-6):
        found = np.flatnonzero(weights >= share * top)
        if float(weights[found].sum()) >= wanted:
            break
    else:
        found = np.arange(weights.size)
    ordered = found[np.argsort(-weights[found], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[ordered]), wanted)) + 1
    return ordered[:count]
