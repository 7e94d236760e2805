"""The scheduler, against a clock that only moves when told."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass
from llmos.kernel.scheduler import Job, Scheduler


@dataclass
class World:
    """A model that decodes 100 tokens a second, and nothing else."""

    now: float = 0.0
    served: dict[str, int] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def run(self, scheduler: Scheduler, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and (chosen := scheduler.pick()) is not None:
            self.now += chosen.tokens / 100
            scheduler.account(chosen.job, 0, chosen.tokens)
            self.served[chosen.job.principal] = self.served.get(chosen.job.principal, 0) + chosen.tokens


def test_a_sooner_class_goes_first() -> None:
    """An interactive job that comes last runs next."""
    world = World()
    scheduler = Scheduler(world.clock)
    background = Job(1, "a", JobClass.BACKGROUND)
    scheduler.submit(background)
    interactive = Job(2, "b", JobClass.INTERACTIVE)
    scheduler.submit(interactive)
    chosen = scheduler.pick()
    assert chosen is not None
    assert chosen.job is interactive
    assert scheduler.preempts(interactive, background)
    assert not scheduler.preempts(background, interactive)


@given(st.lists(st.floats(0.5, 4.0), min_size=2, max_size=5))
def test_principals_share_by_weight(weights: list[float]) -> None:
    """Over ten seconds of contention each gets its weight's share, within a tenth."""
    world = World()
    scheduler = Scheduler(world.clock, slice_=4, aging_s=1e9)
    for number, weight in enumerate(weights):
        scheduler.submit(Job(number, f"p{number}", JobClass.EVENT, weight))
    world.run(scheduler, 10)
    total = sum(world.served.values())
    for number, weight in enumerate(weights):
        assert world.served.get(f"p{number}", 0) / total == pytest.approx(weight / sum(weights), abs=0.1)


def test_two_jobs_of_one_principal_do_not_get_two_shares() -> None:
    """Shares belong to principals: asking twice does not help."""
    world = World()
    scheduler = Scheduler(world.clock, slice_=4, aging_s=1e9)
    for number, principal in enumerate(["greedy", "greedy", "greedy", "modest"]):
        scheduler.submit(Job(number, principal, JobClass.EVENT))
    world.run(scheduler, 10)
    assert world.served["modest"] == pytest.approx(world.served["greedy"], rel=0.1)


def test_nothing_starves() -> None:
    """A background job runs in the end, however many interactive ones keep coming."""
    world = World()
    scheduler = Scheduler(world.clock)
    scheduler.submit(Job(0, "patient", JobClass.BACKGROUND))
    for number in range(1, 200):
        scheduler.submit(Job(number, "hasty", JobClass.INTERACTIVE))
        world.run(scheduler, 1)
        scheduler.remove(number)
        if "patient" in world.served:
            return
    pytest.fail("the background job never ran")


def test_idling_earns_nothing() -> None:
    """A principal that comes back does not run for as long as it was away."""
    world = World()
    scheduler = Scheduler(world.clock, slice_=4, aging_s=1e9)
    scheduler.submit(Job(1, "steady", JobClass.EVENT))
    world.run(scheduler, 50)
    scheduler.submit(Job(2, "back", JobClass.EVENT))
    world.served.clear()
    world.run(scheduler, 10)
    assert world.served["steady"] == pytest.approx(world.served["back"], abs=64)


def test_nobody_fills_the_queue_for_the_others() -> None:
    """A principal gets half of what the others leave; what does not fit is refused, and those that wait are not touched."""
    scheduler = Scheduler(lambda: 0.0, max_jobs=4)
    scheduler.submit(Job(1, "a", JobClass.EVENT))
    scheduler.submit(Job(2, "a", JobClass.EVENT))
    with pytest.raises(OpError) as caught:
        scheduler.submit(Job(3, "a", JobClass.EVENT))
    assert caught.value.code is Code.BUSY
    scheduler.submit(Job(4, "b", JobClass.EVENT))
    assert len(scheduler) == 3


def test_alone_a_job_runs_longer_at_a_time() -> None:
    """Nobody waits, so nobody needs the scheduler to be asked more often."""
    scheduler = Scheduler(lambda: 0.0, quantum=64, slice_=8)
    scheduler.submit(Job(1, "a", JobClass.EVENT))
    alone = scheduler.pick()
    scheduler.submit(Job(2, "b", JobClass.EVENT))
    together = scheduler.pick()
    assert alone is not None
    assert together is not None
    assert (alone.tokens, together.tokens) == (64, 8)
