"""The scheduler under any sequence of what can happen to it: what must hold after each step, whoever did what before."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmos.ipc.errors import OpError
from llmos.ipc.protocol import JobClass
from llmos.kernel.scheduler import Job, Limits, Scheduler, Spent, State, Turn

KV_BYTES, ROWS, AGING_S = 2000, 4, 5.0
KV_PER_TOKEN = {"small": 1, "large": 3, "embedder": 0}
ROWS_OF = {"small": 3, "large": 5, "embedder": None}
"""How many jobs of each model may have KV at once."""
PRINCIPALS = ("a", "b", "c", "d")


class SchedulerMachine(RuleBasedStateMachine):
    """The scheduler, a core that does what it likes within its grants, and a record of what was spent."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs: dict[int, Job] = {}
        self.turn: Turn | None = None
        self.budgets: dict[str, tuple[int, float]] = {}
        self.spent: list[tuple[float, str, int]] = []
        self.lifted: dict[tuple[str, JobClass], float] = {}
        self.numbers = 0

    @initialize()
    def start(self) -> None:
        limits = Limits(kv_bytes=KV_BYTES, kv_headroom=20, max_rows=ROWS, max_jobs=40, aging_s=AGING_S)
        self.scheduler = Scheduler(lambda: self.now, limits)
        for model, per_token in KV_PER_TOKEN.items():
            self.scheduler.set_model(model, per_token, ROWS_OF[model])

    @rule(
        principal=st.sampled_from(PRINCIPALS),
        job_class=st.sampled_from(JobClass),
        model=st.sampled_from(sorted(KV_PER_TOKEN)),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
        due=st.one_of(st.none(), st.floats(0, 10)),
    )
    def submit(self, principal: str, job_class: JobClass, model: str, weight: float, due: float | None) -> None:
        self.numbers += 1
        job = Job(self.numbers, principal, job_class, weight, model, None if due is None else self.now + due)
        try:
            self.scheduler.submit(job)
        except OpError:
            assert sum(one.principal == principal for one in self.jobs.values()) >= (40 - len(self.jobs)) // 3
        else:
            self.jobs[job.id] = job

    @precondition(lambda self: any(job.unread is None for job in self.jobs.values()))
    @rule(data=st.data(), unread=st.integers(0, 900), cached=st.integers(0, 100), answer=st.integers(0, 200))
    def admitted(self, data: st.DataObject, unread: int, cached: int, answer: int) -> None:
        job = data.draw(st.sampled_from([job for job in self.jobs.values() if job.unread is None]))
        fits = (unread + cached + answer) * KV_PER_TOKEN[job.model] <= KV_BYTES
        try:
            self.scheduler.admitted(job.id, unread, answer, cached)
        except OpError:
            assert not fits
            self._forget(job.id)
        else:
            assert fits
            if self.turn is not None and self.scheduler.preempts(job):
                long = any(grant.tokens > 8 for grant in self.turn.decode)
                assert job.job_class < self.turn.job_class or (long and job.job_class == self.turn.job_class)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self._forget(data.draw(st.sampled_from(sorted(self.jobs))))

    @rule(seconds=st.floats(0, 8))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        principal=st.sampled_from(PRINCIPALS), tokens=st.one_of(st.none(), st.integers(0, 300)), per_s=st.floats(1, 30)
    )
    def set_budget(self, principal: str, tokens: int | None, per_s: float) -> None:
        self.scheduler.set_budget(principal, None, per_s)
        self.budgets.pop(principal, None)
        self.spent = [row for row in self.spent if row[1] != principal]
        if tokens is not None:
            self.scheduler.set_budget(principal, tokens, per_s)
            self.budgets[principal] = (tokens, per_s)

    @precondition(lambda self: self.turn is None)
    @rule()
    def pick(self) -> None:
        waiting = {job.id: job.waiting_since for job in self.jobs.values()}
        ready = [job for job in self.jobs.values() if job.unread is not None and self._left(job.principal)]
        self.turn = self.scheduler.pick()
        assert (self.turn is None) == (not ready), "it works as long as there is work"
        if self.turn is not None:
            self._well_formed(self.turn)
            self._strict(self.turn, min(job.job_class for job in ready), waiting)

    @precondition(lambda self: self.turn is not None)
    @rule(data=st.data(), seconds=st.floats(0, 2))
    def account(self, data: st.DataObject, seconds: float) -> None:
        assert self.turn is not None
        self.now += seconds
        rows = []
        for grant in self.turn.grants:
            used = data.draw(st.integers(0, grant.tokens))
            if grant is self.turn.prefill:
                left = max(grant.job.unread or 0, used) - used
                cached = data.draw(st.integers(0, left))
                goes_on = [State.DECODE, State.DONE] if grant.job.remaining else [State.DONE]
                state = State.PREFILL if left - cached else data.draw(st.sampled_from(goes_on))
                rows.append(Spent(grant.job.id, used, cached, 0, 0, state))
            else:
                full = grant.job.produced + used >= grant.job.max_tokens
                state = State.DONE if full else data.draw(st.sampled_from([State.DECODE, State.DECODE, State.DONE]))
                rows.append(Spent(grant.job.id, 0, 0, used, data.draw(st.integers(0, used)), state))
            self.spent.append((self.now, grant.job.principal, used))
        self.scheduler.account(self.turn, rows, seconds / 2, 2, seconds / 2)
        self.turn = None
        for row in rows:
            if row.state is State.DONE:
                self.jobs.pop(row.job, None)

    @precondition(lambda self: self.turn is not None)
    @rule()
    def die(self) -> None:
        self.scheduler.abandon()
        self.turn = None
        for number in list(self.jobs):
            self._forget(number)

    @invariant()
    def kv_is_within_its_budget(self) -> None:
        if hasattr(self, "scheduler"):
            held = sum(job.kv * KV_PER_TOKEN[job.model] for job in self.jobs.values())
            assert self.scheduler.kv_reserved() == held <= KV_BYTES

    @invariant()
    def no_model_has_more_jobs_under_way_than_rows(self) -> None:
        for model, rows in ROWS_OF.items():
            assert rows is None or sum(job.model == model and job.kv > 0 for job in self.jobs.values()) <= rows

    @invariant()
    def budgets_are_never_exceeded(self) -> None:
        for principal, (tokens, per_s) in self.budgets.items():
            spent = sum(some for at, who, some in self.spent if who == principal and at > self.now - per_s)
            assert spent <= tokens

    @invariant()
    def counts_are_of_what_is_here(self) -> None:
        if hasattr(self, "scheduler"):
            counts = self.scheduler.counts().values()
            assert sum(one.new + one.prefill + one.decode + one.parked for one in counts) == len(self.jobs)

    def teardown(self) -> None:
        """When all is removed nothing is left."""
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.abandon()
        for number in list(self.jobs):
            self._forget(number)
        assert not len(self.scheduler)
        assert not self.scheduler.kv_reserved()
        assert not any(len(queue.flows) for queue in self.scheduler._queues.values())
        assert not self.scheduler._kv._holders
        assert not self.scheduler._parked

    def _forget(self, number: int) -> None:
        assert self.scheduler.remove(number) is self.jobs.pop(number)
        assert self.scheduler.remove(number) is None

    def _left(self, principal: str) -> int:
        left = self.scheduler.budget_left(principal)
        return 1_000_000 if left is None else left

    def _well_formed(self, turn: Turn) -> None:
        jobs = [grant.job for grant in turn.grants]
        assert jobs
        assert len(jobs) == len(set(jobs))
        assert not set(jobs) & set(turn.park)
        assert len(turn.decode) <= ROWS
        assert all(job.model == turn.model and job.id in self.jobs for job in jobs)
        assert all(job.kv == 0 for job in turn.park)
        assert turn.prefill is None or turn.prefill.job.state in (State.PREFILL, State.PARKED)
        for grant in turn.grants:
            assert grant.tokens >= 1
            assert grant.job.kv >= 1
        for grant in turn.decode:
            assert grant.job.state is State.DECODE
            assert grant.job.kv >= grant.job.length + grant.tokens
        for principal in {job.principal for job in jobs}:
            granted = sum(grant.tokens for grant in turn.grants if grant.job.principal == principal)
            assert granted <= self._left(principal)

    def _strict(self, turn: Turn, front: JobClass, waiting: dict[int, float]) -> None:
        """Who is of a later class has waited for it, or has the one seat that was free; and waiting counts for one of a flow."""
        assert turn.job_class is front
        guests = []
        for grant in turn.grants:
            job = grant.job
            if job.job_class > front:
                since = max(waiting[job.id], self.lifted.get((job.principal, job.job_class), 0.0))
                if self.now - since >= AGING_S * (job.job_class - front):
                    self.lifted[job.principal, job.job_class] = self.now
                else:
                    guests.append(grant)
        assert len(guests) <= 1
        if guests:
            assert guests[0] in turn.decode
            assert len(turn.decode) % 2 == 0
            assert len(turn.decode) > 1


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
