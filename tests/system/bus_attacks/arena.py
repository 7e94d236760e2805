"""Where attacks happen: a real system with an honest driver and a hostile one, its user, and puppets of every kind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgpack
import zmq

from llmos.ipc import paths
from llmos.ipc.protocol import NOT_GREETED
from tests.bench.figures import ROOT
from tests.system.bus_attacks.raw import RawPeer
from tests.system.conftest import System

HERE = Path(__file__).parent
PACKAGES = {
    "mail": "llmos.drivers",
    "puppet_driver": "llmos.drivers",
    "puppet_agent": "llmos.agents",
    "perm": "llmos.drivers",
}
"""Package → entry point group; `perm` takes a name of the kernel's own, and must not be let in."""


@dataclass(frozen=True)
class Outcome:
    """Whether the attacker gained anything, and what was seen."""

    succeeded: bool
    evidence: str


Attack = Callable[["Arena"], Outcome]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Makes it part of the battery, under its own name."""
    ATTACKS[function.__name__] = function
    return function


def install(root: Path) -> Path:
    """A directory to import from that holds the attackers' packages as if pip had put them there."""
    shutil.copytree(HERE / "packages", root)
    bus_puppet = root / "bus_puppet"
    bus_puppet.mkdir()
    (bus_puppet / "__init__.py").touch()
    for name in ("raw.py", "puppet.py"):
        shutil.copy(HERE / name, bus_puppet)
    squatter = root / "perm"
    shutil.copytree(root / "puppet_driver", squatter)
    manifest = squatter / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("puppet_driver", "perm"))
    for name, group in PACKAGES.items():
        info = root / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}\n")
    return root


class Puppet:
    """The strings of a process that runs `puppet.Puppet`.

    Args:
        directory: where its orders are left.
        name: its badge, once it has one.
    """

    def __init__(self, directory: Path, name: str = "", process: subprocess.Popen[bytes] | None = None) -> None:
        self.directory = directory
        self.name = name
        self.process = process
        self._next = 0

    def up(self, seconds: float = 15) -> int:
        """Wait for it; its own pid as it sees it."""
        return int(self._appears(self.directory / "puppet-up", seconds).decode() or 0)

    def do(self, what: str, *, within: float = 60, **given: Any) -> Any:
        """Give an order and wait for what came of it."""
        number = self.tell(what, **given)
        return self.done(number, within)

    def tell(self, what: str, **given: Any) -> int:
        """Give an order; its number."""
        number, self._next = self._next, self._next + 1
        order = self.directory / f"order-{number}"
        order.with_suffix(".part").write_bytes(msgpack.packb([what, given], use_bin_type=True))
        order.with_suffix(".part").rename(order)
        return number

    def done(self, number: int, within: float = 60) -> Any:
        """What came of an order."""
        answer = self.directory / f"answer-{number}"
        done = msgpack.unpackb(self._appears(answer, within), raw=False, strict_map_key=False)
        answer.unlink()
        if "error" in done:
            raise RuntimeError(f"the puppet could not: {done['error']}")
        return done["result"]

    def call(self, op: str, args: Any = None, timeout: float = 10.0, **header: Any) -> tuple[bool, Any]:
        """Whether it went well, and the result or the error."""
        ok, body = self.do("call", op=op, args=args or {}, timeout=timeout, header=header, within=timeout + 10)
        return bool(ok), body

    def code(self, op: str, args: Any = None, timeout: float = 10.0, **header: Any) -> str:
        """`ok`, or the error's code."""
        ok, body = self.call(op, args, timeout, **header)
        return "ok" if ok else str(body.get("code"))

    def connect(self, **given: Any) -> Puppet:
        """Connect and say hello; itself."""
        self.do("connect", **given)
        ok, body = self.do("hello")
        if not ok:
            raise RuntimeError(f"the puppet was not greeted: {body}")
        self.name = body["badge"]
        return self

    def _appears(self, path: Path, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > end:
                raise RuntimeError(f"the puppet {self.name} did not say {path.name} within {seconds:g} s")
            time.sleep(0.005)
        return path.read_bytes()


class Arena:
    """One system for many attacks."""

    def __init__(self, root: Path) -> None:
        self.system = System(root)
        packages = install(root / "packages")
        self.system.environment["PYTHONPATH"] = str(packages)
        self.user: RawPeer
        self.on_attack: Callable[[bool], None] = lambda _: None
        self._numbers = itertools.count()
        self._puppets: list[Puppet] = []
        self._pool: list[Puppet] = []

    def __enter__(self) -> Self:
        told = self.system.start()
        if not told.get("ready"):
            raise RuntimeError(f"the system did not start: {told}\n{self.system.log()[-2000:]}")
        self.user = RawPeer(self.socket)
        self.must("sys.hello", {"token": self.token})
        for topic in ("mail.*", "mailbox", "mail"):
            self.must("perm.grant", {"holder": "mail", "cap": f"bus.publish(topic={topic})"})
        return self

    def __exit__(self, *_: object) -> None:
        for puppet in self._puppets:
            if puppet.process is not None:
                puppet.process.kill()
                puppet.process.wait()
        self.user.close()
        self.system.stop()

    @property
    def alive(self) -> bool:
        """Whether there is a kernel at all."""
        return self.system.process is not None and self.system.process.poll() is None

    @property
    def socket(self) -> str:
        """The system gate's path."""
        return str(self.system.socket)

    @property
    def token(self) -> str:
        """The user's."""
        return paths.token_file(self.system.socket.parent.parent).read_text()

    @property
    def os(self) -> Path:
        """The system's own directory."""
        return Path(self.system.environment["LLMOS_HOME"])

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """While an attack is under way; preparations stay outside."""
        self.on_attack(True)
        try:
            yield
        finally:
            self.on_attack(False)

    # -- the user --------------------------------------------------------------------------------------------------

    def must(self, op: str, args: dict[str, Any] | None = None, timeout: float = 15) -> Any:
        """A call of the user's that has to work."""
        ok, body = self.user.call(op, args or {}, timeout)
        if not ok and body.get("detail") == NOT_GREETED:  # what an attack has done to it; that attack's outcome says so
            self.user.hello(self.token)
            ok, body = self.user.call(op, args or {}, timeout)
        if not ok:
            raise RuntimeError(f"{op}: {body}")
        return body

    def label_of(self, name: str) -> str:
        """A process's label as `proc.list` shows it."""
        return str(next(row for row in self.must("proc.list")["processes"] if row["name"] == name)["label"])

    def os_pid_of(self, name: str) -> int:
        return int(next(row for row in self.must("proc.list")["processes"] if row["name"] == name)["os_pid"])

    def pending(self, holder: str, seconds: float = 3.0) -> dict[str, Any] | None:
        """The newest approval that waits for a process."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for row in self.must("approval.list")["approvals"]:
                if row["holder"] == holder:
                    return dict(row)
            time.sleep(0.02)
        return None

    def reachable(self, seconds: float = 5.0) -> bool:
        """Whether somebody who comes now is served."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with self.peer() as peer:
                if peer.hello(self.token)[0] and peer.call("sys.ping", timeout=2)[0]:
                    return True
        return False

    @contextmanager
    def peer(self, routing_id: bytes = b"") -> Iterator[RawPeer]:
        """A connection of this process's own."""
        made = RawPeer(self.socket, routing_id)
        try:
            yield made
        finally:
            made.close()

    # -- puppets ---------------------------------------------------------------------------------------------------

    def prepare(self, count: int) -> None:
        """Start processes that `outsider` will hand out, so that starting them disturbs no measurement."""
        fresh = [self._start_outside() for _ in range(max(0, count - len(self._pool)))]
        for puppet in fresh:
            puppet.up()
        self._pool += fresh

    def outsider(self) -> Puppet:
        """A process of this user's that the system knows nothing of."""
        if not self._pool:
            self.prepare(1)
        return self._pool.pop()

    def _start_outside(self) -> Puppet:
        directory = self.system.root / f"puppet{next(self._numbers)}"
        directory.mkdir()
        environment = {**os.environ, "LLMOS_BUS": self.socket, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("LLMOS_TOKEN", None)
        command = [sys.executable, "-m", "tests.system.bus_attacks.puppet", str(directory)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        puppet = Puppet(directory, process=process)
        self._puppets.append(puppet)
        return puppet

    def agent(self, *allow: str, giver: Puppet | None = None, task: str = "", mode: str = "default") -> Puppet:
        """An agent in its jail, greeted on a connection of its puppet's own."""
        order = {"program": "puppet_agent", "args": {"task": task}, "allow": list(allow), "mode": mode}
        if giver is None:
            pid = int(self.must("proc.spawn", order)["pid"])
        else:
            ok, body = giver.call("proc.spawn", order)
            if not ok:
                raise RuntimeError(f"proc.spawn: {body}")
            pid = int(body["pid"])
        puppet = self.agent_named(f"puppet_agent#{pid}")
        puppet.up()
        puppet.connect()
        puppet.call("sys.ready")
        return puppet

    def agent_named(self, name: str) -> Puppet:
        """The strings of an agent that has started, by the badge it wrote into its directory."""
        end = time.monotonic() + 15
        while time.monotonic() < end:
            for badge in self.os.glob("agents/*/badge"):
                with suppress(OSError):
                    if badge.read_text() == name:
                        return Puppet(badge.parent, name)
            time.sleep(0.005)
        raise RuntimeError(f"{name} did not start")

    def driver(self) -> Puppet:
        """The hostile driver, started afresh, on a connection of its puppet's own."""
        row = next(row for row in self.must("proc.list")["processes"] if row["name"] == "puppet_driver")
        self.must("proc.kill", {"pid": row["pid"], "force": True})
        puppet = Puppet(self.os / "drivers" / "puppet_driver", "puppet_driver")
        end = time.monotonic() + 15
        while time.monotonic() < end:
            now = next(one for one in self.must("proc.list")["processes"] if one["name"] == "puppet_driver")
            if now["os_pid"] not in (0, row["os_pid"]) and now["state"] == "ready":
                break
            time.sleep(0.05)
        puppet.up()
        puppet.connect()
        puppet.call("sys.ready", {"status": "puppet"})
        return puppet

    def app(self, name: str, *allow: str) -> Puppet:
        """An outside program with a key of its own."""
        public, secret = zmq.curve_keypair()
        told = self.must("apps.add", {"name": name, "key": public.decode(), "allow": list(allow)})
        puppet = self.outsider()
        puppet.do("connect", address=told["address"], curve=[public, secret, told["server_key"].encode()])
        ok, body = puppet.do("hello", token="")
        if not ok:
            raise RuntimeError(f"the app {name} was not greeted: {body}")
        puppet.name = body["badge"]
        return puppet

    def end(self, *puppets: Puppet) -> None:
        """They have done their part."""
        for puppet in puppets:
            if puppet.process is not None:
                puppet.process.kill()
                puppet.process.wait()
            elif "#" in puppet.name:
                with suppress(RuntimeError):
                    self.must("proc.kill", {"pid": int(puppet.name.partition("#")[2]), "force": True})


class Pinger:
    """The process of `pinger.py`."""

    def __init__(self, arena: Arena) -> None:
        command = [sys.executable, "-m", "tests.system.bus_attacks.pinger", arena.socket, arena.token]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def take(self) -> tuple[list[float], list[str]]:
        """Microseconds of each ping since the last time, and what failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        said = json.loads(self._process.stdout.readline())
        return said["us"], said["failed"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
