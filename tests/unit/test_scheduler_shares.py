"""The scheduler: what principals get of the model, in time, tokens and KV."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.scheduler import Job, Limits, Scheduler, State
from tests.bench.simulated_core import Costs
from tests.unit.scheduler_world import BACKGROUND, EVENT, INTERACTIVE, World, empty


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(1, 4),
            st.integers(1, 5),
            st.sampled_from([(5, 5000), (50, 100), (300, 100), (1500, 30), (4000, 10)]),
        ),
        min_size=2,
        max_size=6,
    ),
    st.sampled_from([4, 16]),
)
def test_principals_share_by_weight(principals: list[tuple[float, int, tuple[int, int]]], rows: int) -> None:
    """In any ten seconds of contention each gets its weight's share within a tenth of the whole, whatever their mixes of prompts
    and answers, in batches smaller and larger than the number of jobs; once eight seconds have told what the tokens take."""
    world = World(Limits(max_rows=rows, max_jobs=10_000, aging_s=1e9))
    weights = {f"p{number}": weight for number, (weight, _, _) in enumerate(principals)}
    while world.core.now < 26:
        running = world.running()
        for number, (weight, jobs, (prompt, output)) in enumerate(principals):
            for _ in range(jobs - running[f"p{number}"]):
                world.submit(f"p{number}", prompt=prompt, output=output, weight=weight)
        world.turn()
    assert world.worst_share(weights, since=8.0) <= 0.1


def test_two_jobs_of_one_principal_do_not_get_two_shares() -> None:
    """Shares belong to principals: asking three times does not help."""
    world = World()
    for name in ("greedy", "greedy", "greedy", "modest"):
        world.submit(name, output=5000)
    while world.core.now < 20:
        world.turn()
    assert world.worst_share({"greedy": 1, "modest": 1}) <= 0.07


def test_many_rows_of_one_principal_crowd_nobody_out() -> None:
    """Beside one with more jobs than a batch holds, a newcomer is in every batch from when its prompt is read."""
    world = World(Limits(max_rows=4))
    for _ in range(8):
        world.submit("greedy", output=5000)
    while world.core.now < 3:
        world.turn()
    modest = world.submit("modest", prompt=5, output=100)
    while modest.state is not State.DECODE:
        world.turn()
    for _ in range(12):
        assert modest in [grant.job for grant in world.turn().decode]


def test_a_batch_is_shared_as_time_is() -> None:
    """Of two principals with more jobs each than a batch holds, each has half of every batch, and not every other batch."""
    world = World(Limits(max_rows=4))
    jobs = [world.submit(name, output=5000) for name in "ab" for _ in range(8)]
    while any(job.state is not State.DECODE for job in jobs):
        world.turn()
    for _ in range(20):
        world.turn()
    for _ in range(20):
        assert Counter(grant.job.principal for grant in world.turn().decode) == {"a": 2, "b": 2}


def test_idling_earns_nothing() -> None:
    """A principal that was away for a minute shares from then on; it does not run alone until it has caught up."""
    world = World()
    world.submit("steady", output=100_000)
    while world.core.now < 60:
        world.turn()
    before = world.served[-1][1]["steady"]
    world.submit("back", output=100_000)
    while world.core.now < 70:
        world.turn()
    back = world.served[-1][1]["back"]
    assert world.served[-1][1]["steady"] - before == pytest.approx(back, rel=0.1)


def test_a_debt_outlives_the_job_that_made_it() -> None:
    """A principal that ends its job and brings another has not wiped off what it had, even when it cancels in the turn."""
    world = World(Limits(aging_s=1e9))
    world.submit("honest", output=100_000)
    while world.core.now < 30:
        for number in [job.id for job in world.scheduler._all() if job.principal == "sly"]:
            world.scheduler.remove(number)
        world.submit("sly", prompt=500, output=100_000)
        turn = world.scheduler.pick()
        assert turn is not None
        for grant in turn.grants:
            if grant.job.principal == "sly":
                world.scheduler.remove(grant.job.id)
        world.core.turn(turn)
    assert world.worst_share({"honest": 1, "sly": 1}) <= 0.1


def test_a_short_prompt_is_read_at_once() -> None:
    """A newcomer among seven that decode has its first token before it has waited for its share of the machine."""
    world = World()
    for number in range(7):
        world.submit(f"p{number}", output=100_000)
    while world.core.now < 5:
        world.turn()
    newcomer = world.submit("new", prompt=250)
    while not newcomer.produced:
        world.turn()
    costs = Costs()
    reading = costs.slice_s(128) + costs.slice_s(122)
    assert world.core.now - newcomer.arrived <= reading + 3 * params.SLICE * costs.step_s(8)


def test_a_long_prompt_does_not_stop_answers() -> None:
    """While a prompt of 4,000 tokens is read, others' answers flow: never half a second without a token of each."""
    world = World()
    for name in "abc":
        world.submit(name, output=100_000)
    while world.core.now < 2:
        world.turn()
    reader = world.submit("reader", prompt=4000)
    last = dict.fromkeys("abc", world.core.now)
    while reader.state is not State.DECODE:
        turn = world.turn()
        for grant in turn.decode:
            last[grant.job.principal] = world.core.now
        assert world.core.now - min(last.values()) < 0.5


def test_models_take_turns() -> None:
    """A turn is one model's, and principals share although their models differ."""
    world = World()
    world.submit("a", output=100_000, model="small")
    world.submit("b", output=100_000, model="large")
    while world.core.now < 20:
        turn = world.turn()
        assert {grant.job.model for grant in turn.grants} == {turn.model}
    assert world.worst_share({"a": 1, "b": 1}) <= 0.05


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 400),
    st.sampled_from([5.0, 20.0]),
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=12),
)
def test_a_budget_is_used_and_never_exceeded(tokens: int, per_s: float, jobs: list[tuple[int, int]]) -> None:
    """In no window is one token more computed than the budget, others run on, and what it allows is had to the last token."""
    world = World()
    world.scheduler.set_budget("poor", tokens, per_s)
    for prompt, output in jobs:
        world.submit("poor", prompt=prompt, output=output)
    world.submit("rich", output=100_000)
    wanted = sum(prompt + output for prompt, output in jobs)
    spent: list[tuple[float, int]] = []
    while world.core.now < 3 * per_s:
        turn = world.turn()
        now, _, rows = world.turns[-1]
        poor = {grant.job.id for grant in turn.grants if grant.job.principal == "poor"}
        spent.append((now, sum(row.prefill + row.decode for row in rows if row.job in poor)))
        assert sum(some for at, some in spent if at > now - per_s) <= tokens
    assert sum(some for at, some in spent if at <= per_s) == min(tokens, wanted)


def test_exhausted_jobs_are_named() -> None:
    """Those whose principal has nothing left are told, and hold no KV; a budget that is lifted lets them go on."""
    world = World()
    world.scheduler.set_model("", 1000)
    world.scheduler.set_budget("poor", 20)
    job = world.submit("poor", prompt=10, output=100)
    while world.scheduler.budget_left("poor"):
        world.turn()
    assert world.scheduler.exhausted() == [job]
    assert world.scheduler.pick() is None
    assert (job.prompt + job.produced, world.scheduler.kv_reserved()) == (20, 0)
    world.scheduler.set_budget("poor", None)
    world.core.run()
    assert job.state is State.DONE
    assert empty(world.scheduler)


def test_one_that_can_never_fit_is_refused() -> None:
    """A prompt and answer that the KV budget cannot hold alone are TOO_LARGE at once; one token less is not."""
    scheduler = Scheduler(lambda: 0.0, Limits(kv_bytes=1000))
    scheduler.set_model("m", 10)
    scheduler.submit(Job(1, "a", EVENT, model="m"))
    with pytest.raises(OpError) as caught:
        scheduler.admitted(1, 60, 31, cached=10)
    assert caught.value.code is Code.TOO_LARGE
    scheduler.admitted(1, 60, 30, cached=10)
    assert scheduler.pick() is not None


def test_a_sooner_class_takes_kv_and_the_job_comes_back() -> None:
    """An interactive job parks the background one that came last, which goes on with a prefill grant and loses no token."""
    world = World(Limits(kv_bytes=1000, kv_headroom=50))
    world.scheduler.set_model("", 1)
    jobs = [world.submit(name, BACKGROUND, prompt=300, output=150) for name in "ab"]
    while world.core.now < 3:
        world.turn()
    assert [job.state for job in jobs] == [State.DECODE] * 2
    user = world.submit("user", INTERACTIVE, prompt=400, output=50)
    turn = world.turn()
    assert turn.park == (jobs[1],)
    assert (jobs[1].state, jobs[1].kv, jobs[1].unread) == (State.PARKED, 0, jobs[1].length)
    assert turn.prefill is not None
    assert turn.prefill.job is user
    world.core.run()
    assert [job.produced for job in (*jobs, user)] == [150, 150, 50]
    assert empty(world.scheduler)


def test_who_came_first_grows_and_nobody_deadlocks() -> None:
    """Ten answers that cannot all have KV for their whole length end nevertheless, the first before the last."""
    world = World(Limits(kv_bytes=1000, kv_headroom=16))
    world.scheduler.set_model("", 1)
    jobs = [world.submit("p", prompt=20, output=300) for _ in range(10)]
    parked = 0
    while len(world.scheduler):
        parked += len(world.turn().park)
        assert world.scheduler.kv_reserved() == sum(job.kv for job in jobs) <= 1000
    ends = [world.core.records[job.id].done or 0.0 for job in jobs]
    assert ends[0] < ends[-1]
    assert parked
    assert empty(world.scheduler)


def test_who_sits_out_runs_when_the_others_find_no_kv() -> None:
    """A job that is far ahead of its share runs when the one behind it cannot, for want of KV: the model is never left idle."""
    world = World(Limits(kv_bytes=330, kv_headroom=8, credit_s=0.0, lag=0.0))
    world.scheduler.set_model("", 1)
    world.submit("a", output=300, weight=1.0)
    world.submit("b", output=300, weight=4.0)
    parked = 0
    while len(world.scheduler):
        parked += len(world.turn().park)
    assert parked


def test_long_prompts_do_not_take_kv_from_each_other_for_ever() -> None:
    """Two prompts that take longer to read than a job may wait, and do not fit together: each is read once, none after the other
    in turns; a later and smaller one that slipped in makes room for who has waited too long."""
    world = World(Limits(kv_bytes=10_000, aging_s=2.0, max_jobs=1000))
    world.scheduler.set_model("", 1)
    first, second = (world.submit(name, prompt=prompt, output=20) for name, prompt in (("a", 8000), ("b", 9000)))
    while world.core.now < 5:
        world.turn()
    small = world.submit("c", prompt=1000, output=900)
    world.core.run()
    read = Counter({job.id: 0 for job in (first, second, small)})
    for _, _, spent in world.turns:
        read.update({row.job: row.prefill for row in spent})
    assert (read[first.id], read[second.id]) == (8000, 9000)
    assert [job for _, turn, _ in world.turns for job in turn.park] == [small]


def held(world: World) -> Counter[str]:
    """Rows by principal."""
    return Counter(record.arrival.principal for record in world.core.records.values() if record.job.kv)


def test_rows_are_shared_and_never_more_than_there_are() -> None:
    """Who has all rows of a model gives half of them to another who comes, whose jobs are many too; all jobs end."""
    world = World()
    world.scheduler.set_model("", 1, 4)
    jobs = [world.submit("first", output=600) for _ in range(10)]
    while world.core.now < 2:
        world.turn()
    assert held(world) == {"first": 4}
    jobs += [world.submit("second", output=600) for _ in range(10)]
    while world.core.now < 4:
        world.turn()
    assert held(world) == {"first": 2, "second": 2}
    while len(world.scheduler):
        world.turn()
        assert held(world).total() <= 4
    assert all(job.produced == 600 for job in jobs)
    assert empty(world.scheduler)


def test_a_sooner_class_takes_a_row() -> None:
    """Where all rows are taken by a later class, its last arrival gives its own up, at once."""
    world = World()
    world.scheduler.set_model("", 1, 2)
    background = [world.submit(name, BACKGROUND, output=300) for name in "abc"]
    while world.core.now < 2:
        world.turn()
    user = world.submit("user", INTERACTIVE)
    turn = world.turn()
    assert turn.park == (background[1],)
    assert turn.prefill is not None
    assert turn.prefill.job is user
    world.core.run()
    assert empty(world.scheduler)


def test_who_waits_for_a_row_is_not_forgotten() -> None:
    """Where more principals than rows have long answers to make, each of them runs within two agings, and none reads a prompt twice
    in that time."""
    world = World(Limits(aging_s=2.0))
    world.scheduler.set_model("", 1, 2)
    jobs = [world.submit(name, output=3000) for name in "abcd"]
    while world.core.now < 9:
        world.turn()
    assert all(job.first_run is not None and job.first_run < 4.5 for job in jobs)
    parks = Counter(job.principal for _, turn, _ in world.turns for job in turn.park)
    assert max(parks.values()) <= 4
