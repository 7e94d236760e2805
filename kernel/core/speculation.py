"""What may come next because it came next before: drafts from the text itself, which cost nothing to make.

Answers that quote, reword or edit their prompt repeat stretches of it. Where the last tokens of a text occurred before, those
that followed are fed behind them in one run; what the model would have picked at each place decides how many count. So the
text is the one that would have come without, up to the rounding of that run. How much is drafted depends on the text alone, never on
the clock or on other jobs.

Source: Saxena 2023, prompt lookup decoding; Leviathan et al. 2023, speculative decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.kernel.core import limits


class Lookup:
    """One text's drafts.

    Args:
        tokens: the text so far.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._length = limits.DRAFT_FIRST
        self._rest = 0
        self._setbacks = 0
        self.add(tokens)

    def add(self, tokens: Sequence[int]) -> None:
        """The text has grown."""
        for token in tokens:
            if len(self._tokens) >= limits.DRAFT_NGRAM:
                self._after[tuple(self._tokens[-limits.DRAFT_NGRAM :])] = len(self._tokens)
            self._tokens.append(token)
        self._rest = max(self._rest - len(tokens), 0)

    def draft(self) -> list[int]:
        """What may come next: an odd number of tokens, so that with the one before them it is even; or none."""
        if self._rest or len(self._tokens) < limits.DRAFT_NGRAM:
            return []
        at = self._after.get(tuple(self._tokens[-limits.DRAFT_NGRAM :]))
        if at is None:
            return []
        found = self._tokens[at : at + self._length]
        return found[: len(found) - (len(found) + 1) % 2]

    def judge(self, drafted: int, right: int) -> None:
        """How many of a draft's tokens were what the model picked: more of them next time, or a pause."""
        if right == drafted:
            self._length = min(2 * self._length + 1, limits.DRAFT_MOST)
            self._setbacks = 0
        elif right == 0:
            self._length = limits.DRAFT_FIRST
            self._setbacks = min(self._setbacks + 1, limits.DRAFT_SETBACKS)
            self._rest = 1 << self._setbacks
        else:
            self._length = limits.DRAFT_FIRST
            self._setbacks = 0
