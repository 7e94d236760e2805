"""Whose inference runs on the model next, and for how many tokens. A pure state machine: no model, no sockets, no logging.

The kernel asks `pick` for a turn, the core runs it, `account` says what it did. A turn is one model's: a slice of one prompt,
and some decode steps of a batch. Between turns, and after any step of one (`preempts`), everything may change.

Classes are strict: while a job of a sooner class can run, later ones have only the seat that an odd batch leaves free (rows
are computed in pairs). Waiting lifts a job by one class for every `aging_s`, and then it goes first, once for its principal, so
nothing starves and nobody gains by queueing much. Inside a class principals share by weight (`fairness`): those that are
ahead sit out, except that all together may be ahead by a short time of the machine. That credit lets a short prompt be read at
once, so that its job can join the batch, while a long one is read at its principal's fair share. Within these bounds a job
that would miss its deadline goes first, then who came first. Nobody gets more than its budget has left. KV is `kv`'s.

Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI 2024), for prompts in
slices beside decodes; Yu et al., "Orca" (OSDI 2022), for batches that jobs join and leave at any token; those of `fairness`, `kv`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass
from llmos.kernel import params
from llmos.kernel.fairness import Budget, Flow, Flows, Rates
from llmos.kernel.jobs import Counts, Grant, Job, Spent, State, Turn
from llmos.kernel.kv import KV

__all__ = ["Counts", "Grant", "Job", "Limits", "Scheduler", "Spent", "State", "Turn"]


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
    lag: float = params.LAG
    prefill_credit_s: float = params.PREFILL_CREDIT_S
    decode_credit_s: float = params.DECODE_CREDIT_S
    urgent_s: float = params.URGENT_S


@dataclass(eq=False)
class _Queue:
    """The jobs of one class, in order of arrival."""

    job_class: JobClass
    jobs: dict[int, Job] = field(default_factory=dict)
    flows: Flows = field(default_factory=Flows)


class Scheduler:
    """Jobs are here from `submit` until they are done or removed; `pick` says what the core does next.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], limits: Limits | None = None) -> None:
        self._clock = clock
        self._limits = limits or Limits()
        self._queues = {job_class: _Queue(job_class) for job_class in sorted(JobClass)}
        self._kv = KV(self._limits.kv_bytes, self._limits.kv_headroom)
        self._budgets: dict[str, Budget] = {}
        self._rates: dict[str, Rates] = {}
        self._parking: list[Job] = []
        """Jobs that were parked since the last turn: the core is told with the next."""
        self._turns = 0
        self._turn: Turn | None = None
        self._front = JobClass.BACKGROUND
        """The class that the turn under way is for."""

    def __len__(self) -> int:
        """Jobs that are here, in any state."""
        return sum(len(queue.jobs) for queue in self._queues.values())

    def set_model(self, model: str, kv_bytes: int) -> None:
        """`model` is loaded; each token of its KV takes `kv_bytes` bytes (0 for one without KV: an embedder)."""
        self._kv.set_model(model, kv_bytes)

    def set_budget(self, principal: str, tokens: int | None, per_s: float = 3600.0) -> None:
        """In no `per_s` seconds may more than `tokens` be computed for `principal`; None lifts that.

        What it has spent since it first had a budget counts.
        """
        if tokens is None:
            self._budgets.pop(principal, None)
        else:
            budget = self._budgets.setdefault(principal, Budget(tokens, per_s))
            budget.tokens, budget.per_s = tokens, per_s

    def budget_left(self, principal: str) -> int | None:
        """Tokens that may be computed for it now; None without a budget."""
        budget = self._budgets.get(principal)
        return None if budget is None else budget.left(self._clock())

    def submit(self, job: Job) -> None:
        """It waits for `admitted` from now on. Raises `OpError(BUSY)` when the queue is full."""
        waiting = len(self)
        mine = sum(one.principal == job.principal for one in self._all())
        if not params.share(self._limits.max_jobs, mine, waiting - mine):
            raise OpError(Code.BUSY, f"{waiting} inferences are waiting already", "try again in a moment")
        queue = self._queues[job.job_class]
        job.arrived = job.waiting_since = self._clock()
        job.flow = queue.flows.enter(job.principal, job.weight)
        queue.jobs[job.id] = job

    def admitted(self, job_id: int, unread: int, max_tokens: int, cached: int = 0) -> None:
        """What the core said of it: from now on it may run. A job that is not here any more is passed over.

        Said again, outside of turns, when its conversation was paged: it begins anew.

        Args:
            unread: tokens to be prefilled.
            max_tokens: of the answer.
            cached: tokens in front of the unread ones, whose KV is there already but counts as this job's too.

        Raises `OpError(TOO_LARGE)` when it can never have the KV that it may need; the caller removes it.
        """
        job = self._find(job_id)
        if job is None:
            return
        job.prompt, job.max_tokens, job.produced = cached + unread, max_tokens, 0
        self._kv.check(job)
        job.unread, job.state = unread, State.PREFILL

    def remove(self, job_id: int) -> Job | None:
        """Done, cancelled or failed; None when it is not here. While it is in a turn `account` still charges for it."""
        job = self._find(job_id)
        if job is None:
            return None
        queue = self._queues[job.job_class]
        del queue.jobs[job_id]
        self._kv.release(job)
        job.flow.jobs -= 1
        if self._turn is None:  # until then its flow may have a charge to come
            queue.flows.forget()
        return job

    def pick(self) -> Turn | None:
        """What the core is to do now; None when no job can run, or a turn is under way.

        The turn is under way until `account` or `abandon`.
        """
        if self._turn is not None:
            return None
        now = self._clock()
        unable = self.exhausted()
        for job in unable:
            self._park(job)
        out = {job.id for job in unable}
        for queue in self._queues.values():
            while True:
                late = self._late(queue.job_class, now, out)
                ready = self._ready(queue, late, out)
                if not ready:
                    break
                turn = self._compose(queue, ready, late, out, now)
                if turn is not None:
                    return turn
        return None

    def preempts(self, newcomer: Job) -> bool:
        """Whether the turn under way should `yield` for `newcomer`, which has been admitted.

        For a sooner class's, and for one of its own that it took nobody to be waiting in.
        """
        if self._turn is None or newcomer.unread is None or self.budget_left(newcomer.principal) == 0:
            return False
        if newcomer.job_class == self._front:
            return any(grant.tokens > self._limits.slice for grant in self._turn.decode)
        return newcomer.job_class < self._front

    def account(self, turn: Turn, spent: Sequence[Spent], prefill_s: float, steps: int, decode_s: float) -> None:
        """What the turn did. Jobs that are done are removed. A turn that is not under way is passed over.

        Args:
            spent: one for each job of the turn; one that is missing did nothing.
            prefill_s: seconds that the prefill took.
            steps: decode steps that were run.
            decode_s: seconds that they took together.
        """
        if turn is not self._turn:
            return
        self._turn = None
        now = self._clock()
        rates = self._rates_of(turn.model)
        rates.learn_prefill(sum(row.prefill for row in spent), prefill_s)
        rates.learn_decode(sum(row.decode for row in spent), steps, decode_s)
        jobs = {grant.job.id: grant.job for grant in turn.grants}
        for row in spent:
            job = jobs.get(row.job)
            if job is None:
                continue
            job.flow.charge(row.decode - row.forced + (row.prefill + row.forced) * rates.prefill_cost, job.weight)
            if (budget := self._budgets.get(job.principal)) is not None:
                budget.spend(row.prefill + row.decode, now)
            job.waiting_since = now
            job.produced += row.decode
            job.state = row.state
            left = (job.unread or 0) - row.prefill - row.cached
            job.unread = max(left, 1) if row.state is State.PREFILL else 0
            if row.state is State.DONE:
                self.remove(job.id)
        for queue in self._queues.values():
            queue.flows.forget()

    def abandon(self) -> None:
        """The turn under way will never be accounted for: the core died. Its jobs are the caller's to remove."""
        self._turn = None
        for queue in self._queues.values():
            queue.flows.forget()

    def exhausted(self) -> list[Job]:
        """Jobs that will not run for want of budget: the caller ends them with `BUDGET`."""
        now = self._clock()
        broke = {principal for principal, budget in self._budgets.items() if not budget.left(now)}
        return [job for job in self._all() if job.principal in broke]

    def counts(self) -> dict[JobClass, Counts]:
        """Jobs by class and state."""
        counts = {job_class: Counts() for job_class in JobClass}
        for job in self._all():
            count = counts[job.job_class]
            setattr(count, job.state.value, getattr(count, job.state.value) + 1)
        return counts

    def kv_reserved(self) -> int:
        """Bytes of KV that are promised to jobs."""
        return self._kv.reserved

    def rates(self, model: str) -> Rates:
        """What a model's tokens take, as measured."""
        return self._rates.get(model, Rates())

    # who may run

    def _late(self, front: JobClass, now: float, out: set[int]) -> dict[int, Job]:
        """Those that have waited long enough to go before `front`, one of a flow, the longest waiting first."""
        oldest: dict[Flow, Job] = {}
        for queue in self._queues.values():
            if queue.job_class < front:
                continue
            horizon = now - self._limits.aging_s * max(1, queue.job_class - front)
            for job in queue.jobs.values():
                if job.waiting_since > horizon or job.flow.lifted > horizon or job.unread is None or job.id in out:
                    continue
                if job.flow not in oldest or job.waiting_since < oldest[job.flow].waiting_since:
                    oldest[job.flow] = job
        return {job.id: job for job in sorted(oldest.values(), key=lambda job: (job.waiting_since, job.id))}

    def _ready(self, queue: _Queue, late: dict[int, Job], out: set[int]) -> list[Job]:
        """Those of the class that can run now, in order of arrival."""
        room = self._kv.room(queue.job_class)
        return [
            job
            for job in queue.jobs.values()
            if job.unread is not None
            and job.id not in out
            and (job.kv or self._kv.start_bytes(job) <= room or job.id in late)
        ]

    # what they get

    def _compose(self, queue: _Queue, ready: list[Job], late: dict[int, Job], out: set[int], now: float) -> Turn | None:
        """A turn for one class's `ready`, and for the `late` of any.

        None when those whose turn it was found no room for their KV: they are in `out` then, and the others can be asked.
        """
        limits, flows = self._limits, queue.flows
        ahead = flows.contend(job.flow for job in ready)
        lead = next(iter(late.values()), None) or min(ready, key=lambda job: job.flow.virtual)
        rates = self._rates_of(lead.model)

        def within(job: Job, credit_s: float) -> bool:
            return ahead * rates.decode_s <= credit_s or flows.lead(job.flow) <= limits.lag or job.id in late

        may = [
            job for job in (*late.values(), *(job for job in ready if job.id not in late)) if job.model == lead.model
        ]
        prompts = [job for job in may if job.state is not State.DECODE and within(job, limits.prefill_credit_s)]
        rows = [job for job in may if job.state is State.DECODE and within(job, limits.decode_credit_s)]
        steps = limits.prefill_steps if prompts else limits.slice
        if len(rows) > limits.max_rows:
            rows = self._first_rows(rows, late, steps, rates, now)
        if len(rows) % 2 and len(rows) < limits.max_rows:
            rows += self._passenger(queue.job_class, lead.model, steps, out | late.keys())
        if len(rows) == len(self) and len({job.flow for job in rows}) == 1:
            steps = limits.quantum

        purse = {principal: budget.left(now) for principal, budget in self._budgets.items()}
        decode = self._batch(rows, steps, purse, late, out)
        prefill = self._slice(self._in_order(prompts, late, rates, now), purse, late, out)
        decode = [grant for grant in decode if grant.job.state is State.DECODE]  # the others gave way to a late one
        if prefill is None and not decode:
            return None
        self._turns += 1
        self._front = queue.job_class
        park = tuple(job for job in self._parking if self._find(job.id) is job)
        self._parking.clear()
        self._turn = Turn(self._turns, lead.model, prefill, tuple(decode), park)
        for grant in self._turn.grants:
            if grant.job.first_run is None:
                grant.job.first_run = now
            if grant.job.id in late:
                grant.job.flow.lifted = now
        return self._turn

    def _first_rows(self, rows: list[Job], late: dict[int, Job], steps: int, rates: Rates, now: float) -> list[Job]:
        """As many as a batch holds, in order of arrival.

        Each row starts where its flow will be when the rows before it are charged, so flows with many rows do not crowd others out.
        """
        tags: dict[Flow, float] = {}
        ranked: list[tuple[bool, float, float, int, Job]] = []
        for place, job in enumerate(rows):
            tag = tags.get(job.flow, job.flow.virtual)
            tags[job.flow] = tag + steps / job.weight
            ranked.append((job.id not in late, self._urgency(job, rates, now), tag, place, job))
        ranked.sort()
        return [row[-1] for row in sorted(ranked[: self._limits.max_rows], key=lambda row: row[3])]

    def _passenger(self, front: JobClass, model: str, steps: int, out: set[int]) -> list[Job]:
        """One job of a later class that can decode with the KV that it has, the one furthest behind; none if there is none."""
        for queue in self._queues.values():
            if queue.job_class <= front:
                continue
            riders = [
                job
                for job in queue.jobs.values()
                if job.state is State.DECODE
                and job.model == model
                and job.kv >= job.length + min(steps, job.remaining)
                and job.id not in out
            ]
            if riders:
                return [min(riders, key=lambda job: job.flow.virtual)]
        return []

    def _in_order(self, prompts: list[Job], late: dict[int, Job], rates: Rates, now: float) -> list[Job]:
        """Who has waited too long, then who would miss its deadline, then who came first."""
        return sorted(prompts, key=lambda job: (job.id not in late, self._urgency(job, rates, now)))

    def _urgency(self, job: Job, rates: Rates, now: float) -> float:
        """Its deadline, if that can be missed and might be; infinity otherwise, as for one that has passed."""
        if job.deadline is None or job.deadline <= now:
            return math.inf
        needs = (job.unread or 0) * rates.prefill_s + job.remaining * rates.step_s
        return job.deadline if job.deadline - now - needs < self._limits.urgent_s else math.inf

    def _batch(
        self, rows: list[Job], steps: int, purse: dict[str, int], late: dict[int, Job], out: set[int]
    ) -> list[Grant]:
        """Grants for rows that have KV for them; who came first may take it from who came later."""
        grants = []
        for job in rows:
            tokens = _take(purse, job, min(steps, max(job.remaining, 1)))
            if not tokens or job.state is not State.DECODE:
                continue
            gave = self._kv.grow(job, tokens, late=job.id in late)
            if gave is None:
                self._park(job)
                out.add(job.id)
            else:
                self._parking += gave
                grants.append(Grant(job, tokens))
        return grants

    def _slice(self, prompts: list[Job], purse: dict[str, int], late: dict[int, Job], out: set[int]) -> Grant | None:
        """A grant for the first prompt that has KV, or finds it."""
        for job in prompts:
            if not job.kv:
                gave = self._kv.start(job, late=job.id in late)
                if gave is None:
                    out.add(job.id)
                    continue
                self._parking += gave
                if job in self._parking:  # the core has not been told, and need not be
                    self._parking.remove(job)
            if tokens := _take(purse, job, min(self._limits.prefill_slice, max(job.unread or 0, 1))):
                return Grant(job, tokens)
        return None

    def _park(self, job: Job) -> None:
        if job.kv:
            self._kv.park(job)
            self._parking.append(job)

    def _rates_of(self, model: str) -> Rates:
        return self._rates.setdefault(model, Rates())

    def _find(self, job_id: int) -> Job | None:
        return next((queue.jobs[job_id] for queue in self._queues.values() if job_id in queue.jobs), None)

    def _all(self) -> Iterable[Job]:
        return itertools.chain.from_iterable(queue.jobs.values() for queue in self._queues.values())


def _take(purse: dict[str, int], job: Job, wish: int) -> int:
    """Tokens for it, of those that its principal's budget has left in this turn."""
    if job.principal not in purse:
        return wish
    granted = min(wish, purse[job.principal])
    purse[job.principal] -= granted
    return granted
