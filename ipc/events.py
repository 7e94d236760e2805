"""A subscription's own side: its events, what was lost between them, and the stored ones before them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from llmos.ipc.errors import OpError
from llmos.ipc.protocol import Header, Kind

MAILBOX = 1000
"""Events that wait for a slow subscriber on its own side; the oldest is dropped."""
_TOPICS = 4096
"""Topics whose last number one mailbox remembers."""


class Event:
    """One event: what was published, by whom, when.

    `label` is empty for trusted and about nothing, else `t` or `u` and the tags of its sources. `number` is a stored event's, 0 for one
    that is not. `lost` counts the events of the topic that this subscription missed since the last one it saw; 0 for the first.
    """

    __slots__ = ("data", "label", "lost", "number", "sender", "seq", "topic", "ts")

    def __init__(self, header: Header, data: dict[str, Any]) -> None:
        self.topic, self.sender, self.seq, self.ts, self.data = header.topic, header.sender, header.seq, header.ts, data
        self.label, self.number, self.lost = list(header.label), header.number, 0


class Mailbox:
    """A subscription's events that have not been read."""

    __slots__ = ("_seen", "error", "events", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.events: deque[Event] = deque(maxlen=MAILBOX)
        self.error: OpError | None = None
        """Why no more will come."""
        self._seen: OrderedDict[str, int] = OrderedDict()

    def take(self) -> Event:
        """The oldest, with what is missing before it."""
        event = self.events.popleft()
        before = self.note(event)
        if before is not None:
            event.lost = max(0, event.seq - before - 1)
        return event

    def note(self, event: Event) -> int | None:
        """Remember its number in its topic; the number before, if one is known."""
        before = self._seen.pop(event.topic, None)
        self._seen[event.topic] = event.seq
        if len(self._seen) > _TOPICS:
            self._seen.popitem(last=False)
        return before


def since_seconds(since: datetime | float) -> float:
    """As `bus.replay` wants it. A time without a zone is local."""
    return max(0.0, since.timestamp() if isinstance(since, datetime) else float(since))


def of_page(page: dict[str, Any]) -> Iterator[Event]:
    """The events of one answer of `bus.replay`."""
    for row in page["events"]:
        header = Header(
            kind=Kind.EVENT,
            **{key: row[key] for key in ("topic", "seq", "ts", "sender", "label", "number")},
        )
        yield Event(header, row["data"])
