"""Drafts from the text itself: which are made, what is learnt from them, and that they change no text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.core import limits
from llmos.kernel.core.speculation import Lookup
from tests.unit.core_doubles import EOS, CountingEngine, Desk


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 7), max_size=30))
def test_a_draft_is_odd_and_has_followed_before(tokens: list[int], verdicts: list[int]) -> None:
    """Whatever was judged of earlier ones: no tokens or an odd number up to the most, which stand in the text after the
    last few tokens' latest occurrence."""
    lookup = Lookup(tokens)
    for verdict in verdicts:
        draft = lookup.draft()
        if draft:
            assert len(draft) % 2 == 1
            assert len(draft) <= limits.DRAFT_MOST
            needle = [*tokens[-limits.DRAFT_NGRAM :], *draft]
            assert any(tokens[at : at + len(needle)] == needle for at in range(len(tokens)))
            lookup.judge(len(draft), min(verdict, len(draft)))
        lookup.add([verdict % 4])
        tokens = [*tokens, verdict % 4]


def test_right_drafts_grow_and_wrong_ones_pause() -> None:
    """A draft that was right is followed by a longer one up to the most; one wrong from its start by a pause that doubles."""
    lookup = Lookup(list(range(20)) * 2)
    lengths = []
    for _ in range(3):
        draft = lookup.draft()
        lengths.append(len(draft))
        lookup.judge(len(draft), len(draft))
    assert lengths == [limits.DRAFT_FIRST, limits.DRAFT_MOST, limits.DRAFT_MOST]
    pauses = []
    for _ in range(limits.DRAFT_SETBACKS + 2):
        lookup.judge(3, 0)
        pause = 0
        while not lookup.draft():
            lookup.add([(lookup._tokens[-1] + 1) % 20])
            pause += 1
        pauses.append(pause)
    assert pauses == [2, 4, 8, 16, 32, 32, 32]


def test_a_short_text_has_no_drafts() -> None:
    """Below the tokens that must have occurred before, and where they have not, none are made."""
    for tokens in ([], [1], [1, 2, 3], [1, 2, 3, 4, 5, 6]):
        assert Lookup(tokens).draft() == []


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


CASES: list[dict[str, Any]] = [
    {"prompt": "ABCDEFGHIJKLMNOPQRST ABC", "max_tokens": 12},
    {"prompt": "ABCDEFGHxxxxxxxx ABC", "max_tokens": 12},  # right at first, then wrong
    {"prompt": "ABCxABCyABCzABC", "max_tokens": 9},  # always wrong
    {"prompt": "ABCDEFGHIJKLMNOPQRST ABC", "max_tokens": 2},
    {"prompt": "ABCDEFGHIJKLMNOPQRST ABC", "max_tokens": 12, "stop": ["GH"]},
    {"prompt": "ABCDEFGHIJKLMNOPQRST ABC", "max_tokens": 12, "temperature": 0.7, "seed": 5},
    {"prompt": "ABCDEFGHIJKLMNOPQRST ABC", "max_tokens": 12, "regex": "[A-Z]{4}"},
]


@pytest.mark.parametrize("request_", CASES)
@pytest.mark.parametrize("eos_after", [None, "E"])
def test_drafts_change_no_text(desk: Desk, request_: dict[str, Any], eos_after: str | None) -> None:
    """With and without speculation the same text ends in the same way, produces as many tokens, and leaves its row with
    what was said; so it does when one of the drafts' places is where the text ends."""
    if eos_after:
        desk.engines["m"].successor[ord(eos_after)] = EOS
    results = []
    for number, speculate in enumerate((False, True), 1):
        desk.job(number, speculate=speculate, label=str(number), **request_)
        desk.run([number, 1000])
        ran = desk.run(None, [number, 1000])
        results.append((ran["text"].get(number, ""), ran["jobs"].get(number)))
    assert results[0] == results[1]
    assert desk.engines["m"].taken == []


def test_drafts_save_runs(desk: Desk) -> None:
    """A text that repeats an earlier one takes fewer runs than tokens; every run of drafts is even."""
    fed = desk.engines["m"].fed
    text = desk.generate(1, prompt="ABCDEFGHIJKLMNOPQRST ABC", max_tokens=17, speculate=True)
    assert text == "DEFGHIJKLMNOPQRST"
    assert len(fed) < 10
    assert all(len(run) == 1 and run[0] % 2 == 0 for run in fed[1:] if run != [1])


def test_an_engine_that_cannot_look_back_drafts_nothing(tmp_path: Path) -> None:
    """The same request works there, a token at a time."""
    desk = Desk(tmp_path, {"m": CountingEngine(looks_back=False)})
    assert desk.generate(1, prompt="ABCDEFGH ABC", max_tokens=5, speculate=True) == "DEFGH"
    assert desk.engines["m"].fed[1:] == [[1]] * 4


def test_a_failing_run_of_drafts_fails_its_job_only(desk: Desk) -> None:
    """Its neighbour, which decodes beside it, goes on."""
    desk.job(1, prompt="ABCDEFGHIJ ABC", max_tokens=9, speculate=True)
    desk.job(2, prompt="x", max_tokens=6)
    for number in (1, 2):
        desk.run([number, 100])
    desk.engines["m"].fail_at = {len(desk.engines["m"].fed) + 2}  # the batch goes first
    ran = desk.run(None, [1, 4], [2, 4])
    assert (ran["jobs"][1][4:], ran["jobs"][2][2:]) == (["done", "failed"], [4, 0, "decode", None])
    assert desk.finish(2)[1] == "length"
