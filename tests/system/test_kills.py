"""kill -9 of anything at any moment: the short form of `make kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.kill_campaign import Campaign, prepare
from tests.system.kill_ledger import Counted, Files, Kept

KILLS, SEED = 30, 4


@pytest.mark.timeout(300)
def test_nothing_that_dies_leaves_a_trace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernel, gates, drivers, agents, clients, bubblewrap: no hang, no orphan, no leak, and all that was acknowledged is there."""
    campaign = Campaign(prepare(tmp_path_factory.mktemp("s")), SEED, model=False)
    campaign.run(KILLS)
    assert not campaign.wrong
    assert campaign.killed.total() == KILLS
    assert len(campaign.killed) > 4, "it kills all kinds"


def test_the_ledger_tells_lost_from_unsure() -> None:
    """What was acknowledged is there, what was taken away is not, and what is unsure is whatever it is, from then on."""
    grants = Kept("grant")
    for key in ("a", "b"):
        grants.trying(key)
        grants.added(key)
    grants.trying("c")
    grants.trying("b")
    assert grants.compare(["a", "c"]) == []
    assert grants.there == ["a", "c"]
    assert grants.compare(["c"]) == ["lost: grant a"]
    assert grants.compare([]) == ["lost: grant c"]
    assert grants.compare(["d"]) == ["lost: grant d is there again, or never was asked for"]


def test_the_ledger_counts_events() -> None:
    """One that is missing, stored twice, or nobody's is named."""
    events = Counted()
    for number in (events.next(), events.next(), events.next()):
        events.acknowledged(number)
    events.next()
    assert events.compare([1, 2, 3]) == events.compare([1, 2, 3, 4]) == []
    assert events.compare([1, 3, 3, 9]) == [
        "lost: event 2",
        "lost: event 3 is stored twice",
        "lost: event 9 was never sent",
    ]


def test_the_ledger_reads_files(tmp_path: Path) -> None:
    """A file that is cut, and one that nobody knows, are named."""
    files = Files(tmp_path, lambda name: name * 3)
    files.kept.trying("f1")
    files.kept.added("f1")
    (tmp_path / "f1").write_text("f1f1")
    (tmp_path / ".hidden").touch()
    assert files.compare() == ["leak: .hidden in the user's folder", "lost: f1 is not whole", "lost: file f1"]
