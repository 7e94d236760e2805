"""The escape battery as a table: out of no jail, a whole jail, and jails without one layer, as root and as a user.

python -m tests.system.escape_battery              (as root: also as an ordinary user; figures in build/figures)

Exit status 1 when an attempt gets out of a whole jail, does not even work outside, or a layer turns out to be idle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmos.kernel.jail import ALL_LAYERS, Layer, Tier, probe
from tests.system.escape_stage import ROOT, escapes_outside, gets_out, staged
from tests.system.jail_escapes import ATTEMPTS

_USER = 65534
"""The ordinary user that root runs the battery as: nobody."""
_REPOSITORY = Path(__file__).parents[2]
_PARTS = ("ipc", "drivers", "userland", "kernel")
_COLUMNS = ("bwrap", "landlock", "seccomp")
_LAYER = dict(zip(_COLUMNS, (Layer.MOUNTS, Layer.LANDLOCK, Layer.SECCOMP), strict=True))


@dataclass(frozen=True)
class Row:
    """What became of one attempt."""

    name: str
    outside: bool
    inside: bool
    without: dict[str, bool]


def run(names: Sequence[str], setuid: Path | None = None) -> list[Row]:
    """Every attempt in every jail, two attempts at a time."""
    with (
        tempfile.TemporaryDirectory() as top,
        staged(Path(top).resolve(), setuid=setuid) as stage,
        ThreadPoolExecutor(2) as pool,
    ):

        def one(name: str) -> Row:
            without = {label: gets_out(name, stage, ALL_LAYERS - {layer}) for label, layer in _LAYER.items()}
            return Row(name, escapes_outside(name, stage), gets_out(name, stage), without)

        return list(pool.map(one, names))


def as_user(uid: int) -> tuple[list[Row], str]:
    """The battery run by another user, with an interpreter and a copy of this tree that it can read; or why not."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        top.chmod(0o755)
        found = [python for python in _interpreters() if _runs(python, uid)]
        if not found:
            return [], f"no Python that user {uid} can run"
        made = subprocess.run([found[0], "-m", "venv", "--without-pip", str(top / "venv")], capture_output=True)
        if made.returncode:
            return [], f"{found[0]} makes no virtual environment"
        packages = next((top / "venv" / "lib").glob("python3*/site-packages"))
        ignored = shutil.ignore_patterns("__pycache__")
        for part in _PARTS:
            shutil.copytree(_REPOSITORY / part, packages / "llmos" / part, ignore=ignored)
        for part in ("__init__.py", "system/__init__.py", "system/escape_battery.py", "system/escape_stage.py"):
            (top / "tests" / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_REPOSITORY / "tests" / part, top / "tests" / part)
        shutil.copytree(_REPOSITORY / "tests/system/jail_escapes", top / "tests/system/jail_escapes", ignore=ignored)
        setuid = top / "shows"
        shutil.copyfile("/bin/cat", setuid)
        setuid.chmod(0o4755)
        scratch = top / "scratch"
        scratch.mkdir()
        os.chown(scratch, uid, uid)
        command = [f"{top}/venv/bin/python", "-m", "tests.system.escape_battery", "--rows", "--setuid", str(setuid)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "TMPDIR": str(scratch), "LANG": "C.UTF-8"}
        ended = subprocess.run(
            command, cwd=top, env=environment, user=uid, group=uid, extra_groups=[], stdout=subprocess.PIPE, text=True
        )
    if ended.returncode:
        return [], ended.stdout.strip() or f"exit status {ended.returncode}"
    return [Row(**row) for row in json.loads(ended.stdout)], ""


def _interpreters() -> list[str]:
    named = [
        shutil.which(name, path="/usr/bin:/usr/local/bin:/bin") for name in ("python3", "python3.12", "python3.11")
    ]
    base: Any = getattr(sys, "_base_executable", sys.executable)
    return [str(python) for python in (base, *named) if python]


def _runs(python: str, uid: int) -> bool:
    code = "import ctypes, sys, venv; sys.exit(sys.version_info < (3, 11))"
    try:
        return not subprocess.run([python, "-c", code], user=uid, group=uid, extra_groups=[], cwd="/").returncode
    except OSError:
        return False


def figures(user: str, rows: Sequence[Row]) -> dict[str, int]:
    """The counts for one user. An attempt that this machine holds back from everybody is not among those tried."""
    without = {f"succeeded_without_{label}": sum(row.without[label] for row in rows) for label in _COLUMNS}
    counts = {
        "tried": len(rows),
        "work_outside": sum(row.outside for row in rows),
        "succeeded": sum(row.inside for row in rows),
        **without,
    }
    return {f"{user}_{name}": count for name, count in counts.items()}


def troubles(rows: Sequence[Row], *, root: bool) -> list[str]:
    """What the battery must not find."""
    found = [f"{row.name} gets out of the whole jail" for row in rows if row.inside]
    for row in rows:
        attempt = ATTEMPTS[row.name]
        if not (row.outside or attempt.depends or (attempt.root and not root)):
            found.append(f"{row.name} does not even work outside: it shows nothing")
    idle = [label for label in _COLUMNS if not any(row.without[label] for row in rows)]
    return found + [f"nothing gets out of a jail without {label}: it is idle, or the battery blind" for label in idle]


def _table(user: str, rows: Sequence[Row]) -> None:
    print(f"\nas {user}\n  {'attempt':<34} outside  jail     " + " ".join(f"-{label:<9}" for label in _COLUMNS))
    for row in rows:
        cells = [row.outside, row.inside, *(row.without[label] for label in _COLUMNS)]
        shown = " ".join(
            f"{'out' if cell else '·':<{width}}" for cell, width in zip(cells, (8, 8, 10, 10, 10), strict=True)
        )
        print(f"  {row.name:<34} {shown.rstrip()}")


def main() -> int:
    """Run it, print the tables, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", action="store_true", help="run as this user only, and print the outcomes as JSON")
    parser.add_argument("--setuid", type=Path, help="a program that becomes root")
    options = parser.parse_args()
    report = probe()
    if report.tier is not Tier.A:
        print("; ".join(f"{finding.layer}: {finding.reason}" for finding in report.findings if finding.hint))
        return 1
    rows = run(list(ATTEMPTS), options.setuid)
    if options.rows:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    from tests.bench.figures import report as keep

    users = {"root" if ROOT else "user": (rows, "")}
    if ROOT:
        users["user"] = as_user(_USER)
    counts: dict[str, float | int | str] = {}
    wrong: list[str] = []
    for user, (found, why) in users.items():
        if why:
            print(f"\nas {user}: not possible here: {why}")
            counts[f"{user}_not_possible"] = why
            continue
        _table(user, found)
        counts |= figures(user, found)
        wrong += [f"as {user}: {trouble}" for trouble in troubles(found, root=user == "root")]
    keep("escapes", counts)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
