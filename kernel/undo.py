"""What can be undone: the tokens that ops with `undo = true` give back. A pure state machine with an injected clock.

Such an op's result has a field `undo`, an opaque text by which its driver knows how to reverse it; the reverse is the driver's
op `undo(token)`. The kernel takes the field out of the result, remembers it here under a number that means nothing else, and
puts that number in its place.

How the kernel calls it: `remember` when such a reply passes; `take` for `undo ID`, then the call it returns, with the *user's*
authority and in the audit log; `done` or `failed` with its answer. Only what its driver has confirmed counts as undone: when the kernel
dies in between it can be tried again, and an undo does no harm a second time (`drivers/AUTHORING.md`).
"""

from __future__ import annotations

import contextlib
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
        self._under_way: set[str] = set()

    def __iter__(self) -> Iterator[Undoable]:
        """Those that can still be undone, newest first."""
        now = self._clock()
        return iter(
            [
                one
                for one in reversed(self._effects.values())
                if not (one.done or one.id in self._under_way) and one.expires > now
            ]
        )

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
        """The call that undoes it: its op and arguments. Once; raises `OpError` `NOT_FOUND`, `CONFLICT` (undone, at it, or too late)."""
        effect = self._effects.get(id)
        if effect is None:
            raise OpError(Code.NOT_FOUND, f"no effect {id!r}", "see `llmosctl undo`")
        if effect.done:
            raise OpError(Code.CONFLICT, f"{id} ({effect.op}) has been undone already")
        if effect.expires <= self._clock():
            raise OpError(Code.CONFLICT, f"{id} ({effect.op}) is too long ago to be undone")
        if id in self._under_way:
            raise OpError(Code.CONFLICT, f"{id} ({effect.op}) is being undone already")
        self._under_way.add(id)
        return f"{effect.op.partition('.')[0]}.undo", {"token": effect.token}

    def done(self, id: str) -> None:  # noqa: A002
        """Its driver has undone it. What cannot be written down counts until a restart."""
        self._under_way.discard(id)
        if id in self._effects:
            self._effects[id] = replace(self._effects[id], done=True)
            with contextlib.suppress(OpError):
                self._keep(self._effects[id])

    def failed(self, id: str) -> None:  # noqa: A002
        """The reverse call did not succeed: it may be tried again."""
        self._under_way.discard(id)

    def _keep(self, effect: Undoable) -> None:
        self._store.save({"kind": "undo", **asdict(effect)})
        self._effects[effect.id] = effect
