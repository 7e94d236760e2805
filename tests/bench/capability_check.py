"""What a capability check and a row of the audit log cost.

`check_us` is a check through a chain of three with a quota at each link; `held_200_us` one by a holder of 200 capabilities on as many
objects; `paths_200_us` one by a holder of 200 on the same object and verb, of which the last fits: the worst there is. Times of
checks are the best of several rounds: what the code costs, not what else the machine does. `append_us` is the median of rows of the
log, each committed on its own; `append_cpu_us` the mean of what they take of a processor; `append_synced_ms` a row that waits for
the disk.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

from llmos.kernel.audit import Audit, Kind
from llmos.kernel.capability import USER, Right, Table
from llmos.kernel.journal import Journal
from tests.bench.figures import percentile, report

ROUNDS, CALLS, APPENDS, SYNCED = 15, 20_000, 5_000, 20
ARGS = b"x" * 300


def _best_us(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def _chain(table: Table, depth: int) -> str:
    """The holder at the end of a chain of that many."""
    giver = USER
    for level in range(depth):
        holder = f"level{level}"
        right = f"mail.send(folder=out, calls={depth - level}G/d, grantable=yes)"
        table.derive(giver, Right.parse(right), holder, "bench")
        giver = holder
    return giver


def _checks() -> dict[str, float]:
    table = Table()
    table.mint(USER, Right("*", "*", grantable=True), "boot")
    end = _chain(table, 3)
    for number in range(200):
        table.derive(USER, Right.parse(f"driver{number}.read(path=/a)"), "many", "bench")
        table.derive(USER, Right.parse(f"fs.read(path=/d{number})"), "paths", "bench")
    out, beneath, last = {"folder": ("out",)}, {"path": ("/a/b/c",)}, {"path": ("/d199/b/c",)}
    return {
        "check_us": _best_us(lambda: table.check(end, "mail", "send", out)),
        "held_200_us": _best_us(lambda: table.check("many", "driver150", "read", beneath)),
        "paths_200_us": min(timeit.repeat(lambda: table.check("paths", "fs", "read", last), number=1000, repeat=5))
        * 1e3,
    }


def _appends(folder: Path) -> dict[str, float]:
    journal = Journal(folder / "journal.db")
    audit = Audit(folder / "audit.db", journal)
    times = []
    busy = time.process_time()
    for _ in range(APPENDS):
        began = time.perf_counter()
        audit.append(Kind.EFFECT, "assistant#7", "mail.send", "allow", cap="c3", label="untrusted {mail}", args=ARGS)
        times.append((time.perf_counter() - began) * 1e6)
    busy = time.process_time() - busy
    began = time.perf_counter()
    audit.anchor()
    anchor_ms = (time.perf_counter() - began) * 1e3
    synced = []
    for _ in range(SYNCED):
        began = time.perf_counter()
        audit.append(Kind.GRANT, "user", "perm.grant", "granted", detail="mail.read(folder=INBOX)", sync=True)
        synced.append((time.perf_counter() - began) * 1e3)
    began = time.perf_counter()
    fault = audit.verify()
    verify_us = (time.perf_counter() - began) / (APPENDS + SYNCED) * 1e6
    audit.close()
    journal.close()
    if fault is not None:
        raise SystemExit(f"the log of the benchmark does not verify: row {fault.seq} {fault.what}")
    return {
        "append_us": percentile(times, 0.5),
        "append_cpu_us": busy / len(times) * 1e6,
        "append_mean_us": sum(times) / len(times),
        "append_p99_us": percentile(times, 0.99),
        "appends_per_s": len(times) / sum(times) * 1e6,
        "append_synced_ms": percentile(synced, 0.5),
        "anchor_ms": anchor_ms,
        "verify_us_per_row": verify_us,
    }


def main() -> None:
    """Print and keep the figures."""
    figures = _checks()
    with tempfile.TemporaryDirectory(prefix="llmos-") as folder:
        figures |= _appends(Path(folder))
    report("capability_check", {**figures})


if __name__ == "__main__":
    main()
