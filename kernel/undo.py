"""What can be undone: the tokens that ops with `undo = true` give back. A pure state machine with an injected clock.

Such an op's result has a field `undo`, an opaque text by which its driver knows how to reverse it; the reverse is the driver's
op `undo(token)`. The kernel takes the field out of the result, remembers it here under a number that means nothing else, and
puts that number in its place.

How the kernel calls it: `remember` when such a reply passes; `take` for `undo ID`, then the call it returns, with the *user's*
authority and in the audit log; `failed` when that call fails, so that it can be tried again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from llmos.ipc.errors import Code, OpError
from llmos.kernel.approvals import Store

KEEP_S = 30 * 86400.0
"""Seconds an effect can be undone."""
MAX_KEPT = 1000
"""Effects that are remembered; the oldest are forgotten first."""
MAX_TOKEN = 1024
"""Characters of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Undoable:
    """Something that was done and can be taken back."""

    id: str
    holder: str
    op: str
    token: str
    at: float
    expires: float
    done: bool = False
    """Whether it has been undone."""


class Undo:
    """Args: clock in seconds since 1970 UTC; a store of its own, whose rows have the kind `undo`."""

    def __init__(self, clock: Callable[[], float], store: Store) -> None:
        self._clock = clock
        self._store = store
        self._effects = {row["id"]: Undoable(**{k: v for k, v in row.items() if k != "kind"}) for row in store.load()}

    def __iter__(self) -> Iterator[Undoable]:
        """Those that can still be undone, newest first."""
        now = self._clock()
        return iter([one for one in reversed(self._effects.values()) if not one.done and one.expires > now])

    def remember(self, holder: str, op: str, token: object) -> Undoable:
        """Raises `OpError(INVALID_ARGUMENT)` for a token that is none."""
        if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN:
            raise OpError(Code.INVALID_ARGUMENT, f"{op}: undo must be a text of at most {MAX_TOKEN} characters")
        now = self._clock()
        effect = Undoable(
            id=f"u{secrets.token_hex(4)}", holder=holder, op=op, token=token, at=now, expires=now + KEEP_S
        )
        self._keep(effect)
        while len(self._effects) > MAX_KEPT:
            oldest = next(iter(self._effects))
            self._store.delete(oldest)
            del self._effects[oldest]
        return effect

    def take(self, id: str) -> tuple[str, dict[str, str]]:  # noqa: A002
        """The call that undoes it: its op and arguments. Once; raises `OpError` `NOT_FOUND`, `CONFLICT` (undone or too late)."""
        effect = self._effects.get(id)
        if effect is None:
            raise OpError(Code.NOT_FOUND, f"no effect {id!r}", "see `llmosctl undo`")
        if effect.done:
            raise OpError(Code.CONFLICT, f"{id} ({effect.op}) has been undone already")
        if effect.expires <= self._clock():
            raise OpError(Code.CONFLICT, f"{id} ({effect.op}) is too long ago to be undone")
        self._keep(replace(effect, done=True))
        return f"{effect.op.partition('.')[0]}.undo", {"token": effect.token}

    def failed(self, id: str) -> None:  # noqa: A002
        """The reverse call did not succeed: it may be tried again."""
        if id in self._effects:
            self._keep(replace(self._effects[id], done=False))

    def _keep(self, effect: Undoable) -> None:
        self._store.save({"kind": "undo", **asdict(effect)})
        self._effects[effect.id] = effect
