"""The gate: the one process that speaks ZeroMQ with everybody else. `python -m llmos.kernel.gate FD SOCKET`.

It authenticates by the socket's own credentials (ZAP over `ipc://` gives the peer's uid and pid), binds each routing id to the
process it first came from, bounds sizes and rates, and forwards; it decides nothing. It runs in a process of its own, with a
limit on its memory, because a hostile ZMTP peer can make libzmq buffer whatever it likes: the limit makes libzmq drop that
peer's connection, and if the gate dies all the same, the kernel starts another.

Frames on the pipe (big-endian), to the kernel: `U` — up, the socket is bound; `S` conn uid pid — a new connection;
`M` conn header-length header body; `G` conn — gone; `L` conn count — events lost because its mailbox is full. From the
kernel: `M` likewise; `F` count conn… header-length header body — one event to many; `D` conn — drop.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.pipe import FrameStream, PeerGone
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header
from llmos.kernel import params

SEEN = struct.Struct(">cIII")
MESSAGE = struct.Struct(">cII")
CONN = struct.Struct(">cI")
LOST = struct.Struct(">cII")
DOMAIN = "llmos"
# as plain numbers: pyzmq's flags are enums, whose arithmetic costs a tenth of a message's way through the gate
READ, WRITE = int(zmq.POLLIN), int(zmq.POLLOUT)
NOW, MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)

_VERSION = wire.encode(
    OpError(
        Code.VERSION_MISMATCH, f"this system speaks {GREETING.decode()}", "three frames: greeting, header, body"
    ).to_wire()
)
_TOO_LARGE = wire.encode(
    OpError(
        Code.TOO_LARGE, f"a header or body over {wire.MAX_BODY} bytes", "send it in parts, or put it into a file"
    ).to_wire()
)
_BUSY = wire.encode(OpError(Code.BUSY, f"more than {params.GATE_RATE:.0f} messages a second", "slow down").to_wire())


@dataclass(slots=True)
class Peer:
    """One connection: its number on the pipe, who opened it, and how fast it may go."""

    number: int
    user_id: str
    tokens: float = params.GATE_BURST
    refilled: float = 0.0

    def may(self, now: float) -> bool:
        """Token bucket: whether one more message is within the rate."""
        self.tokens = min(params.GATE_BURST, self.tokens + (now - self.refilled) * params.GATE_RATE)
        self.refilled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Gate:
    """The two sockets, the pipe, and the table between routing ids and connection numbers."""

    def __init__(self, pipe: FrameStream, path: str) -> None:
        self._pipe = pipe
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()
        self._routes: dict[int, bytes] = {}
        self._count = 0
        context = zmq.Context()
        self._zap = context.socket(zmq.REP)
        self._zap.bind("inproc://zeromq.zap.01")
        self._router = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, params.GATE_FRAME),
            (zmq.SNDHWM, params.GATE_HWM),
            (zmq.RCVHWM, params.GATE_HWM),
            (zmq.HANDSHAKE_IVL, 1000),
            (zmq.BACKLOG, 512),
        ):
            self._router.set(option, value)
        self._router.set(zmq.ZAP_DOMAIN, DOMAIN.encode())
        self._router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
        with suppress(FileNotFoundError):
            Path(path).unlink()
        self._router.bind(f"ipc://{path}")

    def run(self) -> None:
        """Until the kernel closes the pipe."""
        self._pipe.post(b"U")
        pipe = self._pipe.fileno()
        with suppress(PeerGone):
            while True:
                behind = self._pipe.pending
                watched: list[Any] = [(self._zap, READ), (pipe, READ | WRITE if behind else READ)]
                if behind <= wire.MAX_PIPE:  # otherwise peers wait in libzmq's bounded queues instead of in our memory
                    watched.append((self._router, READ))
                for source, events in zmq.zmq_poll(watched, -1):
                    if source is self._router:
                        self._from_peers()
                    elif source is self._zap:
                        self._authenticate()
                    else:
                        if events & WRITE:
                            self._pipe.flush()
                        if events & READ:
                            self._from_kernel()

    # -- peers -----------------------------------------------------------------------------------------------------

    def _authenticate(self) -> None:
        """ZAP: only processes of our own user, by the credentials the operating system gives. Source: RFC 27/ZAP."""
        version, request, domain, address, _identity, mechanism, *_ = self._zap.recv_multipart()
        parts = address.decode("ascii", "replace").split(":")
        known = version == b"1.0" and domain == DOMAIN.encode() and mechanism == b"NULL" and len(parts) == 4
        ok = known and parts[1] == str(os.geteuid())
        user = f"{parts[1]}:{parts[3]}".encode() if ok else b""
        self._zap.send_multipart(
            [version, request, b"200" if ok else b"400", b"" if ok else b"not this user", user, b""]
        )

    def _from_peers(self) -> None:
        for _ in range(100):  # then look at the kernel's side again
            try:
                frames = self._router.recv_multipart(NOW, copy=False)
            except zmq.Again:
                return
            self._from_peer(frames)

    def _from_peer(self, frames: list[zmq.Frame]) -> None:
        route = frames[0].bytes
        try:
            user_id = str(frames[0].get("User-Id"))
        except zmq.ZMQError:
            return
        peer = self._peers.get(route)
        if peer is not None:
            self._peers.move_to_end(route)
        if peer is None or peer.user_id != user_id:
            if peer is not None:  # another process reuses a routing id: the first one's connection is over
                self._forget(route, tell=True)
            peer = self._admit(route, user_id)
        if len(frames) != 4 or frames[1].bytes != GREETING:
            self._refuse(route, _VERSION, frames[2].bytes if len(frames) > 2 else b"")
        elif len(frames[2].buffer) > wire.MAX_BODY or len(frames[3].buffer) > wire.MAX_BODY:
            self._refuse(route, _TOO_LARGE, frames[2].bytes)
        elif not peer.may(time.monotonic()):
            self._refuse(route, _BUSY, frames[2].bytes)
        else:
            header = frames[2].bytes
            self._pipe.post(MESSAGE.pack(b"M", peer.number, len(header)) + header + frames[3].bytes)

    def _admit(self, route: bytes, user_id: str) -> Peer:
        same = [other for other, peer in self._peers.items() if peer.user_id == user_id]
        if len(same) >= params.GATE_PEERS_PER_PROCESS:
            self._forget(same[0], tell=True)
        elif len(self._peers) >= params.GATE_PEERS:
            self._forget(next(iter(self._peers)), tell=True)
        self._count += 1
        peer = Peer(self._count, user_id, refilled=time.monotonic())
        self._peers[route] = peer
        self._routes[peer.number] = route
        uid, _, pid = user_id.partition(":")
        self._pipe.post(SEEN.pack(b"S", peer.number, int(uid), int(pid)))
        return peer

    def _forget(self, route: bytes, *, tell: bool) -> None:
        peer = self._peers.pop(route)
        self._routes.pop(peer.number, None)
        if tell:
            self._pipe.post(CONN.pack(b"G", peer.number))

    def _refuse(self, route: bytes, error: bytes, header: bytes) -> None:
        """Answer a message that goes no further, by its id where it has one that can be read."""
        try:
            number = wire.decode_map(header).get("id", 0)
        except wire.Malformed:
            number = 0
        if not isinstance(number, int) or not 0 <= number < 1 << 63:
            number = 0
        self._send(route, [GREETING, pack_header(Header(kind=Kind.REPLY, id=number, ok=False)), error])

    # -- kernel ----------------------------------------------------------------------------------------------------

    def _from_kernel(self) -> None:
        for frame in self._pipe.drain():
            kind = frame[:1]
            if kind == b"M":
                _, number, size = MESSAGE.unpack_from(frame)
                self._deliver(number, frame[9 : 9 + size], frame[9 + size :])
            elif kind == b"F":
                _, count = CONN.unpack_from(frame)
                numbers = struct.unpack_from(f">{count}I", frame, 5)
                start = 5 + 4 * count
                (size,) = struct.unpack_from(">I", frame, start)
                header, body = frame[start + 4 : start + 4 + size], frame[start + 4 + size :]
                for number in numbers:
                    self._deliver(number, header, body, event=True)
            elif kind == b"D":
                _, number = CONN.unpack_from(frame)
                route = self._routes.get(number)
                if route is not None:
                    self._forget(route, tell=False)

    def _deliver(self, number: int, header: bytes, body: bytes, *, event: bool = False) -> None:
        """To a peer's bounded mailbox. One that is full loses an event; it loses its connection rather than an answer."""
        route = self._routes.get(number)
        if route is None:
            return
        if not self._send(route, [GREETING, header, body]):
            if event:
                self._pipe.post(LOST.pack(b"L", number, 1))
            else:
                self._forget(route, tell=True)

    def _send(self, route: bytes, frames: list[bytes]) -> bool:
        try:
            self._router.send(route, MORE)
            for frame in frames[:-1]:
                self._router.send(frame, MORE)
            self._router.send(frames[-1], NOW)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            if route in self._peers:
                self._forget(route, tell=True)
        return True


def main() -> None:
    """Serve on the inherited descriptor until the kernel goes."""
    fd, path = int(sys.argv[1]), sys.argv[2]
    Gate(FrameStream(socket.socket(fileno=fd)), path).run()


if __name__ == "__main__":
    main()
