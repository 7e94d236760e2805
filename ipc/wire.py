"""msgpack with limits: the only decoder that sees bytes from another process.

msgpack's own limits are not enough: it accepts a depth of 1,020, keeps the last of duplicate keys and takes NaN, and one
megabyte can unpack to seventy. `decode` bounds size, depth and items, and refuses extension types, duplicate keys, keys
that are not strings, and numbers that are not finite.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack

MAX_BODY = 64 * 1024
"""Bytes of a header or a body as it travels between processes; more is `TOO_LARGE`."""
MAX_DEPTH = 12
"""Maps and arrays inside one another."""
MAX_ITEMS = 20_000
"""Maps' pairs and arrays' elements in one message, all levels together."""
MAX_PIPE = 8 * 1024 * 1024
"""Bytes of one message on an inherited pipe (kernel–core, kernel–gate), where both ends are ours."""


class Malformed(ValueError):
    """The bytes are not one msgpack value within the limits."""


def encode(value: Any) -> bytes:
    """One msgpack value. Raises `Malformed` for a value that has no place on the wire (a set, an object, an int over 64 bits)."""
    try:
        packed: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise Malformed(f"cannot be sent: {error}") from error
    return packed


def decode(data: bytes, limit: int = MAX_BODY) -> Any:
    """The value of exactly one msgpack document of at most `limit` bytes. Raises `Malformed`."""
    if len(data) > limit:
        raise Malformed(f"{len(data)} bytes, the limit is {limit}")
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except Malformed:
        raise
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise Malformed(f"not msgpack within the limits: {error or type(error).__name__}") from error
    _check(value, [MAX_ITEMS], MAX_DEPTH)
    return value


def decode_map(data: bytes, limit: int = MAX_BODY) -> dict[str, Any]:
    """Like `decode`, for a document that must be a map with string keys."""
    value = decode(data, limit)
    if not isinstance(value, dict):
        raise Malformed(f"a map is wanted, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Malformed("a key stands twice in one map")
    return made


def _check(value: Any, items_left: list[int], depth: int) -> None:
    kind = type(value)
    if kind is dict:
        children = value.values()
        for key in value:
            if type(key) is not str:
                raise Malformed("keys must be strings")
    elif kind is list:
        children = value
    elif kind is float and not math.isfinite(value):
        raise Malformed("a number is not finite")
    elif kind is msgpack.ExtType or kind is msgpack.Timestamp:
        raise Malformed("extension types are not spoken here")
    else:
        return
    if depth == 0:
        raise Malformed(f"deeper than {MAX_DEPTH} levels")
    items_left[0] -= len(value)
    if items_left[0] < 0:
        raise Malformed(f"more than {MAX_ITEMS} items")
    for child in children:
        if type(child) is not str and type(child) is not int:
            _check(child, items_left, depth - 1)
