"""The decoder that stands between every two processes."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc import wire

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=10,
)


@given(VALUES)
def test_what_is_encoded_is_decoded_the_same(value: Any) -> None:
    """Every value that has a place on the wire survives the way."""
    assert wire.decode(wire.encode(value)) == value


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    """No bytes make the decoder raise anything but `Malformed`."""
    try:
        wire.decode(data)
    except wire.Malformed:
        return


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x82\xa1a\x01\xa1a\x02", "twice"),
        (b"\x91" * 13 + b"\x90", "levels"),
        (b"\x91" * 1100 + b"\x01", "not msgpack"),
        (b"\xd4\x01\x00", "ext"),
        (b"\xd6\xff\x00\x00\x00\x00", "ext"),
        (msgpack.packb(math.nan), "finite"),
        (msgpack.packb(-math.inf), "finite"),
        (msgpack.packb({1: 2}), "key"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\xdf\x7f\xff\xff\xff", "not msgpack"),
        (b"\xa5ab", "not msgpack"),
        (b"\x01\x02", "not msgpack"),
        (b"", "not msgpack"),
        (b"\xa1\xff", "not msgpack"),
        (b"\xc4\xff" + b"\0" * 10, "not msgpack"),
        (msgpack.packb([0] * 20_001), "not msgpack"),
        (msgpack.packb([[0] * 10_000, [0] * 10_000]), "items"),
        (msgpack.packb("x" * wire.MAX_BODY), "limit"),
    ],
)
def test_hostile_documents_are_refused(data: bytes, why: str) -> None:
    """Duplicate keys, depth, size, extension types, non-finite numbers, bombs and trailing bytes are refused, each by name."""
    with pytest.raises(wire.Malformed, match=why):
        wire.decode(data)


def test_a_value_without_a_place_on_the_wire_is_refused_by_the_sender() -> None:
    """A set or an object is an error where it is sent, not where it arrives."""
    with pytest.raises(wire.Malformed, match="cannot be sent"):
        wire.encode({"a": {1, 2}})
