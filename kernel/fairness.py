"""Who has had how much of the model: virtual time of principals, what a token costs, and token budgets. Pure.

A principal's jobs in one class are a flow. Its virtual time is what was computed for it, in tokens ÷ weight, so flows with
equal virtual times have shared by weight. A decoded token counts 1, a prefilled one what it takes of the machine by comparison.
A flow that comes back from idling starts at the class's virtual time, so it can neither save up nor be punished.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing" (SIGCOMM 1996), for virtual time that is the start tag of the flow in
service; Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), for counting service in weighed tokens, and
lifting the counter of a client that returns; Stoica, Abdel-Wahab, "Earliest Eligible Virtual Deadline First" (1995), in Linux
since 6.6, for letting only those run that are not too far ahead.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmos.kernel import params

_LEARN = 0.2  # weight of the newest turn in what a token is believed to cost
_WINDOW_PARTS = 60  # steps in which a budget's window slides


@dataclass(eq=False)
class Flow:
    """One principal's jobs in one class."""

    weight: float = 1.0
    virtual: float = 0.0
    """Tokens ÷ weight."""
    jobs: int = 0
    lifted: float = -math.inf
    """When a job of it last ran because it had waited too long; the wait of its other jobs begins anew there."""

    def charge(self, cost: float, weight: float) -> None:
        self.weight = weight
        self.virtual += cost / weight


@dataclass(eq=False)
class Flows:
    """All flows of one class, and its virtual time."""

    virtual: float = 0.0
    """That of the flow furthest behind, when last asked; it never goes back."""
    _flows: dict[str, Flow] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._flows)

    def enter(self, principal: str, weight: float) -> Flow:
        """A job comes."""
        flow = self._flows.setdefault(principal, Flow())
        flow.weight = weight
        flow.jobs += 1
        return flow

    def forget(self) -> None:
        """Drop what says nothing any more: flows without jobs that are not ahead, and everything once nobody has one."""
        if any(flow.jobs for flow in self._flows.values()):
            kept = {name: flow for name, flow in self._flows.items() if flow.jobs or flow.virtual > self.virtual}
            self._flows = kept
        else:
            self._flows, self.virtual = {}, 0.0

    def contend(self, flows: Iterable[Flow]) -> float:
        """Bring those that want to run now up to the class's virtual time, and that to the furthest behind of them.

        Returns how far they are ahead of it, in tokens, all together.
        """
        contenders = dict.fromkeys(flows)  # in order, so that sums are the same in every run
        for flow in contenders:
            flow.virtual = max(flow.virtual, self.virtual)
        self.virtual = min(flow.virtual for flow in contenders)
        return sum((flow.virtual - self.virtual) * flow.weight for flow in contenders)

    def lead(self, flow: Flow) -> float:
        """Tokens that it is ahead of the one furthest behind."""
        return (flow.virtual - self.virtual) * flow.weight


@dataclass
class Rates:
    """What the tokens of one model take, averaged over its last turns; hostile figures are bounded."""

    prefill_s: float = params.PREFILL_TOKEN_S
    """Seconds per prefilled token."""
    decode_s: float = params.DECODE_TOKEN_S
    """Seconds per token of a batch."""
    step_s: float = params.DECODE_STEP_S
    """Seconds per step, in which each row of the batch makes a token."""

    @property
    def prefill_cost(self) -> float:
        """Decoded tokens that a prefilled one counts as."""
        return self.prefill_s / self.decode_s

    def learn_prefill(self, tokens: int, seconds: float) -> None:
        if tokens:
            self.prefill_s = _average(self.prefill_s, seconds / tokens)

    def learn_decode(self, tokens: int, steps: int, seconds: float) -> None:
        if tokens and steps:
            self.decode_s = _average(self.decode_s, seconds / tokens)
            self.step_s = _average(self.step_s, seconds / steps)


def _average(old: float, new: float) -> float:
    if not math.isfinite(new):
        return old
    return old + _LEARN * (min(max(new, params.TOKEN_S_LEAST), params.TOKEN_S_MOST) - old)


class Budget:
    """At most `tokens` in any `per_s` seconds.

    What was spent counts until `per_s` after the end of the part of the window (a sixtieth) that it fell in: never too short.
    """

    def __init__(self, tokens: int, per_s: float) -> None:
        self.tokens = tokens
        self.per_s = per_s
        self._spent: deque[tuple[float, int]] = deque()  # the end of a part, and tokens spent in it
        self._total = 0

    def left(self, now: float) -> int:
        while self._spent and self._spent[0][0] + self.per_s <= now:
            self._total -= self._spent.popleft()[1]
        return max(0, self.tokens - self._total)

    def spend(self, tokens: int, now: float) -> None:
        self._total += tokens
        if self._spent and now < self._spent[-1][0]:
            end, earlier = self._spent.pop()
            self._spent.append((end, earlier + tokens))
        else:
            self._spent.append((now + self.per_s / _WINDOW_PARTS, tokens))
