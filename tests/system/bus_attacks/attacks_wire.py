"""Attacks below and on the frames: what reaches the gate, and what the decoder is fed."""

from __future__ import annotations

from typing import Any

import msgpack

from tests.system.bus_attacks.arena import Arena, Outcome, attack
from tests.system.bus_attacks.raw import GREETING, UNANSWERED, pack


def _survives(arena: Arena, gate: int, evidence: str) -> Outcome:
    """Whether the gate that was there still is, and serves newcomers."""
    same, reachable = arena.os_pid_of("gate") == gate, arena.reachable()
    return Outcome(
        not (same and reachable),
        f"{evidence}; gate {'as before' if same else 'restarted'}, newcomers {'served' if reachable else 'NOT served'}",
    )


def _program(arena: Arena, name: str, **given: Any) -> Outcome:
    gate, outsider = arena.os_pid_of("gate"), arena.outsider()
    with arena.attacking():
        done = outsider.do("program", name=name, path=arena.socket, **given)
    arena.end(outsider)
    return _survives(arena, gate, str(done)[:200])


@attack
def multipart_bomb(arena: Arena) -> Outcome:
    """Large frames that always promise one more."""
    return _program(arena, "multipart_bomb", seconds=3.0)


@attack
def small_part_bomb(arena: Arena) -> Outcome:
    """Empty frames that always promise one more."""
    return _program(arena, "small_part_bomb", seconds=3.0)


@attack
def idle_connects(arena: Arena) -> Outcome:
    """Ten thousand connections that say nothing."""
    return _program(arena, "idle_connects", count=10_000)


@attack
def half_handshakes(arena: Arena) -> Outcome:
    """Two thousand handshakes that stop half way, or are none."""
    return _program(arena, "half_handshakes", count=2000)


@attack
def raw_subscriptions(arena: Arena) -> Outcome:
    """ZMTP subscriptions at the gate's socket."""
    return _program(arena, "raw_subscriptions", count=50_000)


@attack
def oversize_frame(arena: Arena) -> Outcome:
    """Frames said to be up to 2⁶⁴ bytes long."""
    gate, outsider = arena.os_pid_of("gate"), arena.outsider()
    with arena.attacking():
        ended = outsider.do("program", name="oversize_frame", path=arena.socket)["ended"]
    arena.end(outsider)
    outcome = _survives(arena, gate, f"connections ended: {ended}")
    return Outcome(outcome.succeeded or not all(ended), outcome.evidence)


@attack
def wrong_mechanism(arena: Arena) -> Outcome:
    """CURVE, PLAIN and unknown mechanisms at the system's gate; another user's process there."""
    outsider = arena.outsider()
    with arena.attacking():
        heard = outsider.do("program", name="wrong_mechanism", path=arena.socket)["heard"]
        other = outsider.do("program", name="as_another_user", path=arena.socket, uid=65534, seconds=0.7)["heard"]
    arena.end(outsider)
    told = {name: size for name, size in heard.items() if size > 64 + 60}  # its own greeting, and an ERROR command
    return Outcome(bool(told) or other > 0, f"bytes answered {heard}; as another user {other} answers")


@attack
def unknown_key(arena: Arena) -> Outcome:
    """The apps' gate with a key nobody issued, with none, with a password, with another server's."""
    listed = arena.must("apps.list")
    outsider = arena.outsider()
    with arena.attacking():
        heard = outsider.do(
            "program",
            name="curve_unknown",
            address=listed["address"],
            server=listed["server_key"].encode(),
            seconds=0.7,
        )["heard"]
    arena.end(outsider)
    return Outcome(any(heard.values()), f"answers: {heard}")


def _deep(levels: int) -> bytes:
    return b"\x81\xa1a" * levels + b"\xc0"


def _codes(arena: Arena, messages: dict[str, tuple[object, object]]) -> dict[str, str]:
    """Each message sent by a greeted agent without rights; the codes that came back, by message."""
    agent = arena.agent()
    codes = {}
    with arena.attacking():
        for name, (header, body) in messages.items():
            agent.do("heard", seconds=0.0)
            agent.do("post", header=header, body=body)
            heard = agent.do("heard", seconds=0.15)["replies"]
            codes[name] = (
                ",".join("ok" if head.get("ok", True) else str(what.get("code")) for _, head, what in heard)
                or UNANSWERED
            )
    alive = agent.code("sys.ping")
    arena.end(agent)
    return {**codes, "then": alive}


def _refused(codes: dict[str, str], *, unless: tuple[str, ...] = ()) -> Outcome:
    wrong = {name: code for name, code in codes.items() if name not in ("then", *unless) and code != "INVALID_ARGUMENT"}
    return Outcome(
        bool(wrong) or codes["then"] != "ok", f"{'NOT refused: ' + str(wrong) + '; ' if wrong else ''}{codes}"
    )


@attack
def depth_bomb(arena: Arena) -> Outcome:
    """Maps inside maps, 13 to 15,000 deep, in header and body."""
    call = {"kind": "call", "id": 7, "op": "proc.emit"}
    codes = _codes(
        arena,
        {f"body{levels}": (call, _deep(levels)) for levels in (13, 512, 1500, 15_000)}
        | {f"header{levels}": (b"\x81\xa2id" + _deep(levels), {}) for levels in (13, 15_000)},
    )
    return _refused(codes)


@attack
def duplicate_keys(arena: Arena) -> Outcome:
    """A key that stands twice, so that two readers may believe two things."""
    twice = b"\x84\xa4kind\xa4call\xa2id\x07\xa2op\xa8sys.ping\xa2op\xaasys.status"
    body = b"\x82\xa5topic\xa4mail\xa5topic\xa9approvals"
    return _refused(
        _codes(arena, {"header": (twice, {}), "body": ({"kind": "call", "id": 7, "op": "bus.subscribe"}, body)})
    )


@attack
def extension_types(arena: Arena) -> Outcome:
    """Extension types, time stamps, not-a-number, keys that are no strings, trailing bytes."""
    call = {"kind": "call", "id": 7, "op": "proc.emit"}
    bodies: dict[str, object] = {
        "ext": msgpack.packb({"data": msgpack.ExtType(5, b"x")}),
        "timestamp": msgpack.packb({"data": msgpack.Timestamp(1, 2)}),
        "nan": msgpack.packb({"data": {"x": float("nan")}}),
        "integer key": msgpack.packb({"data": {1: 2}}),
        "trailing": pack({"data": {}}) + b"\xc0",
        "array": msgpack.packb([1, 2]),
        "huge length": b"\xdf\xff\xff\xff\xff",
        "bytes key": msgpack.packb({"data": {b"x": 2}}),
    }
    codes = _codes(arena, {name: (call, body) for name, body in bodies.items()})
    header = _codes(arena, {"header": (msgpack.packb({**call, "id": msgpack.ExtType(5, b"x")}), {})})
    return _refused({**codes, "header": header["header"]})


@attack
def wild_ids(arena: Arena) -> Outcome:
    """Ids that are too large, negative, or no numbers."""
    ids: list[object] = [0, -1, 1 << 63, (1 << 64) - 1, 1.5, "7", True, None, [7], {"a": 7}]
    codes = _codes(arena, {repr(number): ({"kind": "call", "id": number, "op": "sys.ping"}, {}) for number in ids})
    return _refused(codes)


@attack
def kinds_of_servers(arena: Arena) -> Outcome:
    """Events and chunks from a process that serves nothing, and a kind nobody knows."""
    agent, watcher = arena.agent(), arena.outsider()
    watcher.do("connect")
    watcher.do("hello", token=arena.token)
    watcher.call("bus.subscribe", {"topic": "*"})
    stream = watcher.do("start", op="mail.slow", args={"seconds": 1.0})
    with arena.attacking():
        agent.do("post", header={"kind": "event", "topic": "mail.received", "sender": "mail"}, body={"forged": True})
        posts = [
            [{"kind": kind, "id": number, "seq": 0, "ok": True}, {"forged": True}]
            for number in range(1, 3000)
            for kind in ("chunk", "reply")
        ]
        agent.do("posts", messages=posts)
        agent.do("post", header={"kind": "shout", "id": 3}, body={})
    ok, body = watcher.do("wait", number=stream)
    heard = watcher.do("heard", seconds=0.3)
    forged = [one for one in (*heard["inbox"], *heard["chunks"]) if "forged" in str(one)]
    arena.end(agent, watcher)
    return Outcome(bool(forged) or not ok or "forged" in body, f"answer {body}, forged messages heard {len(forged)}")


@attack
def wrong_envelope(arena: Arena) -> Outcome:
    """Two frames, five, another version, a header of 70 KB, frames that are empty."""
    outsider, gate = arena.outsider(), arena.os_pid_of("gate")
    outsider.do("connect")
    head = pack({"kind": "call", "id": 9, "op": "sys.status"})
    tries = ([GREETING], [GREETING, head], [GREETING, head, b"\x80", b"x"], [b"llmos/2", head, b"\x80"], [b"", b"", b""],
             [GREETING, bytes(70_000), b"\x80"], [GREETING, head, bytes(70_000)], [b"x"] * 1000)  # fmt: skip
    with arena.attacking():
        for frames in tries:
            outsider.do("send", frames=list(frames), times=20)
        heard = outsider.do("heard", seconds=0.5)["replies"]
    arena.end(outsider)
    answered = [body for _, head, body in heard if head.get("ok", True)]
    outcome = _survives(arena, gate, f"{len(heard)} refusals")
    return Outcome(bool(answered) or outcome.succeeded, outcome.evidence)


@attack
def odd_headers(arena: Arena) -> Outcome:
    """Every field of a header as every type there is, without a hello: the kernel must still be there afterwards."""
    outsider = arena.outsider()
    outsider.do("connect")
    odd: list[object] = [None, True, -1, 1 << 63, 0.5, "x" * 3000, b"x", [], [[]], {}, {"a": []}]
    fields = (
        "kind",
        "id",
        "op",
        "deadline_ms",
        "parent",
        "cap",
        "keep",
        "credit",
        "ok",
        "seq",
        "n",
        "sender",
        "scope",
        "label",
        "topic",
        "ts",
    )
    headers = [{"kind": "call", "id": 7, "op": "sys.ping", field: value} for field in fields for value in odd]
    with arena.attacking():
        outsider.do("posts", messages=[[header, {}] for header in headers])
        heard = outsider.do("heard", seconds=1.0)["replies"]
    arena.end(outsider)
    answered = [body for _, head, body in heard if head.get("ok", True)]
    return Outcome(
        not arena.alive or bool(answered),
        f"{len(headers)} headers, {len(heard)} refusals; kernel {'as before' if arena.alive else 'DEAD'}",
    )
