"""The battery: every attack once, what came of it, and what somebody else felt meanwhile.

`python -m tests.system.bus_attacks.battery [NAME …]`: a table, and [bus_attacks]. The peer that pings is served by the same cores as the
attackers. Its p99 is compared with that of quiet stretches before each attack (`p99_ratio`), and with that beside one process which
only computes (`p99_ratio_busy`): what the operating system's scheduler costs on few cores, whoever it is that computes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from llmos.ipc import paths
from tests.bench.figures import percentile, report
from tests.system.bus_attacks import attacks_authority, attacks_flood, attacks_flow, attacks_identity, attacks_wire
from tests.system.bus_attacks.arena import ATTACKS, Arena, Outcome, Pinger

MODULES = (attacks_wire, attacks_identity, attacks_authority, attacks_flow, attacks_flood)
"""Importing them fills `ATTACKS`."""
QUIET_S = 0.7
MODELS = paths.models_dir()


@dataclass
class Row:
    """One attack, done."""

    name: str
    outcome: Outcome
    seconds: float
    rss: float
    """MB the kernel has grown by during it."""
    pings: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def run_one(arena: Arena, name: str) -> Outcome:
    """One attack; one that could not be carried out has proved nothing, and counts as a success."""
    try:
        return ATTACKS[name](arena)
    except Exception as error:  # noqa: BLE001  (whatever it was, the battery goes on)
        return Outcome(True, f"NOT CARRIED OUT: {type(error).__name__}: {str(error)[:300]}")


def main() -> int:
    """0 when no attack succeeded."""
    names = sys.argv[1:] or list(ATTACKS)
    rows: list[Row] = []
    quiet: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        arena = Arena(Path(directory))
        arena.system.environment["LLMOS_MODELS"] = str(MODELS)
        with arena:
            pinger = Pinger(arena)
            try:
                first = arena.must("sys.status")["rss_mb"]
                busy = _beside_a_busy_process(pinger)
                for name in names:
                    rows.append(_measured(arena, pinger, name, quiet))
                    _print(rows[-1])
                    if not arena.alive:
                        break
                last = arena.must("sys.status")["rss_mb"] if arena.alive else first
            finally:
                pinger.close()
    return _report(rows, quiet, busy, last - first)


def _beside_a_busy_process(pinger: Pinger) -> list[float]:
    """Pings while a process that has nothing to do with the bus computes: what an attack that only takes processor time does."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinning:
        time.sleep(0.3)
        pinger.take()
        time.sleep(3)
        taken, _ = pinger.take()
        spinning.kill()
    return taken


def _measured(arena: Arena, pinger: Pinger, name: str, quiet: list[float]) -> Row:
    arena.prepare(3)
    time.sleep(0.2)
    pinger.take()
    time.sleep(QUIET_S)
    quiet += pinger.take()[0]
    during: list[float] = []
    failed: list[str] = []

    def phase(attacking: bool) -> None:
        times, errors = pinger.take()
        if not attacking:
            during.extend(times)
            failed.extend(errors)

    arena.on_attack = phase
    before, started = arena.must("sys.status")["rss_mb"], time.monotonic()
    outcome = run_one(arena, name)
    seconds = time.monotonic() - started
    arena.on_attack = lambda _: None
    growth = arena.must("sys.status")["rss_mb"] - before if arena.alive else 0.0
    return Row(name, outcome, seconds, growth, during, failed)


def _print(row: Row) -> None:
    p99 = f"{percentile(row.pings, 0.99) / 1000:7.1f}" if row.pings else "      –"
    result = "SUCCEEDED" if row.outcome.succeeded else "held"
    failed = f" pings failed: {row.failed[0]}" if row.failed else ""
    felt = f"{row.seconds:6.1f} s {row.rss:+6.1f} MB p99{p99} ms of {len(row.pings):<5}"
    sys.stdout.write(f"{row.name:<24}{result:<11}{felt} {row.outcome.evidence[:240]}{failed}\n")
    sys.stdout.flush()


def _report(rows: list[Row], quiet: list[float], busy: list[float], growth: float) -> int:
    under = [taken for row in rows for taken in row.pings]
    base = percentile(quiet, 0.99)
    worst = max((row for row in rows if row.pings), key=lambda row: percentile(row.pings, 0.99))
    succeeded = [row.name for row in rows if row.outcome.succeeded]
    report(
        "bus_attacks",
        {
            "tried": len(rows),
            "succeeded": len(succeeded),
            "kernel_rss_growth_mb": round(growth, 1),
            "p99_ratio": percentile(under, 0.99) / base,
            "p99_ratio_busy": percentile(under, 0.99) / percentile(busy, 0.99),
            "p50_ratio": percentile(under, 0.5) / percentile(quiet, 0.5),
            "quiet_p99_us": base,
            "busy_p99_us": percentile(busy, 0.99),
            "worst_p99_ratio": percentile(worst.pings, 0.99) / base,
            "worst": worst.name,
            "pings_failed": sum(len(row.failed) for row in rows),
            "cpus": os.cpu_count() or 0,
        },
    )
    if succeeded:
        sys.stdout.write(f"succeeded: {', '.join(succeeded)}\n")
    return int(bool(succeeded))


if __name__ == "__main__":
    sys.exit(main())
