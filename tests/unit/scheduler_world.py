"""The scheduler with a clock that only moves when told, and a core that takes the time of a measured one."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from llmos.ipc.protocol import JobClass
from llmos.kernel.scheduler import Job, Limits, Scheduler, Spent, Turn
from tests.bench.simulated_core import Arrival, SimulatedCore

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
