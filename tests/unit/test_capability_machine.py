"""Random operations on the capability table, against a model that is plainly right."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.unit.capability_machine import World, step

OPERATIONS = int(os.environ.get("LLMOS_CAPABILITY_OPERATIONS", "10000"))
"""Of the long walk; a million in the make target."""


class Machine(RuleBasedStateMachine):
    """Hypothesis chooses every number that an operation asks for, so that a failure shrinks to the few operations it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(data=st.data())
    def operate(self, data: st.DataObject) -> None:
        step(self.world, lambda n: data.draw(st.integers(0, n - 1)))

    @invariant()
    def holds(self) -> None:
        self.world.invariants()


def test_nothing_widens_doubles_or_outlives_in_any_order() -> None:
    """No right or quota grows, nothing lasts beyond revocation or expiry, whatever the order; not even across a crash."""
    quick = settings(
        max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(Machine, settings=quick)


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_widens_doubles_or_outlives_on_a_long_walk(seed: int) -> None:
    """The same over thousands of operations on one table."""
    generator = random.Random(seed)
    world = World()
    for number in range(OPERATIONS):
        step(world, lambda n: int(generator.random() * n))
        if number % 10 == 0:
            world.invariants()
    assert world.counts["derive"] > OPERATIONS // 50
    assert world.counts["check"] > OPERATIONS // 20
    assert world.counts["check BUDGET"] > 0
    assert world.counts["deepest"] > 3
