"""Where things live. `LLMOS_HOME` moves all of it below one directory; otherwise the platform's own places are used."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import platformdirs

MAX_SOCKET_PATH = 103
"""Bytes of a unix socket's path (`sun_path` less its terminator, on the smallest platform)."""


def state_dir() -> Path:
    """Journal, drivers' state, logs."""
    home = os.environ.get("LLMOS_HOME")
    return Path(home) if home else platformdirs.user_data_path("llmos")


def config_dir() -> Path:
    """What the user writes herself, and keys of apps."""
    home = os.environ.get("LLMOS_HOME")
    return Path(home) / "config" if home else platformdirs.user_config_path("llmos", appauthor=False)


def models_dir() -> Path:
    """The model store; `LLMOS_MODELS` overrides it, so that several systems can share one."""
    models = os.environ.get("LLMOS_MODELS")
    return Path(models) if models else state_dir() / "models"


def packages_dir() -> Path:
    """Packages of drivers and agents that the user installed, a directory for each."""
    return state_dir() / "packages"


def runtime_dir() -> Path:
    """Sockets and the user's token; mode 0700. Beside the state where a login session gives no place of its own."""
    home = os.environ.get("LLMOS_HOME")
    if home or (sys.platform == "linux" and not os.environ.get("XDG_RUNTIME_DIR")):
        return state_dir() / "run"  # never the shared /tmp, where another user may have been first
    return platformdirs.user_runtime_path("llmos")


def apps_socket(runtime: Path) -> Path:
    """Where programs from outside connect, each with a key of its own."""
    return bus_socket(runtime).with_name("apps")


def bus_socket(runtime: Path) -> Path:
    """The gate's socket for processes and people of this machine, in a directory that jails can see."""
    return runtime / "bus" / "gate"


def egress_socket(runtime: Path) -> Path:
    """The egress broker's socket, in a directory that only the jails of drivers with a network grant can see."""
    return runtime / "net" / "egress"


def token_file(runtime: Path) -> Path:
    """What a person's programs prove themselves with; never visible in a jail."""
    return runtime / "user.token"
