"""Topics: what is published, who hears it, and what is kept of it. The table is `bus.py`, the store `events.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import structlog

from llmos.ipc import wire
from llmos.ipc.errors import OpError
from llmos.ipc.manifest import DriverManifest
from llmos.ipc.protocol import Header, Kind, pack_header
from llmos.kernel import params
from llmos.kernel.authority import Authority
from llmos.kernel.bus import Bus
from llmos.kernel.events import Event, Events
from llmos.kernel.gates import Gates
from llmos.kernel.labels import BOTTOM, Label, join
from llmos.kernel.loop import Loop
from llmos.kernel.process import now

log = structlog.get_logger()


class Topics:
    """Every event passes here: nobody has it before they have its label.

    Args:
        holder: whose a connection is.
    """

    def __init__(
        self, loop: Loop, events: Events, authority: Authority, gates: Gates, holder: Callable[[int], str]
    ) -> None:
        self._loop = loop
        self._events = events
        self._authority = authority
        self._gates = gates
        self._holder = holder
        self.bus = Bus()
        self.dropped: dict[int, int] = {}
        """Connection → events it lost because it did not read."""

    def declare(self, drivers: Iterable[DriverManifest]) -> None:
        """Which topics keep their last event, and which all of them."""
        self.bus.declare("sys.model", retain=True)
        for manifest in drivers:
            self.declare_for(manifest)
        for topic in self.bus.durable():
            if self.bus.spec(topic).retain and (last := self._events.last(topic)) is not None:
                self.bus.retain(topic, last.header(), last.body, last.label)
        self._expire()

    def declare_for(self, manifest: DriverManifest) -> None:
        """The topics of one driver."""
        for topic, about in manifest.topics.items():
            self.bus.declare(topic, retain=about.retain, durable=about.durable)

    def publish(self, topic: str, data: dict[str, Any], sender: str, label: Label = BOTTOM) -> int:
        """To every subscriber's mailbox; how many those are.

        Raises `OpError` when a durable one cannot be stored: then nobody hears it. The kernel's own topics are never durable.
        """
        spec, at, body, stamp = self.bus.spec(topic), now(), wire.encode(data), label.to_wire()
        if spec.durable:
            number, seq = self._events.append(topic, at, sender, stamp, body)
        else:
            number, seq = 0, self.bus.number(topic)
        conns = self.bus.receivers(topic)
        if not conns and not spec.retain:
            return 0
        header = Header(kind=Kind.EVENT, topic=topic, seq=seq, sender=sender, ts=at, label=stamp, number=number)
        packed = pack_header(header)
        if spec.retain:
            self.bus.retain(topic, packed, body, stamp)
        if conns:
            self._receive(conns, topic, sender, label)
            self._gates.fan_out(conns, packed, body)
        return len(conns)

    def send_retained(self, conn: int, pattern: str) -> None:
        """The last event of every topic that matches and keeps one, to a new subscriber."""
        for last in self.bus.retained(pattern):
            self._receive([conn], last.topic, "kernel", Label.from_wire(last.label))
            self._gates.fan_out([conn], last.header, last.body)

    def replay(self, pattern: str, after: int, since: float, limit: int) -> tuple[list[Event], int, Label]:
        """A page of what is stored, the `after` of the next one, and the label of it all."""
        rows, following = self._events.page(pattern, after, since, limit)
        return rows, following, join(Label.from_wire(row.label) for row in rows)

    def lost(self, conn: int, count: int) -> None:
        """It does not read, and its mailbox is full."""
        self.dropped[conn] = self.dropped.get(conn, 0) + count

    def gone(self, conn: int) -> None:
        """The connection is over."""
        self.bus.drop(conn)
        self.dropped.pop(conn, None)

    def close(self) -> None:
        self._events.close()

    def _receive(self, conns: Iterable[int], topic: str, sender: str, label: Label) -> None:
        source = self._authority.labels.source(sender, f"event {topic}", label)
        for conn in conns:
            self._authority.receive(self._holder(conn), label, source)

    def _expire(self) -> None:
        try:
            self._events.expire()
        except OpError as error:
            log.error("events.unexpired", err=error.detail)
        self._loop.later(params.EVENTS_EXPIRE_S, self._expire)
