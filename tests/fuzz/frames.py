"""Malformed frames against a real kernel: nothing crashes, nothing grows, nothing stays unanswered.

`python -m tests.fuzz.frames --frames 1000000 [--seed N]`: [fuzz: frames, crashes, rss_growth_mb]. Messages go out in batches on
connections of every kind: strangers who said no hello, an app with few rights, the user (syscalls that do no harm). After each batch
every id must have been answered exactly as often as it was asked; an answer with the code `INTERNAL` counts as a crash. What failed is
saved to `build/fuzz/`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import zmq

from llmos.ipc import paths
from llmos.ipc.protocol import GREETING
from tests.bench.figures import ROOT, report
from tests.fuzz.generate import USER_OPS, Generator, expected_answer
from tests.system.bus_attacks.raw import Curve, RawPeer
from tests.system.bus_attacks.sockets import dial, frame, greeting, ready
from tests.system.conftest import System

BATCH = 64
ANSWER_S = 40.0
"""Seconds in which every call must have ended: its own time-out is shorter."""
WARM_UP = 5000
"""Frames after which memory is measured first: caches are full and code is loaded by then."""
RIGHTS = ("bus.publish(topic=fuzz.*)", "bus.subscribe(topic=fuzz.*)", "fn.register(name=fuzz)", "app.call(name=fuzz)", "llm.generate",
          "filesystem.read(path=~/Documents)", "bus.read", "proc.read")  # fmt: skip


class Failure(Exception):
    """What the system got wrong."""


class Fuzzed:
    """One connection and what it is owed.

    Args:
        waiting: called while nothing comes; whether the kernel is there at all.
    """

    def __init__(self, name: str, peer: RawPeer, generator: Generator, waiting: Callable[[], bool]) -> None:
        self.name = name
        self.waiting = waiting
        self.generator = generator
        self.sent: list[list[bytes]] = []
        self.owed: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self.bugs: list[str] = []
        """Details of the answers that were a bug of the kernel's."""
        self._peer = peer
        self._socket = peer.socket

    def batch(self, count: int) -> None:
        """Send so many messages and wait until each is answered. Raises `Failure`."""
        self.sent = []
        for _ in range(count):
            self._send(self.generator.message())
        end = time.monotonic() + ANSWER_S
        while +self.owed:
            if time.monotonic() > end:
                raise Failure(f"{self.name}: not answered within {ANSWER_S:g} s: ids {dict(+self.owed)}")
            if self._socket.poll(20):
                self._take(self._socket.recv_multipart())
            elif not self.waiting():
                raise Failure(f"{self.name}: the kernel has ended")
        self.drain()
        if self.bugs:
            bugs, self.bugs = set(self.bugs), []
            raise Failure(f"{self.name}: {'; '.join(sorted(bugs))}")

    def drain(self) -> None:
        """Take what has come, and answer the calls among it."""
        while self._socket.poll(0):
            self._take(self._socket.recv_multipart())

    def close(self) -> None:
        self._peer.close()

    def _send(self, frames: list[bytes]) -> None:
        number = expected_answer(frames)
        if number is not None:
            self.owed[number] += 1
        self.sent.append(frames)
        self._socket.send_multipart(frames)

    def _take(self, frames: list[bytes]) -> None:
        if len(frames) != 3 or frames[0] != GREETING:
            raise Failure(f"{self.name}: the system sent {len(frames)} frames")
        header = msgpack.unpackb(frames[1], raw=False)
        kind, number = header["kind"], header.get("id", 0)
        if kind == "call":
            self._send(self.generator.answer(number))
        elif kind == "reply":
            self._answered(number, header, frames[2])

    def _answered(self, number: int, header: dict[str, Any], body: bytes) -> None:
        self.owed[number] -= 1
        if self.owed[number] < 0:
            raise Failure(f"{self.name}: id {number} was answered more often than asked: {header} {body[:200]!r}")
        if not self.owed[number]:
            del self.owed[number]
        if header.get("ok", True):
            self.codes["ok"] += 1
            return
        error = msgpack.unpackb(body, raw=False)
        self.codes[error["code"]] += 1
        if error["code"] == "INTERNAL" and "the answer is malformed" not in error["detail"]:
            self.bugs.append(error["detail"])


class Campaign:
    """A system and everybody who sends to it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.seed = seed
        self.system = System(root)
        (self.system.home / "Documents").mkdir()
        told = self.system.start()
        if not told.get("ready"):
            raise Failure(f"the system did not start: {told}")
        self.path = str(self.system.socket)
        self.user = self._greeted(RawPeer(self.path))
        peers = [(f"stranger{n}", RawPeer(self.path), Generator(seed + n)) for n in range(2)]
        peers += [(f"app{n}", self._app(), Generator(seed + 10 + n)) for n in range(3)]
        peers.append(("user", self._greeted(RawPeer(self.path)), Generator(seed + 20, USER_OPS)))
        self.fuzzed = [Fuzzed(name, peer, generator, self._waiting) for name, peer, generator in peers]
        self.frames = 0
        self.crashes = 0
        self.seen: set[str] = set()
        """Failures so far; one that comes again is counted and not saved again."""
        self.processes = self._processes()
        self._random = random.Random(seed)

    def close(self) -> None:
        for one in self.fuzzed:
            one.close()
        self.user.close()
        self.system.stop()

    def run(self, frames: int, progress: bool = False) -> dict[str, float]:
        """Send that many; the figures. A failure is counted and saved, and the run goes on while the system lives."""
        first = last = self.rss()
        started = shown = time.monotonic()
        while self.frames < frames:
            one = self.fuzzed[(self.frames // BATCH) % len(self.fuzzed)]
            try:
                one.batch(BATCH)
                if self._random.random() < 0.1:
                    self._raw_bytes()
            except Failure as failure:
                self._failed(one, failure)
            before, self.frames = self.frames, self.frames + BATCH
            if before < WARM_UP <= self.frames:
                first = self.rss()
            if time.monotonic() - shown > 2:
                shown, last = time.monotonic(), self.rss()
                self._same_processes(one)
                if progress:
                    rate = self.frames / (shown - started)
                    sys.stdout.write(
                        f"\r{self.frames:>9} frames {rate:6.0f}/s  kernel {last:.1f} MB  crashes {self.crashes} "
                    )
                    sys.stdout.flush()
        self._same_processes(self.fuzzed[0])
        last = self.rss()
        return {"frames": self.frames, "crashes": self.crashes, "rss_growth_mb": round(last - first, 1),
                "frames_per_s": round(self.frames / (time.monotonic() - started))}  # fmt: skip

    def _waiting(self) -> bool:
        for one in self.fuzzed:  # a call may wait for another of them to answer it
            one.drain()
        return self.alive()

    def alive(self) -> bool:
        return self.system.process is not None and self.system.process.poll() is None

    def rss(self) -> float:
        """Of the kernel, MB."""
        ok, body = self.user.call("sys.status", timeout=20)
        if not ok:
            raise Failure(f"sys.status: {body}")
        return float(body["rss_mb"])

    def _processes(self) -> dict[str, int]:
        rows = self.user.call("proc.list")[1]["processes"]
        return {row["name"]: row["os_pid"] for row in rows if row["kind"] in ("kernel", "gate", "driver")}

    def _same_processes(self, one: Fuzzed) -> None:
        now = self._processes()
        if now != self.processes:
            self._failed(one, Failure(f"processes were {self.processes}, are {now}"))
            self.processes = now

    def _greeted(self, peer: RawPeer) -> RawPeer:
        ok, body = peer.hello(paths.token_file(self.system.socket.parent.parent).read_text())
        if not ok:
            raise Failure(f"sys.hello: {body}")
        return peer

    def _app(self) -> RawPeer:
        public, secret = zmq.curve_keypair()
        ok, told = self.user.call(
            "apps.add", {"name": f"fuzz{public.hex()[:6]}", "key": public.decode(), "allow": list(RIGHTS)}
        )
        if not ok:
            raise Failure(f"apps.add: {told}")
        peer = RawPeer(told["address"], curve=Curve(public, secret, told["server_key"].encode()))
        ok, body = peer.hello("")
        if not ok:
            raise Failure(f"sys.hello of an app: {body}")
        return peer

    def _raw_bytes(self) -> None:
        """A connection that breaks the transport's own rules."""
        good = greeting() + ready() + frame(GREETING, more=True) + frame(b"\x80", more=True) + frame(b"\x80")
        made = bytearray(good)
        for _ in range(self._random.randrange(1, 6)):
            made[self._random.randrange(len(made))] = self._random.randrange(256)
        with suppress(OSError), dial(self.path) as stream:
            stream.sendall(made[: self._random.randrange(1, len(made) + 1)])
        self.frames += 1

    def _failed(self, one: Fuzzed, failure: Failure) -> None:
        self.crashes += 1
        one.owed.clear()
        if str(failure) in self.seen:
            return
        self.seen.add(str(failure))
        directory = ROOT / "build" / "fuzz"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.seed}-{self.frames}-{one.name}.json"
        saved = {
            "failure": str(failure),
            "seed": self.seed,
            "frames": [[part.hex() for part in frames] for frames in one.sent],
        }
        path.write_text(json.dumps(saved, indent=1) + "\n")
        sys.stdout.write(f"\n{failure}\n  saved to {path}\n")
        if not self.alive():
            sys.stdout.write(self.system.log()[-3000:])
            raise failure
        if len(self.seen) >= 20:
            raise failure


def main() -> int:
    """0 when nothing crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.frames")
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    with tempfile.TemporaryDirectory() as directory:
        campaign = Campaign(Path(directory), arguments.seed)
        try:
            figures = campaign.run(arguments.frames, progress=True)
            for one in campaign.fuzzed:
                sys.stdout.write(f"\n  {one.name:<10} {dict(one.codes.most_common(12))}")
        finally:
            campaign.close()
    report("fuzz", {**figures, "seed": arguments.seed})
    return int(bool(figures["crashes"]))


if __name__ == "__main__":
    sys.exit(main())
