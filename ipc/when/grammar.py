"""A small grammar engine for phrases: rules in a table, tokens with positions, the longest match wins.

A pattern is a row of elements: a word, alternatives (`in|on`), captured alternatives (`{last|next}`), a captured
symbol (`<day>`), each optional with a trailing `?`. A rule's function gets the context and the captures, in order, and
returns the symbol's value; None, ValueError and OverflowError (30 February, a year too far) refuse. Symbols must not be
left-recursive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

_Make = TypeVar("_Make", bound=Callable[..., Any])

_TOKEN = re.compile(
    r"""
      \d{4}-\d{2}-\d{2}(?:[t\ ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:z|[+-]\d{2}:?\d{2})?)?(?!\w)  # ISO date, maybe a time
    | \d{4}-\d{2}(?![\d-])                          # ISO month
    | \d{1,2}[./]\d{1,2}[./]\d{4}(?!\d)             # day, month, year
    | \d{4}/\d{1,2}/\d{1,2}(?!\d)
    | \d{1,2}:\d{2}(?!\d)
    | \d+
    | [ap]\.m\.?
    | o['’]clock
    | [^\W\d_]+(?:['’](?!s\b)[^\W\d_]+)*
    | \.\.
    | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)

_POSSESSIVE = re.compile(r"['’]s(?![^\W\d_])", re.IGNORECASE)
_DASHES = "-–—"


class Token(NamedTuple):
    """One word, number or sign, in lower case. Offsets are into the text, a possessive `'s` included."""

    text: str
    start: int
    end: int
    capital: bool


def tokenize(text: str) -> list[Token]:
    """Words without a possessive `'s`, numbers, dates, signs. A hyphen between letters separates and is dropped."""
    tokens = []
    position = 0
    while found := _TOKEN.search(text, position):
        start, position = found.span()
        word = found[0]
        if word.isalpha() and (possessive := _POSSESSIVE.match(text, position)):
            position = possessive.end()
        if word in _DASHES and text[start - 1 : start].isalpha() and text[position : position + 1].isalpha():
            continue
        tokens.append(Token("-" if word in _DASHES else word.lower(), start, position, word[0].isupper()))
    return tokens


@dataclass(frozen=True, slots=True)
class _Element:
    words: frozenset[str]
    symbol: str
    captured: bool
    optional: bool


class _Rule(NamedTuple):
    elements: tuple[_Element, ...]
    make: Callable[..., Any]
    whole: bool


def _element(source: str) -> _Element:
    body = source.removesuffix("?")
    symbol = body[1:-1] if body.startswith("<") else ""
    words = frozenset() if symbol else frozenset(body.strip("{}").split("|"))
    return _Element(words, symbol, bool(symbol) or body.startswith("{"), source != body)


class Grammar:
    """Symbols by name: a terminal looks at one token, every other symbol is a list of rules in order of preference."""

    def __init__(self) -> None:
        self.rules: dict[str, list[_Rule]] = {}
        self.terminals: dict[str, Callable[[Match, int], Any]] = {}
        self.conditions: dict[str, Callable[[Match, int], bool]] = {}

    def terminal(self, name: str, read: Callable[[Match, int], Any]) -> None:
        """`read` gets the match and the position of a token, and returns the token's value or None."""
        self.terminals[name] = read

    def condition(self, name: str, holds: Callable[[Match, int], bool]) -> None:
        """A symbol that takes no token and is not captured: `holds` gets the position between two tokens."""
        self.conditions[name] = holds

    def rule(self, symbol: str, *patterns: str, whole: bool = False) -> Callable[[_Make], _Make]:
        """Adds patterns for a symbol; those with `whole` do not count inside a free sentence."""

        def add(make: _Make) -> _Make:
            for pattern in patterns:
                elements = tuple(_element(source) for source in pattern.split())
                self.rules.setdefault(symbol, []).append(_Rule(elements, make, whole))
            return make

        return add


class Match:
    """One text against one grammar. `free` says that it is a sentence with other words around the phrases sought."""

    def __init__(self, grammar: Grammar, text: str, context: object, *, free: bool) -> None:
        self.tokens = tokenize(text)
        self.free = free
        self._grammar = grammar
        self._context = context
        self._found: dict[tuple[str, int], list[tuple[int, Any]]] = {}

    def word(self, position: int) -> str:
        """The token's text; empty outside the text."""
        return self.tokens[position].text if 0 <= position < len(self.tokens) else ""

    def at(self, symbol: str, position: int) -> list[tuple[int, Any]]:
        """(end, value) of every way to read `symbol` from `position`, longest first; of equal ends the first rule's."""
        key = symbol, position
        if key not in self._found:
            self._found[key] = []  # what a left-recursive rule would see
            self._found[key] = self._read(symbol, position)
        return self._found[key]

    def _read(self, symbol: str, position: int) -> list[tuple[int, Any]]:
        if terminal := self._grammar.terminals.get(symbol):
            with suppress(ValueError, OverflowError):
                if position < len(self.tokens) and (value := terminal(self, position)) is not None:
                    return [(position + 1, value)]
            return []
        found: dict[int, Any] = {}
        for elements, make, whole in self._grammar.rules[symbol]:
            if whole and self.free:
                continue
            for end, captures in self._row(elements, position):
                if end in found:
                    continue
                with suppress(ValueError, OverflowError):
                    value = make(self._context, *captures)
                    if value is not None:
                        found[end] = value
        return sorted(found.items(), key=lambda item: -item[0])

    def _row(self, elements: tuple[_Element, ...], position: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        if not elements:
            yield position, ()
            return
        first, rest = elements[0], elements[1:]
        heads: list[tuple[int, tuple[Any, ...]]] = []
        if condition := self._grammar.conditions.get(first.symbol):
            heads = [(position, ())] if condition(self, position) else []
        elif first.symbol:
            heads = [(end, (value,)) for end, value in self.at(first.symbol, position)]
        elif self.word(position) in first.words:
            heads = [(position + 1, (self.word(position),) if first.captured else ())]
        if first.optional:
            heads.append((position, (None,) if first.captured else ()))
        for middle, head in heads:
            for end, tail in self._row(rest, middle):
                yield end, head + tail
