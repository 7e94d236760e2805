"""Who hears which topic, and each topic's last event. Pure state; the kernel asks, the gate delivers.

The table is the kernel's and not the sockets' (ZeroMQ's XPUB cannot take a subscription back from one peer), so a
subscription ends the moment its capability does.

Nothing here knows of authority. The kernel checks a capability *before* it calls `subscribe` or `retained`, in one turn of
its loop with them, so that what is retained never reaches somebody whose right was denied, has ended or was taken back.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import topic_matches
from llmos.kernel import params

_TOPICS_REMEMBERED = 10_000
_Key = TypeVar("_Key")


@dataclass(frozen=True, slots=True)
class Subscription:
    """One connection's wish for one pattern, and the capability that allowed it."""

    id: int
    conn: int
    pattern: str
    cap: str
    holder: str
    client: str
    """What the program calls itself."""


class Spec(NamedTuple):
    """What becomes of a topic's events besides being delivered."""

    retain: bool = False
    """A new subscriber gets the last one at once."""
    durable: bool = False
    """They are stored (`llmos.kernel.events`)."""


NOTHING = Spec()


class Retained(NamedTuple):
    """A topic's last event, as it was delivered."""

    topic: str
    header: bytes
    body: bytes
    label: list[str]
    """Wire form, for the label of whoever gets it."""

    @property
    def size(self) -> int:
        return len(self.topic) + len(self.header) + len(self.body) + sum(map(len, self.label))


class _Pattern:
    """One pattern, whoever subscribed to it; what is under its literal prefix is compared with the rest of it."""

    __slots__ = ("_count", "_literals", "_open", "conns")

    def __init__(self, pattern: str, prefix: str) -> None:
        levels = pattern.split(".")
        done = len(prefix.split(".")) if prefix else 0
        self._count = len(levels)
        self._open = levels[-1] == "*"
        self._literals = [(index, level) for index, level in enumerate(levels) if index > done and level != "*"]
        self.conns: dict[int, int] = {}
        """Connection → how many of its subscriptions have it."""

    def takes(self, levels: list[str]) -> bool:
        """`topic_matches`, for a topic that begins with the prefix."""
        if len(levels) < self._count or (len(levels) > self._count and not self._open):
            return False
        for index, level in self._literals:  # noqa: SIM110  (run for each pattern; `all` takes three times as long)
            if levels[index] != level:
                return False
        return True


class Bus:
    """All subscriptions, each topic's running number, what was declared of topics, and their last events."""

    def __init__(self) -> None:
        self._by_conn: dict[int, dict[int, Subscription]] = {}
        self._held: dict[str, int] = {}
        """Holder → its subscriptions."""
        self._by_prefix: dict[str, dict[str, _Pattern]] = {}
        """The levels before a pattern's first `*` → the patterns that begin with them. A topic is compared with those under its own
        beginnings alone, so patterns in one namespace cost nothing in another."""
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._specs: dict[str, Spec] = {}
        self._retained: OrderedDict[str, Retained] = OrderedDict()
        self._retained_bytes: dict[str, int] = {}
        """First level of a topic → bytes retained under it."""
        self._ids = itertools.count(1)

    # -- subscriptions ---------------------------------------------------------------------------------------------

    def subscribe(self, conn: int, pattern: str, cap: str, holder: str = "", client: str = "") -> int:
        """Raises `OpError(BUSY)` beyond the limit per connection or per holder."""
        mine = self._by_conn.get(conn, {})
        if len(mine) >= params.MAX_SUBSCRIPTIONS:
            raise _too_many(params.MAX_SUBSCRIPTIONS, "on one connection")
        if holder and self._held.get(holder, 0) >= params.MAX_SUBSCRIPTIONS_OF_HOLDER:
            raise _too_many(params.MAX_SUBSCRIPTIONS_OF_HOLDER, f"of {holder}")
        made = Subscription(next(self._ids), conn, pattern, cap, holder, client)
        self._by_conn.setdefault(conn, mine)[made.id] = made
        self._held[holder] = self._held.get(holder, 0) + 1
        prefix = _prefix(pattern)
        patterns = self._by_prefix.setdefault(prefix, {})
        if pattern not in patterns:
            patterns[pattern] = _Pattern(pattern, prefix)
        conns = patterns[pattern].conns
        conns[conn] = conns.get(conn, 0) + 1
        return made.id

    def unsubscribe(self, conn: int, id: int) -> None:  # noqa: A002
        """Raises `OpError(NOT_FOUND)`."""
        subscription = self._by_conn.get(conn, {}).get(id)
        if subscription is None:
            raise OpError(Code.NOT_FOUND, f"no subscription {id} on this connection")
        self._end(subscription)

    def drop(self, conn: int) -> None:
        """The connection has gone."""
        for subscription in list(self._by_conn.get(conn, {}).values()):
            self._end(subscription)

    def revoke(self, caps: set[str]) -> None:
        """End every subscription that one of these capabilities allowed."""
        for subscription in [one for one in self.subscriptions() if one.cap in caps]:
            self._end(subscription)

    def subscriptions(self) -> Iterator[Subscription]:
        """All, by connection."""
        for mine in self._by_conn.values():
            yield from mine.values()

    def receivers(self, topic: str) -> list[int]:
        """The connections that hear `topic`, each once."""
        found: dict[int, int] = {}
        levels = topic.split(".")
        for prefix in _beginnings(topic):
            for pattern in self._by_prefix.get(prefix, {}).values():
                if pattern.takes(levels):
                    found.update(pattern.conns)
        return list(found)

    def _end(self, subscription: Subscription) -> None:
        mine = self._by_conn[subscription.conn]
        del mine[subscription.id]
        if not mine:
            del self._by_conn[subscription.conn]
        _take(self._held, subscription.holder)
        prefix = _prefix(subscription.pattern)
        patterns = self._by_prefix[prefix]
        conns = patterns[subscription.pattern].conns
        _take(conns, subscription.conn)
        if not conns:
            del patterns[subscription.pattern]
        if not patterns:
            del self._by_prefix[prefix]

    # -- topics ----------------------------------------------------------------------------------------------------

    def declare(self, topic: str, *, retain: bool = False, durable: bool = False) -> None:
        """What becomes of its events from now on.

        One topic, never a pattern: so what is kept is bounded by what was declared, and no publisher makes up more of it.
        """
        if retain or durable:
            self._specs[topic] = Spec(retain, durable)
        else:
            self._specs.pop(topic, None)
        if not retain:
            self._forget(topic)

    def spec(self, topic: str) -> Spec:
        """What was declared of it; `NOTHING` when nothing was."""
        return self._specs.get(topic, NOTHING)

    def durable(self) -> list[str]:
        """Topics whose events are stored."""
        return [topic for topic, spec in self._specs.items() if spec.durable]

    def number(self, topic: str) -> int:
        """The next number in a topic that is not durable, from 0. Topics long silent are forgotten and start again."""
        number = self._numbers.pop(topic, 0)
        self._numbers[topic] = number + 1
        if len(self._numbers) > _TOPICS_REMEMBERED:
            self._numbers.popitem(last=False)
        return number

    # -- last events -----------------------------------------------------------------------------------------------

    def retain(self, topic: str, header: bytes, body: bytes, label: list[str]) -> None:
        """The topic's last event, in place of the one before.

        Over the limits, the first level that holds most gives up what it has had longest: a driver that floods its own topics loses
        them, and not another's.
        """
        self._forget(topic)
        made = self._retained[topic] = Retained(topic, header, body, list(label))
        level = _first(topic)
        self._retained_bytes[level] = self._retained_bytes.get(level, 0) + made.size
        while len(self._retained) > params.RETAINED or sum(self._retained_bytes.values()) > params.RETAINED_BYTES:
            most = max(self._retained_bytes, key=lambda level: self._retained_bytes[level])
            self._forget(next(topic for topic in self._retained if _first(topic) == most))

    def retained(self, pattern: str) -> list[Retained]:
        """The last events of the topics that match, longest unchanged first. For whom the capability for `pattern` has been checked."""
        return [one for topic, one in self._retained.items() if topic_matches(pattern, topic)]

    def _forget(self, topic: str) -> None:
        gone = self._retained.pop(topic, None)
        if gone is not None:
            _take(self._retained_bytes, _first(topic), gone.size)


def _too_many(limit: int, where: str) -> OpError:
    return OpError(Code.BUSY, f"{limit} subscriptions {where}", "unsubscribe, or use a wider pattern")


def _take(counts: dict[_Key, int], key: _Key, amount: int = 1) -> None:
    counts[key] -= amount
    if counts[key] <= 0:
        del counts[key]


def _first(topic: str) -> str:
    return topic.partition(".")[0]


def _prefix(pattern: str) -> str:
    """The levels before the first `*`: all of a pattern without one, none of one that begins with it."""
    return pattern.partition("*")[0].rstrip(".")


def _beginnings(topic: str) -> Iterator[str]:
    """The prefixes under which a pattern for this topic may stand: none, each of its levels in turn, all of it."""
    yield ""
    end = topic.find(".")
    while end >= 0:
        yield topic[:end]
        end = topic.find(".", end + 1)
    yield topic
