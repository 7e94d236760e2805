"""Peers: the connections that the gates know, and whose each of them is."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from llmos.ipc.errors import Code, OpError
from llmos.kernel import gates
from llmos.kernel.apps import holder as app_holder
from llmos.kernel.capability import USER
from llmos.kernel.loop import Loop
from llmos.kernel.process import Process, ProcessTable


@dataclass(eq=False)
class Peer:
    """One connection, and whose it is once it has said hello, or by its key."""

    conn: int
    os_pid: int
    holder: str = ""
    process: Process | None = None
    client: str = ""
    exit_fd: int = -1
    """pidfd of a program that the kernel did not start, so that its end ends its calls."""


class Peers:
    """All of them.

    Args:
        gone: told of every connection that is over, and why.
    """

    def __init__(self, loop: Loop, processes: ProcessTable, gone: Callable[[Peer, str], None]) -> None:
        self._loop = loop
        self._processes = processes
        self._gone = gone
        self._by_conn: dict[int, Peer] = {}
        self.user_token = secrets.token_hex(16)
        """What the user's own programs prove themselves with."""

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._by_conn.values()))

    def get(self, conn: int) -> Peer | None:
        return self._by_conn.get(conn)

    def holder(self, conn: int) -> str:
        """Whose it is; empty before it has said so."""
        peer = self._by_conn.get(conn)
        return peer.holder if peer is not None else ""

    def seen(self, conn: int, os_pid: int) -> None:
        """A new connection of a process of our own user."""
        self._by_conn[conn] = Peer(conn, os_pid)

    def seen_app(self, conn: int, os_pid: int, name: str, *, let_in: bool) -> None:
        """A new connection with an app's key; one that was removed while this was on its way is not let in."""
        peer = self._by_conn[conn] = Peer(conn, os_pid, app_holder(name), client=name)
        try:
            self._watch_exit(peer)
        except OpError:
            let_in = False
        if not let_in:
            self.drop(conn, "its key was taken back, or it has ended")

    def greet(self, peer: Peer, token: str, client: str) -> Process | None:
        """Bind a connection to whom its token proves it to be. → the process, if it is one of ours.

        Raises `OpError` `DENIED`, `CONFLICT`.
        """
        if peer.holder and gates.of(peer.conn) == gates.APPS:
            return None  # its key has proved it
        if peer.holder:
            raise OpError(Code.CONFLICT, f"this connection is {peer.holder} already")
        if secrets.compare_digest(token.encode(), self.user_token.encode()):
            self._watch_exit(peer)
            peer.holder, peer.client = USER, client
            return None
        process = self._processes.by_token(token)
        if process is None:
            hint = "the system was restarted, or it belongs to another; take the present one"
            raise OpError(Code.DENIED, "the token is not known", hint)
        if process.os_pid not in (0, peer.os_pid):
            raise OpError(Code.DENIED, "the token belongs to another process")
        process.os_pid = peer.os_pid
        if process.conn and process.conn != peer.conn:
            self.drop(process.conn, "it opened another connection")
        peer.holder, peer.process, peer.client = process.name, process, client
        process.conn = peer.conn
        return process

    def drop(self, conn: int, why: str) -> None:
        """It is over."""
        peer = self._by_conn.pop(conn, None)
        if peer is None:
            return
        if peer.exit_fd >= 0:
            self._loop.unwatch(peer.exit_fd)
            os.close(peer.exit_fd)
        self._gone(peer, why)

    def drop_all(self, of: Callable[[Peer], bool], why: str) -> None:
        """Those are over."""
        for peer in self:
            if of(peer):
                self.drop(peer.conn, why)

    def _watch_exit(self, peer: Peer) -> None:
        try:
            peer.exit_fd = os.pidfd_open(peer.os_pid)
        except OSError:
            raise OpError(Code.PEER_DIED, "the caller has gone") from None
        self._loop.watch(peer.exit_fd, lambda: self.drop(peer.conn, "the program has ended"))
