"""Replays a trace of arrivals through the kernel's scheduler, beside two that know neither classes nor shares nor preemption.

    python -m tests.bench.scheduler_trace [TRACE.jsonl] [--policy NAME]... [--costs COSTS.json]

A trace has one arrival per line: `{"t": seconds, "principal": "agent1", "class": "background", "prompt": tokens, "output":
tokens}`, and optionally `weight`, and `deadline` in seconds after `t`. Without one, eight background agents work for two
minutes while events come and a user asks. COSTS.json may have `step_ms` (by rows) and `slice_ms` (by tokens), as measured.
Policies: `scheduler`; `batched`, first come first served into a batch of as many rows; `fifo`, one job at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from llmos.ipc.protocol import JobClass
from llmos.kernel import params
from llmos.kernel.scheduler import Grant, Job, Scheduler, Spent, State, Turn
from tests.bench.figures import percentile
from tests.bench.simulated_core import Arrival, Costs, Policy, SimulatedCore


class FirstCome:
    """Jobs enter the batch in order of arrival and leave it when they are done.

    Args:
        rows: of the batch.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._jobs: dict[int, Job] = {}
        self._turns = 0

    def submit(self, job: Job) -> None:
        self._jobs[job.id] = job

    def admitted(self, job_id: int, unread: int, max_tokens: int, cached: int = 0) -> None:
        job = self._jobs[job_id]
        job.prompt, job.unread, job.max_tokens, job.state = cached + unread, unread, max_tokens, State.PREFILL

    def pick(self) -> Turn | None:
        inside = list(self._jobs.values())[: self._rows]
        if not inside:
            return None
        self._turns += 1
        reads = next((job for job in inside if job.state is State.PREFILL), None)
        prefill = None if reads is None else Grant(reads, params.PREFILL_SLICE)
        steps = params.PREFILL_STEPS if reads else params.SLICE
        return Turn(self._turns, "", prefill, tuple(Grant(job, steps) for job in inside if job.state is State.DECODE))

    def preempts(self, newcomer: Job) -> bool:
        return False

    def account(self, turn: Turn, spent: list[Spent], prefill_s: float, steps: int, decode_s: float) -> None:
        for row in spent:
            job = self._jobs[row.job]
            job.unread, job.produced, job.state = (job.unread or 0) - row.prefill, job.produced + row.decode, row.state
            if row.state is State.DONE:
                del self._jobs[row.job]


POLICIES: dict[str, Callable[[Callable[[], float]], Policy]] = {
    "scheduler": Scheduler,
    "batched": lambda _clock: FirstCome(params.MAX_ROWS),
    "fifo": lambda _clock: FirstCome(1),
}


def default_trace() -> list[Arrival]:
    """The same in every run."""
    dice = random.Random(5)
    trace = []
    for agent in range(8):
        at = agent * 0.2
        while at < 120:
            trace.append(
                Arrival(at, f"agent{agent}", JobClass.BACKGROUND, dice.randint(200, 800), dice.randint(60, 200))
            )
            at += dice.expovariate(1 / 14)
    trace += [Arrival(3.0 + 8 * n, "mail", JobClass.EVENT, dice.randint(100, 300), 30) for n in range(15)]
    trace += [Arrival(5.0 + 11 * n, "user", JobClass.INTERACTIVE, dice.randint(40, 160), 80) for n in range(11)]
    return trace


def read_trace(path: Path) -> list[Arrival]:
    """Raises `KeyError` or `ValueError` for a line that is no arrival."""
    trace = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        at, deadline = float(row["t"]), row.get("deadline")
        job_class = JobClass[row["class"].upper()]
        due = None if deadline is None else at + deadline
        trace.append(
            Arrival(at, row["principal"], job_class, row["prompt"], row["output"], row.get("weight", 1.0), due)
        )
    return trace


def replay(policy: str, trace: list[Arrival], costs: Costs) -> SimulatedCore:
    """Until everything is done."""
    core = SimulatedCore(POLICIES[policy], trace, costs)
    core.run()
    return core


def show(policy: str, core: SimulatedCore) -> None:
    """By class: seconds until the first token and until the end, and what was made of the model."""
    tokens = sum(record.arrival.output for record in core.records.values())
    print(f"\n{policy}: {core.now:.1f} s in all, {tokens / core.now:.1f} tokens/s")
    print(
        f"{'':12}{'jobs':>5}  {'first token: mean':>17}{'p50':>7}{'p90':>7}{'max':>7}  {'turnaround: mean':>16}{'p90':>7}",
        end="",
    )
    print(f"{'tokens/s':>10}  {'deadlines':>9}  shares")
    for job_class in JobClass:
        records = [record for record in core.records.values() if record.arrival.job_class == job_class]
        if not records:
            continue
        waits = [(record.first_token or record.done or core.now) - record.arrival.at for record in records]
        turns = [(record.done or core.now) - record.arrival.at for record in records]
        made = Counter[str]()
        for record in records:
            made[record.arrival.principal] += record.arrival.output
        seconds = max(record.done or core.now for record in records) - min(record.arrival.at for record in records)
        due = [record.done or core.now for record in records if record.arrival.deadline is not None]
        kept = sum((record.done or core.now) <= (record.arrival.deadline or 0) for record in records)
        shares = " ".join(f"{count / made.total():.0%}" for _, count in made.most_common(8))
        print(
            f"{job_class.name.lower():12}{len(records):5}  {statistics.mean(waits):17.2f}{percentile(waits, 0.5):7.2f}",
            end="",
        )
        print(
            f"{percentile(waits, 0.9):7.2f}{max(waits):7.2f}  {statistics.mean(turns):16.2f}{percentile(turns, 0.9):7.2f}",
            end="",
        )
        print(f"{made.total() / seconds:10.1f}  {f'{kept}/{len(due)}' if due else '-':>9}  {shares}")


def decision_us(jobs: int = params.MAX_JOBS) -> tuple[float, float]:
    """Microseconds of processor of one `pick` and `account` with as many jobs, of as many principals: median and p99."""
    now = 0.0
    scheduler = Scheduler(lambda: now)
    times = []
    for number in range(jobs):
        scheduler.submit(Job(number, f"p{number}", JobClass.BACKGROUND, weight=1 + number % 3))
        scheduler.admitted(number, 200, 100_000)
    for _ in range(3000):
        now += 0.05
        started = time.process_time()
        turn = scheduler.pick()
        if turn is not None:
            reads = turn.prefill and Spent(turn.prefill.job.id, turn.prefill.tokens, 0, 0, 0, State.DECODE)
            spent = [Spent(grant.job.id, 0, 0, grant.tokens) for grant in turn.decode]
            scheduler.account(turn, [reads, *spent] if reads else spent, 0.16, 8, 0.04)
        times.append((time.process_time() - started) * 1e6)
    return percentile(times, 0.5), percentile(times, 0.99)


def main() -> None:
    """Print a table for each policy."""
    parser = argparse.ArgumentParser(description="Replays a trace of arrivals through the scheduler.")
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--policy", action="append", choices=POLICIES)
    parser.add_argument("--costs", type=Path)
    asked = parser.parse_args()
    costs = Costs()
    if asked.costs:
        tables = json.loads(asked.costs.read_text())
        costs = Costs(**{name: {int(at): float(ms) for at, ms in table.items()} for name, table in tables.items()})
    trace = read_trace(asked.trace) if asked.trace else default_trace()
    for policy in asked.policy or POLICIES:
        show(policy, replay(policy, trace, costs))
    median, slowest = decision_us()
    print(f"\npick and account, {params.MAX_JOBS} jobs: median {median:.0f} µs, p99 {slowest:.0f} µs")


if __name__ == "__main__":
    main()
