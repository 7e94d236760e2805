"""What a job needs of a model runtime, and nothing of any one runtime: two engines come behind this face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmos.kernel.core.sampler import Logits

KV = NDArray[np.float32]
"""Keys and values of some tokens, shape `(2 * layers, kv_heads, tokens, head_size)`, keys at the even places."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a loaded model.

    Attributes:
        parameters: count of weights, None when the folder does not say.
        vocab: rows of the logits.
        context: tokens of the window, prompt and answer together.
        provider: the execution provider that runs it, e.g. `cpu`.
        bos: the token a text begins with, None for a model without one.
        eos: the tokens that end a text.
        kv_bytes: of one token in a context's cache.
        rows: texts that may be worked on at once.
        chat: whether the folder has a chat template; without one, messages are rendered as ChatML.
        engine: `batched` or `genai`.
        why: the reason for that engine, a sentence for people.
    """

    name: str
    architecture: str
    parameters: int | None
    vocab: int
    context: int
    provider: str
    bos: int | None
    eos: tuple[int, ...]
    kv_bytes: int
    chat: bool
    rows: int = 0
    engine: str = ""
    why: str = ""


class Row(Protocol):
    """A place in the engine where one job's keys and values are worked on."""

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens whose keys and values are held, oldest first."""


RowT = TypeVar("RowT", bound=Row)


class Engine(Protocol[RowT]):
    """A loaded model, used by one thread only. Every method may raise `OpError` (INTERNAL; BUSY without memory).

    Attributes:
        name, why: see `ModelInfo.engine`.
        rows: how many there may be at once.
        looks_back: whether `extend` can tell the logits of more than the last position.
        portable: whether a row's keys and values can be taken out and put into another.
    """

    name: str
    why: str
    rows: int
    looks_back: bool
    portable: bool

    def seat(self, room: int) -> RowT | None:
        """An empty row in which `room` tokens will find place; None when all are taken."""

    def leave(self, row: RowT) -> None:
        """Give a row back, and its memory."""

    def extend(self, row: RowT, tokens: Sequence[int], told: int = 1) -> Logits:
        """Feed one row its tokens, and return the logits after the last `told` of them, shape `(told, vocab)`.

        Blocks until the model has seen them. However a text is cut into calls, its logits are the same bit for bit as
        long as every call but the last has an even number of tokens and none has one (see `passage.next_slice`).
        """

    def step(self, rows: Sequence[RowT], tokens: Sequence[int]) -> Logits:
        """Feed each row one token; logits of shape `(rows, vocab)`, each as if the row were alone, bit for bit.

        They are the caller's to change, and good until the next run.
        """

    def cut(self, row: RowT, length: int) -> None:
        """Forget all of a row but its first `length` tokens."""

    def take(self, row: RowT, start: int, stop: int) -> KV:
        """A view of what a row holds of its tokens `start` to `stop`, good until the row changes. Portable engines only."""

    def put(self, row: RowT, tokens: Sequence[int], kv: KV) -> None:
        """Append tokens whose keys and values are known. Portable engines only."""
