"""What a program sees of calls and topics beyond the call itself: kept results, labels, lost and stored events."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc import app_key, wire
from llmos.ipc.app_key import AppKey
from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header, parse_header
from llmos.userland.sdk import Client
from tests.unit.conftest import GateDouble

KEY = AppKey("notes", "ipc:///run/bus/apps", "a" * 40, "b" * 40, "c" * 40)


def publish(gate: GateDouble, seq: int, number: int = 0, topic: str = "mail.new", **header: Any) -> None:
    made = Header(kind=Kind.EVENT, topic=topic, seq=seq, number=number, **header)
    gate._out.put([gate._peer, GREETING, pack_header(made), wire.encode({"seq": seq})])


def stored(number: int, seq: int) -> dict[str, Any]:
    known = {"topic": "mail.new", "ts": 5.0, "sender": "mail", "label": ["u", "mail"]}
    return {"number": number, "seq": seq, "data": {"seq": seq}, **known}


def test_keep_and_cap_travel_in_the_header(gate_double: GateDouble) -> None:
    """So that no op's own argument can be taken for them."""
    gate_double.answers["mail.read"] = lambda args: {"$v": "v1", "keep": args.get("keep")}
    with Client(gate_double.connect()) as client:
        assert client.keep("mail.read", keep="mine", cap="also")["keep"] == "mine"
        client.connection.call("mail.read", cap="c7")
        client.call("sys.ping")  # the double notes a call after it has answered it
        kept, capped = [header for header in gate_double.headers if header.op == "mail.read"]
    assert (kept.keep, kept.cap, capped.keep, capped.cap) == (True, "", False, "c7")
    assert gate_double.wait_for("mail.read") == {"keep": "mine", "cap": "also"}


def test_a_servers_label_travels_beside_its_answer(gate_double: GateDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: what a server says of it, and what the kernel says to the caller."""
    seen: list[Header] = []
    take = gate_double._take

    def watch(peer: bytes, _greeting: bytes, packed: bytes, body: bytes) -> None:
        seen.append(parse_header(wire.decode_map(packed)))
        take(peer, _greeting, packed, body)

    monkeypatch.setattr(gate_double, "_take", watch)
    with gate_double.connect() as connection:
        connection.call("sys.ping")
        number = gate_double.send_call("mail.read", {})
        call = connection.next_call(5)
        assert call is not None
        call.reply({"text": "x"}, label=["u", "mail:ann"])
        gate_double.reply_to(number)
        answer = next(header for header in seen if header.kind is Kind.REPLY)
        assert (answer.id, answer.label) == (number, ["u", "mail:ann"])
        stream = connection.stream("mail.slow")
        gate_double.wait_for("mail.slow")
        made = Header(kind=Kind.REPLY, id=gate_double.headers[-1].id, label=["u", "mail"])
        gate_double._out.put([gate_double._peer, GREETING, pack_header(made), wire.encode({})])
        stream.finish()
        assert stream.label == ["u", "mail"]


def test_events_say_how_many_were_lost_before_them(gate_double: GateDouble) -> None:
    """Counted in each topic by itself, from the gaps; none before the first, and none where a topic began anew."""
    gate_double.answers["bus.subscribe"] = lambda _: {"subscription": 1}
    gate_double.answers["bus.unsubscribe"] = lambda _: {}
    with gate_double.connect() as connection:
        events = connection.subscribe("mail.*")
        for seq, topic in ((7, "mail.new"), (8, "mail.new"), (3, "mail.sent"), (12, "mail.new"), (0, "mail.new")):
            publish(gate_double, seq, topic=topic, label=["u", "mail"])
        got = [next(events) for _ in range(5)]
        events.close()
    assert [event.lost for event in got] == [0, 0, 0, 3, 0]
    assert got[0].label == ["u", "mail"]


def test_since_gives_stored_events_first_and_each_event_once(gate_double: GateDouble) -> None:
    """Page by page; a live one that came meanwhile is left out when it was among the stored."""
    pages = {0: ([stored(4, 0), stored(6, 1)], 6), 6: ([stored(9, 2)], 0)}

    def page(args: dict[str, Any]) -> dict[str, Any]:
        rows, following = pages[args["after"]]
        if following == 0:
            publish(gate_double, 2, 9)  # stored and live at once
            publish(gate_double, 3, 10)
        return {"events": rows, "next": following}

    gate_double.answers |= {
        "bus.subscribe": lambda _: {"subscription": 1},
        "bus.unsubscribe": lambda _: {},
        "bus.replay": page,
    }
    with gate_double.connect() as connection:
        events = connection.subscribe("mail.*", since=datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC))
        got = [next(events) for _ in range(4)]
        events.close()
    assert [(event.number, event.seq, event.lost) for event in got] == [(4, 0, 0), (6, 1, 0), (9, 2, 0), (10, 3, 0)]
    assert (got[0].label, got[0].sender) == (["u", "mail"], "mail")
    calls = [(op, args.get("since")) for op, args in gate_double.log if op.startswith("bus.")]
    assert calls[:2] == [("bus.subscribe", None), ("bus.replay", 5.0)]


def test_a_key_file_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved so that nobody else can read it, and refused where somebody could."""
    path = tmp_path / "apps" / "it's.toml"
    KEY.save(path)
    assert (AppKey.load(path), path.stat().st_mode & 0o777) == (KEY, 0o600)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    path.chmod(0o640)
    with pytest.raises(OpError) as caught:
        AppKey.load(path)
    assert (caught.value.code, "chmod 600" in str(caught.value.hint)) == (Code.DENIED, True)
    assert "c" * 40 not in repr(KEY)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, Code.NOT_FOUND),
        ("name = 'x'", Code.INVALID_ARGUMENT),
        ("not toml", Code.INVALID_ARGUMENT),
        ("x" * 9000, Code.INVALID_ARGUMENT),
    ],
)
def test_a_bad_key_file_says_what_is_wrong_with_it(tmp_path: Path, text: str | None, code: Code) -> None:
    """Each with a way to get a good one."""
    path = tmp_path / "key.toml"
    if text is not None:
        path.write_text(text)
        path.chmod(0o600)
    with pytest.raises(OpError) as caught:
        AppKey.load(path)
    assert (caught.value.code, "llmosctl app add" in str(caught.value.hint)) == (code, True)


def test_any_program_takes_the_key_its_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it says itself where to connect and as whom, or the kernel started it."""
    path = tmp_path / "key.toml"
    KEY.save(path)
    monkeypatch.setenv(app_key.KEY_VARIABLE, str(path))
    monkeypatch.delenv("LLMOS_TOKEN", raising=False)
    monkeypatch.delenv("LLMOS_BUS", raising=False)
    with Connection() as mine, Connection(token="t") as told:
        assert (mine.path, mine.token) == (Path("/run/bus/apps"), "")
        assert (told.path.name, told.token) == ("gate", "t")
    monkeypatch.setenv("LLMOS_TOKEN", "s")
    with Connection() as started:
        assert started.token == "s"
