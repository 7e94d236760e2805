"""What quotas leave of a turn: several jobs may draw on one account, and together they never overdraw it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmos.kernel.capability_quota import Account
from llmos.kernel.jobs import Grant, Job, Turn

Left = tuple[Account, int]
"""An account of tokens, and what is left in it."""


@dataclass
class Affordable:
    """The grants of a turn, as far as they are paid for."""

    prefill: Grant | None = None
    decode: list[Grant] = field(default_factory=list)
    broke: list[tuple[Job, Account]] = field(default_factory=list)
    """Jobs whose account cannot pay for their next token, or for the rest of their prompt: they are to end."""

    @property
    def grants(self) -> list[Grant]:
        return self.decode if self.prefill is None else [self.prefill, *self.decode]


def affordable(turn: Turn, account_of: Callable[[Job], Left | None]) -> Affordable:
    """The turn, cut down to what is left in its jobs' accounts. A job that another one leaves nothing to sits this turn out.

    Args:
        account_of: None for a job whose tokens are not limited.
    """
    made, left = Affordable(), dict[int, int]()

    def pay(grant: Grant, least: int, also: int = 0) -> int:
        found = account_of(grant.job)
        if found is None:
            return grant.tokens
        account, now = found
        if now < least:
            made.broke.append((grant.job, account))
            return 0
        tokens = max(0, min(grant.tokens, left.setdefault(id(account), now) - also))
        left[id(account)] -= tokens + also
        return tokens

    if turn.prefill is not None:
        job = turn.prefill.job
        first = int(job.max_tokens > 0)  # the last slice of a prompt makes a token too
        if pay(turn.prefill, max(1, (job.unread or 0) + first), first) == turn.prefill.tokens:
            made.prefill = turn.prefill
    for grant in turn.decode:
        if tokens := pay(grant, 1):
            made.decode.append(Grant(grant.job, tokens))
    return made
