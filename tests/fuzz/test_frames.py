"""The frame fuzzer, briefly; `make fuzz` runs it for a million frames."""

from __future__ import annotations

import pytest

from tests.fuzz.frames import Campaign
from tests.fuzz.generate import Generator, expected_answer


@pytest.mark.timeout(300)
def test_ten_thousand_malformed_frames_do_no_harm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing crashes, every id is answered as often as it was asked, and the kernel does not grow."""
    campaign = Campaign(tmp_path_factory.mktemp("f"), seed=20_000)
    try:
        figures = campaign.run(10_000)
    finally:
        campaign.close()
    assert figures["crashes"] == 0
    assert figures["rss_growth_mb"] <= 32
    answered = {code for one in campaign.fuzzed for code in one.codes}
    assert {"ok", "DENIED", "INVALID_ARGUMENT", "VERSION_MISMATCH", "TOO_LARGE", "UNKNOWN_OP", "NOT_FOUND"} <= answered


def test_the_same_seed_gives_the_same_frames() -> None:
    """So that what failed can be sent again."""
    one, other, another = Generator(7), Generator(7), Generator(8)
    messages = [one.message() for _ in range(500)]
    assert messages == [other.message() for _ in range(500)]
    assert messages != [another.message() for _ in range(500)]
    assert {len(frames) == 3 and expected_answer(frames) for frames in messages} > {False, None}
