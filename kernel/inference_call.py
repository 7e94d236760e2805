"""One call's work on the model, from the kernel's side: what it asks for, what it has used, and what its caller and the log are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from llmos.ipc.protocol import Append
from llmos.kernel import params
from llmos.kernel.calls import Call
from llmos.kernel.contexts import Context
from llmos.kernel.jobs import Job, Spent, State
from llmos.kernel.labels import Label

Message = dict[str, Any]
Reveal = Callable[[str], tuple[dict[str, Any], Label]]


@dataclass(eq=False)
class Inference:
    """One call's work on the core."""

    call: Call
    job: Job
    request: Message
    """The `job` or `embed` message that admits it."""
    label: Label
    """Of everything that it reads."""
    context: Context | None = None
    """Where it goes on from: what others have put there since is in its answer too, if only as time."""
    reveal: Reveal | None = None
    """What of its text may be told, and under which label; None for all of it."""
    posted: bool = False
    """Whether the core knows of it."""
    text: list[str] = field(default_factory=list)
    size: int = 0
    """Characters of it."""
    vectors: Message | None = None
    """The core's `embedded`, until its turn has been paid for."""
    again: Message | None = None
    """A second `admitted`, that came during a turn: its conversation was paged."""
    prompt: int = 0
    known: int = 0
    """Tokens of the prompt that `admitted` said need not be read."""
    cached: int = 0
    prefill: int = 0
    decode: int = 0
    forced: int = 0
    """Tokens so far, by the names of `ran`."""
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_text: float | None = None
    """When the first piece of text came, on the loop's clock."""

    @property
    def delivered(self) -> Label:
        """Of its answer, as of now."""
        return self.label if self.context is None else self.label | self.context.label

    @property
    def usage(self) -> dict[str, int]:
        """Its part of the answer: tokens."""
        return {
            "prompt": self.prompt,
            "cached": min(self.cached, self.prompt),
            "completion": self.decode,
            "forced": self.forced,
        }

    def timings(self, now: float) -> dict[str, float]:
        """Milliseconds: waiting for its first turn, reading, making tokens, to the first text, and in all."""
        first_run = now if self.job.first_run is None else self.job.first_run
        first_text = now if self.first_text is None else self.first_text
        spans = {
            "queue": first_run - self.job.arrived,
            "prefill": self.prefill_s,
            "decode": self.decode_s,
            "first_text": first_text - self.job.arrived,
            "total": now - self.job.arrived,
        }
        return {name: round(seconds * 1000, 1) for name, seconds in spans.items()}

    def beyond(self, spent: Spent) -> Spent:
        """The same with what was found in the cache beyond what `admitted` had promised."""
        before, after = self.cached, self.cached + spent.cached
        return replace(spent, cached=max(0, after - self.known) - max(0, before - self.known))

    def said(self, text: Any, tokens: Any) -> Message:
        """More of its text: the chunk for its caller. Raises `TypeError`, `ValueError` for what is none or too much."""
        count_of(tokens)
        if not isinstance(text, str):
            raise TypeError("a text that is none")
        self.size += len(text)
        if self.size > params.ANSWER_CHARACTERS:
            raise ValueError("a text without end")
        self.text.append(text)
        return {"text": text, "tokens": tokens}

    def took(self, spent: Spent, prefill_s: float, decode_s: float) -> None:
        """A turn that it was in is over, which spent so many seconds on its one prompt and on all its answers."""
        self.prefill += spent.prefill
        self.cached += spent.cached
        self.decode += spent.decode
        self.forced += spent.forced
        self.prefill_s += prefill_s if spent.prefill else 0.0
        self.decode_s += decode_s if spent.decode else 0.0

    def answer(self, finish: str, now: float) -> Message:
        """The body of its reply."""
        if self.vectors is not None:
            return {"dim": self.vectors["dim"], "vectors": self.vectors["vectors"]}
        if self.call.op == Append.OP:
            return {"tokens": self.prompt, "cached": min(self.cached, self.prompt)}
        text = "".join(self.text)
        if len(text.encode()) > params.TEXT_BYTES and not self.call.keep:
            text = ""  # the chunks have carried it
        return {"text": text, "finish": finish, "usage": self.usage, "timings": self.timings(now)}

    def line(self, now: float) -> dict[str, Any]:
        """What the log says of it: sizes and times, none of its text."""
        return {
            "job": self.job.id,
            "call": self.call.id,
            "op": self.call.op,
            "principal": self.job.principal,
            "model": self.job.model,
            "job_class": self.job.job_class.name.lower(),
            "prompt": self.prompt,
            "cached": self.cached,
            "prefill": self.prefill,
            "decode": self.decode,
            "forced": self.forced,
            **{f"{name}_ms": value for name, value in self.timings(now).items()},
        }


def count_of(value: Any) -> int:
    """A number of tokens, as the core tells it. Raises `ValueError` for one that no model can have reached.

    Less than nothing would fill a quota up, and far too much would keep its principal from the model for ever.
    """
    if type(value) is not int or not 0 <= value <= params.TURN_TOKENS:
        raise ValueError("no number of tokens: negative, too many, or none at all")
    return value


def bytes_of(value: Any) -> bytes:
    """Vectors, as the core tells them. Raises `TypeError`."""
    if not isinstance(value, bytes):
        raise TypeError("vectors that are none")
    return value


def seconds_of(value: Any) -> float:
    """A time, as the core tells it. Raises `TypeError`, `ValueError` for one that cannot have passed."""
    if not 0 <= float(value) < math.inf:
        raise ValueError("no time that can have passed")
    return float(value)


def spent_of(row: list[Any]) -> tuple[Spent, str]:
    """A row of `ran`. Raises `TypeError`, `ValueError` for nonsense."""
    job, prefill, cached, decode, forced, state, finish = row
    read, found, made, given = map(count_of, (prefill, cached, decode, forced))
    return Spent(job, read, found, made, given, State(state)), str(finish)[:20]
