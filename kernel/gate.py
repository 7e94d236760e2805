"""The gates: the only processes that speak ZeroMQ with anybody else. `python -m llmos.kernel.gate FD SOCKET [--apps]`.

A gate authenticates, binds each routing id to whom it first came from, bounds sizes and rates, and forwards; it decides
nothing. It runs in a process of its own, with a limit on its memory, because a hostile ZMTP peer can make libzmq buffer
whatever it likes: the limit makes libzmq drop that peer's connection, and if the gate dies all the same, the kernel starts another.

There is one for each class of peers. The ordinary one takes processes of its own user, by the socket's own credentials (ZAP over
`ipc://` gives the peer's uid and pid). The apps' takes those of them that hold a CURVE key the kernel has allowed.

What travels on the pipe to the kernel stands in `gate_frames.py`, what keeps libzmq alive in `gate_guard.py`.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.ipc.pipe import FrameStream, PeerGone
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header
from llmos.kernel import params
from llmos.kernel.gate_frames import APPS_BASE, CONN, KEY, LOST, MESSAGE, NAMED, SEEN
from llmos.kernel.gate_guard import Guard

UNREAD = 4 << 20
"""Bytes one process or app may leave unread, on all its connections together; what is more is treated like a full mailbox."""
DOMAIN, APPS_DOMAIN = "llmos", "llmos-apps"
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
_REVOKED = wire.encode(
    OpError(
        Code.DENIED, "this key opens nothing any more", "the user took it back, or made a new one: `llmosctl app ls`"
    ).to_wire()
)


@dataclass(slots=True, eq=False)
class Owner:
    """A process, or an app, whose connections share what one may have."""

    name: str
    routes: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    unread: int = 0
    """Bytes sent to its connections since each was last seen to have room."""
    looked: float = 0.0


@dataclass(slots=True, eq=False)
class Peer:
    """One connection: its number on the pipe, who opened it, and how fast it may go."""

    number: int
    user_id: str
    owner: Owner
    fd: int = -1
    """libzmq's own descriptor: only looked at, and only while `inode` says that it is still this connection's."""
    inode: int = 0
    unread: int = 0
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

    def has_room(self) -> bool:
        """Whether the operating system takes more for it now; libzmq then holds nothing back. Source: unix(7), poll(2)."""
        if self.fd < 0:
            return True
        look = select.poll()
        look.register(self.fd, select.POLLOUT)
        return bool(look.poll(0))

    def over(self) -> bool:
        """Whether libzmq has closed it, for its other end has."""
        try:
            return self.fd >= 0 and os.fstat(self.fd).st_ino != self.inode
        except OSError:
            return True

    def cut(self) -> None:
        """End the connection itself, and with it what libzmq keeps for a peer that does not read."""
        with suppress(OSError):
            if self.fd >= 0 and os.fstat(self.fd).st_ino == self.inode:
                with socket.socket(fileno=os.dup(self.fd)) as theirs:
                    theirs.shutdown(socket.SHUT_RDWR)


class Gate:
    """The two sockets, the pipe, and the table between routing ids and connection numbers."""

    def __init__(self, pipe: FrameStream, path: str, *, apps: bool = False) -> None:
        self._pipe = pipe
        self._path = path
        self._apps = apps
        self._domain = (APPS_DOMAIN if apps else DOMAIN).encode()
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()
        self._routes: dict[int, bytes] = {}
        self._owners: dict[str, Owner] = {}
        self._keys: dict[str, str] = {}
        """Public key → app, of those that are let in."""
        self._count = APPS_BASE if apps else 0
        self._guard = Guard(pipe.fileno())
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
        self._router.set(zmq.ZAP_DOMAIN, self._domain)
        self._router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def _bind(self, secret: bytes = b"") -> None:
        if secret:
            self._router.set(zmq.CURVE_SERVER, 1)
            self._router.set(zmq.CURVE_SECRETKEY, secret)
        with suppress(FileNotFoundError):
            Path(self._path).unlink()
        self._router.bind(f"ipc://{self._path}")
        self._pipe.post(b"U")

    def run(self) -> None:
        """Until the kernel closes the pipe."""
        if not self._apps:
            self._bind()
            self._pipe.post(b"P" + b"".join(zmq.curve_keypair()))
        pipe = self._pipe.fileno()
        looked = reaped = time.monotonic()
        with suppress(PeerGone):
            while True:
                behind = self._pipe.pending
                watched: list[Any] = [(self._zap, READ), (pipe, READ | WRITE if behind else READ)]
                if not behind:  # otherwise peers wait in libzmq's bounded queues instead of in our memory
                    watched.append((self._router, READ))
                now = time.monotonic()
                if now - looked >= params.GATE_WATCH_S:
                    self._guard.watch(looked, self._peers.values())
                    looked = now
                if now - reaped >= params.GATE_REAP_S:
                    self._reap()
                    reaped = now
                for source, events in zmq.zmq_poll(watched, int(params.GATE_WATCH_S * 1000)):
                    if source is self._router:
                        self._from_peers()
                    elif source is self._zap:
                        self._authenticate()
                    else:
                        if events & WRITE:
                            self._pipe.flush()
                        if events & READ:
                            self._from_kernel()

    def _reap(self) -> None:
        """libzmq tells nobody that a connection is over; what hangs on it should not wait for its program's end."""
        for route in [route for route, peer in self._peers.items() if peer.over()]:
            self._forget(route, tell=True)

    # -- peers -----------------------------------------------------------------------------------------------------

    def _authenticate(self) -> None:
        """ZAP: only processes of our own user, by what the operating system says; of apps only those with a key. Source: RFC 27/ZAP."""
        version, request, domain, address, _identity, mechanism, *credentials = self._zap.recv_multipart()
        parts = address.decode("ascii", "replace").split(":")
        ours = version == b"1.0" and domain == self._domain and len(parts) == 4 and parts[1] == str(os.geteuid())
        user = ""
        if ours and not self._apps and mechanism == b"NULL":
            user = f"{parts[1]}:{parts[3]}"
        elif ours and self._apps and mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
            key = z85.encode(credentials[0]).decode("ascii")
            if key in self._keys:
                user = f"{key} {parts[3]}"
        status, text = (
            (b"200", b"") if user else (b"400", b"this key opens nothing" if self._apps else b"not this user")
        )
        self._zap.send_multipart([version, request, status, text, user.encode(), b""])

    def _from_peers(self) -> None:
        for _ in range(params.GATE_AHEAD):  # then look at the kernel's side again
            try:
                frames = self._router.recv_multipart(NOW, copy=False)
            except zmq.Again:
                return
            self._from_peer(frames)
            if self._pipe.pending:
                return

    def _from_peer(self, frames: list[zmq.Frame]) -> None:
        route = frames[0].bytes
        try:
            user_id = str(frames[0].get("User-Id"))
        except zmq.ZMQError:
            return
        peer = self._peers.get(route)
        if peer is None or peer.user_id != user_id:
            if peer is not None:  # another reuses a routing id: the first one's connection is over
                self._forget(route, tell=True)
            if self._apps and user_id.partition(" ")[0] not in self._keys:
                self._refuse(route, _REVOKED, frames[2].bytes if len(frames) > 2 else b"")
                return
            peer = self._admit(route, user_id, frames[0])
        else:
            self._peers.move_to_end(route)
            peer.owner.routes.move_to_end(route)
        if len(frames) != 4 or frames[1].bytes != GREETING:
            self._refuse(route, _VERSION, frames[2].bytes if len(frames) > 2 else b"")
        elif len(frames[2].buffer) > wire.MAX_BODY or len(frames[3].buffer) > wire.MAX_BODY:
            self._refuse(route, _TOO_LARGE, frames[2].bytes)
        elif not peer.may(time.monotonic()):
            self._refuse(route, _BUSY, frames[2].bytes)
        else:
            header = frames[2].bytes
            self._pipe.post(MESSAGE.pack(b"M", peer.number, len(header)) + header + frames[3].bytes)

    def _admit(self, route: bytes, user_id: str, frame: zmq.Frame) -> Peer:
        first, _, pid = user_id.partition(" " if self._apps else ":")
        name = self._keys[first] if self._apps else user_id
        owner = self._owners.get(name)
        if owner is not None and len(owner.routes) >= params.GATE_PEERS_PER_PROCESS:
            self._evict(owner)
        elif len(self._peers) >= params.GATE_PEERS:
            self._evict(max(self._owners.values(), key=lambda one: len(one.routes)))
        owner = self._owners.setdefault(name, Owner(name))
        self._count += 1
        peer = Peer(self._count, user_id, owner, refilled=time.monotonic())
        with suppress(zmq.ZMQError, OSError, ValueError):
            fd = int(frame.get("__fd"))
            peer.fd, peer.inode = fd, os.fstat(fd).st_ino
        self._peers[route] = peer
        self._routes[peer.number] = route
        owner.routes[route] = None
        if self._apps:
            self._pipe.post(NAMED.pack(b"N", peer.number, int(pid)) + name.encode())
        else:
            self._pipe.post(SEEN.pack(b"S", peer.number, int(first), int(pid)))
        return peer

    def _evict(self, owner: Owner) -> None:
        """End the connection of its that has been silent longest: a crowd is at its own expense."""
        route = next(iter(owner.routes))
        peer = self._peers[route]
        self._forget(route, tell=True)
        peer.cut()

    def _forget(self, route: bytes, *, tell: bool) -> None:
        peer = self._peers.pop(route)
        self._routes.pop(peer.number, None)
        peer.owner.unread -= peer.unread
        peer.owner.routes.pop(route)
        if not peer.owner.routes:
            self._owners.pop(peer.owner.name, None)
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
            elif kind == b"A":
                self._allow(frame[1 : 1 + KEY].decode("ascii"), frame[1 + KEY :].decode())
            elif kind == b"R":
                self._revoke(frame[1 : 1 + KEY].decode("ascii"))
            elif kind == b"K":
                self._bind(frame[1 : 1 + KEY])

    def _allow(self, key: str, name: str) -> None:
        if self._keys.get(key, name) != name:
            self._revoke(key)
        self._keys[key] = name

    def _revoke(self, key: str) -> None:
        """Its connections end now: each is told so, in a reply to no call in particular."""
        self._keys.pop(key, None)
        for route, peer in list(self._peers.items()):
            if peer.user_id.partition(" ")[0] == key:
                self._refuse(route, _REVOKED, b"")
                if route in self._peers:
                    self._forget(route, tell=True)

    def _deliver(self, number: int, header: bytes, body: bytes, *, event: bool = False) -> None:
        """To a peer's bounded mailbox. One that is full loses an event; it loses its connection rather than an answer."""
        route = self._routes.get(number)
        if route is None:
            return
        peer, size = self._peers[route], len(header) + len(body)
        if self._may_take(peer, size) and self._send(route, [GREETING, header, body]):
            if number in self._routes:
                peer.unread += size
                peer.owner.unread += size
        elif event:
            self._pipe.post(LOST.pack(b"L", number, 1))
        else:
            self._forget(route, tell=True)
            peer.cut()

    def _may_take(self, peer: Peer, size: int) -> bool:
        """Whether `size` more bytes are within what its owner may leave unread; libzmq bounds messages alone, and each may be large."""
        owner = peer.owner
        if owner.unread + size <= UNREAD:
            return True
        now = time.monotonic()
        others = now - owner.looked > 0.01  # at 64 connections each look at all of them costs what forty messages do
        for one in map(self._peers.__getitem__, owner.routes) if others else (peer,):
            if one.unread and one.has_room():
                owner.unread -= one.unread
                one.unread = 0
        if others:
            owner.looked = now
        return owner.unread + size <= UNREAD or not peer.unread

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
    Gate(FrameStream(socket.socket(fileno=fd)), path, apps="--apps" in sys.argv[3:]).run()


if __name__ == "__main__":
    main()
