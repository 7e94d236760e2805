"""Attacks on what everybody shares: mailboxes, tables, memory, the disk, the model."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from tests.system.bus_attacks.arena import Arena, Outcome, attack


def _disk(path: Path) -> float:
    """MB of the system's own files."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) / 1e6


@attack
def subscription_flood(arena: Arena) -> Outcome:
    """Twenty thousand subscriptions, on one connection and on many."""
    app = arena.app("collector", "bus.subscribe(topic=collector.*)")
    before = arena.must("sys.status")["rss_mb"]
    with arena.attacking():
        outcomes = app.do("flood", op="bus.subscribe", args={"topic": "collector.*"}, count=20_000)
    rss = arena.must("sys.status")["rss_mb"] - before
    held = (
        sum(row["holder"] == app.name for row in arena.must("bus.list")["subscriptions"])
        if outcomes.get("ok", 0) < 300
        else outcomes["ok"]
    )
    arena.must("apps.remove", {"name": "collector"})
    arena.end(app)
    return Outcome(outcomes.get("ok", 0) > 256 or rss > 8, f"{outcomes}, {held} held, kernel +{rss:.1f} MB")


@attack
def mailbox_flood(arena: Arena) -> Outcome:
    """Subscribe and never read, while much is published; somebody else reads the same topic."""
    deaf, reader = arena.app("deaf", "bus.subscribe(topic=mail.*)"), arena.outsider()
    reader.do("connect")
    reader.do("hello", token=arena.token)
    for one in (deaf, reader):
        one.call("bus.subscribe", {"topic": "mail.*"})
    before = arena.must("sys.status")["rss_mb"]
    count, letter = 6000, {"topic": "mail.received", "data": {"text": "x" * 4000}}
    deaf.tell(
        "program", name="no_such_program"
    )  # it reads nothing while it is told nothing: its puppet is stopped below
    if deaf.process is not None:
        deaf.process.send_signal(19)
    with arena.attacking():
        publishing = arena.user.flood("bus.publish", letter, count, window=20)
    heard = len(reader.do("heard", seconds=0.5)["inbox"])
    rss = arena.must("sys.status")["rss_mb"] - before
    lost = [row["dropped"] for row in arena.must("bus.list")["subscriptions"] if row["holder"] == "app:deaf"]
    arena.must("apps.remove", {"name": "deaf"})
    arena.end(deaf, reader)
    return Outcome(
        heard < 0.95 * count or rss > 16,
        f"{publishing}; the reader heard {heard} of {count}, the deaf one lost {lost}, kernel +{rss:.1f} MB",
    )


@attack
def occupied_driver(arena: Arena) -> Outcome:
    """Fill a driver's mailbox with calls that take their time, so that nobody else is served by it."""
    app = arena.app("hog", "mail.read")
    with arena.attacking():
        numbers = [app.do("start", op="mail.slow", args={"seconds": 30}) for _ in range(130)]
        time.sleep(0.2)
        code = arena.user.code("mail.count", timeout=15)
    for number in numbers:
        app.do("post", header={"kind": "cancel", "id": number})
    arena.must("apps.remove", {"name": "hog"})
    arena.end(app)
    return Outcome(code == "BUSY", f"130 slow calls; the user's own call to that driver: {code}")


@attack
def calls_in_flight(arena: Arena) -> Outcome:
    """As many calls at once as it goes, and connections to make more of them."""
    agent = arena.agent("mail.read")
    before = arena.must("sys.status")["rss_mb"]
    with arena.attacking():
        agent.do(
            "posts",
            messages=[
                [{"kind": "call", "id": number, "op": "mail.slow"}, {"seconds": 20.0}] for number in range(10, 3010)
            ],
        )
        heard = agent.do("heard", seconds=1.0)["replies"]
        served = arena.user.code("sys.status", timeout=15)
    rss = arena.must("sys.status")["rss_mb"] - before
    busy = sum(body.get("code") == "BUSY" for _, _, body in heard)
    arena.end(agent)
    return Outcome(
        served != "ok" or rss > 16 or busy < 2000,
        f"{busy} of 3000 refused, the user's own call {served}, kernel +{rss:.1f} MB",
    )


@attack
def crowd(arena: Arena) -> Outcome:
    """More connections than the gate keeps, from strangers, so that those who are silent are forgotten."""
    quiet, outsider = arena.outsider(), arena.outsider()
    quiet.do("connect")
    quiet.do("hello", token=arena.token)
    gate = arena.os_pid_of("gate")
    with arena.attacking():
        done = outsider.do("program", name="crowd", path=arena.socket, processes=68, each=64, seconds=1.0, within=120)
    silent = quiet.code("sys.status", timeout=15)
    driver = arena.user.code("mail.count", timeout=15)
    arena.end(quiet, outsider)
    same = arena.os_pid_of("gate") == gate
    return Outcome(
        silent != "ok" or driver != "ok" or not same,
        f"{done}; a silent peer {silent}, an idle driver {driver}, gate {'as before' if same else 'restarted'}",
    )


@attack
def denial_flood(arena: Arena) -> Outcome:
    """Ten thousand calls that are denied, each with arguments as long as they may be: what do they leave on the disk?"""
    agent = arena.agent()
    before, disk = arena.must("sys.status")["rss_mb"], _disk(arena.os)
    with arena.attacking():
        started = time.monotonic()
        outcomes = agent.do("flood", op="proc.kill", args={"pid": 1}, count=10_000)
        agent.do("flood", op="mail.send", args={"to": "x" * 9000, "text": "y" * 9000}, count=500)
        seconds = time.monotonic() - started
    rss, grown = arena.must("sys.status")["rss_mb"] - before, _disk(arena.os) - disk
    arena.end(agent)
    return Outcome(
        grown > 20 or rss > 16 or "UNANSWERED" in outcomes,
        f"{outcomes} in {seconds:.1f} s, disk +{grown:.1f} MB, kernel +{rss:.1f} MB",
    )


@attack
def emit_flood(arena: Arena) -> Outcome:
    """An agent tells somebody who does not listen as much as it can."""
    deaf = arena.outsider()
    deaf.do("connect")
    deaf.do("hello", token=arena.token)
    before = arena.must("sys.status")["rss_mb"]
    deaf.do("start", op="proc.spawn", args={"program": "puppet_agent", "wait": True, "allow": []}, header={"credit": 0})
    end = time.monotonic() + 10
    row = None
    while row is None and time.monotonic() < end:
        rows = [one for one in arena.must("proc.list")["processes"] if one["name"].startswith("puppet_agent#")]
        row = next((one for one in reversed(rows) if one["state"] == "ready"), None)
    if row is None:
        return Outcome(True, "the agent did not start")
    agent = arena.agent_named(row["name"])
    agent.up()
    with arena.attacking():
        agent.connect()
        numbers = [agent.do("start", op="proc.emit", args={"data": {"text": "x" * 60_000}}) for _ in range(100)]
        agent.do("heard", seconds=0.3)
    rss = arena.must("sys.status")["rss_mb"] - before
    served = arena.user.code("sys.ping")
    with suppress(RuntimeError):
        arena.must("proc.kill", {"pid": row["pid"], "force": True})
    arena.end(deaf)
    return Outcome(rss > 16 or served != "ok", f"{len(numbers)} emits of 60 KB, kernel +{rss:.1f} MB")


@attack
def value_hoard(arena: Arena) -> Outcome:
    """Keep as many values as it goes, so that nobody else can keep one."""
    hoarder, other = arena.agent("mail.read"), arena.agent("mail.read")
    before = arena.must("sys.status")["rss_mb"]
    with arena.attacking():
        outcomes = hoarder.do("flood", op="mail.read", args={}, count=2000, window=20, header={"keep": True})
        code = other.code("mail.read", keep=True)
    rss = arena.must("sys.status")["rss_mb"] - before
    arena.end(hoarder, other)
    return Outcome(code != "ok" or rss > 16, f"{outcomes}; the other's value {code}, kernel +{rss:.1f} MB")


@attack
def spawn_bomb(arena: Arena) -> Outcome:
    """An agent that spawns itself as often as it may; the user wants one of her own."""
    agent = arena.agent("proc.spawn(program=puppet_agent)")
    limit = 70
    with arena.attacking():
        born = []
        refused = ""
        for _ in range(limit):
            ok, body = agent.call("proc.spawn", {"program": "puppet_agent", "allow": []})
            if not ok:
                refused = str(body)
                break
            born.append(body["pid"])
    for pid in born:
        arena.user.call("proc.kill", {"pid": pid, "force": True})
    arena.end(agent)
    return Outcome(len(born) >= limit, f"{len(born)} children, then {refused[:100] or 'no refusal'}")


@attack
def hoarded_contexts(arena: Arena) -> Outcome:
    """Open every context of the model there is, and queue every job: is there one left for the user?"""
    app = arena.app("greedy", "llm.generate")
    with arena.attacking():
        contexts = app.do("flood", op="llm.open", args={}, count=100)
        mine = arena.user.call("llm.open")
        for _ in range(200):
            app.do("start", op="llm.generate", args={"prompt": "Once upon a time", "max_tokens": 2000, "stop": []})
        time.sleep(0.2)
        text = arena.user.code("llm.generate", {"prompt": "Once", "max_tokens": 2}, timeout=20)
    if mine[0]:
        arena.must("llm.close", {"context": mine[1]["context"]})
    arena.must("apps.remove", {"name": "greedy"})
    arena.end(app)
    return Outcome(
        mine[1].get("code") == "BUSY" or text in ("BUSY", "UNANSWERED", "TIMEOUT"),
        f"contexts {contexts}, the user's context {mine}, the user's text {text}",
    )


@attack
def shared_prefixes(arena: Arena) -> Outcome:
    """Learn from the prefix cache what another label's process made the model read; use another's context."""
    secret = "The word that opens the cellar is nasturtium. " * 12
    owner, spy = arena.agent("llm.generate", "mail.read"), arena.agent("llm.generate")
    owner.call("mail.read")
    ask = {"prompt": secret, "max_tokens": 2}
    first = owner.call("llm.generate", ask, timeout=60)
    if first[1].get("code") == "UNAVAILABLE":
        arena.end(owner, spy)
        return Outcome(False, "no model: nothing to share")
    context = owner.call("llm.open")[1].get("context", 1)
    owner.call("llm.generate", {**ask, "context": context}, timeout=60)
    with arena.attacking():
        spied = spy.call("llm.generate", ask, timeout=60)
        entered = spy.code("llm.generate", {"prompt": "And", "max_tokens": 2, "context": context}, timeout=60)
        closed = spy.code("llm.close", {"context": context})
    cached = spied[1].get("usage", {}).get("cached", 0)
    arena.end(owner, spy)
    return Outcome(
        cached > 4 or entered == "ok" or closed == "ok",
        f"tokens from the cache {cached}, another's context {entered}, closing it {closed}",
    )
