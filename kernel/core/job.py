"""One job's work, a piece at a time: generations, and embeddings behind the same face."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits
from llmos.kernel.core.conversation import Conversation, Paging
from llmos.kernel.core.engine import Engine, Row
from llmos.kernel.core.passage import Passage
from llmos.kernel.core.request import Request

if TYPE_CHECKING:
    from llmos.kernel.core.embedder import Embedder
    from llmos.kernel.core.model import Model

Clock = Callable[[], float]


class Job(Protocol):
    """What a turn works on.

    Attributes:
        job: the kernel's number for it.
        model: the name of the model it is for.
        finish: why it ended (`stop`, `eos`, `length`, `cancelled`, `failed`), None while there is more to do.
        prefill, cached, decode, forced: since `begin`, tokens of the prompt read, and found in the cache; tokens produced, and
            how many of them no decision was needed for.
    """

    job: int
    model: str
    finish: str | None
    prefill: int
    cached: int
    decode: int
    forced: int

    def begin(self) -> None:
        """A turn starts: count from nought."""

    def read(self, budget: int) -> None:
        """Read some of the prompt, at most about `budget` tokens. Raises `OpError`: it has failed."""

    def chunk(self, *, last: bool) -> dict[str, Any] | None:
        """The message with the text that is due now; with `last`, all there is."""

    def leave(self) -> None:
        """Give back what it holds of the engine."""

    def close(self) -> None:
        """It has ended of itself."""


class Generation:
    """A text in the making: one passage, or before it another that summarises what its conversation pages out.

    Args:
        request: what was asked for.
        name: of the model.
        model: the loaded model.
        conversation: what the request's words and the answer belong to, once there is one: a job that is cancelled or fails
            leaves it as it was. None for a prompt by itself.

    Raises:
        OpError: INVALID_ARGUMENT (the template, the grammar, turns in a raw text), TOO_LARGE (over the window).
    """

    def __init__(
        self,
        request: Request,
        name: str,
        model: Model,
        conversation: Conversation | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.job, self.model, self.label = request.job, name, request.label
        self.finish: str | None = None
        self.prefill = self.cached = self.decode = self.forced = 0
        self._request, self._model, self._clock = request, model, clock
        self.conversation = conversation
        self._successor: Conversation | None = None
        """What the conversation becomes once the job has ended of itself."""
        if conversation is not None:
            self._successor = conversation.fork()
            self._successor.add(request)
        self._paging: Paging | None = None
        self._paged = False
        self._produced = self._told = self._settled = 0
        self._text: list[str] = []
        self._due = 0.0
        self.passage = self._first()

    @property
    def prompt_tokens(self) -> int:
        return len(self.passage.prompt)

    @property
    def max_tokens(self) -> int:
        return self.passage.max_tokens

    @property
    def row(self) -> Row | None:
        return self.passage.row

    @property
    def engine(self) -> Engine[Any]:
        return self._model.engine

    @property
    def drafted(self) -> int:
        """How many of the tokens that `feed` told are drafts."""
        return self.passage.drafted

    def known(self) -> int:
        """Tokens of the prompt that need not be read, as things stand."""
        return self.passage.known()

    def take_paged(self) -> bool:
        """Whether it has paged its conversation since somebody asked, and begins anew."""
        paged, self._paged = self._paged, False
        return paged

    @property
    def reading(self) -> bool:
        """Whether there is text to read before the next decision."""
        return self.passage.unread > 0

    def begin(self) -> None:
        self.prefill = self.cached = self.decode = self.forced = 0

    def read(self, budget: int) -> None:
        prefill, cached = self.passage.read(budget)
        self.prefill += prefill
        self.cached += cached
        if not self.reading:
            self._settle()

    def feed(self) -> list[int]:
        """What the next run feeds: the tokens decided on, and those drafted behind them."""
        return self.passage.feed()

    def take(self, logits: Any) -> None:
        """Go on from the logits after the last of what was fed, and after each of the drafts. Raises `OpError`."""
        self.passage.take(logits)
        self._settle()

    def chunk(self, *, last: bool) -> dict[str, Any] | None:
        now = self._clock()
        if self._paging is not None or (not last and now < self._due):
            return None
        text = self.passage.stream.take()
        if not text:
            return None
        self._text.append(text)
        self._due = now + limits.CHUNK_INTERVAL
        tokens, self._told = self._produced - self._told, self._produced
        return {"op": "chunk", "job": self.job, "text": text, "tokens": tokens}

    def leave(self) -> None:
        self.passage.leave()

    def close(self) -> None:
        """It has ended of itself: its conversation goes on with what was said."""
        if self.conversation is not None and self._successor is not None:
            self._successor.tokens, self._successor.label = self.passage.text, self.label
            if self._request.max_tokens:
                self._successor.answered("".join(self._text))
            self.conversation.become(self._successor)

    def _first(self) -> Passage:
        """The passage to begin with. Raises `OpError`."""
        window = self._model.info.context
        if self._successor is None:
            prompt = self._model.encode(self._request)
        else:
            prompt = self._successor.encode(self._model)
            wanted = min(self._request.max_tokens, window // limits.ANSWER_SHARE)
            if len(prompt) + wanted >= window:
                prompt = self._make_fit(self._successor, prompt, window, wanted)
        if self._paging is not None:
            summary = self._paging.request(self.job, self._model, window)
            return Passage(summary, self._model.encode(summary), self._model, self.label)
        if len(prompt) >= window:
            raise OpError(
                Code.TOO_LARGE,
                f"the prompt has {len(prompt)} tokens, the model's window is {window}",
                "shorten the prompt or load a model with a larger window",
            )
        if self._successor is not None and self._successor.label != self.label:
            self._model.seats.adopt(self._successor.label, self.label, self._successor.tokens)
        return Passage(self._request, prompt, self._model, self.label)

    def _make_fit(self, said: Conversation, prompt: list[int], window: int, wanted: int) -> list[int]:
        """Begin to page, where that helps; the prompt as it is without. Raises `OpError(INVALID_ARGUMENT)`."""
        if said.least(self._model) < window:
            self._paging = said.page(self._model, window - wanted)
            if self._paging is None and len(prompt) >= window and said.summary:
                said.summary = ""  # what is said now counts more
                return said.encode(self._model)
        return prompt

    def _settle(self) -> None:
        """The passage has taken tokens, or is done."""
        produced = len(self.passage.output) - self._settled
        self._settled += produced
        self.decode += produced
        self.forced += self.passage.forced
        self.passage.forced = 0
        self._produced += produced
        if self.passage.finish is None:
            return
        if self._paging is None:
            self.finish = self.passage.finish
            return
        self._paging.done(self.passage.stream.take())
        self.passage.leave()
        self._paging, self._paged = None, True
        self._produced = self._settled = 0
        self.passage = self._first()


class Embedding:
    """Vectors in the making. A piece of it may overshoot by one run of the embedding model, which cannot be cut."""

    reading = True

    def __init__(self, job: int, name: str, texts: Sequence[str], embedder: Embedder, label: str = "") -> None:
        self.job, self.model = job, name
        self.finish: str | None = None
        self.prefill = self.cached = self.decode = self.forced = 0
        self._work = embedder.embed(texts, label)
        self._dim = embedder.dim
        self._vectors = b""

    def begin(self) -> None:
        self.prefill = 0

    def read(self, budget: int) -> None:
        while self.finish is None and self.prefill < budget:
            try:
                self.prefill += next(self._work)
            except StopIteration as done:
                self._vectors = done.value.astype("<f4").tobytes()
                self.finish = "stop"

    def chunk(self, *, last: bool) -> dict[str, Any] | None:
        if not last or self.finish != "stop":
            return None
        return {"op": "embedded", "job": self.job, "dim": self._dim, "vectors": self._vectors}

    def leave(self) -> None:
        pass

    def close(self) -> None:
        pass
