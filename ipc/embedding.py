"""Texts to vectors over the bus, however many there are: one `llm.embed` takes a bounded number of bounded texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmos.ipc.errors import Code, OpError

MAX_TEXTS = 40
"""Texts in one call: their vectors fill a reply."""
MAX_CHARS = 8000
"""Characters of one text that are sent; the embedding models here read far fewer."""
MAX_BYTES = 48 * 1024
"""Bytes of text in one call, which leaves room in a body for what surrounds them."""
DIM = 384
"""Dimensions of all-MiniLM-L6-v2, the embedding model; the shape of an empty answer."""

Vectors = npt.NDArray[np.float32]
Call = Callable[[str, dict[str, Any]], dict[str, Any]]


def embed(call: Call, texts: Sequence[str]) -> Vectors:
    """One row of length 1 per text, in order: float32 `[len(texts), dim]`. Blocks for as many calls as it takes.

    Raises `OpError`: `UNAVAILABLE` when there is no embedding model, and whatever else `llm.embed` answers.
    """
    parts = [_unpack(call("llm.embed", {"texts": batch}), len(batch)) for batch in _batches(texts)]
    return np.concatenate(parts) if parts else np.empty((0, DIM), np.float32)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        cut = text[:MAX_CHARS]
        length = len(cut.encode()) + 5  # msgpack's longest header of a string
        if batch and (len(batch) == MAX_TEXTS or size + length > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(cut)
        size += length
    if batch:
        yield batch


def _unpack(reply: dict[str, Any], count: int) -> Vectors:
    dim, data = reply.get("dim"), reply.get("vectors")
    if not isinstance(dim, int) or not isinstance(data, bytes) or len(data) != 4 * dim * count:
        raise OpError(Code.INTERNAL, f"llm.embed answered something else than {count} vectors")
    return np.frombuffer(data, "<f4").reshape(count, dim)
