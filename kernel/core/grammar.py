"""What a job's text must match, as a mask over the vocabulary before each token."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import llguidance
import numpy as np

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits
from llmos.kernel.core.request import Request
from llmos.kernel.core.sampler import Logits

# One way to write a document: a small model that may choose its white space writes white space for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """A position in one job's grammar.

    Args:
        source: a grammar in llguidance's own form.
        tokenizer: of the model whose tokens it will see.

    Raises:
        OpError: INVALID_ARGUMENT, with the compiler's words, for a grammar that cannot be used.
    """

    def __init__(self, source: str, tokenizer: llguidance.LLTokenizer) -> None:
        self._matcher = llguidance.LLMatcher(tokenizer, source, log_level=0)
        self._check(Code.INVALID_ARGUMENT, "the constraint cannot be used")

    @property
    def complete(self) -> bool:
        """Whether the text matches and nothing may follow."""
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def mask(self, logits: Logits) -> None:
        """Rule out, in place, every token that cannot come next. An end-of-text token stays where the text may end."""
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check(Code.BUDGET, "the constraint became too complex at this point of the text")
        allowed = np.unpackbits(words, count=logits.size, bitorder="little").view(np.bool_)
        np.copyto(logits, np.float32("-inf"), where=~allowed)

    def begin(self) -> list[int]:
        """The tokens that the text can only begin with, already taken."""
        return self._forced()

    def advance(self, token: int, *, skip: bool = True) -> list[int]:
        """Take the token that was picked under `mask`; with `skip`, return those that can only follow it, already taken too."""
        self._matcher.consume_token(token)
        self._check(Code.BUDGET, "the constraint became too complex at this point of the text")
        return self._forced() if skip else []

    def _forced(self) -> list[int]:
        forced: list[int] = self._matcher.compute_ff_tokens()
        if forced:
            self._matcher.consume_tokens(forced)
        self._check(Code.BUDGET, "the constraint became too complex at this point of the text")
        return forced

    def _check(self, code: Code, what: str) -> None:
        if self._matcher.is_error():
            raise OpError(code, f"{what}: {self._matcher.get_error()}")


def compile_grammar(request: Request, tokenizer: llguidance.LLTokenizer) -> Grammar | None:
    """The grammar of a request, None when it has none. Raises as `Grammar` does."""
    matcher = llguidance.LLMatcher
    if request.schema is not None:
        _check_multiples(request.schema)
        try:
            source = matcher.grammar_from_json_schema(request.schema, overrides=_SPACING)
        except ValueError as error:
            raise OpError(Code.INVALID_ARGUMENT, f"schema cannot be used: {error}") from error
    elif request.regex is not None:
        source = matcher.grammar_from_regex(request.regex)
    elif request.choices is not None:
        source = matcher.grammar_from_lark(_alternatives(request.choices))
    else:
        return None
    return Grammar(source, tokenizer)


def _check_multiples(schema: Any) -> None:
    """Raises `OpError(INVALID_ARGUMENT)` for `multipleOf` that takes the compiler long, which nothing bounds.

    It makes an automaton with a state for each remainder, of two together for those of their least common multiple: 100,000 take
    a second, and ten of these fourteen, in which nobody's job goes on.
    """
    waiting, multiple = [schema], 1
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            waiting += found.values()
            divisor = found.get("multipleOf")
            if isinstance(divisor, int | float) and divisor > 0:
                digits = Decimal(str(divisor)).normalize().as_tuple().digits
                multiple = math.lcm(multiple, int("".join(map(str, digits))) or 1)
                if multiple > limits.MULTIPLE:
                    raise OpError(
                        Code.INVALID_ARGUMENT,
                        f"schema cannot be used: what is to be a multipleOf has more than {limits.MULTIPLE} remainders in all",
                        "leave multipleOf out, and check the number in the answer",
                    )


def _alternatives(choices: Sequence[str]) -> str:
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
