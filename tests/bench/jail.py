"""What being jailed and being looked after costs: starts, deaths, and a crowd.

- `overhead_ms_p50`: what a jail adds to `python -I -S -B` running the same module, from the start to the byte that it writes; by layer too.
- `spawn_ms_p50`: from `proc.spawn` sent, by its spawner's clock, to the agent's first syscall, by the kernel's log. `spawn_words` is the
  time until its spawner hears what the agent says first: its package and the way back are in it too. Spaced starts find whatever the kernel
  keeps warm ready; `again` ones follow at once on the one before; a burst asks for many at the same time.
- `crash_ready_ms_p95`: from kill -9 of a driver to the next answer that it gives, as a client sees it. Each is the first crash since
  a boot, so that no back-off has grown; `at_once` are those before the kernel has made jails ready.
- `p99_ratio`: a client's ping while `agents_alive` agents are connected, and call every few seconds, by the same with 10 of them; the two
  alternate.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from llmos.kernel import jail
from llmos.kernel.jail import ALL_LAYERS, Layer, Policy, Tier
from tests.bench.figures import percentile, report
from tests.bench.live import booted

STARTS, SPAWNS, BURST, CRASHES = 40, 25, 16, 40
FEW, MANY, PINGS, ROUNDS = 10, 200, 4000, 2
UP_S = 5.0
"""Seconds that a system is up before a driver is killed."""
PAUSE_S = 4.0
"""Seconds between two calls of an idle agent."""
REFILL_S = 1.0
"""Seconds in which the kernel may make ready what it keeps warm."""
PACKAGES = Path(__file__).parent / "packages"
LAYERS: dict[str, frozenset[Layer]] = {
    "no_layer": frozenset(),
    "landlock": frozenset({Layer.LANDLOCK}),
    "seccomp": frozenset({Layer.SECCOMP}),
    "mounts": frozenset({Layer.MOUNTS}),
    "jail": ALL_LAYERS,
}
_BARE = "import runpy, site, sys; site.main(); sys.path.insert(0, sys.argv[1]); runpy.run_module('one_byte', run_name='__main__')"


# -- one start ---------------------------------------------------------------------------------------------------------


def overhead() -> dict[str, float]:
    """Milliseconds that each layer, and all of them, add to a start."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory).resolve()
        (root / "one_byte.py").write_text("import os\nos.write(1, b'x')\n")
        scratch = root / "scratch"
        scratch.mkdir()
        policy = Policy(path=(root,), write=(scratch,), tier=Tier.C)
        bare = [sys.executable, "-I", "-S", "-B", "-c", _BARE, str(root)]
        times: dict[str, list[float]] = {name: [] for name in ("bare", *LAYERS)}
        for round_ in range(STARTS + 1):
            measured = {"bare": _until_byte(lambda: subprocess.Popen(bare, stdout=subprocess.PIPE))}
            for name, layers in LAYERS.items():
                measured[name] = _until_byte(lambda layers=layers: _jailed(policy, layers))  # type: ignore[misc]
            for name, taken in measured.items() if round_ else ():  # the first one warms up
                times[name].append(taken)
    added = {
        name: statistics.median(ours - base for ours, base in zip(times[name], times["bare"], strict=True))
        for name in LAYERS
    }
    return {
        "overhead_ms_p50": added.pop("jail"),
        **{f"overhead_{name}_ms_p50": value for name, value in added.items()},
        "bare_start_ms_p50": percentile(times["bare"], 0.5),
        "jailed_start_ms_p50": percentile(times["jail"], 0.5),
    }


def _jailed(policy: Policy, layers: frozenset[Layer]) -> jail.Jailed:
    return jail.spawn(policy, "one_byte", layers=layers, stdout=subprocess.PIPE)


def _until_byte(start: Callable[[], Any]) -> float:
    started = time.perf_counter()
    process = start()
    if process.stdout.read(1) != b"x":
        raise RuntimeError("the module did not run")
    taken = (time.perf_counter() - started) * 1e3
    process.wait(10)
    process.stdout.close()
    return taken


# -- agents ------------------------------------------------------------------------------------------------------------


@contextmanager
def _with_idler(log: Path | None = None) -> Iterator[Connection]:
    """A system that knows the idle agent."""
    with tempfile.TemporaryDirectory() as directory:
        packages = Path(directory) / "packages"
        shutil.copytree(PACKAGES, packages)
        info = packages / "idler-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: idler\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[llmos.agents]\nidler = idler\n")
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(packages)
        try:
            with booted(models=False, log=log) as client:
                yield client
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before


def _spawned(client: Connection) -> tuple[float, float]:
    """When an agent was asked for, seconds since 1970, and milliseconds until its spawner hears of it."""
    at, started = time.time(), time.perf_counter()
    stream = client.stream("proc.spawn", {"program": "idler", "allow": [], "wait": True}, timeout=60)
    next(iter(stream))
    heard = (time.perf_counter() - started) * 1e3
    stream.finish()
    return at, heard


def _first_syscalls(log: Path, asked: list[float]) -> list[float]:
    """Milliseconds from each of these to the next hello. Only agents that were asked for say it."""
    rows = [json.loads(line) for line in log.read_text().splitlines() if '"sys.hello"' in line]
    hellos = [datetime.fromisoformat(row["timestamp"]).timestamp() for row in rows]
    return [(min(hello for hello in hellos if hello > at) - at) * 1e3 for at in asked]


def spawns() -> dict[str, float]:
    """Milliseconds from `proc.spawn` to the agent's first syscall, and to its first words."""
    with tempfile.TemporaryDirectory() as directory, _with_idler(log := Path(directory) / "log") as client:
        _gone(client)
        spaced: list[tuple[float, float]] = []
        for _ in range(SPAWNS):
            time.sleep(REFILL_S)
            spaced.append(_spawned(client))
        again = [_spawned(client) for _ in range(SPAWNS)]
        _gone(client)
        time.sleep(REFILL_S)
        burst: list[float] = []
        threads = [threading.Thread(target=lambda: burst.append(_spawned(client)[1])) for _ in range(BURST)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first, first_again = (_first_syscalls(log, [at for at, _ in some]) for some in (spaced, again))
    return {
        "spawn_ms_p50": percentile(first, 0.5),
        "spawn_ms_p95": percentile(first, 0.95),
        "spawn_words_ms_p50": percentile([heard for _, heard in spaced], 0.5),
        "spawn_again_ms_p50": percentile(first_again, 0.5),
        "spawn_again_words_ms_p50": percentile([heard for _, heard in again], 0.5),
        "burst_first_words_ms": min(burst),
        "burst_words_ms_p50": percentile(burst, 0.5),
        "burst_last_words_ms": max(burst),
    }


def _agents(client: Connection, *states: str) -> int:
    """How many there are, in these states or in any."""
    rows = client.call("proc.list")["processes"]
    return sum(row["kind"] == "agent" and (not states or row["state"] in states) for row in rows)


def _gone(client: Connection) -> None:
    while _agents(client):
        time.sleep(0.02)


# -- crashes -----------------------------------------------------------------------------------------------------------


def crashes() -> dict[str, float]:
    """Milliseconds from a driver's death to its next answer, some seconds after boot, and at once after it."""
    taken: dict[str, list[float]] = {"filesystem": [], "browser_history": []}
    cold: list[float] = []
    ops = {"filesystem": "filesystem.list", "browser_history": "browser_history.sources"}
    for number in range(CRASHES):
        with booted(models=False) as client:
            for op in ops.values():
                client.call(op, timeout=10)
            at_once = number % 4 == 0
            time.sleep(0.1 if at_once else UP_S)
            for name, op in ops.items():
                (cold if at_once else taken[name]).append(_until_back(client, name, op))
    both = [one for each in taken.values() for one in each]
    return {
        "crash_ready_ms_p95": percentile(both, 0.95),
        "crash_ready_ms_p50": percentile(both, 0.5),
        **{f"crash_{name}_ms_p95": percentile(each, 0.95) for name, each in taken.items()},
        "crash_at_once_ms_p50": percentile(cold, 0.5),
        "crash_at_once_ms_p95": percentile(cold, 0.95),
        "crashes": len(both) + len(cold),
    }


def _until_back(client: Connection, name: str, op: str) -> float:
    row = next(row for row in client.call("proc.list")["processes"] if row["name"] == name)
    started = time.perf_counter()
    os.kill(row["os_pid"], signal.SIGKILL)
    while True:
        try:
            client.call(op, timeout=10)
        except OpError as error:  # it was handed on before the kernel knew: asked again, as any client would
            if error.code is not Code.PEER_DIED:
                raise
        else:
            return (time.perf_counter() - started) * 1e3


# -- a crowd -----------------------------------------------------------------------------------------------------------


def crowd() -> dict[str, float]:
    """The p99 of a ping beside many agents, by that beside a few."""
    pings: dict[int, list[float]] = {FEW: [], MANY: []}
    alive, spent, seconds, rss = MANY, [], [], 0.0
    with _with_idler() as client:
        pids = _spawn_up_to(client, FEW, [])
        for _ in range(ROUNDS):
            _ping(client, pings[FEW])
            free, started = _available(), time.perf_counter()
            pids = _spawn_up_to(client, MANY, pids)
            seconds.append(time.perf_counter() - started)
            time.sleep(2 * PAUSE_S)  # let it settle
            spent.append((free - _available()) / (MANY - FEW))
            _ping(client, pings[MANY])
            alive, rss = min(alive, _agents(client, "ready")), client.call("sys.status")["rss_mb"]
            for pid in pids[FEW:]:
                with suppress(OpError):
                    client.call("proc.kill", {"pid": pid, "force": True})
            pids = pids[:FEW]
            _until(lambda: _agents(client) <= FEW, "did not end")
            time.sleep(PAUSE_S)
    few, many = percentile(pings[FEW], 0.99), percentile(pings[MANY], 0.99)
    return {
        "agents_alive": alive,
        "p99_ratio": many / few,
        "p99_few_us": few,
        "p99_many_us": many,
        "p50_few_us": percentile(pings[FEW], 0.5),
        "p50_many_us": percentile(pings[MANY], 0.5),
        "agent_mb": statistics.median(spent),
        "crowd_s": statistics.median(seconds),
        "crowd_kernel_rss_mb": rss,
        "pings": len(pings[FEW]),
    }


def _spawn_up_to(client: Connection, count: int, pids: list[int]) -> list[int]:
    args = {"program": "idler", "args": {"pause": PAUSE_S}, "allow": []}
    pids = pids + [client.call("proc.spawn", args)["pid"] for _ in range(count - len(pids))]
    _until(lambda: _agents(client, "ready") >= count, "did not come up")
    return pids


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + 180
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"the agents {otherwise}")
        time.sleep(0.1)


def _available() -> float:
    """Megabytes of memory that could be had now. Source: proc(5)."""
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024 / 1e6


def _ping(client: Connection, into: list[float]) -> None:
    for _ in range(PINGS):
        started = time.perf_counter()
        client.call("sys.ping", timeout=10)
        into.append((time.perf_counter() - started) * 1e6)
        time.sleep(0.001)


def main() -> None:
    """Print and keep the figures."""
    report("jail", {**overhead(), **spawns(), **crashes(), **crowd()})


if __name__ == "__main__":
    main()
