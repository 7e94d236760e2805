"""The socket under a connection: one DEALER, run by whichever thread is waiting for something, one at a time.

So a single-threaded program pays no thread switch, and a program with many threads needs no extra one for the socket.
"""

from __future__ import annotations

import contextlib
import enum
import os
import secrets
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from llmos.ipc.app_key import AppKey
from llmos.ipc.errors import Code, OpError

READ, WRITE, NOW = int(zmq.POLLIN), int(zmq.POLLOUT), int(zmq.NOBLOCK)  # pyzmq's flags are enums, and slow to combine

_MONITORED = struct.Struct("=H")
"""First frame of a monitor's message begins with the event. Source: zmq_socket_monitor(3); pyzmq's own parser imports asyncio."""

MAX_FRAME = 1 << 20
"""Bytes of one ZMTP frame from the gate; it never sends more."""


class Unreachable(OpError):
    """No kernel answers at the address."""

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(Code.UNAVAILABLE, detail, hint)


class Loss(enum.Enum):
    """How a connection ended."""

    GONE = "gone"
    REFUSED = "refused"
    """The gate does not take this key."""
    NO_HANDSHAKE = "no_handshake"
    """It ended before the two ends agreed on anything: the gate has another key, or died at that moment."""


_LOSSES: dict[int, Loss] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Loss.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Loss.NO_HANDSHAKE,
}


_ENDS = int(
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED  # an attempt that came to nothing: the gate died after it was looked for
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Dealer:
    """Thread-safe. State that `ready` conditions look at is changed under `changed` only.

    Args:
        path: of the gate's unix socket.
        receive: called with every message's frames, by the thread that runs the socket, holding `changed`.
        lost: called likewise when the gate has gone; `open` makes a new connection.
        key: for the apps' gate.
    """

    def __init__(
        self,
        path: Path,
        receive: Callable[[list[bytes]], None],
        lost: Callable[[Loss], None],
        key: AppKey | None = None,
    ) -> None:
        self.path = path
        self._key = key
        self.changed = threading.Condition()
        self.closed = False
        self._receive = receive
        self._on_lost = lost
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._running = False
        self._outbox: deque[list[bytes]] = deque()
        self._sockets: list[zmq.Socket[bytes]] = []
        """Both, for the finalizer alone."""
        # A context with open sockets would otherwise wait for them for ever when it is collected.
        self._destroy = weakref.finalize(self, _destroy, self._context, self._sockets)
        self._destroy.atexit = False  # an exiting program needs no tidying, and another thread may be at it already

    def open(self) -> None:
        """Connect, in place of what was there before. Raises `Unreachable` when nobody listens."""
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(os.fspath(self.path))  # ZeroMQ would retry for ever without a word
        except FileNotFoundError:
            raise Unreachable("llmos is not running", "start it with `llmosctl up`") from None
        except OSError as error:
            raise Unreachable(f"{self.path}: {error.strerror}", "start it with `llmosctl up`") from None
        finally:
            probe.close()
        with self.changed:
            self.changed.wait_for(lambda: not self._running)
            self._disconnect()
            made = self._context.socket(zmq.DEALER)
            made.set(zmq.ROUTING_ID, b"\x01" + secrets.token_bytes(16))
            made.set(zmq.LINGER, 0)
            made.set(zmq.RECONNECT_IVL, -1)
            made.set(zmq.MAXMSGSIZE, MAX_FRAME)
            if self._key is not None:
                _use_key(made, self._key)
            self._monitor = made.get_monitor_socket(_ENDS)
            self._sockets += made, self._monitor
            made.connect(f"ipc://{self.path}")
            self._socket = made

    def close(self) -> None:
        """Every wait ends. Idempotent."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            self._wake()
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self._running, timeout=1)
        self._disconnect()
        self._destroy()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def post(self, frames: list[bytes]) -> None:
        """Send without waiting; dropped with everything else unsent when the gate goes."""
        with self.changed:
            self._outbox.append(frames)
            if self._running:
                self._wake()
            else:
                self._flush()

    def lost(self) -> bool:
        """Whether the gate has gone since `open`; where another thread runs the socket, that one will hear of it."""
        with self.changed:
            return not self._running and self._heard_of_loss()

    def _heard_of_loss(self) -> bool:
        """For the one thread that may touch the sockets now: it runs them, or holds `changed` while nobody does."""
        if self._monitor is None:
            return True
        if not int(self._monitor.get(zmq.EVENTS)) & READ:
            return False
        (event,) = _MONITORED.unpack_from(self._monitor.recv_multipart(NOW)[0])
        with self.changed:
            self._outbox.clear()
            self._on_lost(_LOSSES.get(event, Loss.GONE))
            self.changed.notify_all()
        return True

    def wait(self, ready: Callable[[], bool], limit: float | None) -> bool:
        """Run the socket, or wait for the thread that does, until `ready()`; False once the monotonic time `limit` has come."""
        while True:
            with self.changed:
                while True:
                    if ready():
                        return True
                    left = None if limit is None else limit - time.monotonic()
                    if left is not None and left <= 0:
                        return False
                    if not self._running:
                        self._running = True
                        self._flush()
                        break
                    self.changed.wait(left)
            try:
                self._poll(left)
            finally:
                with self.changed:
                    self._running = False
                    self.changed.notify_all()

    def _poll(self, left: float | None) -> None:
        if self._socket is None or self._monitor is None:
            raise Unreachable("the connection is closed")
        watched: list[Any] = [
            (self._socket, READ | WRITE if self._outbox else READ),
            (self._monitor, READ),
            (self._wake_r, READ),
        ]
        ready: list[tuple[Any, int]] = zmq.zmq_poll(
            watched, -1 if left is None else min(max(0, int(left * 1000) + 1), 3_600_000)
        )
        for source, events in ready:
            if source is self._socket and events & READ:
                with contextlib.suppress(zmq.Again):
                    while True:
                        frames = self._socket.recv_multipart(NOW)
                        with self.changed:
                            self._receive(frames)
            elif source is self._monitor:
                self._heard_of_loss()
            elif source == self._wake_r:
                os.read(self._wake_r, 4096)

    def _flush(self) -> None:
        while self._outbox and self._socket is not None:
            try:
                self._socket.send_multipart(self._outbox[0], NOW)
            except zmq.Again:
                return
            self._outbox.popleft()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b"\0")

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._socket = self._monitor = None
        self._sockets.clear()


def _destroy(context: zmq.Context[zmq.Socket[bytes]], _sockets: list[zmq.Socket[bytes]]) -> None:
    """Close what is open. The context knows its sockets by weak references, which the collector clears first: so they are held here."""
    context.destroy(linger=0)


def _use_key(made: zmq.Socket[bytes], key: AppKey) -> None:
    try:
        made.set(zmq.CURVE_SERVERKEY, key.server_key.encode())
        made.set(zmq.CURVE_PUBLICKEY, key.public.encode())
        made.set(zmq.CURVE_SECRETKEY, key.secret.encode())
    except zmq.ZMQError:
        made.close(linger=0)
        raise OpError(
            Code.INVALID_ARGUMENT,
            f"what the key file of {key.name} holds are no CURVE keys",
            f"make new ones: `llmosctl app add {key.name} --allow CAPABILITY`",
        ) from None
