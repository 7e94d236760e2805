"""Which jobs may have KV: admission against one budget for all models and each model's rows, growth, and who gives way. Pure.

A job takes a row and reserves its prompt and a part of its answer before its first turn, and grows by parts. When there is no room,
the last in order gives up its KV: later classes first, then later arrivals. It has lost time, no tokens: it reads them again, or the core
finds them in its cache. When there is no row, principals of one class have as many as each other, as far as they want them.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (SOSP 2023), section 4.5,
for preempting the latest arrival and recomputing it; vLLM, `v1/core/sched/scheduler.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass
from llmos.kernel.jobs import Job, State


class KV:
    """Reservations. What jobs hold together is never more than `capacity` bytes, nor more jobs of a model than it has rows.

    Args:
        capacity: bytes.
        headroom: tokens of an answer that are reserved at a time.
    """

    def __init__(self, capacity: int, headroom: int) -> None:
        self.capacity = capacity
        self._headroom = headroom
        self._per_token: dict[str, int] = {}
        self._rows: dict[str, int] = {}
        self._seated = Counter[str]()
        """Holders of each model."""
        self._holders: dict[int, Job] = {}
        self._reserved = dict.fromkeys(JobClass, 0)

    def set_model(self, model: str, per_token: int, rows: int | None = None) -> None:
        """What was reserved before is counted by the new figure too. `rows` is how many jobs may have KV at once; None for any number."""
        if rows is None:
            self._rows.pop(model, None)
        else:
            self._rows[model] = rows
        for job in self._holders.values():
            if job.model == model:
                self._reserved[job.job_class] += job.kv * (per_token - self._per_token.get(model, 0))
        self._per_token[model] = per_token

    @property
    def reserved(self) -> int:
        """Bytes."""
        return sum(self._reserved.values())

    def check(self, job: Job) -> None:
        """Raises `OpError(TOO_LARGE)` when it would not fit alone."""
        per_token = self._per_token.get(job.model, 0)
        if (job.prompt + job.max_tokens) * per_token > self.capacity:
            most = self.capacity // per_token
            detail = f"prompt and answer may be {job.prompt + job.max_tokens} tokens, and there is KV memory for {most}"
            raise OpError(Code.TOO_LARGE, detail, "ask for fewer tokens (max_tokens), or shorten the prompt")

    def gate(self, job_class: JobClass) -> Callable[[Job], bool]:
        """What tells whether `start` would make room for a job of this class, all of later classes parked. Good until the next change."""
        room = self.capacity - sum(bytes_ for held, bytes_ in self._reserved.items() if held <= job_class)
        later = {one.model for one in self._holders.values() if one.job_class > job_class}
        rows = Counter((one.model, one.principal) for one in self._holders.values() if one.job_class == job_class)
        most = Counter[str]()
        for (model, _), count in rows.items():
            most[model] = max(most[model], count)

        def opens(job: Job) -> bool:
            if self._first(job) * self._per_token.get(job.model, 0) > room:
                return False
            mine = rows[job.model, job.principal]
            return not self._full(job.model) or job.model in later or most[job.model] >= mine + 2

        return opens

    def start(self, job: Job, *, late: bool = False) -> list[Job] | None:
        """Reserve for its first turn, or its first after it was parked: a row, and KV.

        Args:
            late: it has waited too long, and no later arrival of its class may go on having what it needs. It takes nothing
                from who came first, or two long prompts would take it from each other for ever.

        Returns the jobs that are parked for it, which are of later classes unless it is late or its principal has fewer rows than
        theirs; None, and nothing has changed, when that would not make room.
        """
        victims = self._after(job, same=late)
        if self._full(job.model) and all(one.model != job.model for one in victims):
            victims += self._gives_way(job, late=late)
        return self._reserve(job, self._first(job), victims)

    def grow(self, job: Job, tokens: int) -> list[Job] | None:
        """Have room for `tokens` more than its context has. As `start`, with later arrivals of its own class giving way too."""
        if job.kv >= job.length + tokens:
            return []
        most = job.prompt + max(job.max_tokens, job.produced + tokens)
        parked = self._reserve(job, min(job.length + max(tokens, self._headroom), most), [])
        return parked if parked is not None else self._reserve(job, job.length + tokens, self._after(job, same=True))

    def park(self, job: Job) -> None:
        """It reads all of its context again when it comes back, as far as the core has not kept it."""
        self.release(job)
        job.state, job.unread = State.PARKED, max(job.length, 1)

    def release(self, job: Job) -> None:
        if self._holders.pop(job.id, None) is not None:
            self._reserved[job.job_class] -= job.kv * self._per_token.get(job.model, 0)
            self._seated[job.model] -= 1
            job.kv = 0

    def _full(self, model: str) -> bool:
        return self._seated[model] >= self._rows.get(model, math.inf)

    def _gives_way(self, job: Job, *, late: bool) -> list[Job]:
        """Who of the job's own class leaves it a row, where all are taken: one at most.

        The latest arrival of whoever has two rows more than its principal: with one more, the two would take it from each other for
        ever. For a job that is late, whoever is furthest ahead and has read its prompt, so that nothing long is read twice.
        """
        held = [one for one in self._holders.values() if (one.job_class, one.model) == (job.job_class, job.model)]
        rows = Counter(one.principal for one in held)
        crowding = [one for one in held if rows[one.principal] >= rows[job.principal] + 2]
        if crowding:
            return [max(crowding, key=lambda one: (rows[one.principal], _order(one)))]
        ahead = [one for one in held if late and one.state is State.DECODE]
        return [max(ahead, key=lambda one: (one.flow.virtual, _order(one)))] if ahead else []

    def _first(self, job: Job) -> int:
        return max(job.length + min(job.remaining, self._headroom), 1)

    def _after(self, job: Job, *, same: bool) -> list[Job]:
        """Holders that may give way to it, the first to go first; those of its own class too?"""
        found = [
            one
            for one in self._holders.values()
            if one.job_class > job.job_class or (same and _order(one) > _order(job))
        ]
        return sorted(found, key=_order, reverse=True)

    def _reserve(self, job: Job, tokens: int, victims: list[Job]) -> list[Job] | None:
        per_token = self._per_token.get(job.model, 0)
        missing = (tokens - job.kv) * per_token - (self.capacity - self.reserved)
        standing = job.id not in self._holders and self._full(job.model)
        parked: list[Job] = []
        for victim in victims:
            freed = victim.kv * self._per_token.get(victim.model, 0)
            if (missing > 0 and freed) or (standing and victim.model == job.model):
                missing -= freed
                standing = standing and victim.model != job.model
                parked.append(victim)
        if missing > 0 or standing:
            return None
        for victim in parked:
            self.park(victim)
        self._reserved[job.job_class] += (tokens - job.kv) * per_token
        self._seated[job.model] += job.id not in self._holders
        self._holders[job.id] = job
        job.kv = tokens
        return parked


def _order(job: Job) -> tuple[int, float, int]:
    return job.job_class, job.arrived, job.id
