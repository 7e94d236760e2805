"""Messages over an inherited stream socket: how the kernel talks with the core and the gate, and nobody else does.

A frame is a 4-byte big-endian length and that many bytes. Both ends are ours, so the peer is trusted to frame well; what a
frame *contains* may still come from outside and is decoded with `llmos.ipc.wire`'s limits.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import Any

import msgpack

from llmos.ipc.wire import MAX_PIPE

_READ = 256 * 1024


class PeerGone(ConnectionError):
    """The other end of the pipe has closed."""


class FrameStream:
    """Length-prefixed frames over a stream socket; not thread-safe.

    Reading never blocks longer than asked. Writing blocks in `send`; `post` and `flush` write what the socket takes and
    keep the rest, so that an event loop is never held up by a slow peer.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._in = bytearray()
        # reused: an allocation of this size for every read costs more than the read
        self._block = memoryview(bytearray(_READ))
        self._out: deque[memoryview] = deque()
        self._out_size = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    @property
    def pending(self) -> int:
        """Bytes posted and not yet taken by the socket."""
        return self._out_size

    def post(self, frame: bytes) -> None:
        """Queue one frame and write as much as the socket takes now. Raises `PeerGone`."""
        data = len(frame).to_bytes(4, "big") + frame
        if self._out:
            self._out.append(memoryview(data))
            self._out_size += len(data)
            self.flush()
            return
        sent = self._write(data)
        if sent < len(data):
            self._out.append(memoryview(data)[sent:])
            self._out_size += len(data) - sent

    def flush(self) -> bool:
        """Write what the socket takes; True when nothing is left. Raises `PeerGone`."""
        while self._out:
            head = self._out[0]
            sent = self._write(head)
            self._out_size -= sent
            if sent < len(head):
                self._out[0] = head[sent:]
                return False
            self._out.popleft()
        return True

    def send(self, frame: bytes) -> None:
        """Write one frame, blocking until it is on its way. Raises `PeerGone`."""
        self.post(frame)
        while not self.flush():
            select.select([], [self._sock], [])

    def drain(self) -> list[bytes]:
        """Every whole frame that has arrived, without blocking. Raises `PeerGone` once the peer closed and all is read."""
        closed = not self._fill()
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        if closed and not frames:
            raise PeerGone("the peer closed the pipe")
        return frames

    def read(self, timeout: float | None) -> bytes | None:
        """The next frame, or None when none came within `timeout` seconds (None: wait for ever). Raises `PeerGone`."""
        while True:
            frame = self._take()
            if frame is not None:
                return frame
            ready, _, _ = select.select([self._sock], [], [], timeout)
            if not ready:
                return None
            if not self._fill():
                raise PeerGone("the peer closed the pipe")

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError) as error:
            raise PeerGone("the peer closed the pipe") from error

    def _fill(self) -> bool:
        """Read what is there; False when the peer has closed."""
        while True:
            try:
                size = self._sock.recv_into(self._block)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not size:
                return False
            self._in += self._block[:size]
            if size < _READ:
                return True

    def _take(self) -> bytes | None:
        """Cut the first whole frame off what has arrived."""
        if len(self._in) < 4:
            return None
        end = 4 + int.from_bytes(self._in[:4], "big")
        if end > MAX_PIPE:
            raise PeerGone(f"a frame of {end} bytes on a pipe whose limit is {MAX_PIPE}")
        if len(self._in) < end:
            return None
        frame = bytes(self._in[4:end])
        del self._in[:end]
        return frame


class Pipe:
    """Maps over a `FrameStream`: the core's side and the kernel's side of their private conversation."""

    def __init__(self, sock: socket.socket) -> None:
        self.frames = FrameStream(sock)

    def fileno(self) -> int:
        return self.frames.fileno()

    def close(self) -> None:
        self.frames.close()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message, blocking until it is on its way. Raises `PeerGone`."""
        self.frames.send(msgpack.packb(message, use_bin_type=True))

    def post(self, message: dict[str, Any]) -> None:
        """Queue one message without blocking. Raises `PeerGone`."""
        self.frames.post(msgpack.packb(message, use_bin_type=True))

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        """The next message, or None when none came within `timeout` seconds. Raises `PeerGone`."""
        frame = self.frames.read(timeout)
        return None if frame is None else _unpack(frame)

    def drain(self) -> list[dict[str, Any]]:
        """Every message that has arrived, without blocking. Raises `PeerGone`."""
        return [_unpack(frame) for frame in self.frames.drain()]


def _unpack(frame: bytes) -> dict[str, Any]:
    message: dict[str, Any] = msgpack.unpackb(frame, raw=False, max_ext_len=0)
    return message
