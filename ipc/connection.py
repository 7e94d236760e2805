"""A process's connection to the bus: calls, streams, subscriptions, and serving calls of others. Thread-safe."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from llmos.ipc import events, paths, wire
from llmos.ipc.app_key import AppKey
from llmos.ipc.dealer import Dealer, Loss, Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.ipc.events import Event, Mailbox
from llmos.ipc.protocol import (
    GREETING,
    NOT_GREETED,
    Header,
    Kind,
    Ping,
    pack_header,
    parse_header,
    topic_matches,
)
from llmos.ipc.stream import Stream, Waiting, pack_body, unpack_body

__all__ = ["AppKey", "Connection", "Event", "Incoming", "Stream", "Unreachable"]

GRACE_S = 2.0
"""Seconds a caller waits beyond its deadline for the kernel to say so itself."""
HELLO_S = 3.0
"""Seconds a connection may take to be greeted."""
REPLAY_S = 10.0
"""Seconds one page of stored events may take."""


class Incoming:
    """A call to be served. `reply` or `fail` answers it, once."""

    def __init__(self, connection: Connection, header: Header, args: dict[str, Any]) -> None:
        self._connection = connection
        self.header = header
        self.args = args
        self.cancelled = threading.Event()

    def reply(self, result: dict[str, Any], label: list[str] | None = None) -> None:
        """Send the result; one that is too large becomes `TOO_LARGE`. `label` can only raise what the manifest says of it."""
        try:
            self._connection._answer(self.header.id, True, pack_body(result), label)  # noqa: SLF001  (two halves of one class)
        except OpError as error:
            self.fail(error)

    def fail(self, error: OpError) -> None:
        """Send an error."""
        self._connection._answer(self.header.id, False, wire.encode(error.to_wire()))  # noqa: SLF001


class Connection:
    """Connects and says hello on the first call, and again after the gate came back.

    Args:
        address: path of the gate's unix socket; by default `LLMOS_BUS`, else the runtime directory's.
        token: proof of who this is; by default `LLMOS_TOKEN`, else the user's own token file.
        client: a name for logs.
        key: of an app, in place of a token; by default the one that `LLMOS_APP_KEY` names, where no address and no token is given.
    """

    def __init__(
        self, address: Path | None = None, token: str | None = None, client: str = "", key: AppKey | None = None
    ) -> None:
        token = token or os.environ.get("LLMOS_TOKEN")
        if key is None and address is None and not token:
            key = AppKey.of_environment()
        ours = key.path if key else Path(os.environ.get("LLMOS_BUS") or paths.bus_socket(paths.runtime_dir()))
        self._dealer = Dealer(address or ours, self._take, self._lost, key)
        self._changed = self._dealer.changed
        self._token = token
        self._key = key
        self._client = client
        self._pid = os.getpid()
        self._greeting = threading.RLock()
        self._greeted = False
        self._last_id = 0
        self._waiting: dict[int, Waiting] = {}
        self._incoming: deque[Incoming] = deque()
        self._serving: dict[int, Incoming] = {}
        self._mailboxes: list[Mailbox] = []
        self._refusal: OpError | None = None
        self.badge = ""
        self.hello: dict[str, Any] = {}
        self.on_greeted: Callable[[], None] | None = None
        """Called after every successful hello, the first and those after the gate came back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Where the gate listens."""
        return self._dealer.path

    @property
    def token(self) -> str:
        """What it proves itself with, empty beside a key. Raises `Unreachable` when there is none to be found."""
        if self._key is not None:
            return ""
        if self._token:
            return self._token
        path = paths.token_file(self.path.parent.parent)
        try:
            return path.read_text().strip()
        except OSError as error:
            raise Unreachable(f"{path}: {error.strerror}", "start the system with `llmosctl up`") from None

    def close(self) -> None:
        """Ends every wait with `CANCELLED`, and cancels what is being served. Idempotent."""
        self._dealer.close()
        with self._changed:
            for call in self._serving.values():
                call.cancelled.set()
        self._fail_all(OpError(Code.CANCELLED, "the connection was closed"))

    # -- calling ---------------------------------------------------------------------------------------------------

    def call(
        self,
        op: str,
        args: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        parent: int = 0,
        keep: bool = False,
        cap: str = "",
    ) -> dict[str, Any]:
        """The result of a call, or with `keep` the description of it as a value that stays with the kernel.

        `timeout` in seconds; None takes the op's own. `cap` is the handle of the capability to use. Raises `OpError`, `Unreachable`.
        """
        return self.stream(op, args, timeout=timeout, parent=parent, keep=keep, cap=cap).finish()

    def stream(
        self,
        op: str,
        args: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,
        parent: int = 0,
        keep: bool = False,
        cap: str = "",
    ) -> Stream:
        """A call whose answer comes in chunks: iterate for the chunks, then read `result`."""
        self._greet()
        return self._start(op, args or {}, timeout, Header(kind=Kind.CALL, parent=parent, keep=keep, cap=cap))

    def subscribe(self, topic: str, since: datetime | float | None = None) -> Generator[Event, None, None]:
        """Events of every topic that matches, for ever; it ends with `PEER_DIED` when the gate restarts, `CANCELLED` on close.

        With `since` (a time, or seconds since 1970) the stored events of durable topics from then on come first, each once.
        """
        mailbox = Mailbox(topic)
        self._greet()
        with self._changed:
            self._mailboxes.append(mailbox)
        try:
            number = int(self.call("bus.subscribe", {"topic": topic})["subscription"])
        except OpError:
            self._forget(mailbox)
            raise
        return self._receive_events(number, mailbox, None if since is None else events.since_seconds(since))

    def _receive_events(self, number: int, mailbox: Mailbox, since: float | None) -> Generator[Event, None, None]:
        last = 0
        try:
            if since is not None:
                for stored in self._replay(mailbox.pattern, since):
                    mailbox.note(stored)
                    last = stored.number
                    yield stored
            while True:
                self._dealer.wait(lambda: bool(mailbox.events or mailbox.error) or self._dealer.closed, None)
                if mailbox.events:
                    event = mailbox.take()
                    if not 0 < event.number <= last:
                        yield event
                elif mailbox.error is not None:
                    raise mailbox.error
                else:
                    return
        finally:
            self._forget(mailbox)
            if not self._dealer.closed and mailbox.error is None:
                with contextlib.suppress(OpError):
                    self.call("bus.unsubscribe", {"subscription": number}, timeout=1)

    def _replay(self, topic: str, since: float) -> Iterator[Event]:
        """Stored events, oldest first, a page at a time, while the live ones gather in the mailbox."""
        last, after = 0, 0
        while True:
            page = self.call("bus.replay", {"topic": topic, "since": since, "after": after}, timeout=REPLAY_S)
            for event in events.of_page(page):
                if event.number > last:
                    last = event.number
                    yield event
            if page["next"] <= after:
                return
            after = page["next"]

    def _forget(self, mailbox: Mailbox) -> None:
        with self._changed:
            if mailbox in self._mailboxes:
                self._mailboxes.remove(mailbox)

    # -- serving ---------------------------------------------------------------------------------------------------

    def next_call(self, timeout: float | None = None) -> Incoming | None:
        """The next call to serve; None when none came within `timeout` seconds, or the connection closed. Reconnects by itself."""
        limit = None if timeout is None else time.monotonic() + timeout
        while not self._dealer.closed:
            self._greet()
            self._dealer.wait(lambda: bool(self._incoming) or self._dealer.closed or not self._greeted, limit)
            with self._changed:
                incoming = self._incoming.popleft() if self._incoming else None
            if incoming is not None and incoming.header.op == Ping.OP:  # the kernel asks whether this thread lives
                incoming.reply({})
                continue
            if incoming is not None:
                return incoming
            if limit is not None and time.monotonic() >= limit:
                return None
        return None

    def _answer(self, number: int, ok: bool, body: bytes, label: list[str] | None = None) -> None:
        with self._changed:
            if self._serving.pop(number, None) is None:
                return  # the gate restarted meanwhile, and whoever asked has been told
        self._dealer.post([GREETING, pack_header(Header(kind=Kind.REPLY, id=number, ok=ok, label=label or [])), body])

    # -- messages --------------------------------------------------------------------------------------------------

    def _start(self, op: str, args: dict[str, Any], timeout: float | None, header: Header) -> Stream:
        body = pack_body(args)
        with self._changed:
            self._last_id += 1
            number = self._last_id
            waiting = self._waiting[number] = Waiting()
        deadline_ms = 0 if timeout is None else max(1, int(timeout * 1000))
        header = msgspec.structs.replace(header, id=number, op=op, deadline_ms=deadline_ms)
        self._dealer.post([GREETING, pack_header(header), body])
        return Stream(
            self._dealer, number, waiting, None if timeout is None else time.monotonic() + timeout + GRACE_S, op
        )

    def _greet(self) -> None:
        """Connect and say hello, unless that has been done. Raises `Unreachable`, `OpError(DENIED)`."""
        if self._greeted and not self._dealer.lost():
            return
        with self._greeting:
            if self._greeted:
                return
            if self._dealer.closed:
                raise OpError(Code.CANCELLED, "the connection is closed")
            if os.getpid() != self._pid:
                raise OpError(Code.INVALID_ARGUMENT, "a connection does not survive fork; open one in the child")
            self._refusal = None
            self._dealer.open()
            try:
                said = {"token": self.token, "client": self._client}
                self.hello = self._start("sys.hello", said, HELLO_S, Header(kind=Kind.CALL)).finish()
            except OpError as error:
                if self._refusal is not None:
                    raise self._refusal from None
                if error.code in (Code.TIMEOUT, Code.PEER_DIED):
                    detail = f"the kernel at {self.path} does not answer"
                    raise Unreachable(detail, "see `llmosctl logs kernel`") from None
                raise
            self.badge = str(self.hello.get("badge", ""))
            self._greeted = True
        if self.on_greeted is not None:
            self.on_greeted()

    def _lost(self, loss: Loss) -> None:
        """The gate has gone, and with it all that was under way."""
        if loss is not Loss.GONE:
            self._refusal = self._refused(loss)
        hint = "send it again; the system restarts its gate by itself"
        self._end(
            OpError(Code.PEER_DIED, "the gate went away", hint),
            OpError(Code.PEER_DIED, "the gate restarted; the subscription is gone", "subscribe again"),
        )

    def _refused(self, loss: Loss) -> OpError:
        if self._key is None:
            return Unreachable(
                f"{self.path} went away, or is not for programs without a key", "see `llmosctl logs kernel`"
            )
        name = self._key.name
        if loss is Loss.REFUSED:
            detail, hint = f"the key of {name} opens nothing here", ""
        else:
            detail, hint = (
                f"{self.path} does not know the key of {name}, or went away",
                "try again; if that does not help, ",
            )
        return OpError(Code.DENIED, detail, hint + f"make a new key: `llmosctl app add {name} --allow CAPABILITY`")

    def _end(self, error: OpError, ended: OpError) -> None:
        """Nothing more comes on this connection: `error` for calls, `ended` for subscriptions; the next call opens another."""
        with self._changed:
            self._greeted = False
            self._incoming.clear()
            for call in self._serving.values():
                call.cancelled.set()
            self._serving.clear()
            for mailbox in self._mailboxes:
                mailbox.error = ended
            self._mailboxes.clear()
            self._fail_all(error)

    def _fail_all(self, error: OpError) -> None:
        with self._changed:
            for waiting in self._waiting.values():
                waiting.error = error
            self._waiting.clear()
            self._changed.notify_all()

    def _take(self, frames: list[bytes]) -> None:
        """One message from the kernel; it is trusted to frame well, and its bodies are others' and decoded with limits."""
        if len(frames) != 3 or frames[0] != GREETING:
            return
        header = parse_header(wire.decode_map(frames[1]))
        match header.kind:
            case Kind.REPLY:
                waiting = self._waiting.pop(header.id, None)
                if waiting is None:
                    if header.id == 0 and not header.ok:
                        self._about_all(OpError.from_wire(unpack_body(frames[2])))
                else:
                    waiting.finish(header, frames[2])
                    if waiting.error is not None and waiting.error.detail == NOT_GREETED:
                        self._greeted = False  # the gate has forgotten this connection: the next call opens another
            case Kind.CHUNK:
                waiting = self._waiting.get(header.id)
                if waiting is not None:
                    waiting.chunks.append(unpack_body(frames[2]))
            case Kind.EVENT:
                data = unpack_body(frames[2])
                for mailbox in self._mailboxes:
                    if topic_matches(mailbox.pattern, header.topic):
                        mailbox.events.append(Event(header, data))
            case Kind.CALL:
                call = Incoming(self, header, unpack_body(frames[2]))
                self._serving[header.id] = call
                self._incoming.append(call)
            case Kind.CANCEL:
                serving = self._serving.get(header.id)
                if serving is not None:
                    serving.cancelled.set()
            case Kind.CREDIT:
                pass  # the kernel grants no credit to a server yet: a driver's answer is one reply

    def _about_all(self, error: OpError) -> None:
        """An error that answers no call is about the connection; only a `DENIED` one ends it."""
        if error.code is Code.DENIED:
            self._end(error, error)
