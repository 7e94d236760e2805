"""A core without a model: it takes the time that one would, on a clock that only it moves. For the scheduler's tests and traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from llmos.ipc.protocol import JobClass
from llmos.kernel.scheduler import Job, Spent, State, Turn

STEP_MS = {2: 17.0, 4: 20.0, 8: 27.0, 16: 44.0}
"""Milliseconds of a decode step by rows, of a 0.5B model on two cores; a lone row is computed as two."""
SLICE_MS = {0: 6.0, 64: 84.0, 128: 162.0}
"""Milliseconds of a prefill slice by tokens."""


@dataclass(frozen=True)
class Costs:
    step_ms: dict[int, float] = field(default_factory=lambda: dict(STEP_MS))
    slice_ms: dict[int, float] = field(default_factory=lambda: dict(SLICE_MS))

    def step_s(self, rows: int) -> float:
        """Seconds of a step of that many rows."""
        return _between(self.step_ms, rows + rows % 2) / 1000

    def slice_s(self, tokens: int) -> float:
        """Seconds to prefill that many tokens in one slice."""
        return _between(self.slice_ms, tokens) / 1000 if tokens else 0.0


def _between(table: dict[int, float], at: int) -> float:
    """Between two entries linearly, and on beyond the last as between the last two."""
    points = sorted(table.items())
    if at <= points[0][0]:
        return points[0][1]
    (low, first), (high, last) = next((pair for pair in pairwise(points) if at <= pair[1][0]), points[-2:])
    return first + (at - low) * (last - first) / (high - low)


class Policy(Protocol):
    """What the kernel's scheduler offers the core's side."""

    def submit(self, job: Job) -> None: ...
    def admitted(self, job_id: int, unread: int, max_tokens: int, cached: int = 0) -> None: ...
    def pick(self) -> Turn | None: ...
    def preempts(self, newcomer: Job) -> bool: ...
    def account(self, turn: Turn, spent: list[Spent], prefill_s: float, steps: int, decode_s: float) -> None: ...


@dataclass
class Arrival:
    """One inference: when it comes, and how long it will turn out to be."""

    at: float
    principal: str
    job_class: JobClass
    prompt: int
    output: int
    weight: float = 1.0
    deadline: float | None = None
    """On the same clock as `at`."""
    max_tokens: int | None = None
    """What it asks for; its output is not known before."""
    cached: int = 0
    kind: str = "generate"
    model: str = ""


@dataclass
class Record:
    """What became of an arrival."""

    arrival: Arrival
    job: Job
    first_token: float | None = None
    done: float | None = None


class SimulatedCore:
    """Runs a policy's turns.

    Args:
        make: given the clock, makes the policy.
        heard: told what each turn did, before it is accounted for.
    """

    def __init__(
        self,
        make: Callable[[Callable[[], float]], Policy],
        arrivals: Iterable[Arrival] = (),
        costs: Costs | None = None,
        heard: Callable[[Turn, list[Spent]], None] = lambda _turn, _spent: None,
    ) -> None:
        self.now = 0.0
        self.costs = costs or Costs()
        self.policy = make(lambda: self.now)
        self.records: dict[int, Record] = {}
        self._coming = sorted(arrivals, key=lambda one: one.at)[::-1]  # the next one last
        self._heard = heard

    def submit(self, arrival: Arrival) -> Job:
        """It comes now."""
        job = Job(
            len(self.records), arrival.principal, arrival.job_class, arrival.weight, arrival.model, arrival.deadline
        )
        self.records[job.id] = Record(arrival, job)
        self.policy.submit(job)
        self.policy.admitted(job.id, arrival.prompt, arrival.max_tokens or arrival.output, arrival.cached)
        return job

    def run(self, until: float = float("inf")) -> None:
        """Until that time, or everything is done."""
        while self.now < until:
            self._arrive()
            turn = self.policy.pick()
            if turn is not None:
                self.turn(turn)
            elif self._coming:
                self.now = max(self.now, self._coming[-1].at)
            else:
                return

    def turn(self, turn: Turn, steps: int | None = None) -> None:
        """Run one, until it is to yield, or for so many decode steps."""
        spent = {grant.job.id: Spent(grant.job.id, 0, 0, 0, 0, grant.job.state) for grant in turn.grants}
        prefill_s = 0.0
        if turn.prefill is not None:
            job = turn.prefill.job
            read = min(turn.prefill.tokens, job.unread or 0)
            prefill_s = self.costs.slice_s(read)
            self.now += prefill_s
            left = (job.unread or 0) - read
            state = State.PREFILL if left else State.DECODE if job.produced < self._output(job) else State.DONE
            spent[job.id] = Spent(job.id, read, 0, 0, 0, state)
            self._ended(job, state)
        decode_s, step = 0.0, 0
        yields = self._arrive()
        while not yields and (steps is None or step < steps):
            rows = [
                grant.job
                for grant in turn.decode
                if step < grant.tokens and spent[grant.job.id].state is not State.DONE
            ]
            if not rows:
                break
            took = self.costs.step_s(len(rows))
            self.now += took
            decode_s, step = decode_s + took, step + 1
            for job in rows:
                made = spent[job.id].decode + 1
                self.records[job.id].first_token = self.records[job.id].first_token or self.now
                state = State.DONE if job.produced + made >= self._output(job) else State.DECODE
                spent[job.id] = Spent(job.id, 0, 0, made, 0, state)
                self._ended(job, state)
            yields = self._arrive()
        self._heard(turn, list(spent.values()))
        self.policy.account(turn, list(spent.values()), prefill_s, step, decode_s)

    def _arrive(self) -> bool:
        """Whether one that has come by now should not wait for the end of the turn."""
        yields = False
        while self._coming and self._coming[-1].at <= self.now:
            yields |= self.policy.preempts(self.submit(self._coming.pop()))
        return yields

    def _output(self, job: Job) -> int:
        return self.records[job.id].arrival.output

    def _ended(self, job: Job, state: State) -> None:
        if state is State.DONE:
            self.records[job.id].done = self.now
