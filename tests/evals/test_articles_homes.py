"""The generator of article questions: its questions have the answers it says."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from llmos.ipc import when
from tests.evals.articles_homes import DEVELOPMENT, HELD_OUT, generate

NOW = datetime(2026, 11, 25, 16, 0, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize("seed", [DEVELOPMENT, HELD_OUT])
def test_every_answer_was_read(seed: int, tmp_path: Path) -> None:
    """The page asked for is in the history, under one address only, and the history can be written."""
    for number, home in enumerate(generate(seed, NOW, homes=3)):
        for case in home.cases:
            assert {visit.url for visit in home.visits if visit.title == case.title} == {case.url}
        assert all(visit.at < NOW for visit in home.visits)
        home.write(tmp_path / str(number))


def test_reproducible() -> None:
    """The same seed and moment give the same questions; the two seeds share none."""
    first, same, other = (
        [case.question for home in generate(seed, NOW) for case in home.cases]
        for seed in (DEVELOPMENT, DEVELOPMENT, HELD_OUT)
    )
    assert first == same
    assert len(first) == 40
    assert not set(first) & set(other)


def test_times_mean_what_the_product_takes_them_for() -> None:
    """The days a phrase stands for are worked out here, independently; the product's reading agrees, loosely, nearly always."""
    agreed = []
    for home in generate(DEVELOPMENT, NOW, homes=8):
        for case in home.cases:
            found = when.find(case.question, NOW)
            if "when" in case.kinds and found:
                start, end = found[0][1].loose
                agreed.append(any(start <= visit.at < end for visit in home.visits if visit.url == case.url))
    assert sum(agreed) > 0.95 * len(agreed)


def test_variety() -> None:
    """Every kind of difficulty occurs often enough to be measured."""
    cases = [case for home in generate(DEVELOPMENT, NOW, homes=20) for case in home.cases]
    for kind in (
        "words",
        "paraphrase",
        "acronym",
        "when",
        "site",
        "other times",
        "other sites",
        "searched",
        "quoted",
        "typo",
        "shop",
    ):
        assert sum(kind in case.kinds for case in cases) >= 3, kind
    assert len({case.question for case in cases}) > 195
