"""One job's work, a step at a time: generations, and embeddings behind the same face."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits
from llmos.kernel.core.engine import Context
from llmos.kernel.core.grammar import compile_grammar
from llmos.kernel.core.model import Model
from llmos.kernel.core.request import Request
from llmos.kernel.core.sampler import Sampler
from llmos.kernel.core.stream import TextStream

if TYPE_CHECKING:
    from llmos.kernel.core.embedder import Embedder

Clock = Callable[[], float]


class Job(Protocol):
    """What the loop runs.

    Attributes:
        job: the kernel's number for it.
        finish: why it ended (`stop`, `eos`, `length`, `cancelled`), None while there is more to do.
        prefill, decode: tokens read and tokens produced since `begin`.
    """

    job: int
    finish: str | None
    prefill: int
    decode: int

    def begin(self) -> None:
        """A quantum starts: count from nought."""

    def step(self, budget: int) -> None:
        """The least piece of work, of at most `budget` tokens where it can be cut. Raises `OpError`: it has failed."""

    def chunk(self, *, last: bool) -> dict[str, Any] | None:
        """The message with the text that is due now; with `last`, all there is."""

    def report(self) -> dict[str, Any]:
        """The message that ends the quantum."""


class Generation:
    """A text in the making.

    `pending` are tokens decided and not yet fed to the model: first what is left of the prompt, then each token as it
    is picked, with those that a grammar forces after it. With nothing pending, the context's logits say what may follow.

    Args:
        request: what was asked for.
        model: the loaded model.
        context: the cache to work in; nobody else may use it until the job has ended.
        pace: the model's prefill slice.

    Raises:
        OpError: INVALID_ARGUMENT (the template or the grammar), TOO_LARGE (over the window), BUSY (memory).
    """

    def __init__(
        self, request: Request, model: Model, context: Context, pace: Pace, clock: Clock = time.monotonic
    ) -> None:
        prompt, window = model.encode(request), model.info.context
        if len(prompt) >= window:
            raise OpError(
                Code.TOO_LARGE,
                f"the prompt has {len(prompt)} tokens, the model's window is {window}",
                "shorten the prompt or load a model with a larger window",
            )
        self.job = request.job
        self.finish: str | None = None
        self.prefill = self.decode = 0
        self.context = context
        self.prompt_tokens = len(prompt)
        self.max_tokens = min(request.max_tokens, window - len(prompt))
        self._model, self._pace, self._clock = model, pace, clock
        self._grammar = compile_grammar(request, model.tokenizer.grammars)
        self._sampler = Sampler(request, prompt)
        self._stream = TextStream(request.stop)
        self.cached_tokens = context.align(prompt, len(prompt) + self.max_tokens)
        self._pending = prompt[self.cached_tokens :]
        self._unread = len(self._pending)
        self._produced = self._told = 0
        self._due = 0.0

    def begin(self) -> None:
        self.prefill = self.decode = 0

    def step(self, budget: int) -> None:
        if self._unread:
            self._read(next_slice(self._unread, min(budget, self._pace.slice)))
        elif self._pending:
            self._feed(limits.PREFILL_SLICE)
        else:
            self._pick()

    def chunk(self, *, last: bool) -> dict[str, Any] | None:
        now = self._clock()
        if not last and now < self._due:
            return None
        text = self._stream.take()
        if not text:
            return None
        self._due = now + limits.CHUNK_INTERVAL
        tokens, self._told = self._produced - self._told, self._produced
        return {"op": "chunk", "job": self.job, "text": text, "tokens": tokens}

    def report(self) -> dict[str, Any]:
        return ran(self)

    def _read(self, count: int) -> None:
        before = self._clock()
        self._feed(count)
        self._pace.measure(count, self._clock() - before)
        self._unread -= count
        self.prefill += count

    def _feed(self, count: int) -> None:
        self._model.engine.extend([(self.context, self._pending[:count])])
        del self._pending[:count]

    def _pick(self) -> None:
        logits = self.context.logits()
        if self._grammar is not None:
            self._grammar.mask(logits)
        token = self._sampler.pick(logits)
        if token in self._model.info.eos:
            self._end("eos")
            return
        tokens = [token]
        if self._grammar is not None:
            tokens += self._grammar.advance(token)
        self._take(tokens[: self.max_tokens - self._produced])

    def _take(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._stream.push(self._model.tokenizer.bytes_of(token))
        self._sampler.see(tokens)
        self._pending += tokens
        self._produced += len(tokens)
        self.decode += len(tokens)
        if self._stream.stopped or (self._grammar is not None and self._grammar.complete):
            self._end("stop")
        elif self._produced >= self.max_tokens:
            self._end("length")

    def _end(self, finish: str) -> None:
        self._stream.finish()
        self.finish = finish


class Embedding:
    """Vectors in the making. A quantum of it may overshoot by one run of the embedding model, which cannot be cut."""

    def __init__(self, job: int, texts: Sequence[str], embedder: Embedder) -> None:
        self.job = job
        self.finish: str | None = None
        self.prefill = self.decode = 0
        self._work = embedder.embed(texts)
        self._dim = embedder.dim
        self._vectors = b""

    def begin(self) -> None:
        self.prefill = 0

    def step(self, budget: int) -> None:  # noqa: ARG002
        try:
            self.prefill += next(self._work)
        except StopIteration as done:
            self._vectors = done.value.astype("<f4").tobytes()
            self.finish = "stop"

    def chunk(self, *, last: bool) -> None:  # noqa: ARG002
        return None

    def report(self) -> dict[str, Any]:
        if self.finish == "stop":
            return {"op": "embedded", "job": self.job, "dim": self._dim, "vectors": self._vectors}
        return ran(self)


def next_slice(unread: int, limit: int) -> int:
    """How many of `unread` prompt tokens to feed now: about `limit`, an even number, the last slice of all at least two.

    The runtime's kernels take rows in pairs, and round a row without a partner differently. Cut between pairs, a prompt
    gives the same logits bit for bit however it is cut. So a `limit` of 1 or 2 may be passed, up to 3.
    """
    if unread <= max(limit, 3):
        return unread
    count = max(limit & ~1, 2)
    return count - 2 if unread - count == 1 else count


class Pace:
    """How many prompt tokens to feed between two looks at the pipe: fewer on a slower model, which must stay prompt."""

    def __init__(self) -> None:
        self.slice = limits.PREFILL_SLICE

    def measure(self, tokens: int, seconds: float) -> None:
        """Note how long a slice took."""
        if tokens < self.slice:
            return
        if seconds > limits.PREFILL_PATIENCE:
            self.slice = max(self.slice // 2, limits.PREFILL_SLICE_MIN)
        elif seconds * 3 < limits.PREFILL_PATIENCE:
            self.slice = min(self.slice * 2, limits.PREFILL_SLICE)


def ran(job: Job) -> dict[str, Any]:
    """The message that ends a quantum of any job."""
    return {
        "op": "ran",
        "job": job.job,
        "prefill": job.prefill,
        "decode": job.decode,
        "state": "more" if job.finish is None else "done",
        "finish": job.finish,
    }
