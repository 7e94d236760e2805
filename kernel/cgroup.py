"""Control groups: what a jail may use all together, held by Linux itself, through the user's systemd where there is one.

Each jail becomes a transient scope (`systemd-run --user --scope`), which then executes bubblewrap in place, so that the kernel's child is
bubblewrap all the same. Where that does not work, the watchdog looks every few seconds: slower, and nothing else changes.
`python -m llmos.kernel.cgroup` says which it is, as JSON.

Source: systemd-run(1), systemd.resource-control(5).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass

from llmos.kernel import params
from llmos.kernel.usage import Allowed

_BUS = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""What systemd-run needs of our environment, and a jail must not get."""
_TRY_S = 5.0
_TRIAL = 256 << 20
_SHOW_LIMIT = 'cat "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/memory.max"'
_ROOM = 1.25
"""Times the watchdog's limit: what grows slowly is ended by that, which can say why; what grows fast ends here."""
_WEIGHTS = {"core": 80, "driver": 50, "agent": 20}
"""Shares of the processor beside the usual 100."""


@dataclass(frozen=True)
class Groups:
    """Whether jails get one."""

    works: bool
    reason: str
    """What was seen, in one line."""

    def prefix(self, kind: str) -> list[str]:
        """What comes before the command of a process of this kind; nothing where it does not work, or for the gates."""
        memory = Allowed.of(kind).memory
        if not self.works or kind not in _WEIGHTS or memory is None:
            return []
        return scope(int(memory * _ROOM), params.MAX_TASKS, _WEIGHTS[kind])


def scope(memory: int, tasks: int, weight: int) -> list[str]:
    """The words before a command that is to run in a scope of its own.

    Args:
        memory: bytes, page cache included, which Linux takes back before it kills.
    """
    limits = {"MemoryMax": memory, "MemorySwapMax": 0, "TasksMax": tasks, "CPUWeight": weight}
    properties = [word for name, value in limits.items() for word in ("-p", f"{name}={value}")]
    reached = [f"{name}={os.environ[name]}" for name in _BUS if name in os.environ]
    hidden = [word for name in _BUS for word in ("-u", name)]
    run = [
        shutil.which("systemd-run") or "systemd-run",
        "--user",
        "--scope",
        "--quiet",
        "--collect",
        "--slice=llmos",
        *properties,
        "--",
    ]
    return ["/usr/bin/env", *reached, *run, "/usr/bin/env", *hidden]


def probe() -> Groups:
    """Try it: a scope with a limit on memory, which must be in force inside. Blocks for up to five seconds."""
    if shutil.which("systemd-run") is None:
        return Groups(works=False, reason="there is no systemd-run")
    if not any(name in os.environ for name in _BUS):
        return Groups(works=False, reason="there is no session of systemd's: XDG_RUNTIME_DIR is not set")
    command = [*scope(_TRIAL, 64, 50), "/bin/sh", "-c", _SHOW_LIMIT]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TRY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Groups(works=False, reason=f"systemd-run: {error}")
    if done.returncode == 0 and done.stdout.strip() == str(_TRIAL):
        return Groups(works=True, reason="each jail is a scope of the user's systemd")
    said = (done.stderr.strip().splitlines() or ["the limit on memory is not in force in a scope"])[-1]
    return Groups(works=False, reason=f"systemd-run: {said[:200]}")


if __name__ == "__main__":
    found = probe()
    print(json.dumps({"works": found.works, "reason": found.reason}))
