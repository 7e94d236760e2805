"""A process of the attacker's that does as it is told: the same program outside, in an agent's jail, and in a driver's.

Orders are files in a directory that both sides see (in a jail its own state directory), so that being told what to do is no
message on the bus and taints nobody. `python -m tests.system.bus_attacks.puppet DIRECTORY` runs one outside.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from .raw import Curve, RawPeer  # relative: in a jail the two lie in a package of another name


class Puppet:
    """The peers it has, by name, and what it can be told to do with them."""

    def __init__(self, directory: Path, programs: dict[str, Callable[..., Any]] | None = None) -> None:
        self.directory = directory
        self.programs = programs or {}
        self.peers: dict[str, RawPeer] = {}
        self.ended = False
        self._next = 0

    def run(self) -> None:
        """Until it is told to end."""
        (self.directory / "puppet-up").write_text(str(os.getpid()))
        while not self.ended:
            order = self.directory / f"order-{self._next}"
            if order.exists():
                self._obey(order)
            elif not self.peers:
                time.sleep(0.005)
            for peer in self.peers.values():
                peer.pump(0.005 / len(self.peers))
        for peer in self.peers.values():
            peer.close()

    def _obey(self, order: Path) -> None:
        what, given = msgpack.unpackb(order.read_bytes(), raw=False, strict_map_key=False)
        order.unlink()
        try:
            done: Any = {"result": getattr(self, f"do_{what}")(**given)}
        except Exception as error:  # noqa: BLE001  (whoever gave the order is told)
            done = {"error": f"{type(error).__name__}: {error}"}
        answer = self.directory / f"answer-{self._next}"
        answer.with_suffix(".part").write_bytes(msgpack.packb(done, use_bin_type=True, default=str))
        answer.with_suffix(".part").rename(answer)
        self._next += 1

    def do_connect(
        self, address: str = "", peer: str = "main", routing_id: bytes = b"", curve: list[bytes] | None = None
    ) -> None:
        keys = Curve(*curve) if curve else None
        self.peers[peer] = RawPeer(address or os.environ["LLMOS_BUS"], routing_id, keys)

    def do_hello(self, peer: str = "main", token: str | None = None) -> Any:
        return self.peers[peer].hello(os.environ.get("LLMOS_TOKEN", "") if token is None else token, "puppet")

    def do_call(self, op: str, args: Any = None, peer: str = "main", timeout: float = 10.0, header: Any = None) -> Any:
        return self.peers[peer].call(op, args, timeout, **(header or {}))

    def do_start(self, op: str, args: Any = None, peer: str = "main", header: Any = None) -> int:
        return self.peers[peer].start(op, args, **(header or {}))

    def do_wait(self, number: int, peer: str = "main", timeout: float = 10.0) -> Any:
        return self.peers[peer].wait(number, timeout)

    def do_flood(
        self, op: str, args: Any, count: int, peer: str = "main", window: int = 100, header: Any = None
    ) -> Any:
        return self.peers[peer].flood(op, args, count, window, **(header or {}))

    def do_post(self, header: Any, body: Any = None, peer: str = "main", times: int = 1) -> None:
        for _ in range(times):
            self.peers[peer].post(header, body)

    def do_posts(self, messages: list[Any], peer: str = "main") -> None:
        for header, body in messages:
            self.peers[peer].post(header, body)

    def do_send(self, frames: list[bytes], peer: str = "main", times: int = 1) -> None:
        for _ in range(times):
            self.peers[peer].send(frames)

    def do_heard(self, seconds: float = 0.2, peer: str = "main") -> Any:
        """What came unasked for, and every reply by id, since the last time and until nothing has come for so long."""
        one = self.peers[peer]
        came, last = 0, time.monotonic() + 30
        end = time.monotonic() + seconds
        while time.monotonic() < min(end, last):
            one.pump(0.02)
            if len(one.inbox) + len(one.replies) != came:
                came, end = len(one.inbox) + len(one.replies), time.monotonic() + seconds
        heard = {
            "inbox": list(one.inbox),
            "replies": [[number, *pair] for number, pairs in one.replies.items() for pair in pairs],
            "chunks": [[number, body] for number, bodies in one.chunks.items() for body in bodies],
        }
        one.inbox.clear()
        one.replies.clear()
        one.chunks.clear()
        return heard

    def do_serve(self, answer: Any, peer: str = "main") -> None:
        self.peers[peer].answer = answer

    def do_close(self, peer: str = "main") -> None:
        self.peers.pop(peer).close()

    def do_program(self, name: str, **given: Any) -> Any:
        return self.programs[name](**given)

    def do_read(self, path: str) -> str:
        return Path(path).read_text()

    def do_token(self) -> str:
        return os.environ["LLMOS_TOKEN"]

    def do_end(self) -> None:
        self.ended = True


def main() -> None:
    """Outside: with the programs that need sockets of their own."""
    from tests.system.bus_attacks.sockets import PROGRAMS

    Puppet(Path(sys.argv[1]), PROGRAMS).run()


if __name__ == "__main__":
    main()
