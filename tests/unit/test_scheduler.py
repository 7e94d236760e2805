"""The scheduler: classes, deadlines, what is remembered, and its simulator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass
from llmos.kernel import params
from llmos.kernel.scheduler import Job, Limits, Scheduler, Spent, State, Turn
from tests.bench import scheduler_trace
from tests.bench.scheduler_trace import FirstCome, default_trace
from tests.bench.simulated_core import Arrival, SimulatedCore
from tests.unit.scheduler_world import BACKGROUND, EVENT, INTERACTIVE, World, empty


def test_a_sooner_class_goes_first_and_need_not_wait() -> None:
    """While an interactive prompt is read nobody else runs, and a turn yields for its job when it comes."""
    world = World()
    for name in "abc":
        world.submit(name, BACKGROUND)
    while not all(job.state is State.DECODE for job in (one.job for one in world.core.records.values())):
        world.turn()
    turn = world.scheduler.pick()
    assert turn is not None
    user = world.submit("user", INTERACTIVE, prompt=300)
    assert world.scheduler.preempts(user)
    assert not world.scheduler.preempts(world.submit("late", BACKGROUND))
    world.core.turn(turn, steps=1)
    for _ in range(3):
        turn = world.turn()
        assert [grant.job for grant in turn.grants] == [user]


def test_a_later_class_rides_on_the_free_seat_of_an_odd_batch() -> None:
    """Rows are computed in pairs: beside one or three interactive rows there is one of a later class, beside two none."""
    world = World()
    for name in "xyz":
        world.submit(name, BACKGROUND, output=5000)
    while any(one.job.state is not State.DECODE for one in world.core.records.values()):
        world.turn()
    riders = []
    for name in "abc":
        user = world.submit(name, INTERACTIVE, output=5000)
        while user.state is not State.DECODE:
            world.turn()
        turn = world.turn()
        riders.append(sum(grant.job.job_class is BACKGROUND for grant in turn.decode))
    assert riders == [1, 0, 1]


def test_a_newcomer_of_the_same_class_need_not_wait_for_a_long_turn() -> None:
    """A turn that was made long because nobody waited yields when somebody does; a short one runs to its end."""
    world = World()
    world.submit("a", output=5000)
    world.turn()
    long = world.scheduler.pick()
    assert long is not None
    assert [grant.tokens for grant in long.decode] == [params.QUANTUM]
    newcomer = world.submit("b", output=5000)
    assert world.scheduler.preempts(newcomer)
    world.core.turn(long, steps=1)
    world.turn()
    short = world.turn()
    assert {grant.tokens for grant in short.decode} == {params.SLICE}
    world.scheduler.pick()
    assert not world.scheduler.preempts(world.submit("c"))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["p", "q", "r"]), st.sampled_from([EVENT, BACKGROUND])), min_size=1, max_size=8),
    st.sampled_from([INTERACTIVE, EVENT]),
)
def test_nothing_starves(patient: list[tuple[str, JobClass]], hasty: JobClass) -> None:
    """However many sooner jobs keep coming, each job runs at least once in every two agings for each of its principal's jobs."""
    world = World(Limits(aging_s=2.0))
    waiting = [world.submit(name, job_class, prompt=3000, output=50) for name, job_class in patient]
    bound = 2 * 2.0 * len(patient) + 2 * len(patient) * 0.5
    while world.core.now < 3 * bound:
        if not world.running()["hasty"]:
            world.submit("hasty", hasty, prompt=300, output=20)
        world.turn()
        for job in waiting:
            if job.state is not State.DONE:
                assert world.core.now - job.waiting_since <= bound


def test_waiting_lifts_one_job_of_a_principal_at_a_time() -> None:
    """A principal with fifty background jobs disturbs a user no more often than one with one does."""
    taken = []
    for jobs in (1, 50):
        world = World(Limits(aging_s=2.0, max_jobs=1000))
        for _ in range(jobs):
            world.submit("greedy", BACKGROUND, prompt=5000)
        while world.core.now < 60:
            if not world.running()["user"]:
                world.submit("user", INTERACTIVE, prompt=100, output=20)
            world.turn()
        taken.append(sum(row.prefill > 0 for _, turn, spent in world.turns for row in spent if row.job < jobs))
    assert taken[1] <= taken[0] + 1
    assert taken[0] >= 60 / 2 / 2 - 3


def _met(world: SimulatedCore) -> list[bool]:
    world.run()
    due = [one for one in world.records.values() if one.arrival.deadline is not None]
    return [(one.done or 1e9) <= (one.arrival.deadline or 0) for one in due]


def test_a_deadline_that_can_be_met_is() -> None:
    """Behind five long prompts, a short job that is due in three seconds is on time, and would not be in order of arrival."""
    trace = [Arrival(0.0, f"p{number}", EVENT, 2000, 50) for number in range(5)]
    trace.append(Arrival(0.1, "urgent", EVENT, 250, 10, deadline=3.0))
    assert _met(SimulatedCore(Scheduler, trace)) == [True]
    assert _met(SimulatedCore(lambda clock: FirstCome(16), trace)) == [False]
    assert _met(SimulatedCore(lambda clock: Scheduler(clock, Limits(urgent_s=-1e9)), trace)) == [False]


def test_the_earlier_deadline_goes_first() -> None:
    """Of two jobs of one principal that might miss theirs, the one that came later and is due sooner is read first."""
    trace = [
        Arrival(0.0, "p", EVENT, 800, 1, deadline=3.0),
        Arrival(0.0, "p", EVENT, 400, 1, deadline=1.2),
    ]
    assert _met(SimulatedCore(Scheduler, trace)) == [True, True]
    assert _met(SimulatedCore(lambda clock: FirstCome(16), trace)) == [True, False]


def test_a_deadline_buys_no_share() -> None:
    """One that gives each of its four jobs a deadline gets no more than one that gives none, and has one."""
    world = World(Limits(aging_s=1e9))
    while world.core.now < 25:
        running = world.running()
        for name, jobs in (("pushy", 4), ("calm", 1)):
            for _ in range(jobs - running[name]):
                due = world.core.now + 1 if name == "pushy" else None
                world.submit(name, prompt=1000, output=30, deadline=due)
        world.turn()
    assert world.worst_share({"pushy": 1, "calm": 1}) <= 0.1


def test_a_trace_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrivals of a file go through the policies that were asked for, with the costs of another, and a deadline is counted."""
    trace, costs = tmp_path / "trace.jsonl", tmp_path / "costs.json"
    user = {"t": 1, "principal": "u", "class": "interactive", "prompt": 10, "output": 5, "deadline": 2}
    trace.write_text(
        "\n".join(json.dumps(row) for row in ({**user, "t": 0, "class": "background", "output": 900}, user))
    )
    costs.write_text(json.dumps({"step_ms": {"2": 10, "4": 10}, "slice_ms": {"0": 0, "128": 128}}))
    options = ["--policy", "fifo", "--policy", "scheduler", "--costs", str(costs)]
    monkeypatch.setattr("sys.argv", ["scheduler_trace", str(trace), *options])
    scheduler_trace.main()
    printed = capsys.readouterr().out
    assert [line.split()[-2] for line in printed.splitlines() if line.startswith("interactive")] == ["0/1", "1/1"]


@pytest.mark.parametrize("phase", ["new", "prefill", "decode", "parked", "broke", "turn", "done"])
def test_a_job_that_is_removed_leaves_nothing(phase: str) -> None:
    """In whatever phase it is cancelled, what was reserved, counted and remembered for it is gone."""
    world = World(Limits(kv_bytes=1000, kv_headroom=50))
    world.scheduler.set_model("", 1)
    job = Job(0, "a", BACKGROUND)
    if phase == "new":
        world.scheduler.submit(job)
    else:
        job = world.submit("a", BACKGROUND, prompt=300, output=100)
        world.turn()
    while phase in ("decode", "parked", "broke", "turn") and job.state is not State.DECODE:
        world.turn()
    if phase == "parked":
        user = world.submit("user", INTERACTIVE, prompt=800, output=1)
        assert world.turn().park == (job,)
        world.scheduler.remove(user.id)
    if phase == "broke":
        world.scheduler.set_budget("a", 0)
        assert world.scheduler.pick() is None
        assert job.state is State.PARKED
    if phase == "turn":
        turn = world.scheduler.pick()
        assert turn is not None
        world.scheduler.remove(job.id)
        world.core.turn(turn)
    if phase == "done":
        world.core.run()
    assert (world.scheduler.remove(job.id) is None) == (phase in ("turn", "done"))
    assert world.scheduler.pick() is None
    assert empty(world.scheduler)


def test_a_core_that_died_leaves_nothing() -> None:
    """A turn that is abandoned is not accounted for, even if word of it comes, and its jobs can be removed."""
    world = World()
    job = world.submit("a")
    turn = world.scheduler.pick()
    assert turn is not None
    assert world.scheduler.pick() is None
    world.scheduler.abandon()
    world.scheduler.account(turn, [Spent(job.id, 10, 0, 0, 0, State.DECODE)], 0.1, 0, 0.0)
    assert job.unread == 10
    world.scheduler.remove(job.id)
    assert empty(world.scheduler)


def test_the_same_arrivals_give_the_same_turns() -> None:
    """Nothing depends on hashes, addresses or the wall clock."""
    logs = []
    for _ in range(2):
        log: list[object] = []

        def heard(turn: Turn, spent: list[Spent], log: list[object] = log) -> None:
            log.append((turn.number, [(grant.job.id, grant.tokens) for grant in turn.grants], spent))

        SimulatedCore(Scheduler, default_trace(), heard=heard).run()
        logs.append(log)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 500


def test_nobody_fills_the_queue_for_the_others() -> None:
    """A principal gets half of what the others leave; what does not fit is refused, and those that wait are not touched."""
    scheduler = Scheduler(lambda: 0.0, Limits(max_jobs=4))
    scheduler.submit(Job(1, "a", EVENT))
    scheduler.submit(Job(2, "a", EVENT))
    with pytest.raises(OpError) as caught:
        scheduler.submit(Job(3, "a", EVENT))
    assert caught.value.code is Code.BUSY
    scheduler.submit(Job(4, "b", EVENT))
    assert len(scheduler) == 3


def test_figures_that_cannot_be_true_harm_nothing() -> None:
    """A core that says it took no time, or for ever, or not a number, does not stop the scheduler."""
    scheduler = Scheduler(lambda: 0.0)
    job = Job(1, "a", EVENT)
    scheduler.submit(job)
    scheduler.admitted(1, 10, 10_000)
    for seconds in (0.0, float("inf"), float("nan"), -1.0):
        turn = scheduler.pick()
        assert turn is not None
        scheduler.account(turn, [Spent(1, 5, 0, 5, 0, State.DECODE)], seconds, 5, seconds)
        assert 1e-8 < scheduler.rates("").prefill_cost < 1e8
