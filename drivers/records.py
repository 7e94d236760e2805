"""What every record of every driver has in common, and pages of records that fit a reply."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from itertools import islice
from typing import Any

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError

MAX_RESULT = 48 * 1024
"""Bytes of a page of records, encoded; the rest of a reply's 64 KiB is for what stands around them."""
MAX_OFFSET = 100_000


def utc(seconds: float) -> str:
    """ISO 8601 in UTC, to the second, of seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def zone_name(now: datetime) -> str:
    """The IANA name of the zone of `now`; its offset where it has none."""
    zone: tzinfo | None = now.tzinfo
    return str(getattr(zone, "key", None) or now.strftime("%:z" if zone else ""))


def offset_of(cursor: str | None) -> int:
    """Where a page starts. Raises `OpError(INVALID_ARGUMENT)` for a cursor that no page gave."""
    if not cursor:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 7 and int(cursor) <= MAX_OFFSET):
        raise OpError(Code.INVALID_ARGUMENT, "argument cursor: not one that a page gave as `next`")
    return int(cursor)


def page(records: Iterable[dict[str, Any]], offset: int, count: int) -> dict[str, Any]:
    """`{items, next}`: up to `count` records from `offset` on, fewer where they would not fit; `next` is None at the end."""
    items: list[dict[str, Any]] = []
    size = 0
    for record in islice(records, offset, None):
        size += len(wire.encode(record))
        if items and (len(items) == count or size > MAX_RESULT):
            return {"items": items, "next": str(offset + len(items))}
        items.append(record)
    return {"items": items, "next": None}
