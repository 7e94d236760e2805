"""Whose inference runs on the model next, and for how many tokens. A pure state machine: no model, no sockets, no logging.

The kernel asks `pick` for a turn, the core runs it, `account` says what it did. A turn is one model's: a slice of one prompt,
and some decode steps of a batch. Between turns, and after any step of one (`preempts`), everything may change.

Classes are strict: while a job of a sooner class can run, later ones have only the seat that an odd batch leaves free (rows
are computed in pairs). Waiting lifts a job by one class for every `aging_s`, and then it goes first, once for its principal, so
nothing starves and nobody gains by queueing much. Inside a class principals share by weight (`fairness`): who is ahead
by more than a credit, a short time of the machine, sits out. The credit lets a short prompt be read at once, so that its job
can join the batch, while a long one is read at its principal's fair share. Within these bounds a job that would miss its
deadline goes first, then who came first. Nobody gets more than its budget has left. Which job may have KV is in `kv`.

Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI 2024), for prompts in
slices beside decodes; Yu et al., "Orca" (OSDI 2022), for batches that jobs join and leave at any token; those of `fairness`, `kv`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass
from llmos.kernel import params
from llmos.kernel.fairness import Budget, Rates
from llmos.kernel.jobs import Counts, Grant, Job, Spent, State, Turn
from llmos.kernel.kv import KV
from llmos.kernel.turns import Composer, Limits, Queue

__all__ = ["Counts", "Grant", "Job", "Limits", "Scheduler", "Spent", "State", "Turn"]


class Scheduler:
    """Jobs are here from `submit` until they are done or removed; `pick` says what the core does next.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], limits: Limits | None = None) -> None:
        self._clock = clock
        self._limits = limits or Limits()
        self._queues = {job_class: Queue(job_class) for job_class in sorted(JobClass)}
        self._kv = KV(self._limits.kv_bytes, self._limits.kv_headroom)
        self._budgets: dict[str, Budget] = {}
        self._rates: dict[str, Rates] = {}
        self._parked: list[Job] = []
        """Since the last turn: the core is told with the next."""
        self._turns = 0
        self._turn: Turn | None = None

    def __len__(self) -> int:
        """Jobs that are here, in any state."""
        return sum(len(queue.jobs) for queue in self._queues.values())

    def set_model(self, model: str, kv_bytes: int, rows: int | None = None) -> None:
        """`model` is loaded; each token of its KV takes `kv_bytes` bytes (0 for one without KV: an embedder).

        At most `rows` of its jobs may be under way, prompts that are being read included; None for any number.
        """
        self._kv.set_model(model, kv_bytes, rows)

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
        self._parked = [one for one in self._parked if one is not job]
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
            if job.kv:
                self._kv.park(job)
                self._parked.append(job)
        purse = {principal: budget.left(now) for principal, budget in self._budgets.items()}
        out = {job.id for job in unable}
        composer = Composer(self._queues, self._kv, self._limits, self._rates_of, purse, self._parked, out, now)
        self._turn = composer.compose(self._turns + 1)
        if self._turn is not None:
            self._turns += 1
            self._parked.clear()
            for grant in self._turn.grants:
                if grant.job.first_run is None:
                    grant.job.first_run = now
        return self._turn

    def preempts(self, newcomer: Job) -> bool:
        """Whether the turn under way should `yield` for `newcomer`, which has been admitted.

        For a sooner class's, and for one of its own that it took nobody to be waiting in.
        """
        if self._turn is None or newcomer.unread is None or self.budget_left(newcomer.principal) == 0:
            return False
        if newcomer.job_class == self._turn.job_class:
            return any(grant.tokens > self._limits.slice for grant in self._turn.decode)
        return newcomer.job_class < self._turn.job_class

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
        prefilled, decoded = sum(row.prefill for row in spent), sum(row.decode for row in spent)
        rates.learn(prefilled, prefill_s, decoded, steps, decode_s)
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
        broke = self._broke()
        return [job for job in self._all() if job.principal in broke] if broke else []

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

    def _broke(self) -> set[str]:
        """Principals whose budget is used up."""
        now = self._clock()
        return {principal for principal, budget in self._budgets.items() if not budget.left(now)}

    def _rates_of(self, model: str) -> Rates:
        return self._rates.setdefault(model, Rates())

    def _find(self, job_id: int) -> Job | None:
        return next((queue.jobs[job_id] for queue in self._queues.values() if job_id in queue.jobs), None)

    def _all(self) -> Iterable[Job]:
        return itertools.chain.from_iterable(queue.jobs.values() for queue in self._queues.values())
