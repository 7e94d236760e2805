"""The kernel's end of a pipe to a process of its own, in the loop: it neither blocks on a slow peer nor fails on a dead one.

A pipe whose other end closes goes quiet; the end of the process itself is noticed, and dealt with, by the supervisor.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from llmos.ipc.pipe import FrameStream, PeerGone
from llmos.kernel import params
from llmos.kernel.loop import Loop


class Link:
    """Frames to and from one process.

    Args:
        receive: called with every frame that arrives.
    """

    def __init__(self, loop: Loop, sock: socket.socket, receive: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._stream: FrameStream | None = FrameStream(sock)
        self._receive = receive
        self._writing = False
        loop.watch(sock, self._read)
        self._sock = sock

    def post(self, frame: bytes) -> None:
        """Send it, now or when the peer reads. A peer that leaves too much unread is cut off."""
        if self._stream is None:
            return
        try:
            self._stream.post(frame)
        except PeerGone:
            self.close()
            return
        if self._stream.pending > params.PIPE_BACKLOG:
            self.close()
        elif self._stream.pending and not self._writing:
            self._writing = True
            self._loop.want_write(self._sock, self._flush)

    def close(self) -> None:
        """Idempotent."""
        if self._stream is not None:
            self._loop.unwatch(self._sock)
            self._stream.close()
            self._stream = None

    def _read(self) -> None:
        if self._stream is None:
            return
        try:
            frames = self._stream.drain()
        except PeerGone:
            self.close()
            return
        for frame in frames:
            self._receive(frame)

    def _flush(self) -> None:
        if self._stream is None:
            return
        try:
            if self._stream.flush():
                self._writing = False
                self._loop.want_write(self._sock, None)
        except PeerGone:
            self.close()
