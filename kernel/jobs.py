"""What the scheduler and the core say to each other: jobs, the turns that they get, and what a turn did for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from llmos.ipc.protocol import JobClass
from llmos.kernel import params
from llmos.kernel.fairness import Flow


class State(StrEnum):
    """Where a job is; `prefill`, `decode` and `done` are the core's words too, in `ran`."""

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
    """Of its principal, above 0."""
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
    """When its first turn began."""
    prompt: int = 0
    """Tokens before its answer, those found in the cache included."""
    unread: int | None = None
    """Tokens that are to be prefilled before it can decode, at most; None until `admitted`."""
    max_tokens: int = 0
    """Tokens of its answer, at most."""
    produced: int = 0
    """Tokens of its answer so far."""
    kv: int = field(default=0, repr=False)
    """Tokens of KV that are reserved for it; 0 before its first turn and while it is parked."""
    flow: Flow = field(default_factory=Flow, repr=False)
    """Its principal's account in its class."""

    @property
    def length(self) -> int:
        """Tokens of its context by now."""
        return self.prompt + self.produced

    @property
    def remaining(self) -> int:
        """Tokens that it may still produce."""
        return self.max_tokens - self.produced


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
    """Jobs, of any model, that give up their KV before the turn begins; none of them is in it."""
    job_class: JobClass = JobClass.BACKGROUND
    """That it is for; others are in it because they have waited too long, or ride on a free seat."""

    @property
    def grants(self) -> tuple[Grant, ...]:
        return self.decode if self.prefill is None else (self.prefill, *self.decode)


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


@dataclass
class Counts:
    """Jobs of one class by state, for those who look on."""

    new: int = 0
    prefill: int = 0
    decode: int = 0
    parked: int = 0
