"""The kernel's side of the gates: which of them a connection hangs on, and what is said to it. `gate.py` is theirs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable

from llmos.kernel import gate_frames, params
from llmos.kernel.link import Link
from llmos.kernel.loop import Loop

SYSTEM, APPS = "gate", "apps_gate"
"""Names of the two gates: one for this system's own programs and its user's, one for apps with a key."""


class Gates:
    """Both links; a message to a gate that is not there goes nowhere.

    Args:
        receive: called with the gate's name and every frame that arrives from it.
    """

    def __init__(self, loop: Loop, receive: Callable[[str, bytes], None]) -> None:
        self._loop = loop
        self._receive = receive
        self._links: dict[str, Link] = {}

    def attach(self, name: str) -> int:
        """A new gate is about to start: the descriptor for it; ours is watched from now on."""
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, params.GATE_PIPE)
        self._links[name] = Link(self._loop, ours, lambda frame: self._receive(name, frame))
        return theirs.detach()

    def detach(self, name: str) -> None:
        """It has ended."""
        link = self._links.pop(name, None)
        if link is not None:
            link.close()

    def message(self, conn: int, header: bytes, body: bytes) -> None:
        """To one connection."""
        self._post(of(conn), gate_frames.MESSAGE.pack(b"M", conn, len(header)) + header + body)

    def fan_out(self, conns: Iterable[int], header: bytes, body: bytes) -> None:
        """One event to many."""
        for name in (SYSTEM, APPS):
            mine = [conn for conn in conns if of(conn) == name]
            if mine:
                count = len(mine)
                head = struct.pack(f">cI{count}II", b"F", count, *mine, len(header))
                self._post(name, head + header + body)

    def drop(self, conn: int) -> None:
        """Forget a connection."""
        self._post(of(conn), gate_frames.CONN.pack(b"D", conn))

    def serve_apps(self, secret: str, keys: Iterable[tuple[str, str]]) -> None:
        """Tell the apps' gate its own key and (public key, app) of everyone it lets in."""
        for key, name in keys:
            self.let_in(key, name)
        self._post(APPS, b"K" + secret.encode())

    def let_in(self, key: str, name: str) -> None:
        self._post(APPS, b"A" + key.encode() + name.encode())

    def shut_out(self, key: str) -> None:
        """The key opens nothing from now on; connections with it are forgotten."""
        self._post(APPS, b"R" + key.encode())

    def _post(self, name: str, frame: bytes) -> None:
        link = self._links.get(name)
        if link is not None:
            link.post(frame)


def of(conn: int) -> str:
    """The gate that numbered this connection."""
    return APPS if conn >= gate_frames.APPS_BASE else SYSTEM
