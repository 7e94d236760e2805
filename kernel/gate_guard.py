"""What keeps a gate alive: libzmq aborts its process when memory or descriptors run out, and bounds neither by itself."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import stat
import termios
from array import array
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Protocol

from llmos.kernel import params

_GAP = 1024
"""Numbers without a descriptor after which there are taken to be no more."""
_QUEUED = 16 << 10
"""Unread bytes that make a connection one of those which fill the memory, at the first look that finds it full. A quarter of it does at
each look after that, down to one byte: somebody whose small message just came is not taken for somebody who never ends one."""


class Connection(Protocol):
    """One that has sent a message: libzmq's descriptor for it, and when its last message came (monotonic)."""

    fd: int
    refilled: float


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


_LIBC = ctypes.CDLL(None)
_LIBC.mallinfo2.restype = _Heap


def _heap_bytes() -> int:
    """What malloc has given out and not taken back, libzmq's queues included. Source: mallinfo2(3)."""
    told = _LIBC.mallinfo2()
    return int(told.uordblks + told.hblkhd)


class Guard:
    """Looks at the process's own heap and descriptors, and ends connections.

    Args:
        pipe: the descriptor that leads to the kernel, which is never touched.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._queued = _QUEUED

    def watch(self, since: float, peers: Collection[Connection]) -> None:
        """End connections that take what all need:

        - the frames of one message: when much memory is in use, connections that are sending and have finished no message `since` go,
          those that send much first;
        - connections that say nothing: when many descriptors are in use, those without a message go.
        """
        lowest = os.dup(self._pipe)
        os.close(lowest)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        heap = _heap_bytes()
        if heap <= params.GATE_HEAP and lowest <= limit // 4:  # numbers are given lowest first
            self._queued = _QUEUED
            return
        sockets = list(self._sockets(limit))
        crowded = len(sockets) - len(peers) > limit // 4
        full = heap > params.GATE_HEAP + len(sockets) * params.GATE_PER_PEER
        if not full:
            self._queued = _QUEUED
        if not crowded and not full:
            return
        known = {peer.fd: peer for peer in peers}
        for fd in sockets:
            peer = known.get(fd)
            if peer is None or (full and peer.refilled < since):
                with suppress(OSError):
                    _cut_if(fd, 0 if crowded and peer is None else self._queued)
        if full:
            self._queued = max(1, self._queued // 4)

    def _sockets(self, limit: int) -> Iterator[int]:
        """Descriptors of sockets, the pipe aside; those beyond a long gap in the numbers are left for another time."""
        gap = 0
        for fd in range(3, limit):
            try:
                is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
            except OSError:
                gap += 1
                if gap > _GAP:
                    return
                continue
            gap = 0
            if is_socket and fd != self._pipe:
                yield fd


def _cut_if(fd: int, queued: int) -> None:
    """End a connection that has at least so many bytes to read; never the listener. Raises `OSError`."""
    unread = array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, unread)
    with socket.socket(fileno=os.dup(fd)) as one:
        if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and unread[0] >= queued:
            one.shutdown(socket.SHUT_RDWR)
