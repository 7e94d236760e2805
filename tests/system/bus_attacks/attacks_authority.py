"""Attacks on what one may: handles, scopes, quotas, revocation, topics, and the user's own powers."""

from __future__ import annotations

import threading
import time

import zmq

from tests.system.bus_attacks.arena import Arena, Outcome, Puppet, attack


def _heard_topics(puppet: Puppet, seconds: float = 0.4) -> list[str]:
    return [
        head.get("topic", "") for head, _ in puppet.do("heard", seconds=seconds)["inbox"] if head.get("kind") == "event"
    ]


@attack
def guessed_handle(arena: Arena) -> Outcome:
    """Name capabilities by guesses, by their public ids, by almost the right handle."""
    agent = arena.agent("mail.read(folder=Work)")
    own = str(agent.call("perm.mine")[1]["caps"][0]["handle"])
    ids = [row["id"] for row in arena.must("perm.list")["caps"]]
    guesses = [*ids, "*", "user", "boot", "c1", "0", "00", own[:-1], own.swapcase(), own + "0", own + "\0", "x" * 80]
    with arena.attacking():
        codes = {guess: agent.code("sys.status", cap=guess) for guess in guesses if guess != own}
        wider = agent.code("mail.read", {"folder": "Private"}, cap=own)
    arena.end(agent)
    return Outcome(
        "ok" in codes.values() or wider == "ok",
        f"{len(codes)} guesses: {set(codes.values())}; own handle for another folder: {wider}",
    )


@attack
def anothers_handle(arena: Arena) -> Outcome:
    """Use a handle that another process holds."""
    owner, thief = arena.agent("mail.read", "sys.read"), arena.agent()
    handles = [row["handle"] for row in owner.call("perm.mine")[1]["caps"]]
    with arena.attacking():
        codes = [thief.code(op, cap=handle) for handle in handles for op in ("mail.read", "sys.status")]
        app = arena.app("thief")
        codes += [app.code(op, cap=handle) for handle in handles for op in ("mail.read", "sys.status")]
    used = [owner.code("sys.status", cap=handle) for handle in handles]
    arena.end(owner, thief, app)
    return Outcome("ok" in codes or "ok" not in used, f"thieves {set(codes)}, the owner {used}")


@attack
def widened_scope(arena: Arena) -> Outcome:
    """Reach past a scope by spelling, by lists, by leaving the argument out, by handing on more."""
    documents = arena.system.home / "Documents"
    documents.mkdir(exist_ok=True)
    (arena.system.home / "secret.txt").write_text("the secret")
    agent = arena.agent(
        f"filesystem.read(path={documents})", "mail.read(folder=Work)", "proc.spawn(program=puppet_agent, grantable=yes)",
        "bus.subscribe(topic=mail.received, grantable=yes)",
    )  # fmt: skip
    paths = [
        f"{documents}/../secret.txt",
        f"{documents}/./../secret.txt",
        "~/secret.txt",
        f"{documents}//..//secret.txt",
        "/etc/passwd",
        f"{documents}\0/../secret.txt",
        str(arena.system.home),
        "",
        f"{documents}/..",
        "//" + str(arena.system.home / "secret.txt"),
    ]
    folders: list[object] = ["INBOX", "", "work", "Work\0", "Work,INBOX", "*", ["Work", "INBOX"], None]
    spawns = [
        "bus.subscribe(topic=*)",
        "bus.subscribe(topic=mail.*)",
        "bus.subscribe",
        "*.*",
        "bus.*(topic=mail.received)",
        "mail.read",
        "proc.spawn",
    ]
    with arena.attacking():
        reached = {path: body for path in paths for ok, body in [agent.call("filesystem.read", {"path": path})] if ok}
        letters = {}
        for folder in folders:
            _, body = agent.call("mail.read", {"folder": folder} if folder is not None else {})
            letters[str(folder)] = ",".join(item["folder"] for item in body.get("items", [])) or body["code"]
        births = {allow: agent.code("proc.spawn", {"program": "puppet_agent", "allow": [allow]}) for allow in spawns}
    arena.end(agent)
    gained = [name for name, folder in letters.items() if folder == "INBOX"] + [
        name for name, code in births.items() if code == "ok"
    ]
    gained += list(reached)
    return Outcome(bool(gained), f"gained {gained}; letters {letters}; spawns {births}")


@attack
def spawn_more(arena: Arena) -> Outcome:
    """Spawn with rights that one does not hold, or holds but may not hand on; with none named, take what the manifest asks."""
    agent = arena.agent("proc.spawn(program=puppet_agent)", "mail.read")
    allows: list[object] = [["sys.read"], ["mail.read"], ["mail.read+send"], ["mail.*"], ["perm.control"], ["approval.control"], ["*.*"],
                            ["mail.read(grantable=yes)"]]  # fmt: skip
    with arena.attacking():
        codes = {str(allow): agent.code("proc.spawn", {"program": "puppet_agent", "allow": allow}) for allow in allows}
        codes["assistant"] = agent.code("proc.spawn", {"program": "assistant", "args": {"question": "x"}})
        ok, body = agent.call("proc.spawn", {"program": "puppet_agent"})
    born = []
    if ok:
        child = f"puppet_agent#{body['pid']}"
        born = [row["cap"] for row in arena.must("perm.list", {"holder": child})["caps"]]
        arena.must("proc.kill", {"pid": body["pid"], "force": True})
    arena.end(agent)
    return Outcome("ok" in codes.values() or bool(born), f"{codes}; a child without a list holds {born}")


@attack
def quota_doubling(arena: Arena) -> Outcome:
    """Hand a quota to two children, use one's own as well, spawn again, end children to get it back."""
    limit = 6
    agent = arena.agent("proc.spawn(program=puppet_agent)", f"mail.read(calls={limit}/h, grantable=yes)")
    used = 0
    children: list[Puppet] = []
    births: list[str] = []
    with arena.attacking():
        for share in (
            f"mail.read(calls={limit}/h)",
            f"mail.read(calls={limit // 2}/h)",
            "mail.read",
            "mail.read",
            "mail.read(calls=100/h)",
        ):
            try:
                children.append(arena.agent(share, giver=agent))
                births.append("ok")
            except RuntimeError as error:
                births.append(str(error)[-60:])
        for _ in range(2):
            for one in (agent, *children):
                used += sum(one.code("mail.read") == "ok" for _ in range(limit))
            arena.end(*children)
            time.sleep(0.3)
            children = []
            try:
                children.append(arena.agent(f"mail.read(calls={limit}/h)", giver=agent))
            except RuntimeError as error:
                births.append(str(error)[-60:])
    arena.end(agent, *children)
    return Outcome(used > limit or used == 0, f"{used} calls with a quota of {limit}; births {births}")


@attack
def use_after_revoke(arena: Arena) -> Outcome:
    """Go on after a revocation: with the handle, with a call under way, with a subscription, through a child."""
    agent = arena.agent("mail.read(grantable=yes)", "bus.subscribe(topic=mail.*)", "proc.spawn(program=puppet_agent)")
    child = arena.agent("mail.read", giver=agent)
    handle = next(row["handle"] for row in agent.call("perm.mine")[1]["caps"] if row["cap"].startswith("mail.read"))
    agent.call("bus.subscribe", {"topic": "mail.*"})
    slow = [one.do("start", op="mail.slow", args={"seconds": 1.0}) for one in (agent, child)]
    arena.user.call("sys.ping")
    with arena.attacking():
        for row in arena.must("perm.list", {"holder": agent.name})["caps"]:
            arena.must("perm.revoke", {"id": row["id"]})
        pending = [one.do("wait", number=number)[1] for one, number in zip((agent, child), slow, strict=True)]
        arena.must("bus.publish", {"topic": "mail.received", "data": {"secret": 1}})
        after = [
            agent.code("mail.read"),
            agent.code("mail.read", cap=handle),
            child.code("mail.read"),
            agent.code("bus.subscribe", {"topic": "mail.*"}),
            agent.code("proc.spawn", {"program": "puppet_agent", "allow": []}),
        ]
        heard = _heard_topics(agent)
    arena.end(agent, child)
    answered = [body for body in pending if "honest" in body]
    return Outcome(
        "ok" in after or bool(heard) or bool(answered),
        f"after {after}, events {heard}, answers of calls under way {pending}",
    )


@attack
def app_after_removal(arena: Arena) -> Outcome:
    """An app goes on after it was removed: on its connection, with its subscription, with its key again."""
    app = arena.app("leaver", "sys.read", "bus.subscribe(topic=mail.*)")
    app.call("bus.subscribe", {"topic": "mail.*"})
    worked = app.code("sys.status")
    arena.must("apps.remove", {"name": "leaver"})
    with arena.attacking():
        arena.must("bus.publish", {"topic": "mail.received", "data": {"secret": 1}})
        after = [app.code("sys.status", timeout=0.5)]
        heard = _heard_topics(app)
        app.do("start", op="sys.hello", args={"token": ""})
        after += [app.code("sys.status", timeout=0.5), app.code("sys.ping", timeout=0.5)]
    arena.end(app)
    return Outcome(worked != "ok" or "ok" in after or bool(heard), f"before {worked}, after {after}, events {heard}")


@attack
def topic_prefix(arena: Arena) -> Outcome:
    """Hear `mailbox` and `mail.received` by a right to `mail`, and everything by patterns around it."""
    app = arena.app("listener", "bus.subscribe(topic=mail)")
    patterns = [
        "mail",
        "mail*",
        "mail.*",
        "*",
        "m*",
        "*.*",
        "mailbox",
        "mail.",
        ".mail",
        "mail\0",
        "MAIL",
        "mail,mailbox",
        "*il",
    ]
    with arena.attacking():
        codes = {pattern: app.code("bus.subscribe", {"topic": pattern}) for pattern in patterns}
        codes["replay"] = app.code("bus.replay", {"topic": "mail.*"})
        for topic in ("mail", "mailbox", "mail.received"):
            arena.must("mail.announce", {"topic": topic})
        heard = _heard_topics(app)
    arena.must("apps.remove", {"name": "listener"})
    arena.end(app)
    gained = [pattern for pattern, code in codes.items() if code == "ok" and pattern != "mail"]
    return Outcome(
        bool(gained) or heard != ["mail"],
        f"allowed {[name for name, code in codes.items() if code == 'ok']}, heard {heard}",
    )


@attack
def empty_and_long_topics(arena: Arena) -> Outcome:
    """The topic `""`, one of 60 KB, and such as mean everything elsewhere."""
    app = arena.app("reader", "bus.subscribe(topic=mail.*)", "bus.publish(topic=mail.*)")
    topics = ["", "\0", "x" * 60_000, "mail." + "y" * 60_000, "#", ">", "**", "mail..received", " "]
    with arena.attacking():
        codes = [
            app.code(op, {"topic": topic}) for topic in topics for op in ("bus.subscribe", "bus.publish", "bus.replay")
        ]
        arena.must("mail.announce", {"topic": "mailbox"})
        heard = _heard_topics(app)
    arena.must("apps.remove", {"name": "reader"})
    arena.end(app)
    return Outcome("ok" in codes or bool(heard), f"{set(codes)}, heard {heard}")


@attack
def foreign_topic(arena: Arena) -> Outcome:
    """Publish on another's topics and on the system's own, as an app, an agent and a driver, with rights for something else."""
    listener = arena.outsider()
    listener.do("connect")
    listener.do("hello", token=arena.token)
    listener.call("bus.subscribe", {"topic": "*"})
    peers = [arena.app("crier", "bus.publish(topic=crier.*)"), arena.agent("bus.publish(topic=news)"), arena.driver()]
    topics = [
        "mail.received",
        "mail",
        "approval.requested",
        "approval.settled",
        "proc.ended",
        "sys.shutdown",
        "sys.model",
        "user.said",
    ]
    listener.do("heard", seconds=0.2)
    with arena.attacking():
        codes = {
            peer.name: {peer.code("bus.publish", {"topic": topic, "data": {"forged": True}}) for topic in topics}
            for peer in peers
        }
        heard = [head["topic"] for head, body in listener.do("heard", seconds=0.3)["inbox"] if body.get("forged")]
    arena.must("apps.remove", {"name": "crier"})
    arena.end(listener, peers[0], peers[1])
    return Outcome(bool(heard) or any("ok" in one for one in codes.values()), f"{codes}, heard {heard}")


@attack
def hear_approvals(arena: Arena) -> Outcome:
    """Listen to what the user is asked, and read the inbox."""
    peers = [arena.app("nosy", "bus.subscribe(topic=nosy.*)"), arena.agent("bus.subscribe(topic=mail.*)")]
    with arena.attacking():
        codes = [peer.code("bus.subscribe", {"topic": topic}) for peer in peers
                 for topic in ("approval.*", "approval.requested", "*.requested", "*", "*.*")]  # fmt: skip
        codes += [
            peer.code(op, args)
            for peer in peers
            for op, args in (
                ("approval.list", {}),
                ("approval.rules", {}),
                ("approval.show", {"id": "a1"}),
                ("bus.replay", {"topic": "approval.*"}),
                ("bus.list", {}),
            )
        ]
    arena.must("apps.remove", {"name": "nosy"})
    arena.end(*peers)
    return Outcome("ok" in codes, f"{set(codes)}")


USER_ONLY: dict[str, dict[str, object]] = {
    "perm.grant": {"holder": "app:climber", "cap": "sys.control"},
    "perm.revoke": {"id": "c1"},
    "perm.list": {},
    "perm.check": {"holder": "user", "op": "sys.shutdown"},
    "perm.why": {"id": "c1"},
    "apps.add": {"name": "climber2", "key": "x" * 40, "allow": ["*.*"]},
    "apps.list": {},
    "apps.remove": {"name": "climber"},
    "approval.answer": {"id": "a1", "answer": "always"},
    "approval.forget": {"id": "r1"},
    "undo.run": {"id": "u1"},
    "undo.list": {},
    "audit.list": {},
    "audit.export": {},
    "label.why": {"id": "user"},
    "sys.status": {},
    "sys.shutdown": {},
    "proc.list": {},
    "proc.kill": {"pid": 1},
    "proc.logs": {"name": "kernel"},
    "driver.show": {"name": "mail"},
    "llm.load": {"model": "x"},
}
"""What only the user may, of a process that holds nothing of the kind."""


def _climb(arena: Arena, climber: Puppet) -> dict[str, str]:
    key = zmq.curve_keypair()[0].decode()
    return {op: climber.code(op, {**args, "key": key} if op == "apps.add" else args) for op, args in USER_ONLY.items()}


@attack
def powers_of_the_user(arena: Arena) -> Outcome:
    """Grant, approve, undo, add apps, read the audit log, end the system: as an agent, an app and a driver."""
    climbers = [arena.app("climber"), arena.agent("mail.read"), arena.driver()]
    with arena.attacking():
        codes = {climber.name: _climb(arena, climber) for climber in climbers}
    arena.must("apps.remove", {"name": "climber"})
    arena.end(climbers[0], climbers[1])
    gained = [f"{name}: {op}" for name, table in codes.items() for op, code in table.items() if code != "DENIED"]
    return Outcome(
        any(code == "ok" for table in codes.values() for code in table.values()), f"not DENIED: {gained or 'none'}"
    )


@attack
def kernels_own_ops(arena: Arena) -> Outcome:
    """Call a driver's `undo`, which is the kernel's to call, and ops by other spellings."""
    agent = arena.agent("mail.*")
    ops = [
        "mail.undo",
        "mail.preview",
        "mail.Undo",
        "mail.undo\0",
        "mail..undo",
        " mail.undo",
        "mail.__init__",
        "mail.setup",
        "mail.",
        ".undo",
        "mail",
    ]
    before = len(arena.must("mail.outbox")["sent"])
    with arena.attacking():
        codes = {op: agent.code(op, {"token": "x"}) for op in ops}
    after = len(arena.must("mail.outbox")["sent"])
    arena.end(agent)
    return Outcome("ok" in codes.values() or after != before, f"{codes}")


@attack
def race_of_revocation(arena: Arena) -> Outcome:
    """Subscribe and call in a stream while the right is being revoked: nothing that was begun after it may pass."""
    agent = arena.agent("sys.read", "bus.subscribe(topic=mail.*)")
    ids = [row["id"] for row in arena.must("perm.list", {"holder": agent.name})["caps"]]
    with arena.attacking():
        order = agent.tell("flood", op="sys.status", args={}, count=600, window=50)
        timer = threading.Event()
        timer.wait(0.05)
        for id_ in ids:
            arena.must("perm.revoke", {"id": id_})
        outcomes = agent.done(order)
        late = [agent.code("sys.status"), agent.code("bus.subscribe", {"topic": "mail.*"})]
    arena.end(agent)
    return Outcome("ok" in late, f"{outcomes}, afterwards {late}")
