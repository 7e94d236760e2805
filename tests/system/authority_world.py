"""A real system with hostile programs in it: an agent and a driver that run the code they are handed, and apps."""

from __future__ import annotations

import shutil
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from llmos.ipc.app_key import AppKey
from llmos.ipc.connection import Connection
from llmos.ipc.errors import OpError
from tests.system.conftest import System
from tests.system.test_authority import ALLOW, install

RAW = Path(__file__).parent / "bus_attacks" / "raw.py"


class World:
    """The strings of one such system."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.packages = install(system.root / "packages")
        shutil.copy(RAW, self.packages / "evil")
        shutil.copytree(self.packages / "hostile", self.packages / "outward")
        manifest = self.packages / "outward" / "manifest.toml"
        outward = manifest.read_text().replace("hostile", "outward")
        manifest.write_text(f'{outward}\n[permissions]\nhosts = ["example.com"]\n')
        self.pretend("evil", "agents")
        self.pretend("hostile", "drivers")
        self.pretend("outward", "drivers")
        system.environment["PYTHONPATH"] = str(self.packages)
        self.user: Connection

    def pretend(self, name: str, group: str, points: bytes = b"") -> Path:
        """Let a package look installed, with these bytes for its entry points."""
        info = self.packages / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_bytes(points or f"[llmos.{group}]\n{name} = {name}\n".encode())
        return info

    def boot(self) -> None:
        """Start, or start again."""
        assert self.system.start()["ready"], self.system.log()
        self.user = self.system.connect()
        self.user.call("perm.grant", {"holder": "post", "cap": "label.trust"})

    def home(self, name: str) -> Path:
        """A file of the system's own."""
        return Path(self.system.environment["LLMOS_HOME"]) / name

    def run(self, code: str, allow: list[str] = ALLOW, child: str = "", **spawn: Any) -> dict[str, Any]:
        """What an agent that runs this code has told."""
        stream = self.user.stream("proc.spawn", {**_birth(code, allow, child), "wait": True, **spawn}, timeout=60)
        told: dict[str, Any] = stream.finish()["result"]
        return told

    def start(self, code: str, allow: list[str] | None = ALLOW, **spawn: Any) -> int:
        """Start such an agent; its pid. `allow` None gives it what was granted to its program."""
        return int(self.user.call("proc.spawn", {**_birth(code, allow), **spawn})["pid"])

    def ends(self, *pids: int) -> None:
        """Kill them and see them gone."""
        for pid in pids:
            self.user.call("proc.kill", {"pid": pid, "force": True})
        self.system.until(lambda: not {row["pid"] for row in self.processes()} & set(pids))

    def processes(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.user.call("proc.list")["processes"]
        return rows

    def approvals(self, op: str) -> list[dict[str, Any]]:
        """Requests of this op that wait for the user."""
        rows = self.user.call("approval.list", {"state": "pending"})["approvals"]
        return [row for row in rows if row["op"].partition("@")[0] == op]

    def label(self, op: str, args: dict[str, Any] | None = None) -> list[str]:
        """Of what an op of the system's own answers the user."""
        stream = self.user.stream(op, args or {})
        stream.finish()
        return stream.label

    @contextmanager
    def app(self, name: str, *allow: str) -> Iterator[Connection]:
        """A program from outside, with keys that nobody had before."""
        public, secret = (key.decode() for key in zmq.curve_keypair())
        told = self.user.call("apps.add", {"name": name, "key": public, "allow": list(allow)})
        with Connection(key=AppKey(name, told["address"], told["server_key"], public, secret)) as connection:
            yield connection

    def is_well(self) -> bool:
        """Whether the kernel lives, and nothing that it did was a bug."""
        alive = self.system.process is not None and self.system.process.poll() is None
        return alive and "loop.bug" not in self.system.log() and self.user.call("sys.ping", timeout=5) is not None


def _birth(code: str, allow: list[str] | None, child: str = "") -> dict[str, Any]:
    args = {"code": textwrap.dedent(code), "child": textwrap.dedent(child)}
    return {"program": "evil", "args": args, "allow": allow}


def serve(connection: Connection, answer: dict[str, Any]) -> threading.Thread:
    """Answer every call of the functions that a program lends, until its connection is closed."""

    def work() -> None:
        try:
            while (incoming := connection.next_call(30)) is not None:
                incoming.reply(answer)
        except OpError:
            return

    thread = threading.Thread(target=work)
    thread.start()
    return thread
