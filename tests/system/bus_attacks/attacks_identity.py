"""Attacks on who is who: being taken for somebody else, or reaching into another's calls."""

from __future__ import annotations

import secrets
import time
from typing import Any

from tests.system.bus_attacks.arena import Arena, Outcome, Puppet, attack

VICTIM = b"\x01victim-with-a-known-routing-id"


def _as_user(arena: Arena, routing_id: bytes = VICTIM) -> Puppet:
    """A program of the user's, whose routing id the attacker knows."""
    victim = arena.outsider()
    victim.do("connect", routing_id=routing_id)
    victim.do("hello", token=arena.token)
    return victim


@attack
def forged_routing_id(arena: Arena) -> Outcome:
    """Speak under a live peer's routing id."""
    victim, thief = _as_user(arena), arena.outsider()
    slow = victim.do("start", op="mail.slow", args={"seconds": 0.7})
    with arena.attacking():
        thief.do("connect", routing_id=VICTIM)
        code = thief.code("sys.status", timeout=0.5)
        thief.do("post", header={"kind": "cancel", "id": slow})
        heard = thief.do("heard", seconds=0.5)
        raw = thief.do("program", name="squat", path=arena.socket, identities=[VICTIM] * 5, seconds=0.5)
    ok, body = victim.do("wait", number=slow)
    fine = ok and victim.code("sys.status") == "ok"
    arena.end(victim, thief)
    stolen = code == "ok" or heard["inbox"] or any(b"honest" in data for data in raw["heard"])
    return Outcome(bool(stolen) or not fine, f"thief {code}, victim {'unharmed' if fine else f'HARMED: {body}'}")


@attack
def squatting(arena: Arena) -> Outcome:
    """Hold the routing id that somebody is about to use, and wait for what is his."""
    thief, victim = arena.outsider(), arena.outsider()
    with arena.attacking():
        thief.do("connect", routing_id=VICTIM + b"2")
        thief.code("sys.ping", timeout=1)
        guesses = [bytes(5), *(b"\0" + number.to_bytes(4, "big") for number in range(1, 200))]
        guessing = thief.tell("program", name="squat", path=arena.socket, identities=guesses, seconds=1.0)
        victim.do("connect", routing_id=VICTIM + b"2")
        victim.do("start", op="sys.hello", args={"token": arena.token})
        victim.do("start", op="sys.status")
        served = arena.reachable()
        guessed = thief.done(guessing)
        rights = thief.code("sys.status", timeout=1)
        heard = thief.do("heard", seconds=0.3)
    arena.end(thief, victim)
    got = [body for _, head, body in heard["replies"] if head.get("ok", True)]
    got += [data for data in guessed["heard"] if b"DENIED" not in data]
    return Outcome(
        bool(got) or rights == "ok" or not served,
        f"heard of the victim's: {len(got)}, own rights: {rights}, others served: {served}",
    )


@attack
def dead_peers_id(arena: Arena) -> Outcome:
    """Come back under the routing id of a peer that died with a call under way."""
    victim, thief = _as_user(arena, VICTIM + b"3"), arena.outsider()
    victim.do("start", op="mail.slow", args={"seconds": 0.8})
    victim.call("bus.subscribe", {"topic": "mail.*"})
    with arena.attacking():
        arena.end(victim)
        thief.do("connect", routing_id=VICTIM + b"3")
        codes = [thief.code("sys.status", timeout=0.4) for _ in range(3)]
        arena.must("bus.publish", {"topic": "mail.received", "data": {"secret": 1}})
        heard = thief.do("heard", seconds=1.0)
    arena.end(thief)
    got = [body for _, head, body in heard["replies"] if head.get("ok", True)]
    return Outcome(
        bool(got or heard["inbox"]) or "ok" in codes,
        f"calls {codes}, heard of the dead peer's: {len(got) + len(heard['inbox'])}",
    )


@attack
def pid_reuse(arena: Arena) -> Outcome:
    """The same, from a process that has got the dead one's pid as well."""
    victim, thief = _as_user(arena, VICTIM + b"4"), arena.outsider()
    victim.do("start", op="mail.slow", args={"seconds": 1.0})
    pid = victim.up()
    with arena.attacking():
        arena.end(victim)
        done = thief.do("program", name="reuse_pid", path=arena.socket, pid=pid, routing_id=VICTIM + b"4", seconds=1.5)
    arena.end(thief)
    if not done["pid"]:
        return Outcome(False, "no process got the dead one's pid: this user may not choose pids here")
    return Outcome(done["heard"] not in ("DENIED heard 0", "UNANSWERED heard -1"), f"as pid {pid}: {done['heard']}")


@attack
def stolen_token(arena: Arena) -> Outcome:
    """An agent's token in another process's hands, and the token of one that has ended."""
    agent, thief = arena.agent("sys.read"), arena.outsider()
    token = agent.do("token")
    thief.do("connect")
    with arena.attacking():
        live, _ = thief.do("hello", token=token)
        arena.end(agent)
        time.sleep(0.3)
        dead, _ = thief.do("hello", token=token)
    arena.end(thief)
    return Outcome(
        bool(live or dead) or not token,
        f"token of {len(token)} characters; accepted while it lived {live}, after {dead}",
    )


@attack
def token_guessing(arena: Arena) -> Outcome:
    """Guess tokens as fast as it goes."""
    thief, count = arena.outsider(), 5000
    thief.do("connect")
    with arena.attacking():
        started = time.monotonic()
        outcomes = thief.do("flood", op="sys.hello", args={"token": secrets.token_hex(16)}, count=count)
        rate = count / (time.monotonic() - started)
        odd = [
            thief.do("hello", token=token)[0]
            for token in ("", " ", "\0", "user", arena.token[:-1], arena.token.upper() + " ", "é")
        ]
    arena.end(thief)
    years = 2**127 / rate / 3.15e7
    return Outcome("ok" in outcomes or any(odd), f"{outcomes} at {rate:.0f}/s: 2^127 guesses take {years:.0e} years")


@attack
def hello_twice(arena: Arena) -> Outcome:
    """Be greeted as one, then as another."""
    agent = arena.agent()
    token = agent.do("token")
    with arena.attacking():
        again = [agent.do("hello", token=one)[1] for one in (token, arena.token, "")]
        rights = agent.code("sys.status")
    arena.end(agent)
    codes = [one.get("code", one.get("badge")) for one in again]
    return Outcome("user" in codes or rights == "ok", f"second hellos {codes}, then sys.status {rights}")


@attack
def header_stamps(arena: Arena) -> Outcome:
    """Write sender, label, scope and topic into one's own header."""
    agent = arena.agent("app.call(name=witness)", "mail.read(folder=Work)")
    server = arena.user
    arena.must("fn.register", {"name": "witness", "summary": "Sees who calls", "effect": "read"})
    forged: dict[str, Any] = {
        "sender": "user",
        "label": [],
        "scope": {"folder": ["*"]},
        "topic": "approval.requested",
        "number": 5,
        "ts": 1.0,
    }
    server.inbox.clear()
    agent.call("mail.read", {"folder": "Work"})
    with arena.attacking():
        started = agent.do("start", op="app.witness", header=forged)
        end = time.monotonic() + 3
        while not server.inbox and time.monotonic() < end:
            server.pump(0.05)
        elsewhere = agent.code("mail.read", {"folder": "Private"}, **forged)
    seen = server.inbox[0][0] if server.inbox else {}
    if seen:
        server.post({"kind": "reply", "id": seen["id"], "ok": True})
        agent.do("wait", number=started)
    arena.must("fn.unregister", {"name": "witness"})
    arena.end(agent)
    true = (
        seen.get("sender") == agent.name
        and "u" in seen.get("label", [])
        and seen.get("scope", {}).get("folder") is None
    )
    return Outcome(not (true or not seen) or elsewhere == "ok", f"the server saw {seen}; outside its scope {elsewhere}")


@attack
def colliding_names(arena: Arena) -> Outcome:
    """An app called like a driver, like the user, like the kernel; a driver called like a syscall's object."""
    with arena.attacking():
        apps = [arena.app(name) for name in ("mail", "user", "kernel", "gate", "puppet_agent")]
        badges = [app.name for app in apps]
        rights = {app.name: [app.code(op, args) for op, args in (
            ("sys.status", {}), ("perm.list", {}), ("bus.publish", {"topic": "mail.received", "data": {}}), ("mail.read", {}),
        )] for app in apps}  # fmt: skip
    taken = "perm" in [row["name"] for row in arena.must("driver.list")["drivers"] if row.get("state") != "broken"]
    works = arena.user.code("sys.ping") == "ok"
    for name in ("mail", "user", "kernel", "gate", "puppet_agent"):
        arena.must("apps.remove", {"name": name})
    arena.end(*apps)
    fooled = [badge for badge in badges if not badge.startswith("app:")] or [
        one for codes in rights.values() for one in codes if one == "ok"
    ]
    return Outcome(
        bool(fooled) or taken or not works,
        f"badges {badges}, rights {rights}, a driver called perm {'RUNS' if taken else 'was left out'}",
    )


@attack
def reply_hijack(arena: Arena) -> Outcome:
    """Answer a call that another serves, under every id it may have."""
    driver, agent = arena.driver(), arena.agent()
    slow = arena.user.start("mail.slow", {"seconds": 1.0})
    posts = [[{"kind": "reply", "id": number, "ok": True}, {"honest": False}] for number in range(1, 20_000)]
    with arena.attacking():
        orders = [one.tell("posts", messages=posts) for one in (driver, agent)]
        driver.done(orders[0])
        agent.done(orders[1])
        ok, body = arena.user.wait(slow)
    arena.end(agent)
    return Outcome(not (ok and body.get("honest") is True), f"the caller got {body}")


@attack
def second_reply(arena: Arena) -> Outcome:
    """A driver that answers a call twice, and once more after its caller has been told."""
    driver = arena.driver()
    number = arena.user.start("puppet_driver.read")
    heard: list[list[dict[str, int]]] = []
    with arena.attacking():
        for _ in range(20):
            heard = driver.do("heard", seconds=0.1)["inbox"]
            if heard:
                break
        ids = [head["id"] for head, _ in heard]
        for text in ("first", "second", "third"):
            driver.do("posts", messages=[[{"kind": "reply", "id": one, "ok": True}, {"text": text}] for one in ids])
        arena.user.wait(number)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        arena.user.pump(0.05)
    replies = arena.user.replies.get(number, [])
    return Outcome(len(replies) != 1, f"{len(replies)} replies: {[body for _, body in replies]}")


@attack
def cancel_anothers_call(arena: Arena) -> Outcome:
    """Cancel, feed and adopt calls by numbers that are somebody else's."""
    agent = arena.agent("mail.read")
    slow = arena.user.start("mail.slow", {"seconds": 1.0})
    posts = [
        [{"kind": kind, "id": number, "n": 1 << 20}, {}] for number in range(1, 8000) for kind in ("cancel", "credit")
    ]
    with arena.attacking():
        agent.do("posts", messages=posts)
        ok, body = arena.user.wait(slow)
    arena.end(agent)
    return Outcome(not ok, f"the caller got {body}")


@attack
def parent_of_another(arena: Arena) -> Outcome:
    """Name another's call as the one that is being served, to act under it or to end with it."""
    agent = arena.agent()
    slow = arena.user.start("mail.slow", {"seconds": 1.5})
    last = max(int(row["seq"]) for row in arena.must("audit.list", {"last": 1})["rows"] or [{"seq": 1}])
    with arena.attacking():
        codes = {agent.code(op, args, parent=parent) for parent in (*range(1, 60), last, (1 << 63) - 1)
                 for op, args in (("sys.status", {}), ("mail.send", {"to": "evil@example.net"}))}  # fmt: skip
        ok, body = arena.user.wait(slow)
    arena.end(agent)
    return Outcome("ok" in codes or not ok, f"own calls {codes}, the other's call {body}")


@attack
def credit_overflow(arena: Arena) -> Outcome:
    """Credit without end for a stream that is not being read, and impossible amounts."""
    agent, listener = arena.agent("proc.spawn", "proc.kill"), arena.outsider()
    listener.do("connect")
    listener.do("hello", token=arena.token)
    before = arena.must("sys.status")["rss_mb"]
    amounts: list[object] = [1 << 20] * 2000 + [-1, 1 << 62, 1 << 63, "x", None]
    stream = listener.do(
        "start", op="proc.spawn", args={"program": "puppet_agent", "wait": True, "allow": []}, header={"credit": 1}
    )
    time.sleep(1.0)
    with arena.attacking():
        listener.do("posts", messages=[[{"kind": "credit", "id": stream, "n": amount}, {}] for amount in amounts])
        odd = [listener.code("sys.ping", credit=amount) for amount in (-1, 1 << 21, "x")]
    rss = arena.must("sys.status")["rss_mb"]
    arena.end(agent, listener)
    return Outcome(
        set(odd) != {"INVALID_ARGUMENT"} or rss - before > 16, f"odd credit {odd}, kernel {before} → {rss} MB"
    )


@attack
def function_theft(arena: Arena) -> Outcome:
    """Take over, or take away, a function that another program lends; lend one without the right."""
    agent, app = arena.agent("fn.register(name=other)"), arena.app("lender")
    arena.must("fn.register", {"name": "purse", "summary": "The user's"})
    with arena.attacking():
        codes = [
            one.code(op, {"name": "purse", "summary": "x"} if op == "fn.register" else {"name": "purse"})
            for one in (agent, app)
            for op in ("fn.register", "fn.unregister")
        ]
    arena.must("fn.unregister", {"name": "purse"})
    arena.end(agent, app)
    return Outcome("ok" in codes, f"{codes}")
