"""Who runs on the model next, and for how many tokens. A pure state machine with an injected clock: no model, no sockets.

Classes are strict: an interactive job goes before an event's, an event's before a background one. Waiting lifts a job by one
class for every `aging_s` seconds, so nothing starves. Inside a class, principals share by weight: each has a virtual time in
tokens ÷ weight, and the one that is furthest behind runs (start-time fair queueing); a principal that comes back from idling
starts at the present virtual time, so it can neither save up nor be punished. A principal's own jobs run in order of arrival.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing" (SIGCOMM 1996); Sheng et al., "Fairness in Serving Large Language
Models" (OSDI 2024), for counting service in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass
from llmos.kernel import params


@dataclass(eq=False)
class Job:
    """One inference for one principal. The scheduler reads it and writes the last three fields."""

    id: int
    principal: str
    job_class: JobClass
    weight: float = params.CLASS_WEIGHT_DEFAULT
    arrived: float = 0.0
    served: int = 0
    """Tokens prefilled and decoded for it so far."""
    waiting_since: float = field(default=0.0, repr=False)


@dataclass(frozen=True)
class Slice:
    """What the engine is to do next: run `job` for at most `tokens`."""

    job: Job
    tokens: int


class Scheduler:
    """Jobs wait here until they are done; `pick` says who runs.

    Args:
        clock: monotonic seconds.
        prefill_cost: what a prefilled token counts, a decoded one counting 1.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        prefill_cost: float = 0.25,
        aging_s: float = params.AGING_S,
        quantum: int = params.QUANTUM,
        slice_: int = params.SLICE,
        max_jobs: int = params.MAX_JOBS,
    ) -> None:
        self._clock = clock
        self._prefill_cost = prefill_cost
        self._aging_s = aging_s
        self._quantum = quantum
        self._slice = slice_
        self._max_jobs = max_jobs
        self._jobs: dict[int, Job] = {}
        self._virtual: dict[str, float] = {}
        self._now_virtual = 0.0

    def __len__(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Raises `OpError(BUSY)` when the queue is full."""
        mine = sum(one.principal == job.principal for one in self._jobs.values())
        if not params.share(self._max_jobs, mine, len(self._jobs) - mine):
            raise OpError(Code.BUSY, f"{len(self._jobs)} inferences are waiting already", "try again in a moment")
        if not any(other.principal == job.principal for other in self._jobs.values()):
            self._virtual[job.principal] = max(self._virtual.get(job.principal, 0.0), self._now_virtual)
        job.arrived = job.waiting_since = self._clock()
        self._jobs[job.id] = job

    def remove(self, job_id: int) -> Job | None:
        """Done, cancelled or failed; None when it is not here."""
        job = self._jobs.pop(job_id, None)
        if not self._jobs:  # nobody to be fair to: start afresh, so that the table of principals stays small
            self._virtual.clear()
            self._now_virtual = 0.0
        return job

    def pick(self) -> Slice | None:
        """The job to run now and for how long; None when there is none."""
        if not self._jobs:
            return None
        job = min(self._jobs.values(), key=self._rank)
        self._now_virtual = self._virtual[job.principal]
        alone = len(self._jobs) == 1
        return Slice(job, self._quantum if alone else self._slice)

    def preempts(self, newcomer: Job, running: Job) -> bool:
        """Whether `newcomer` should not wait for the end of `running`'s slice."""
        return self.effective_class(newcomer) < self.effective_class(running)

    def account(self, job: Job, prefill: int, decode: int) -> None:
        """What a slice did, in tokens."""
        job.served += prefill + decode
        job.waiting_since = self._clock()
        if job.principal in self._virtual:
            self._virtual[job.principal] += (prefill * self._prefill_cost + decode) / job.weight

    def effective_class(self, job: Job) -> int:
        """Its class, less one for every `aging_s` it has waited since it last ran."""
        return max(0, job.job_class - int((self._clock() - job.waiting_since) / self._aging_s))

    def _rank(self, job: Job) -> tuple[int, float, float, int]:
        return self.effective_class(job), self._virtual[job.principal], job.arrived, job.id
