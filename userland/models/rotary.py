"""Rotary position embedding: what a file's metadata says of it, and the angles it means.

Source: Su et al. 2021, RoFormer, section 3.4.2; Peng et al. 2023, YaRN, section 3; llama.cpp's `rope_yarn` for which keys count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.metadata import Metadata, shown

_BETA_FAST, _BETA_SLOW = 32.0, 1.0
"""YaRN: a pair that turns more often than the first over the trained context keeps its frequency, one that turns less often
than the second is stretched whole. The only values that llama.cpp uses for the supported architectures."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """One rotation of query and key heads; layers with equal ones share their tables."""

    base: float
    scale: float = 1.0
    """Positions are divided by this: linear scaling, and YaRN's for slow pairs."""
    trained_context: int | None = None
    """With YaRN, the context before it was stretched; None without YaRN."""
    factored: bool = False
    """The file's `rope_freqs` divide single frequencies (Llama 3.1's scaling)."""

    def frequencies(self, head_size: int) -> NDArray[np.float64]:
        """Radians per position of each of the head's pairs, [head_size / 2], before `rope_freqs`."""
        exponents = np.arange(0, head_size, 2) / head_size
        plain: NDArray[np.float64] = self.base**-exponents
        stretched = plain / self.scale
        if self.trained_context is None:
            return stretched
        turns = [head_size * math.log(self.trained_context / (beta * 2 * math.pi)) for beta in (_BETA_FAST, _BETA_SLOW)]
        first, last = (turn / (2 * math.log(self.base)) for turn in turns)
        low, high = max(0, math.floor(first)), min(head_size - 1, math.ceil(last))
        kept = 1 - np.clip((np.arange(head_size // 2) - low) / max(0.001, high - low), 0, 1)
        mixed: NDArray[np.float64] = stretched * (1 - kept) + plain * kept
        return mixed

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied with: YaRN's temperature, else 1."""
        return 1.0 if self.trained_context is None else 1 + 0.1 * math.log(self.scale)


def read_rotary(metadata: Metadata, kind: str, trained_context: int, *, factored: bool) -> Rotary:
    """The rotation of a file's layers (of its global ones, where some see a window only). Raises `ImportRejected`."""
    base = metadata.number(f"{kind}.rope.freq_base", 1.0, 1e12, 10_000.0)
    scaling = metadata.text(f"{kind}.rope.scaling.type", "linear")
    for name, neutral in (
        ("attn_factor", 1.0),
        ("yarn_attn_factor", 1.0),
        ("yarn_ext_factor", 1.0),
        ("yarn_beta_fast", _BETA_FAST),
        ("yarn_beta_slow", _BETA_SLOW),
        ("yarn_log_multiplier", 0.0),
        ("alpha", 0.0),
    ):
        key = f"{kind}.rope.scaling.{name}"
        if (value := metadata.number(key, -1e6, 1e6, neutral)) != neutral:
            raise ImportRejected(f"metadata key {key!r}: {value:g} is not supported; {neutral:g} is")
    if scaling == "none":
        return Rotary(base, factored=factored)
    key = f"{kind}.rope.scaling.factor"
    if key not in metadata:
        key = f"{kind}.rope.scale_linear"
    scale = metadata.number(key, 0.0, 1e6, 0.0) or 1.0
    if scale < 1:
        raise ImportRejected(f"metadata key {key!r}: {scale:g} would spread positions; only dividing them is supported")
    if scaling == "linear":
        return Rotary(base, scale, factored=factored)
    if scaling == "yarn":
        if base <= 1:  # its logarithm divides
            raise ImportRejected(f"metadata key '{kind}.rope.freq_base': YaRN needs a base above 1")
        key = f"{kind}.rope.scaling.original_context_length"
        return Rotary(base, scale, metadata.integer(key, 1, 1 << 31, trained_context), factored)
    raise ImportRejected(
        f"metadata key '{kind}.rope.scaling.type': {shown(scaling)} is not supported; none, linear and yarn are"
    )
