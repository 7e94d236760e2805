"""A system at work for the kill campaign: threads that call, write, publish, grant, ask and spawn, each knowing what it was told."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from llmos.ipc.app_key import AppKey
from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from tests.system.kill_ledger import Counted, Files, Kept

CALL_S = 10.0
"""Seconds that each call may take by what it says itself."""
BOUND_S = 20.0
"""Seconds after which a call without an answer hangs, whatever was killed."""
TOPIC = "post.received"
_WAITS = re.compile(r"approval (\S+)$")
_CHILD = {"script": [{"op": "post.book"}, {"sleep": 0.1}]}
_FAMILY: dict[str, Any] = {
    "program": "scripted",
    "args": {
        "script": [
            {"op": "proc.spawn", "args": {"program": "scripted", "args": _CHILD, "allow": ["post.read"], "wait": True}},
            {"op": "post.book"},
            {"op": "proc.spawn", "args": {"program": "scripted", "args": _CHILD, "allow": ["post.read"]}},
        ]
    },
    "allow": ["post.read", "proc.spawn"],
    "wait": True,
}
"""An agent that has two children, and waits for one of them."""


def content(name: str) -> str:
    """What stands in a file of this name; long enough to be seen half written."""
    return name * 2000


class Load:
    """Everybody who works, and what they were told.

    Args:
        socket: of the gate.
        notes: a folder that the filesystem driver may write.
    """

    def __init__(self, socket: Path, notes: Path, seed: int, *, model: bool) -> None:
        self._socket = socket
        self._chosen = random.Random(seed)
        self.hangs: list[str] = []
        self.grants, self.pending = Kept("grant"), Kept("waiting approval")
        self.lost: list[str] = []
        self.events = Counted()
        self.heard: dict[int, int] = {}
        """Event → its number in the store, as the subscriber heard of it."""
        self.files = Files(notes, content)
        self._notes = notes
        self._undo: dict[str, str] = {}
        self._caps: dict[str, str] = {}
        self._allowed: list[str] = []
        """Whom the app may write to once, as the user was told, and has not yet tried to."""
        self._numbers = 0
        self._app_key: AppKey | None = None
        self._underway: dict[str, tuple[str, float]] = {}
        self._go, self._end = threading.Event(), threading.Event()
        self._resting: set[str] = set()
        self._connections: list[Connection] = []
        work: dict[str, Callable[[Connection], None]] = {
            "reader": self._read,
            "granter": self._grant,
            "publisher": self._publish,
            "asker": self._ask_for_approval,
            "answerer": self._answer,
            "writer": self._write,
            "spawner": lambda client: self._all(client, "proc.spawn", _FAMILY),
        }
        if model:
            work["thinker"] = lambda client: self._all(client, "llm.generate", {"prompt": "Once", "max_tokens": 4})
        self._threads = {
            name: threading.Thread(target=self._work, args=(name, step), name=name) for name, step in work.items()
        }
        self._subscriber = threading.Thread(target=self._listen, name="subscriber")

    def admit(self, client: Connection) -> None:
        """What the user does first: an app is let in, a folder may be written."""
        public, secret = (key.decode() for key in zmq.curve_keypair())
        told = client.call("apps.add", {"name": "asker", "key": public, "allow": ["post.read", "post.send"]})
        self._app_key = AppKey("asker", told["address"], told["server_key"], public, secret)
        client.call("perm.grant", {"holder": "post", "cap": "label.trust"})
        client.call("perm.grant", {"holder": "filesystem", "cap": f"fs.write(path={self._notes})"})

    @property
    def connections(self) -> int:
        return len(self._connections)

    def start(self) -> None:
        for thread in (*self._threads.values(), self._subscriber):
            thread.start()

    def resume(self) -> None:
        self._resting.clear()
        self._go.set()

    def pause(self) -> None:
        """Wait until nobody has a request under way; whoever still has one after a while hangs."""
        self._go.clear()
        end = time.monotonic() + BOUND_S + CALL_S
        while self._resting != set(self._threads):
            if time.monotonic() > end:
                self.hangs += [
                    f"{name}: {op} for {time.monotonic() - since:.0f} s" for name, (op, since) in self._underway.items()
                ]
                return
            time.sleep(0.005)

    def close(self) -> None:
        self._end.set()
        self._go.set()
        for connection in self._connections:
            connection.close()
        for thread in (*self._threads.values(), self._subscriber):
            thread.join(BOUND_S)

    # -- working ---------------------------------------------------------------------------------------------------

    def _work(self, name: str, step: Callable[[Connection], None]) -> None:
        connection = self._connected(app=name == "asker")
        while not self._end.is_set():
            if not self._go.is_set():
                self._resting.add(name)
                self._go.wait()
                continue
            try:
                step(connection)
            except OpError:
                time.sleep(0.02)
            time.sleep(0.01)

    def _connected(self, *, app: bool = False) -> Connection:
        made = Connection(key=self._app_key) if app else Connection(self._socket)
        self._connections.append(made)
        return made

    def ask(self, client: Connection, op: str, args: dict[str, Any] | None = None, wait: float = CALL_S) -> Any:
        """A call that has to be answered: its result. Raises `OpError`; a call without an answer is a hang."""
        name, started = threading.current_thread().name, time.monotonic()
        self._underway[name] = (op, started)
        try:
            return client.call(op, args, timeout=wait)
        except OpError as error:
            if error.code is Code.TIMEOUT and error.detail.endswith("no answer in time"):  # the client's own words
                self.hangs.append(f"{name}: {op} was not answered in {time.monotonic() - started:.1f} s")
            raise
        finally:
            del self._underway[name]
            if time.monotonic() - started > BOUND_S:
                self.hangs.append(f"{name}: {op} took {time.monotonic() - started:.1f} s")

    def _all(self, client: Connection, op: str, args: dict[str, Any]) -> None:
        self.ask(client, op, args)

    def _read(self, client: Connection) -> None:
        op = self._chosen.choice(("filesystem.list", "browser_history.sources", "post.book", "sys.status", "sys.ops"))
        self.ask(client, op)

    def _publish(self, client: Connection) -> None:
        number = self.events.next()
        self.ask(client, "bus.publish", {"topic": TOPIC, "data": {"n": number}})
        self.events.acknowledged(number)
        time.sleep(0.1)

    def _listen(self) -> None:
        client = self._connected()
        since = time.time()
        while not self._end.is_set():
            try:
                for event in client.subscribe(TOPIC, since=since):
                    self.heard.setdefault(event.data["n"], event.number)
                    since = event.ts - 1
            except OpError:
                time.sleep(0.02)

    def _grant(self, client: Connection) -> None:
        there = self.grants.there
        if len(there) > 10 or (there and self._chosen.random() < 0.5):
            cap = self._chosen.choice(there)
            if (cap, self._caps[cap]) not in self._granted(client):
                self.lost.append(f"lost: grant {cap}")
                self.grants.removed(cap)
                return
            self.grants.trying(cap)
            self.ask(client, "perm.revoke", {"id": self._caps[cap]})
            self.grants.removed(cap)
        else:
            cap = f"post.send(to=g{self._number()}@example.com)"
            self.grants.trying(cap)
            self._caps[cap] = self.ask(client, "perm.grant", {"holder": "scripted", "cap": cap})["id"]
            self.grants.added(cap)

    def _granted(self, client: Connection) -> list[tuple[str, str]]:
        """(capability, id) of each. An id alone says little: after a restart one that is free may be another's."""
        rows = self.ask(client, "perm.list", {"holder": "scripted"})["caps"]
        return [(row["cap"], row["id"]) for row in rows]

    def _ask_for_approval(self, app: Connection) -> None:
        """An app that has read a stranger's words wants to send; what it asked stays, whatever becomes of the call."""
        self.ask(app, "post.inbox")
        allowed = bool(self._allowed) and self._chosen.random() < 0.5
        to = self._allowed.pop() if allowed else f"a{self._number()}@example.com"
        self.pending.trying(to)
        try:
            self.ask(app, "post.send", {"to": to}, wait=CALL_S if allowed else 0.2)
        except OpError as error:
            if error.code is Code.NEEDS_APPROVAL and _WAITS.search(error.detail):
                self.pending.added(to)
                if allowed:
                    self.lost.append(f"lost: that sending to {to} was approved")
            raise
        self.pending.removed(to)

    def _answer(self, client: Connection) -> None:
        there = self.pending.there
        if len(there) < 5:
            time.sleep(0.05)
            return
        to, answer = there[0], self._chosen.choice(("once", "no"))
        for row in self.ask(client, "approval.list")["approvals"]:
            if self.ask(client, "approval.show", {"id": row["id"]})["args"].get("to") == to:
                self.pending.trying(to)
                self.ask(client, "approval.answer", {"id": row["id"], "answer": answer})
                self.pending.removed(to)
                if answer == "once":
                    self._allowed.append(to)
                return

    def _write(self, client: Connection) -> None:
        there = [name for name in self.files.kept.there if name in self._undo]
        if len(there) > 10 or (there and self._chosen.random() < 0.4):
            name = self._chosen.choice(there)
            self.files.kept.trying(name)
            self._take_back(client, name)
        else:
            name = f"f{self._number()}.txt"
            self.files.kept.trying(name)
            args = {"path": str(self._notes / name), "content": content(name)}
            self._undo[name] = self.ask(client, "filesystem.write", args)["undo"]
            self.files.kept.added(name)

    def _take_back(self, client: Connection, name: str) -> None:
        """What was once acknowledged can be undone, however often the answer got lost; `CONFLICT` says that it has been."""
        try:
            self.ask(client, "undo.run", {"id": self._undo[name]})
        except OpError as error:
            if error.code not in (Code.NOT_FOUND, Code.CONFLICT):
                raise
            if error.code is Code.NOT_FOUND or not self._goes(self._notes / name):
                self.lost.append(f"lost: {name} cannot be undone: {error.detail}")
                del self._undo[name]
                raise
        self.files.kept.removed(name)
        del self._undo[name]

    def _goes(self, path: Path) -> bool:
        """Whether it is gone soon: whoever undoes it may be at it."""
        end = time.monotonic() + CALL_S
        while path.exists() and time.monotonic() < end:
            time.sleep(0.02)
        return not path.exists()

    # -- what it should have ---------------------------------------------------------------------------------------

    def compare(self, client: Connection) -> list[str]:
        """What the system says it has, against what it said before; nobody may be at work."""
        self._caps = dict(self._granted(client))
        wrong = self.grants.compare(self._caps)
        waiting = [row["id"] for row in self.ask(client, "approval.list", {"limit": 200})["approvals"]]
        shown = [self.ask(client, "approval.show", {"id": one})["args"]["to"] for one in waiting]
        wrong += self.pending.compare(shown) + self.files.compare() + self._compare_events(client)
        wrong, self.lost, self.hangs = [*wrong, *self.lost, *(f"hang: {one}" for one in self.hangs)], [], []
        return wrong

    def _compare_events(self, client: Connection) -> list[str]:
        stored, after = [], 0
        while True:
            page = self.ask(client, "bus.replay", {"topic": TOPIC, "after": after, "limit": 500})
            stored += [row["data"]["n"] for row in page["events"]]
            if page["next"] <= after:
                break
            after = page["next"]
        end = time.monotonic() + BOUND_S
        while set(stored) - self.heard.keys() and time.monotonic() < end:
            time.sleep(0.01)
        missed = [f"lost: event {number} never reached the subscriber" for number in set(stored) - self.heard.keys()]
        return self.events.compare(stored) + missed

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
