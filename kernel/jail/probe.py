"""What this machine can enforce, found by trying: each layer alone in a real jail, then all that work together."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llmos.kernel.jail.policy import ALL_LAYERS, JailError, Layer, Policy, Tier
from llmos.kernel.jail.process import INSTALL_BUBBLEWRAP, spawn

_FULL_LANDLOCK = 6  # the first ABI that holds back abstract sockets and signals
_NOTHING = "__future__"  # a module that does nothing when run
_TIMEOUT_S = 10.0

# What an administrator can change about namespaces: the file, the value that forbids them, what to do about it.
_APPARMOR = """AppArmor keeps bubblewrap from making user namespaces; give /usr/bin/bwrap a profile with `userns,`, or: \
sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"""
_OFF = "user namespaces are switched off; allow them with: sudo sysctl "
_SWITCHES = (
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", _APPARMOR),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", _OFF + "kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", _OFF + "user.max_user_namespaces=15000"),
)
_IN_A_CONTAINER = "in a container, allow it user namespaces (for Docker: --security-opt seccomp=unconfined)"


@dataclass(frozen=True)
class Finding:
    """One layer: whether it works here, what was seen, and what would make it work (empty when it does)."""

    layer: str
    """A `Layer`; elsewhere than on Linux, what stands in for all of them."""
    works: bool
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Report:
    """The tier this machine reaches, the layers to hand to `spawn`, and one finding for each layer."""

    tier: Tier
    layers: frozenset[Layer]
    findings: tuple[Finding, ...]

    def require(self, minimum: Tier) -> None:
        """Raise JailError, saying what is missing and how to get it, when `tier` is weaker than `minimum`."""
        if self.tier.at_least(minimum):
            return
        lacking = [finding for finding in self.findings if finding.hint]
        reasons = "; ".join(f"{finding.layer}: {finding.reason}" for finding in lacking)
        hints = "; ".join(finding.hint for finding in lacking)
        raise JailError(f"a jail of tier {minimum} is required and this machine reaches {self.tier} ({reasons})", hints)


def probe() -> Report:
    """Try every layer with a real jail (about 0.2 s)."""
    if sys.platform != "linux":
        return _elsewhere()
    from llmos.kernel.jail.enter import landlock_abi

    findings = (_mounts(), _landlock(), _seccomp())
    working = frozenset(Layer(finding.layer) for finding in findings if finding.works)
    full = working == ALL_LAYERS and landlock_abi() >= _FULL_LANDLOCK
    if full and _trial(working, Tier.A) is None:
        return Report(Tier.A, working, findings)
    if {Layer.LANDLOCK, Layer.SECCOMP} <= working and _trial(working, Tier.B) is None:
        return Report(Tier.B, working, findings)
    return Report(Tier.C, working, findings)


def _elsewhere() -> Report:
    """Tier B at best: nothing here is tried as hard as on Linux."""
    from llmos.kernel.jail import elsewhere

    name = "seatbelt" if elsewhere.supported() else "jail"
    trouble = _trial(frozenset(), Tier.B)
    if trouble is None:
        return Report(Tier.B, frozenset(), (Finding(name, works=True, reason="experimental: sandbox-exec confines"),))
    finding = Finding(name, works=False, reason=trouble, hint="use Linux; on Windows, WSL 2")
    return Report(Tier.C, frozenset(), (finding,))


def _mounts() -> Finding:
    trouble = _trial(frozenset({Layer.MOUNTS}), Tier.C)
    if trouble is None:
        return Finding(Layer.MOUNTS, works=True, reason="bubblewrap made its namespaces")
    return Finding(Layer.MOUNTS, works=False, reason=trouble, hint=_hint_for_bubblewrap(trouble))


def _landlock() -> Finding:
    from llmos.kernel.jail.enter import landlock_abi

    abi = landlock_abi()
    if abi == 0:
        hint = "boot Linux 6.12 or newer with Landlock in its lsm= list"
        return Finding(Layer.LANDLOCK, works=False, reason="Linux has it not or switched it off", hint=hint)
    trouble = _trial(frozenset({Layer.LANDLOCK}), Tier.C)
    if trouble is not None:
        return Finding(Layer.LANDLOCK, works=False, reason=trouble, hint="use Linux 6.12 or newer")
    if abi < _FULL_LANDLOCK:
        reason = f"ABI {abi} does not hold back signals and abstract sockets; ABI {_FULL_LANDLOCK} does"
        return Finding(Layer.LANDLOCK, works=True, reason=reason, hint="use Linux 6.12 or newer")
    return Finding(Layer.LANDLOCK, works=True, reason=f"ABI {abi}")


def _seccomp() -> Finding:
    trouble = _trial(frozenset({Layer.SECCOMP}), Tier.C)
    if trouble is None:
        return Finding(Layer.SECCOMP, works=True, reason=f"filter for {platform.machine()} in force")
    hint = "use a Linux built with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64"
    return Finding(Layer.SECCOMP, works=False, reason=trouble, hint=hint)


def _trial(layers: frozenset[Layer], tier: Tier) -> str | None:
    """Run a jail of these layers around nothing: None when it held, otherwise what went wrong in one line."""
    with tempfile.TemporaryFile() as stderr:
        try:
            jailed = spawn(Policy(tier=tier), _NOTHING, layers=layers, stdout=subprocess.DEVNULL, stderr=stderr)
        except JailError as error:
            return str(error)
        try:
            jailed.started(_TIMEOUT_S)
            status = jailed.wait(_TIMEOUT_S)
        except JailError as error:
            jailed.wait(_TIMEOUT_S)
            return _last_line(stderr) or str(error)
        except (TimeoutError, subprocess.TimeoutExpired):
            jailed.kill()
            jailed.wait()
            return f"no answer within {_TIMEOUT_S:.0f} s"
        return None if status == 0 else _last_line(stderr) or f"exit status {status}"


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _hint_for_bubblewrap(trouble: str) -> str:
    if "not installed" in trouble or "Unknown option" in trouble:
        return INSTALL_BUBBLEWRAP
    for file, forbidding, hint in _SWITCHES:
        path = Path(file)
        if path.exists() and path.read_text().strip() == forbidding:
            return hint
    return _IN_A_CONTAINER
