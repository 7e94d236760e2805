"""One prompt and the text that follows it, on a row of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits
from llmos.kernel.core.engine import Row
from llmos.kernel.core.grammar import compile_grammar
from llmos.kernel.core.request import Request
from llmos.kernel.core.sampler import Logits, Sampler
from llmos.kernel.core.speculation import Lookup
from llmos.kernel.core.stream import TextStream

if TYPE_CHECKING:
    from llmos.kernel.core.model import Model

Clock = Callable[[], float]


class Passage:
    """What is decided of a text is `text`: the prompt and the output. The row holds a beginning of it, all but the last few.

    While anything is `unread`, the row has to be brought up to what was decided: at first the prompt, and later everything, when
    the row was given back in between. After that every run feeds what was decided since, and its logits say what may follow.
    What it computes, and in which runs, depends on the request alone, never on who else is working.

    Args:
        request: how to pick.
        prompt: at least one token.
        label: whose cache may help.

    Raises:
        OpError: INVALID_ARGUMENT (the grammar).
    """

    def __init__(
        self, request: Request, prompt: list[int], model: Model, label: str, clock: Clock = time.monotonic
    ) -> None:
        self.prompt, self.label = prompt, label
        self.max_tokens = min(request.max_tokens, model.info.context - len(prompt))
        self.output: list[int] = []
        self.row: Row | None = None
        self.finish: str | None = None
        self.forced = 0
        """Tokens that a grammar left no choice about, since somebody counted."""
        self.stream = TextStream(request.stop)
        self._model, self._clock = model, clock
        self._grammar = compile_grammar(request, model.tokenizer.grammars)
        self._skips = request.skip_forced
        self._sampler = Sampler(request, prompt)
        self._lookup = Lookup(prompt) if request.speculate and model.engine.looks_back and not self._grammar else None
        self._draft: list[int] = []
        self._pending = 0
        """How many of the last tokens decided on have not been fed; 0 before the first decision."""
        if self._grammar is not None and self._skips and self.max_tokens:
            self._force(self._grammar.begin())

    @property
    def text(self) -> list[int]:
        """The tokens decided on."""
        return self.prompt + self.output

    @property
    def unread(self) -> int:
        """Tokens that must be read before the next decision."""
        if self.finish is not None:
            return 0
        held = 0 if self.row is None else len(self.row.tokens)
        return len(self.prompt) + len(self.output) - self._pending - held

    def known(self) -> int:
        """How many of the prompt's tokens need not be read, as things stand."""
        return self._model.seats.known(self.label, self.prompt[:-2])

    def read(self, budget: int) -> tuple[int, int]:
        """Read on, up to about `budget` tokens; how many were, and how many more were known already. Raises `OpError`."""
        if self.finish is not None:  # the grammar left nothing to decide
            return 0, 0
        text = self.text[: len(self.prompt) + len(self.output) - self._pending]
        cached = self._sit(text)
        row = self.row
        assert row is not None  # noqa: S101 -- it sits
        unread = len(text) - len(row.tokens)
        if not unread:
            return 0, cached
        before = self._clock()
        count = next_slice(unread, min(budget, self._model.pace.slice))
        logits = self._model.engine.extend(row, text[len(row.tokens) : len(row.tokens) + count])
        self._model.pace.measure(count, seconds := self._clock() - before)
        self._model.seats.measure(count, seconds)
        self._model.seats.keep(row, self.label)
        if count == unread and not self._pending:
            self._begin(logits[-1])
        return count, cached

    def feed(self) -> list[int]:
        """What the next run feeds."""
        self._draft = self._lookup.draft()[: self._left()] if self._lookup is not None and self._pending == 1 else []
        if len(self._draft) % 2 == 0:
            del self._draft[-1:]
        return self.output[len(self.output) - self._pending :] + self._draft

    @property
    def drafted(self) -> int:
        """How many of what `feed` told are drafts."""
        return len(self._draft)

    def take(self, logits: Logits) -> None:
        """Decide, from logits of shape `(1 + drafted, vocab)`. Raises `OpError` when the grammar fails."""
        right = 0
        self._pick(logits[0])
        for scores, guess in zip(logits[1:], self._draft, strict=True):
            if self.finish is not None or self.output[-1] != guess:
                break
            right += 1
            self._pick(scores)
        if self._draft:
            row = self.row
            assert row is not None and self._lookup is not None  # noqa: PT018, S101 -- it has drafted
            self._model.engine.cut(row, len(row.tokens) - len(self._draft) + right)
            self._lookup.judge(len(self._draft), right)
            self._draft = []

    def leave(self) -> None:
        """Give the row back; a passage that is not done takes one again when it reads on."""
        if self.row is not None:
            self._model.seats.leave(self.row, self.label)
            self.row = None

    def _sit(self, text: list[int]) -> int:
        """Take a row, and what is known of the text; how many tokens that is. Raises `OpError(BUSY)` when there is none."""
        cached = 0
        if self.row is None:
            self.row = self._model.seats.seat(self.label, text, len(self.prompt) + self.max_tokens)
            if self.row is None:
                raise OpError(Code.BUSY, "all of the model's rows are taken", "try again in a moment")
            cached = len(self.row.tokens)
        # The last two tokens of a prompt are read again for their logits, and what is read begins at an even place.
        known = len(text) if self._pending else (len(text) - 2) & ~1
        held = len(self.row.tokens)
        if known > held:
            at = self._model.seats.known(self.label, text[:known])
            at = at if at == len(text) else min(at, len(text) - 2) & ~1
            if at > held:
                cached += self._model.seats.catch_up(self.row, self.label, text[:at])
        return cached

    def _force(self, tokens: list[int]) -> None:
        """What the text must begin with is read together with the prompt."""
        self._append(tokens)
        self.forced += self._pending
        self._pending = 0

    def _begin(self, logits: Logits) -> None:
        """The prompt has been read."""
        if self.max_tokens == 0:
            self._end("length")
        else:
            self._pick(logits)

    def _pick(self, logits: Logits) -> None:
        if self._grammar is not None:
            self._grammar.mask(logits)
        token = self._sampler.pick(logits)
        self._pending = 0
        if token in self._model.info.eos:
            self._end("eos")
            return
        tokens = [token]
        if self._grammar is not None:
            forced = self._grammar.advance(token, skip=self._skips)
            self.forced += len(forced)
            tokens += forced
        self._append(tokens)

    def _append(self, decided: list[int]) -> None:
        tokens = decided[: self._left()]
        for token in tokens:
            self.stream.push(self._model.tokenizer.bytes_of(token))
        self._sampler.see(tokens)
        self.output += tokens
        self._pending = len(tokens)
        if self._lookup is not None:
            self._lookup.add(tokens)
        matched = self._grammar is not None and self._grammar.complete and len(tokens) == len(decided)
        if self.stream.stopped or matched:
            self._end("stop")
        elif len(self.output) >= self.max_tokens:
            self._end("length")

    def _left(self) -> int:
        return self.max_tokens - len(self.output)

    def _end(self, finish: str) -> None:
        self.stream.finish()
        self.finish = finish


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
