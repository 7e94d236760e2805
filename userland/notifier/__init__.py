"""Requests for approval as desktop notifications, with buttons: a process of its own beside the system.

    python -m llmos.userland.notifier

It hears of `approval.*` as the person at the machine and talks to `org.freedesktop.Notifications` on her session bus. What this rests
on: whoever owns that name on her session bus shows her the truth and clicks only what she clicked. Nothing in a jail reaches that
bus; other programs of hers do, and could as well read the token that makes them her.

Source: https://specifications.freedesktop.org/notification-spec/1.2/
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

NO_DESKTOP = "there is no desktop session here to show notifications on; `llmosctl approval watch` prints what waits"


def session_bus(environment: Mapping[str, str]) -> str | None:
    """Address of the session bus; None where there is none. Source: the D-Bus specification, "Well-known Message Bus Instances"."""
    given = environment.get("DBUS_SESSION_BUS_ADDRESS")
    if given:
        return given
    runtime = environment.get("XDG_RUNTIME_DIR")
    if runtime and (Path(runtime) / "bus").is_socket():
        return f"unix:path={runtime}/bus"
    return None


def start_beside(environment: Mapping[str, str], log: IO[bytes] | None = None) -> subprocess.Popen[bytes] | None:
    """The notifier as a process of its own, which ends with the system; None where there is no desktop session.

    What it has to say goes to `log`, by default to this process's own stderr.
    """
    if session_bus(environment) is None:
        return None
    return subprocess.Popen(
        [sys.executable, "-m", "llmos.userland.notifier"],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
    )
