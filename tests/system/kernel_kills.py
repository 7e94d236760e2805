"""kill -9 of the kernel at random moments of its boot: `python -m tests.system.kernel_kills [COUNT] [SECONDS] [SIGNAL]`.

Whatever is orphaned becomes a child of this process (PR_SET_CHILD_SUBREAPER), so that nothing can be overlooked. The last line is JSON:
how many kernels were killed, how many of them before they were ready, what outlived them, and what the last boot found in order.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.system.processes import adopt, children, reap

GONE_S = 10.0
"""Seconds that what a kernel leaves behind may take to be gone, on a machine with much else to do."""


def living() -> set[int]:
    """Whatever is ours, zombies reaped."""
    reap()
    return children()


def boot(root: Path) -> tuple[int, int]:
    """A kernel's pid, and the descriptor that it says on whether it is ready."""
    read, write = os.pipe()
    (root / "user").mkdir(exist_ok=True)
    environment = {**os.environ, "LLMOS_HOME": str(root / "os"), "LLMOS_MODELS": str(root / "no-models")}
    command = [sys.executable, "-m", "llmos.kernel", "--home", str(root / "user"), "--ready-fd", str(write)]
    with (root / "kernel.log").open("ab") as log:
        made = subprocess.Popen(command, env=environment, pass_fds=(write,), stderr=log)
    made.returncode = 0  # it is reaped with the others
    os.close(write)
    return made.pid, read


def describe(pid: int) -> str:
    """What is known of a process that should not be there."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{pid} {Path(f'/proc/{pid}/wchan').read_text()} {words[:200]}"
    except OSError:
        return f"{pid} (gone since)"


def main(count: int, seconds: float, number: signal.Signals) -> int:
    """1 when anything was left."""
    adopt()
    left: list[str] = []
    unready = 0
    with tempfile.TemporaryDirectory(prefix="kk") as name:
        root = Path(name)
        for _ in range(count):
            pid, told = boot(root)
            ready = bool(select.select([told], [], [], random.uniform(0.05, seconds))[0])
            unready += not ready
            os.close(told)
            os.kill(pid, number)
            end = time.monotonic() + GONE_S
            while (alive := living()) and time.monotonic() < end:
                time.sleep(0.01)
            left += [describe(one) for one in alive]
            for one in alive:
                os.kill(one, signal.SIGKILL)
        scratch = root / "os" / "agents" / "7"
        scratch.mkdir(parents=True)  # of an agent of a kernel that was killed
        pid, told = boot(root)
        word = os.read(told, 4096) if select.select([told], [], [], 60)[0] else b""
        clean = bool(word and json.loads(word).get("ready")) and not scratch.exists()
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    print(json.dumps({"killed": count, "unready": unready, "left": left, "boots_again": clean}))
    return int(bool(left) or not clean)


if __name__ == "__main__":
    words = dict(enumerate(sys.argv))
    sys.exit(main(int(words.get(1, "200")), float(words.get(2, "1.5")), signal.Signals[words.get(3, "SIGKILL")]))
