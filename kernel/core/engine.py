"""What a job needs of a model runtime, and nothing of any one runtime: another engine comes behind the same face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from llmos.kernel.core.sampler import Logits


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
        chat: whether the folder has a chat template; without one, messages are rendered as ChatML.
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


class Context(Protocol):
    """A KV cache with its tokens."""

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens whose keys and values are held, oldest first."""

    def align(self, prompt: Sequence[int], room: int) -> int:
        """Keep the longest beginning that the cache and `prompt` share, in pairs (see `job.next_slice`) and without the
        prompt's last two tokens, which are fed again for their logits. Make room for `room` tokens altogether. Returns
        how many tokens were kept.
        """

    def logits(self) -> Logits:
        """A row of the caller's own: the scores of what follows the last token fed."""

    def close(self) -> None:
        """Free the cache; the context is empty and usable afterwards."""


ContextT = TypeVar("ContextT", bound=Context)


class Engine(Protocol[ContextT]):
    """A loaded model, used by one thread only. Every method may raise `OpError` (INTERNAL; BUSY without memory)."""

    def open(self, *, lasting: bool) -> ContextT:
        """An empty context, which costs nothing until it is aligned; `lasting` when more than one job will use it."""

    def extend(self, batch: Sequence[tuple[ContextT, Sequence[int]]]) -> None:
        """Feed each context its tokens (at least one, within its room). Blocks until the model has seen all of them."""
