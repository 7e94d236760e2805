"""The turn that the core gets next: which jobs are in it, and with how many tokens. The rules of `scheduler`, one method each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from llmos.ipc.protocol import JobClass
from llmos.kernel import params
from llmos.kernel.fairness import Flow, Flows, Rates
from llmos.kernel.jobs import Grant, Job, State, Turn
from llmos.kernel.kv import KV


@dataclass(frozen=True)
class Limits:
    """What the scheduler is run with; units and meanings are in `params`."""

    kv_bytes: int = params.KV_BYTES
    kv_headroom: int = params.KV_HEADROOM
    max_jobs: int = params.MAX_JOBS
    max_rows: int = params.MAX_ROWS
    quantum: int = params.QUANTUM
    slice: int = params.SLICE
    prefill_slice: int = params.PREFILL_SLICE
    prefill_steps: int = params.PREFILL_STEPS
    aging_s: float = params.AGING_S
    credit_s: float = params.CREDIT_S
    lag: float = params.LAG
    urgent_s: float = params.URGENT_S


@dataclass(eq=False)
class Queue:
    """The jobs of one class, in order of arrival, and their flows."""

    job_class: JobClass
    jobs: dict[int, Job] = field(default_factory=dict)
    flows: Flows = field(default_factory=Flows)


class Composer:
    """One turn in the making.

    Args:
        queues: the soonest class first.
        rates: of a model.
        purse: what budgets have left, by principal; what is granted is taken out.
        parked: jobs that have given up their KV and of which the core does not know yet; those that do so now are added.
        out: ids of jobs that may not run; those that find no KV are added.
    """

    def __init__(
        self,
        queues: Mapping[JobClass, Queue],
        kv: KV,
        limits: Limits,
        rates: Callable[[str], Rates],
        purse: dict[str, int],
        parked: list[Job],
        out: set[int],
        now: float,
    ) -> None:
        self._queues = queues
        self._kv = kv
        self._limits = limits
        self._rates = rates
        self._purse = purse
        self._parked = parked
        self._out = out
        self._now = now
        self._late: dict[int, Job] = {}

    def compose(self, number: int) -> Turn | None:
        """For the soonest class with a job that can run; None when there is none."""
        for queue in self._queues.values():
            while True:
                self._late = self._waited(queue.job_class)
                ready = list(self._ready(queue))
                if not ready:
                    break
                turn = self._turn(number, queue, ready)
                if turn is not None:
                    return turn  # else those whose turn it was are out now, and the others can be asked
        return None

    def _waited(self, front: JobClass) -> dict[int, Job]:
        """Those that have waited long enough to go before `front`'s: one of a flow, the longest waiting first."""
        oldest: dict[Flow, Job] = {}
        for queue in self._queues.values():
            if queue.job_class < front:
                continue
            horizon = self._now - self._limits.aging_s * max(1, queue.job_class - front)
            for job in queue.jobs.values():
                if job.waiting_since > horizon or job.flow.lifted > horizon:
                    continue
                if job.unread is None or job.id in self._out:
                    continue
                if job.flow not in oldest or job.waiting_since < oldest[job.flow].waiting_since:
                    oldest[job.flow] = job
        return {job.id: job for job in sorted(oldest.values(), key=lambda job: (job.waiting_since, job.id))}

    def _ready(self, queue: Queue) -> Iterator[Job]:
        """Those of the class that can run."""
        opens = self._kv.gate(queue.job_class)
        for job in queue.jobs.values():
            if job.unread is None or job.id in self._out:
                continue
            if job.kv or job.id in self._late or opens(job):
                yield job

    def _turn(self, number: int, queue: Queue, ready: list[Job]) -> Turn | None:
        """For the class's `ready`, and for those of any class that are late. None when nothing could be granted."""
        limits, flows = self._limits, queue.flows
        due = flows.contend(job.flow for job in ready)
        first = next(iter(self._late.values()), None) or min(ready, key=lambda job: job.flow.virtual)
        rates = self._rates(first.model)

        def sits_out(job: Job) -> bool:
            lead = flows.lead(job.flow)
            return lead > limits.lag and max(lead, due) * rates.decode_s > limits.credit_s

        may = [job for job in ready if job.id not in self._late and job.model == first.model and not sits_out(job)]
        may = [*(job for job in self._late.values() if job.model == first.model), *may]
        rows = [job for job in may if job.state is State.DECODE]
        prompts = [job for job in may if job.state is not State.DECODE]
        steps = limits.prefill_steps if prompts else limits.slice
        waiting = sum(len(one.jobs) for one in self._queues.values()) > min(len(rows), limits.max_rows)
        if not waiting and len({job.flow for job in rows}) == 1:
            steps = limits.quantum

        batch = self._batch(self._first_rows(rows, steps, rates), steps)
        prefill = self._slice(prompts, rates)
        batch = [grant for grant in batch if grant.job.state is State.DECODE]  # the others gave way to one that is late
        if prefill is None and not batch:
            return None
        if len(batch) % 2 and len(batch) < limits.max_rows:
            batch += self._passenger(queue.job_class, first.model, steps)
        turn = Turn(number, first.model, prefill, tuple(batch), tuple(self._parked), queue.job_class)
        for grant in turn.grants:
            if grant.job.id in self._late:
                grant.job.flow.lifted = self._now
        return turn

    def _first_rows(self, rows: list[Job], steps: int, rates: Rates) -> list[Job]:
        """As many as a batch holds, in the order given.

        A row counts as starting where its flow will be when the rows before it are charged: a flow with many rows crowds
        nobody out.
        """
        if len(rows) <= self._limits.max_rows:
            return rows
        tags: dict[Flow, float] = {}
        ranked: list[tuple[bool, float, float, int, Job]] = []
        for place, job in enumerate(rows):
            tag = tags.get(job.flow, job.flow.virtual)
            tags[job.flow] = tag + steps / job.weight
            ranked.append((job.id not in self._late, self._urgency(job, rates), tag, place, job))
        ranked.sort()
        return [row[-1] for row in sorted(ranked[: self._limits.max_rows], key=lambda row: row[3])]

    def _batch(self, rows: list[Job], steps: int) -> list[Grant]:
        """Grants for rows that have KV, or get it; who came first may have it from who came later."""
        grants = []
        for job in rows:
            if job.state is not State.DECODE:  # it gave way
                continue
            tokens = self._take(job, _wish(job, steps))
            if not tokens:
                continue
            gave = self._kv.grow(job, tokens)
            if gave is None:
                self._kv.park(job)
                self._out.add(job.id)
                gave = [job]
            else:
                grants.append(Grant(job, tokens))
            self._parked += gave
        return grants

    def _slice(self, prompts: list[Job], rates: Rates) -> Grant | None:
        """A grant for the first prompt that has KV, or gets it: who is late, then who would miss its deadline, then who came first."""
        for job in sorted(prompts, key=lambda job: (job.id not in self._late, self._urgency(job, rates))):
            if not job.kv:
                gave = self._kv.start(job, late=job.id in self._late)
                if gave is None:
                    self._out.add(job.id)
                    continue
                self._parked += gave
                if job in self._parked:  # the core has not been told, and need not be
                    self._parked.remove(job)
            if tokens := self._take(job, min(self._limits.prefill_slice, max(job.unread or 0, 1))):
                return Grant(job, tokens)
        return None

    def _passenger(self, front: JobClass, model: str, steps: int) -> list[Grant]:
        """One job of a later class that can decode with the KV that it has, the one furthest behind; none if there is none."""
        for queue in self._queues.values():
            if queue.job_class <= front:
                continue
            riders = [
                job
                for job in queue.jobs.values()
                if job.state is State.DECODE
                and job.model == model
                and job.kv >= job.length + _wish(job, steps)
                and job.id not in self._out
                and job.id not in self._late
            ]
            for job in sorted(riders, key=lambda job: job.flow.virtual):
                if tokens := self._take(job, _wish(job, steps)):
                    return [Grant(job, tokens)]
        return []

    def _urgency(self, job: Job, rates: Rates) -> float:
        """Its deadline, if that can be missed and might be; infinity otherwise, as for one that has passed."""
        if job.deadline is None or job.deadline <= self._now:
            return math.inf
        needs = (job.unread or 0) * rates.prefill_s + job.remaining * rates.step_s
        return job.deadline if job.deadline - self._now - needs < self._limits.urgent_s else math.inf

    def _take(self, job: Job, wish: int) -> int:
        """Tokens for it, of those that its principal's budget has left."""
        granted = min(wish, self._purse.get(job.principal, wish))
        if job.principal in self._purse:
            self._purse[job.principal] -= granted
        return granted


def _wish(job: Job, steps: int) -> int:
    """Tokens of so many steps that it can use."""
    return min(steps, max(job.remaining, 1))
