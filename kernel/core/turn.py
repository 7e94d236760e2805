"""One turn: at most one job reads a slice of its prompt, and the others decode together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core.engine import Row
from llmos.kernel.core.job import Embedding, Generation

Job = Generation | Embedding
Clock = Callable[[], float]


class Turn:
    """What the kernel granted, and what became of it.

    Args:
        prefill: a job that has to read, and how many tokens it may; it goes first.
        decode: jobs of one model, and how many tokens each may produce.

    Attributes:
        failed: jobs that ended with an error.
    """

    def __init__(
        self, prefill: tuple[Job, int] | None, decode: Sequence[tuple[Job, int]], clock: Clock = time.monotonic
    ) -> None:
        self.failed: list[tuple[Job, OpError]] = []
        self._clock = clock
        self._prefill = prefill
        self._decode = [(job, tokens) for job, tokens in decode if isinstance(job, Generation)]
        self._jobs: list[Job] = list(dict.fromkeys(job for job, _ in [*([prefill] if prefill else []), *decode]))
        self._prefill_s = self._decode_s = 0.0
        self._steps = self._rows = 0
        for job in self._jobs:
            job.begin()

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job in self._jobs

    def work(self) -> bool:
        """Do the least that can be done; whether there was anything to do."""
        if self._prefill is not None:
            (job, tokens), self._prefill = self._prefill, None
            if job.finish is None:
                self._read(job, tokens)
                return True
        able = [job for job, tokens in self._decode if self._may(job, tokens)]
        if not able:
            return False
        before = self._clock()
        self._step(able)
        self._decode_s += self._clock() - before
        self._steps += 1
        self._rows += len(able)
        return True

    def report(self) -> dict[str, Any]:
        """The fields of `ran` that are the turn's own."""
        return {
            "jobs": [self._entry(job) for job in self._jobs],
            "prefill_s": self._prefill_s,
            "steps": self._steps,
            "decode_s": self._decode_s,
            "rows": self._rows,
        }

    def _entry(self, job: Job) -> list[Any]:
        state = "done" if job.finish is not None else "prefill" if job.reading else "decode"
        return [job.job, job.prefill, job.cached, job.decode, job.forced, state, job.finish]

    def _may(self, job: Generation, tokens: int) -> bool:
        return job.finish is None and not job.reading and job.decode < tokens

    def _read(self, job: Job, tokens: int) -> None:
        before = self._clock()
        try:
            job.read(tokens)
        except OpError as error:
            self._fail(job, error)
        self._prefill_s += self._clock() - before

    def _step(self, jobs: Sequence[Generation]) -> None:
        """One run of the model for all that feed one token; one for each that feeds more, with or without company."""
        fed = [(job, job.feed()) for job in jobs]
        together = [(job, tokens[0]) for job, tokens in fed if len(tokens) == 1]
        engine = jobs[0].engine
        if together:
            try:
                logits = engine.step([_row(job) for job, _ in together], [token for _, token in together])
            except OpError as error:
                for job, _ in together:
                    self._fail(job, error)
            else:
                for at, (job, _) in enumerate(together):
                    self._take(job, logits[at : at + 1])
        for job, several in fed:
            if len(several) > 1:
                try:
                    scores = engine.extend(_row(job), several, 1 + job.drafted)
                except OpError as error:
                    self._fail(job, error)
                else:
                    self._take(job, scores)

    def _take(self, job: Generation, logits: Any) -> None:
        try:
            job.take(logits)
        except OpError as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: OpError) -> None:
        job.finish = "failed"
        self.failed.append((job, error))


def _row(job: Generation) -> Row:
    if job.row is None:
        raise OpError(Code.INTERNAL, f"job {job.job} was to decode without a row")
    return job.row
