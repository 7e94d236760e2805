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

        Returns how far the others are ahead at the expense of the heaviest, in tokens: its part of what all are ahead.
        """
        contenders = dict.fromkeys(flows)  # in order, so that sums are the same in every run
        for flow in contenders:
            flow.virtual = max(flow.virtual, self.virtual)
        self.virtual = min(flow.virtual for flow in contenders)
        weights = [flow.weight for flow in contenders]
        return sum(self.lead(flow) for flow in contenders) * max(weights) / sum(weights)

    def lead(self, flow: Flow) -> float:
        """Tokens that it is ahead of the one furthest behind."""
        return (flow.virtual - self.virtual) * flow.weight


class Rate:
    """Seconds that something takes, over about the last `RATES_S` seconds that were spent on it.

    Args:
        seconds: what it is believed to take until it has been measured.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = params.RATES_S
        self._count = params.RATES_S / seconds

    def learn(self, count: int, seconds: float) -> None:
        """So many of it took `seconds` together. Figures that cannot be true, which a broken core might give, are bounded."""
        if count <= 0 or math.isnan(seconds):
            return
        seconds = min(max(seconds, count * params.TOKEN_S_LEAST), count * params.TOKEN_S_MOST)
        keep = math.exp(-seconds / params.RATES_S)
        self._seconds = self._seconds * keep + seconds
        self._count = self._count * keep + count

    @property
    def each(self) -> float:
        """Seconds."""
        return self._seconds / self._count


class Rates:
    """What one model's tokens take. Means over seconds, not over turns: what a turn's batch was must not decide a share."""

    def __init__(self) -> None:
        self._prefill = Rate(params.PREFILL_TOKEN_S)
        self._decode = Rate(params.DECODE_TOKEN_S)
        self._step = Rate(params.DECODE_STEP_S)

    def learn(self, prefill: int, prefill_s: float, decode: int, steps: int, decode_s: float) -> None:
        """A turn prefilled and decoded so many tokens, the latter in `steps` steps."""
        self._prefill.learn(prefill, prefill_s)
        self._decode.learn(decode, decode_s)
        self._step.learn(steps, decode_s)

    @property
    def prefill_s(self) -> float:
        """Seconds per prefilled token."""
        return self._prefill.each

    @property
    def decode_s(self) -> float:
        """Seconds per token of a batch."""
        return self._decode.each

    @property
    def step_s(self) -> float:
        """Seconds per step, in which each row of a batch makes a token."""
        return self._step.each

    @property
    def prefill_cost(self) -> float:
        """Decoded tokens that a prefilled one counts as."""
        return self.prefill_s / self.decode_s


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
