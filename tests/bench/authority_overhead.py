"""What it costs that a call is checked, labelled and written down, against the same kernel with that taken out.

[authority_overhead: ratio] is the median, over interleaved rounds, of the p50 of a driver's op from call to reply through the kernel
by that through `tests.bench.unchecked_kernel`: an app reads a stranger's mail, so that capability, scope, label and audit row are all
there. The other ratios: the same by a write, which is local, and by a send, whose audit row is on the disk before it leaves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from llmos.ipc import paths
from tests.bench.figures import ROOT, percentile, report
from tests.system.bus_attacks.arena import install
from tests.system.bus_attacks.raw import Curve, RawPeer

ROUNDS, CALLS = 15, 200
OPS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "read": ("app", "mail.read", {"folder": "INBOX"}),
    "write": ("user", "mail.note", {"text": "x" * 200}),
    "send": ("user", "mail.send", {"to": "friend@example.org", "text": "x" * 200}),
}
"""Which → who calls what."""


class Booted:
    """A kernel and who calls through it."""

    def __init__(self, runtime: Path) -> None:
        self.user = RawPeer(str(paths.bus_socket(runtime)))
        self.must("user", "sys.hello", {"token": paths.token_file(runtime).read_text()})
        public, secret = zmq.curve_keypair()
        told = self.must(
            "user", "apps.add", {"name": "reader", "key": public.decode(), "allow": ["mail.read(folder=INBOX)"]}
        )
        self.app = RawPeer(told["address"], curve=Curve(public, secret, told["server_key"].encode()))
        self.must("app", "sys.hello", {})
        self.must("user", "perm.grant", {"holder": "mail", "cap": "label.trust"})

    def must(self, who: str, op: str, args: dict[str, Any]) -> Any:
        peer: RawPeer = getattr(self, who)
        ok, body = peer.call(op, args)
        if not ok:
            raise RuntimeError(f"{op}: {body}")
        peer.replies.clear()
        return body

    def p50(self, which: str) -> float:
        """Microseconds of a call."""
        times = []
        for _ in range(CALLS):
            started = time.perf_counter()
            self.must(*OPS[which])
            times.append((time.perf_counter() - started) * 1e6)
        return percentile(times, 0.5)

    def close(self) -> None:
        self.user.close()
        self.app.close()


@contextmanager
def booted(module: str, root: Path) -> Iterator[Booted]:
    """The kernel that `module` is, with the attack arena's mail driver."""
    home = root / "user"
    home.mkdir(parents=True)
    packages = install(root / "packages")
    environment = {
        **os.environ,
        "LLMOS_HOME": str(root / "os"),
        "LLMOS_MODELS": str(root / "none"),
        "PYTHONPATH": str(packages),
    }
    read, write = os.pipe()
    command = [sys.executable, "-m", module, "--home", str(home), "--ready-fd", str(write)]
    kernel = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as stream:
            told = json.loads(stream.readline() or b"{}")
        if not told.get("ready"):
            raise RuntimeError(f"{module} did not start: {told}")
        callers = Booted(root / "os" / "run")
        yield callers
        callers.close()
    finally:
        kernel.terminate()
        kernel.wait(15)


def main() -> None:
    """Print and keep the figures."""
    with (
        tempfile.TemporaryDirectory() as directory,
        booted("llmos.kernel", Path(directory) / "a") as checked,
        booted("tests.bench.unchecked_kernel", Path(directory) / "b") as bare,
    ):
        rows = checked.must("user", "audit.verify", {})["rows"]
        times: dict[str, list[tuple[float, float]]] = {which: [] for which in OPS}
        for round_ in range(ROUNDS + 1):
            for which in OPS:
                pair = (checked.p50(which), bare.p50(which))
                if round_:  # the first one warms up
                    times[which].append(pair)
        written = checked.must("user", "audit.verify", {})["rows"] - rows
        if written < len(OPS) * ROUNDS * CALLS:
            raise RuntimeError(
                f"{written} rows were written of {len(OPS) * ROUNDS * CALLS} calls: nothing has been measured"
            )
    ratios = {which: statistics.median(ours / theirs for ours, theirs in pairs) for which, pairs in times.items()}
    p50s = {which: statistics.median(ours for ours, _ in pairs) for which, pairs in times.items()}
    report(
        "authority_overhead",
        {
            "ratio": ratios["read"],
            "write_ratio": ratios["write"],
            "send_ratio": ratios["send"],
            "read_p50_us": p50s["read"],
            "bare_read_p50_us": statistics.median(theirs for _, theirs in times["read"]),
            "write_p50_us": p50s["write"],
            "send_p50_us": p50s["send"],
            "rounds": ROUNDS,
            "calls": CALLS,
        },
    )


if __name__ == "__main__":
    main()
