"""The bytes of version 1 do not change."""

from __future__ import annotations

import pytest

from llmos.ipc import protocol, wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header, parse_header

GOLDEN = {
    "call": (
        Header(kind=Kind.CALL, id=7, op="browser_history.search", deadline_ms=1500),
        "84a46b696e64a463616c6ca2696407a26f70b662726f777365725f686973746f72792e736561726368ab646561646c696e655f6d73cd05dc",
    ),
    "reply": (Header(kind=Kind.REPLY, id=7, ok=False), "83a46b696e64a57265706c79a2696407a26f6bc2"),
    "chunk": (Header(kind=Kind.CHUNK, id=7, seq=3), "83a46b696e64a56368756e6ba2696407a373657103"),
    "credit": (Header(kind=Kind.CREDIT, id=7, n=32), "83a46b696e64a6637265646974a2696407a16e20"),
    "cancel": (Header(kind=Kind.CANCEL, id=7), "82a46b696e64a663616e63656ca2696407"),
    "event": (
        Header(kind=Kind.EVENT, topic="mail.received", seq=1, sender="mail", ts=1.5),
        "85a46b696e64a56576656e74a373657101a673656e646572a46d61696ca5746f706963ad6d61696c2e7265636569766564a27473cb3ff8000000000000",
    ),
    "keeping call": (
        Header(kind=Kind.CALL, id=7, op="mail.read", cap="c3", keep=True),
        "85a46b696e64a463616c6ca2696407a26f70a96d61696c2e72656164a3636170a26333a46b656570c3",
    ),
    "labelled reply": (
        Header(kind=Kind.REPLY, id=7, label=["u", "mail", "work"]),
        "83a46b696e64a57265706c79a2696407a56c6162656c93a175a46d61696ca4776f726b",
    ),
    "durable event": (
        Header(kind=Kind.EVENT, topic="mail.received", seq=1, sender="mail", label=["u", "mail"], ts=1.5, number=70000),
        "87a46b696e64a56576656e74a373657101a673656e646572a46d61696ca56c6162656c92a175a46d61696ca5746f706963ad6d61696c2e7265636569766564a27473cb3ff8000000000000a66e756d626572ce00011170",
    ),
    "every field": (
        Header(
            kind=Kind.CALL,
            id=1,
            op="a.b",
            deadline_ms=2,
            parent=3,
            cap="c",
            keep=True,
            credit=4,
            ok=False,
            seq=5,
            n=6,
            sender="s",
            scope={"k": ["v"]},
            label=["u"],
            topic="t",
            ts=1.5,
            number=7,
        ),
        (
            "de0011a46b696e64a463616c6ca2696401a26f70a3612e62ab646561646c696e655f6d7302a6706172656e7403a3636170a163a46b656570c3a66372"
            "6564697404a26f6bc2a373657105a16e06a673656e646572a173a573636f706581a16b91a176a56c6162656c91a175a5746f706963a174a27473cb3ff8000000000000a66e756d62657207"
        ),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_headers_are_the_bytes_they_always_were(name: str) -> None:
    """A client written against these bytes keeps working."""
    header, golden = GOLDEN[name]
    assert pack_header(header).hex() == golden
    assert parse_header(wire.decode_map(bytes.fromhex(golden))) == header


def test_an_unknown_header_field_is_ignored() -> None:
    """What a newer peer adds does no harm."""
    raw = {"kind": "call", "id": 1, "op": "sys.ping", "colour": "red"}
    assert parse_header(raw) == Header(kind=Kind.CALL, id=1, op="sys.ping")


def test_a_longer_form_of_the_map_is_understood() -> None:
    """msgpack has three ways to say how many fields come; a client in another language may use any."""
    _, golden = GOLDEN["cancel"]
    for start in ("de0002", "df00000002"):
        assert parse_header(wire.decode_map(bytes.fromhex(start + golden[2:]))) == Header(kind=Kind.CANCEL, id=7)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"kind": "shout"},
        {"kind": 1},
        {"kind": "call", "id": "1"},
        {"kind": "call", "deadline_ms": 1.5},
        {"kind": "call", "ok": 1},
    ],
)
def test_an_ill_typed_header_is_refused_by_field(raw: dict[str, object]) -> None:
    """With `INVALID_ARGUMENT`, never a crash."""
    with pytest.raises(OpError, match="header") as caught:
        parse_header(raw)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_every_op_has_its_place() -> None:
    """An op is `object.verb`, unique, documented, and its right and scope name things that exist."""
    assert GREETING == b"llmos/1"
    assert len(protocol.SYSCALLS) == len(protocol.Syscall.__subclasses__())
    for op, call in protocol.SYSCALLS.items():
        object_, _, verb = op.partition(".")
        assert object_.isidentifier(), op
        assert verb.isidentifier(), op
        assert call.__doc__, op
        assert "→" in call.__doc__, f"{op} does not say what it answers"
        assert set(call.SCOPE.values()) <= set(call.__struct_fields__), op
        assert call.RIGHT is None or call.RIGHT.count(".") == 1, op


def test_an_unknown_code_from_a_newer_peer_is_internal() -> None:
    """A client that switches on codes is not surprised by one it does not know."""
    error = OpError.from_wire({"code": "TOO_SHINY", "detail": "it shines"})
    assert error.code is Code.INTERNAL
    assert "TOO_SHINY" in error.detail


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("mail.*", "mail.received", True),
        ("mail.*", "mail.flag.changed", True),
        ("mail.*", "mail", False),
        ("mail.*", "mailbox.x", False),
        ("*", "mail.received", True),
        ("*.received", "mail.received", True),
        ("*.received", "mail.flag.received", False),
        ("mail.received", "mail.received", True),
        ("mail.received", "mail.received.x", False),
    ],
)
def test_topics_match_level_by_level(pattern: str, topic: str, matches: bool) -> None:
    """`*` is one level, and at the end all the rest."""
    assert protocol.topic_matches(pattern, topic) is matches
