"""A slip of a finger in a question."""

from __future__ import annotations

import pytest

from llmos.drivers.browser_history.spelling import corrected

TITLES = {"dachshunds", "sourdough", "ficus", "kubernetes", "overwatering"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("migrianes", "migraines"),  # two letters swapped
        ("workking from home", "working from home"),  # one too many
        ("photosyntesis", "photosynthesis"),  # one too few
        ("kubernates", "kubernetes"),  # no English word, but a title's
        ("overwaterng my fiicus", "overwatering my ficus"),
        ("dachshund", "dachshund"),  # an English word that no title holds is no mistake
        ("bread and trains", "bread and trains"),
        ("LLMs", "LLMs"),
        ("WEBGPU", "WEBGPU"),
        ("qwertzuiop", "qwertzuiop"),
        ("", ""),
    ],
)
def test_a_misspelt_word_becomes_what_was_meant(typed: str, meant: str) -> None:
    """And a word that only no title holds stays as it is."""
    assert corrected(typed, lambda word: word in TITLES, lambda: TITLES) == meant


def test_a_word_that_a_page_holds_is_never_changed() -> None:
    """However odd it looks: names are spelled as their owners like."""
    assert corrected("Fliiby", lambda word: word == "fliiby", lambda: {"fliiby"}) == "Fliiby"
