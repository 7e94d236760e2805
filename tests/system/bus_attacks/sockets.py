"""What an outsider does with sockets of its own, below the protocol: ZMTP by the byte. Source: RFC 37/ZMTP 3.1.

Each program runs in a puppet's process, given the gate's path; what it returns is what the attacker could observe.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zmq

from tests.system.bus_attacks.raw import GREETING, RawPeer, pack

_SIGNATURE = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01"


def greeting(mechanism: bytes = b"NULL") -> bytes:
    """The 64 bytes that open a connection."""
    return _SIGNATURE + mechanism.ljust(20, b"\0") + bytes(32)


def ready(identity: bytes = b"", kind: bytes = b"DEALER") -> bytes:
    """The NULL mechanism's command that ends the handshake."""
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", kind), (b"Identity", identity)):
        body += bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
    return b"\x04" + bytes([len(body)]) + body


def frame(data: bytes, *, more: bool = False) -> bytes:
    """One frame of a message."""
    if len(data) < 256:
        return bytes([int(more), len(data)]) + data
    return bytes([2 | int(more)]) + len(data).to_bytes(8, "big") + data


def dial(path: str, timeout: float = 2.0) -> socket.socket:
    """A connection that has said nothing yet."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(timeout)
    made.connect(path)
    return made


def shake(path: str, identity: bytes = b"") -> socket.socket:
    """A connection that has finished its handshake."""
    made = dial(path)
    made.sendall(greeting() + ready(identity))
    _receive(made, 64)
    made.recv(512)
    return made


def _receive(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (block := source.recv(size - len(data))):
        data += block
    return data


def multipart_bomb(path: str, seconds: float) -> dict[str, Any]:
    """Frames that always promise one more."""
    sent, connections = 0, 0
    block = frame(bytes(60_000), more=True) * 8
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError), shake(path) as bomb:
            connections += 1
            while time.monotonic() < end:
                bomb.sendall(block)
                sent += len(block)
    return {"bytes": sent, "connections": connections}


def small_part_bomb(path: str, seconds: float) -> dict[str, Any]:
    """The same with empty frames, which cost the receiver most beside what they cost the sender."""
    sent = 0
    block = frame(b"", more=True) * 20_000
    end = time.monotonic() + seconds
    with suppress(OSError), shake(path) as bomb:
        while time.monotonic() < end:
            bomb.sendall(block)
            sent += len(block)
    return {"bytes": sent}


def idle_connects(path: str, count: int) -> dict[str, Any]:
    """Connections that say nothing, as many as can be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 100, hard), hard))
    held: list[socket.socket] = []
    refused = 0
    end = time.monotonic() + 20
    while len(held) + refused < count and time.monotonic() < end:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.setblocking(False)
        try:
            made.connect(path)
            held.append(made)
        except OSError:
            made.close()
            refused += 1
            if refused % 100 == 0:
                time.sleep(0.005)  # the listener's queue is full
    time.sleep(1.5)
    opened = len(held)
    for one in held:
        one.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return {"opened": opened, "refused": refused}


def half_handshakes(path: str, count: int) -> dict[str, Any]:
    """Greetings, or parts of one, and then silence; 200 at a time."""
    pieces = (
        greeting()[:5],
        greeting()[:11],
        greeting(),
        greeting() + ready()[:9],
        greeting(b"PLAIN"),
        b"GET / HTTP/1.1\r\n\r\n",
    )
    done = 0
    while done < count:
        held = []
        for number in range(200):
            with suppress(OSError):
                made = dial(path)
                made.sendall(pieces[number % len(pieces)])
                held.append(made)
        time.sleep(0.1)
        for one in held:
            one.close()
        done += 200
    return {"connections": done}


def oversize_frame(path: str) -> dict[str, Any]:
    """Frames of a gigabyte, of 2⁶³ bytes, of a megabyte and a byte; whether each connection was ended."""
    ended = []
    for size in (1 << 30, (1 << 63) - 1, (1 << 64) - 1, (1 << 20) + 1):
        with shake(path) as made:
            try:
                made.sendall(b"\x02" + size.to_bytes(8, "big") + bytes(1 << 16))
                ended.append(made.recv(100) == b"")
            except (ConnectionError, BrokenPipeError):
                ended.append(True)
            except TimeoutError:
                ended.append(False)
    return {"ended": ended}


def raw_subscriptions(path: str, count: int) -> dict[str, Any]:
    """ZMTP's own SUBSCRIBE commands and messages, at a socket that has no subscriptions."""
    sent = 0
    with suppress(OSError), shake(path) as made:
        for number in range(count):
            topic = b"t%d" % number
            body = b"\x09SUBSCRIBE" + topic
            made.sendall(b"\x04" + bytes([len(body)]) + body + frame(b"\x01" + topic))
            sent += 1
    return {"sent": sent}


def squat(path: str, identities: list[bytes], seconds: float) -> dict[str, Any]:
    """Hold routing ids that are somebody's, or about to be; what arrived on them."""
    held = []
    for identity in identities:
        with suppress(OSError):
            made = shake(path, identity)
            made.setblocking(False)
            made.sendall(
                frame(b"llmos/1", more=True)
                + frame(pack({"kind": "call", "id": 1, "op": "sys.ping"}), more=True)
                + frame(pack({}))
            )
            held.append(made)
    end = time.monotonic() + seconds
    got = []
    while time.monotonic() < end:
        for one in held:
            with suppress(OSError):
                if data := one.recv(65536):
                    got.append(data)
        time.sleep(0.01)
    for one in held:
        one.close()
    return {"held": len(held), "heard": got}


def crowd(path: str, processes: int, each: int, seconds: float) -> dict[str, Any]:
    """Many processes, each with many connections that send one message: more peers than the gate keeps."""
    message = (
        frame(GREETING, more=True)
        + frame(pack({"kind": "call", "id": 1, "op": "sys.ping"}), more=True)
        + frame(pack({}))
    )
    hold_read, hold_write = os.pipe()
    up_read, up_write = os.pipe()
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            os.close(hold_write)
            held = []
            end = time.monotonic() + 20
            for _ in range(each):
                with suppress(OSError):
                    held.append(shake(path))
                    held[-1].sendall(message)
                if time.monotonic() > end:
                    break
            os.write(up_write, bytes([len(held)]))
            os.read(hold_read, 1)
            os._exit(0)
        children.append(child)
    opened = sum(os.read(up_read, 1)[0] for _ in children)
    time.sleep(seconds)
    for fd in (hold_write, hold_read, up_read, up_write):
        os.close(fd)
    for child in children:
        os.waitpid(child, 0)
    return {"connections": opened}


def curve_unknown(address: str, server: bytes, seconds: float) -> dict[str, Any]:
    """Keys nobody issued, no keys, and a password, at the apps' gate; what was answered."""
    heard: dict[str, int] = {}
    for name in ("curve", "null", "plain", "wrong-server"):
        context = zmq.Context()
        dealer = context.socket(zmq.DEALER)
        dealer.set(zmq.LINGER, 0)
        if name in ("curve", "wrong-server"):
            dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
            dealer.curve_serverkey = server if name == "curve" else zmq.curve_keypair()[0]
        elif name == "plain":
            dealer.plain_username, dealer.plain_password = b"user", b"user"
        dealer.set(zmq.ZAP_DOMAIN, b"llmos")
        dealer.connect(address)
        for number, op in enumerate(("sys.hello", "sys.status", "perm.list"), 1):
            dealer.send_multipart([GREETING, pack({"kind": "call", "id": number, "op": op}), pack({})])
        heard[name] = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if dealer.poll(50):
                dealer.recv_multipart()
                heard[name] += 1
        context.destroy(linger=0)
    return {"heard": heard}


def as_another_user(path: str, uid: int, seconds: float) -> dict[str, Any]:
    """The system's gate as somebody else's process, and with a mechanism it does not have."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        heard = 0
        with suppress(Exception):
            os.setgroups([])
            os.setuid(uid)
            heard = _asked(path, seconds)
        os.write(write, b"%d" % heard)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return {"heard": int(said or 0)}


def _asked(path: str, seconds: float) -> int:
    peer = RawPeer(path)
    number = peer.start("sys.ping")
    peer.wait(number, seconds)
    peer.close()
    return len(peer.replies)


def wrong_mechanism(path: str) -> dict[str, Any]:
    """CURVE and PLAIN at a socket that speaks NULL only; bytes it answered beyond its greeting."""
    heard = {}
    for mechanism in (b"CURVE", b"PLAIN", b"GSSAPI", b"null"):
        with dial(path, 0.7) as made:
            made.sendall(greeting(mechanism) + ready() + frame(b"llmos/1", more=True))
            data = b""
            with suppress(OSError):
                while block := made.recv(4096):
                    data += block
            heard[mechanism.decode()] = len(data)
    return {"heard": heard}


def reuse_pid(path: str, pid: int, routing_id: bytes, seconds: float) -> dict[str, Any]:
    """Start processes until one has the pid of a dead peer; what it heard under that one's routing id, without saying hello."""
    for _ in range(200):
        with suppress(OSError), open("/proc/sys/kernel/ns_last_pid", "w") as last:  # noqa: PTH123  (one write, at once)
            last.write(str(pid - 1))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            said = b""
            with suppress(Exception):
                if os.getpid() == pid:
                    peer = RawPeer(path, routing_id)
                    said = peer.code("sys.status", timeout=seconds).encode()
                    said += b" heard %d" % (len(peer.inbox) + sum(map(len, peer.replies.values())) - 1)
            os.write(write, said)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as stream:
            heard = stream.read()
        os.waitpid(child, 0)
        if child == pid:
            return {"pid": pid, "heard": heard}
    return {"pid": 0, "heard": ""}


PROGRAMS: dict[str, Callable[..., Any]] = {
    program.__name__: program
    for program in (
        multipart_bomb, small_part_bomb, idle_connects, half_handshakes, oversize_frame, raw_subscriptions, squat, crowd,
        curve_unknown, as_another_user, wrong_mechanism, reuse_pid,
    )
}  # fmt: skip
