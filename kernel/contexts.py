"""The table of contexts: whose each is, which model's, and what has been put into it. Pure: no core, no clock, no I/O.

The tokens and their KV are the core's; here is only what decides who may use them. A context's label is the join of all that was put
in. It never falls, and a fork begins with its source's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.labels import BOTTOM, Label


@dataclass(eq=False)
class Context:
    """One conversation that the core keeps."""

    number: int
    owner: str
    model: str
    conn: int = 0
    """The connection of a program that the kernel did not start, with which it ends; 0 for a process, with which it ends."""
    label: Label = BOTTOM
    lost: OpError | None = None
    """Why the core has it no more, while its owner still has its number."""
    opened: bool = False
    """Whether the core has been told of it."""
    job: int = 0
    """The job that works in it now; 0 for none."""


class Contexts:
    """Every open context, by number.

    Args:
        limit: open at once, of all owners; each gets half of what the others leave.
    """

    def __init__(self, limit: int = params.MAX_CONTEXTS) -> None:
        self._limit = limit
        self._by_number: dict[int, Context] = {}
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Context]:
        return iter(list(self._by_number.values()))

    def __len__(self) -> int:
        return len(self._by_number)

    def open(self, owner: str, model: str, conn: int = 0) -> Context:
        """A new, empty one. Raises `OpError(BUSY)`."""
        mine = sum(one.owner == owner for one in self._by_number.values())
        if not params.share(self._limit, mine, len(self._by_number) - mine):
            detail = f"{len(self._by_number)} contexts are open, {mine} of them yours"
            raise OpError(Code.BUSY, detail, "close some with llm.close")
        made = Context(next(self._numbers), owner, model, conn)
        self._by_number[made.number] = made
        return made

    def fork(self, source: Context, conn: int = 0) -> Context:
        """Another of the same owner that has been given all that `source` has. Raises `OpError(BUSY)`."""
        made = self.open(source.owner, source.model, conn)
        made.label = source.label
        return made

    def get(self, number: int, owner: str) -> Context:
        """One of the owner's that can be used. Raises `OpError`: `NOT_FOUND` for another's, or why it was lost."""
        context = self.owned(number, owner)
        if context.lost is not None:
            raise context.lost
        return context

    def owned(self, number: int, owner: str) -> Context:
        """One of the owner's, lost or not. Raises `OpError(NOT_FOUND)`."""
        context = self._by_number.get(number)
        if context is None or context.owner != owner:
            raise OpError(Code.NOT_FOUND, f"no context {number} of yours", "open one with llm.open")
        return context

    def known(self, number: int) -> Context | None:
        """Whoever's."""
        return self._by_number.get(number)

    def of_owner(self, owner: str) -> list[Context]:
        return [one for one in self if one.owner == owner]

    def of_connection(self, conn: int) -> list[Context]:
        return [one for one in self if one.conn == conn]

    def of_model(self, model: str) -> list[Context]:
        """Those that can be used."""
        return [one for one in self if one.model == model and one.lost is None]

    def close(self, context: Context) -> None:
        self._by_number.pop(context.number, None)

    def lose(self, contexts: list[Context], error: OpError) -> None:
        """The core has them no more. Their owners hear of it when they use them next."""
        for context in contexts:
            context.lost, context.opened = error, False


def namespace(label: Label) -> str:
    """The canonical text of a label: equal for equal labels and for no others.

    Jobs share cached prefixes within one namespace only: how fast a prompt is read would otherwise tell what others have asked.
    """
    return " ".join(("t" if label.trusted else "u", *sorted(label.tags)))
