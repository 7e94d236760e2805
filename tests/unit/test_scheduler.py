"""The scheduler, against a clock that only moves when told, and a core that takes the time of a measured one."""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass, field
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
from tests.bench.simulated_core import Arrival, Costs, SimulatedCore

BACKGROUND, EVENT, INTERACTIVE = JobClass.BACKGROUND, JobClass.EVENT, JobClass.INTERACTIVE
WINDOW_S = 10.0


@dataclass
class World:
    """A simulated core with the scheduler, and what its turns did."""

    limits: Limits = field(default_factory=lambda: Limits(max_jobs=10_000))
    turns: list[tuple[float, Turn, list[Spent]]] = field(default_factory=list)
    served: list[tuple[float, Counter[str]]] = field(default_factory=list)
    """At the end of each turn, what each principal has had since the beginning, in decoded tokens' worth."""

    def __post_init__(self) -> None:
        self.core = SimulatedCore(self._make, heard=self._heard)

    def _make(self, clock: object) -> Scheduler:
        self.scheduler = Scheduler(clock, self.limits)  # type: ignore[arg-type]
        return self.scheduler

    def _heard(self, turn: Turn, spent: list[Spent]) -> None:
        self.turns.append((self.core.now, turn, spent))
        served = Counter(self.served[-1][1]) if self.served else Counter[str]()
        for row in spent:
            worth = row.decode + row.prefill * self.scheduler.rates(turn.model).prefill_cost
            served[self.core.records[row.job].arrival.principal] += worth  # type: ignore[assignment]
        self.served.append((self.core.now, served))

    def submit(
        self, principal: str, job_class: JobClass = EVENT, prompt: int = 10, output: int = 100, **more: object
    ) -> Job:
        return self.core.submit(Arrival(self.core.now, principal, job_class, prompt, output, **more))  # type: ignore[arg-type]

    def running(self) -> Counter[str]:
        """Jobs that are not done, by principal."""
        return Counter(one.arrival.principal for one in self.core.records.values() if one.done is None)

    def turn(self) -> Turn:
        turn = self.scheduler.pick()
        assert turn is not None
        self.core.turn(turn)
        return turn

    def worst_share(self, weights: dict[str, float], since: float = 0.0) -> float:
        """The most by which a principal's part of what a window of ten seconds gave differs from its part of the weights.

        Args:
            since: seconds before which no window begins.
        """
        worst, begins = 0.0, deque[tuple[float, Counter[str]]]()
        for now, served in [(0.0, Counter[str]()), *self.served]:
            if now < since:
                continue
            while begins and now - begins[0][0] >= WINDOW_S:
                before = begins.popleft()[1]
                total = served.total() - before.total()
                for name, weight in weights.items():
                    share = (served[name] - before[name]) / total
                    worst = max(worst, abs(share - weight / sum(weights.values())))
            begins.append((now, served))
        return worst


def empty(scheduler: Scheduler) -> bool:
    """Whether it has forgotten everything about jobs."""
    queues = scheduler._queues.values()
    idle = not any(queue.jobs or len(queue.flows) or queue.flows.virtual for queue in queues)
    kv = scheduler._kv
    return (
        idle
        and not kv._holders
        and not any(kv._reserved.values())
        and not scheduler._parked
        and scheduler._turn is None
    )


# classes


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


# shares


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


# deadlines


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


# budgets


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


# KV


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


# the simulator


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


# bookkeeping


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
