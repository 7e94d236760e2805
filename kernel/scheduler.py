"""Whose inference runs on the model next, and for how many tokens. A pure state machine: no model, no sockets, no logging.

The kernel asks `pick` for a turn, the core runs it, `account` says what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from llmos.ipc.protocol import JobClass
from llmos.kernel import params


class State(StrEnum):
    """Where a job is. The last four are words of the core's `ran` too, `parked` aside."""

    NEW = "new"  # the core has not said yet how long its prompt is
    PREFILL = "prefill"  # tokens of its prompt are still to be read
    DECODE = "decode"  # it makes a token in every step that it is in
    PARKED = "parked"  # its KV was given up for another's; it goes on with a prefill grant
    DONE = "done"


@dataclass(eq=False)
class Job:
    """One inference for one principal. What follows `kind` is the scheduler's to write and everyone's to read."""

    id: int
    principal: str
    job_class: JobClass
    weight: float = params.CLASS_WEIGHT_DEFAULT
    model: str = ""
    """Jobs of one model run together."""
    deadline: float | None = None
    """On the scheduler's clock; a wish, which nothing enforces."""
    kind: Literal["generate", "embed"] = "generate"

    state: State = State.NEW
    arrived: float = 0.0
    waiting_since: float = 0.0
    """When it was last in a turn; when it came, before that."""
    first_run: float | None = None
    """When it was first in a turn."""
    prompt: int = 0
    """Tokens before its answer, those found in the cache included."""
    unread: int | None = None
    """Tokens that are to be prefilled before it can decode, at most; None until `admitted`."""
    max_tokens: int = 0
    """Tokens of its answer, at most."""
    produced: int = 0
    """Tokens of its answer so far."""
    kv: int = field(default=0, repr=False)
    """Tokens of KV that are reserved for it."""


@dataclass(frozen=True)
class Grant:
    """The most tokens that a turn may compute for `job`; at least 1."""

    job: Job
    tokens: int


@dataclass(frozen=True)
class Turn:
    """What the core is to do next, with one model: read a slice of one prompt, then decode steps for all of `decode`."""

    number: int
    model: str
    prefill: Grant | None
    decode: tuple[Grant, ...]
    """A batch: in each step every row makes a token, until its grant is used up."""
    park: tuple[Job, ...] = ()
    """Jobs, of any model, that give up their KV before the turn begins."""


@dataclass(frozen=True)
class Spent:
    """What a turn did for one job: a row of the core's `ran`, by the same names."""

    job: int
    prefill: int
    cached: int
    """Prompt tokens that were found in the cache after all, beyond what `admitted` said."""
    decode: int
    forced: int = 0
    """Of `decode`, those that a grammar left no choice about."""
    state: State = State.DECODE


@dataclass(frozen=True)
class Limits:
    """What the scheduler is run with; tests change it."""

    kv_bytes: int = params.KV_BYTES
    max_jobs: int = params.MAX_JOBS
    max_rows: int = params.MAX_ROWS
    quantum: int = params.QUANTUM
    slice: int = params.SLICE
    prefill_slice: int = params.PREFILL_SLICE
    prefill_steps: int = params.PREFILL_STEPS
    aging_s: float = params.AGING_S
    lag: float = params.LAG
    prefill_credit_s: float = params.PREFILL_CREDIT_S
    urgent_s: float = params.URGENT_S
    kv_headroom: int = params.KV_HEADROOM


@dataclass
class Counts:
    """Jobs of one class by state, for those who look on."""

    new: int = 0
    prefill: int = 0
    decode: int = 0
    parked: int = 0


class Scheduler:
    """Jobs are here from `submit` until they are done or removed; `pick` says what the core does next.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float], limits: Limits | None = None) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        """Jobs that are here, in any state."""
        raise NotImplementedError

    def set_model(self, model: str, kv_bytes: int) -> None:
        """`model` is loaded; each token of its KV takes `kv_bytes` bytes (0 for one without KV: an embedder)."""
        raise NotImplementedError

    def set_budget(self, principal: str, tokens: int | None, per_s: float = 3600.0) -> None:
        """In no `per_s` seconds may more than `tokens` be computed for `principal`; None lifts that."""
        raise NotImplementedError

    def budget_left(self, principal: str) -> int | None:
        """Tokens that may be computed for it now; None without a budget."""
        raise NotImplementedError

    def submit(self, job: Job) -> None:
        """It waits for `admitted` from now on. Raises `OpError(BUSY)` when the queue is full."""
        raise NotImplementedError

    def admitted(self, job_id: int, unread: int, max_tokens: int, cached: int = 0) -> None:
        """What the core said of it: from now on it may run. A job that is not here any more is passed over.

        Args:
            unread: tokens to be prefilled.
            max_tokens: of the answer.
            cached: tokens in front of the unread ones, whose KV is there already but counts as this job's too.

        Raises `OpError(TOO_LARGE)` when it can never have the KV that it may need; the caller removes it.
        """
        raise NotImplementedError

    def remove(self, job_id: int) -> Job | None:
        """Done, cancelled or failed; None when it is not here. While it is in a turn `account` still charges for it."""
        raise NotImplementedError

    def pick(self) -> Turn | None:
        """What the core is to do now; None when no job can run, or a turn is under way.

        The turn is under way until `account` or `abandon`.
        """
        raise NotImplementedError

    def preempts(self, newcomer: Job) -> bool:
        """Whether the turn under way should `yield` for `newcomer`, which has been admitted."""
        raise NotImplementedError

    def account(self, turn: Turn, spent: Sequence[Spent], prefill_s: float, steps: int, decode_s: float) -> None:
        """What the turn did. Jobs that are done are removed.

        Args:
            spent: one for each job of the turn; one that is missing did nothing.
            prefill_s: seconds that the prefill took.
            steps: decode steps that were run.
            decode_s: seconds that they took together.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """The turn under way will never be accounted for: the core died. Its jobs are the caller's to remove."""
        raise NotImplementedError

    def exhausted(self) -> list[Job]:
        """Jobs that will not run for want of budget: the caller ends them with `BUDGET`."""
        raise NotImplementedError

    def counts(self) -> dict[JobClass, Counts]:
        """Jobs by class and state."""
        raise NotImplementedError

    def kv_reserved(self) -> int:
        """Bytes of KV that are promised to jobs."""
        raise NotImplementedError
