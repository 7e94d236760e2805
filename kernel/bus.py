"""Who hears which topic. Pure state; the kernel asks, the gate delivers.

The table is the kernel's and not the sockets' (ZeroMQ's XPUB cannot take a subscription back from one peer), so a
subscription ends the moment its capability does.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import topic_matches
from llmos.kernel import params

_TOPICS_REMEMBERED = 10_000


@dataclass(frozen=True)
class Subscription:
    """One connection's wish for one pattern, and the capability that allowed it."""

    id: int
    conn: int
    pattern: str
    cap: str


class Bus:
    """All subscriptions, and each topic's running number."""

    def __init__(self) -> None:
        self._by_conn: dict[int, dict[int, Subscription]] = {}
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._ids = itertools.count(1)

    def subscribe(self, conn: int, pattern: str, cap: str) -> int:
        """Raises `OpError(BUSY)` beyond the limit per connection."""
        mine = self._by_conn.setdefault(conn, {})
        if len(mine) >= params.MAX_SUBSCRIPTIONS:
            raise OpError(
                Code.BUSY,
                f"{params.MAX_SUBSCRIPTIONS} subscriptions on one connection",
                "unsubscribe, or use a wider pattern",
            )
        made = Subscription(next(self._ids), conn, pattern, cap)
        mine[made.id] = made
        return made.id

    def unsubscribe(self, conn: int, id: int) -> None:  # noqa: A002
        """Raises `OpError(NOT_FOUND)`."""
        if self._by_conn.get(conn, {}).pop(id, None) is None:
            raise OpError(Code.NOT_FOUND, f"no subscription {id} on this connection")

    def drop(self, conn: int) -> None:
        """The connection has gone."""
        self._by_conn.pop(conn, None)

    def revoke(self, caps: set[str]) -> None:
        """End every subscription that one of these capabilities allowed."""
        for mine in self._by_conn.values():
            for subscription in [one for one in mine.values() if one.cap in caps]:
                del mine[subscription.id]

    def receivers(self, topic: str) -> list[int]:
        """The connections that hear `topic`, each once."""
        return [
            conn
            for conn, mine in self._by_conn.items()
            if any(topic_matches(one.pattern, topic) for one in mine.values())
        ]

    def number(self, topic: str) -> int:
        """The next number in `topic`, from 0. Topics long silent are forgotten and start again."""
        number = self._numbers.pop(topic, 0)
        self._numbers[topic] = number + 1
        if len(self._numbers) > _TOPICS_REMEMBERED:
            self._numbers.popitem(last=False)
        return number
