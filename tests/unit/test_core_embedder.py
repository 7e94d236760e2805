"""The embedding model's memory of texts, without a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from llmos.kernel.core.embedder import Embedder, Vectors


class CountingEmbedder(Embedder):
    """A text's vector is its length; `computed` are the texts that were not found."""

    def __init__(self) -> None:
        self._cache = OrderedDict()
        self.computed: list[str] = []

    def _batches(self, texts: Sequence[str]) -> Iterator[list[tuple[str, list[int]]]]:
        self.computed += texts
        yield from ([(text, [len(text)])] for text in texts)

    def _run(self, rows: Sequence[list[int]]) -> Vectors:
        return np.array(rows, np.float32)


def test_a_text_that_was_embedded_under_another_label_is_computed_again() -> None:
    """Time and tokens spent would otherwise tell a process which texts were embedded by those whose texts it may not see."""
    embedder = CountingEmbedder()
    spent = [sum(embedder.embed(["a secret"], label)) for label in ("u fs", "t", "t", "u fs")]
    assert spent == [1, 1, 0, 0]
    assert embedder.computed == ["a secret", "a secret"]
