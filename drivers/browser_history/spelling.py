"""Misspelt words of a question, put right: a slip of a finger should not hide a page.

A word is taken for misspelt when no page holds it and no dictionary has it. It becomes the word of a title, or else the
commonest English word, that is one edit away (a letter too many, too few, wrong, or two swapped); otherwise it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

from spellchecker import SpellChecker

MIN_LETTERS = 5
"""Shorter words are one edit away from too many others."""


def corrected(words: str, known: Callable[[str], bool], titles: Callable[[], Collection[str]]) -> str:
    """`words` with misspelt ones put right.

    Args:
        known: whether a page holds the word, in any inflection.
        titles: the words of all titles, in lower case; asked for only when a word is misspelt.
    """
    return " ".join(_right(word, titles) if _misspelt(word, known) else word for word in words.split())


def _misspelt(word: str, known: Callable[[str], bool]) -> bool:
    low = word.lower()
    return len(low) >= MIN_LETTERS and low.isalpha() and not word.isupper() and not known(low) and low not in _english()


def _right(word: str, titles: Callable[[], Collection[str]]) -> str:
    english = _english()
    near = english.edit_distance_1(word.lower())
    candidates = near & set(titles()) or {other for other in near if other in english}
    return max(candidates, key=lambda other: (english[other], other), default=word)


@cache
def _english() -> SpellChecker:
    """About 50 MB and a sixth of a second, once a word is in doubt."""
    return SpellChecker(language="en", distance=1)
