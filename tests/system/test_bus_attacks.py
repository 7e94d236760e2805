"""The bus battery, each attack once. What it costs the others is measured by `tests.system.bus_attacks.battery`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.bus_attacks.arena import ATTACKS, Arena
from tests.system.bus_attacks.battery import MODULES, run_one

SLOW = {"crowd", "hoarded_contexts"}
"""A fifth of the gate's processor for seconds, and one that needs a model: `make attacks` runs them."""


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """One system for all attacks: what one of them breaks for good, the next ones show."""
    with Arena(tmp_path_factory.mktemp("b")) as made:
        yield made


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in SLOW])
def test_an_attack_gains_nothing(arena: Arena, name: str) -> None:
    """No right, no datum, no denial of service to somebody else."""
    outcome = run_one(arena, name)
    assert not outcome.succeeded, outcome.evidence


def test_the_battery_is_as_large_as_it_says() -> None:
    """At least 30 attacks, in all of its modules."""
    assert len(ATTACKS) >= 30
    assert {attack.__module__ for attack in ATTACKS.values()} == {module.__name__ for module in MODULES}
