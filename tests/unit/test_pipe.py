"""Frames over a stream socket."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from llmos.ipc.pipe import PeerGone, Pipe


def test_messages_arrive_whole_and_in_order() -> None:
    """However the bytes are cut, messages come out as they went in."""
    left, right = socket.socketpair()
    sender, receiver = Pipe(left), Pipe(right)
    messages = [{"n": n, "data": b"x" * (n * 1000)} for n in range(300)]  # far more than the socket's buffer
    thread = threading.Thread(target=lambda: list(map(sender.send, messages)))
    thread.start()
    assert [receiver.receive(5) for _ in messages] == messages
    thread.join()
    assert receiver.receive(0) is None
    sender.close()
    receiver.close()


def test_posting_never_blocks() -> None:
    """A peer that does not read costs memory, which is counted, and not the sender's time."""
    left, right = socket.socketpair()
    sender, receiver = Pipe(left), Pipe(right)
    for n in range(200):
        sender.post({"n": n, "data": b"x" * 10_000})
    assert sender.frames.pending > 0
    got: list[dict[str, Any]] = []
    while len(got) < 200:
        got += receiver.drain()
        sender.frames.flush()
    assert [message["n"] for message in got] == list(range(200))
    assert sender.frames.pending == 0
    sender.close()
    receiver.close()


def test_a_closed_peer_is_noticed_after_its_last_message() -> None:
    """What was sent before the end is still read; then the end is an error."""
    left, right = socket.socketpair()
    sender, receiver = Pipe(left), Pipe(right)
    sender.send({"last": True})
    sender.close()
    assert receiver.receive(1) == {"last": True}
    with pytest.raises(PeerGone):
        receiver.receive(1)
    with pytest.raises(PeerGone):
        receiver.send({})
    receiver.close()
