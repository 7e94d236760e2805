"""Jails on other systems than Linux, experimental: Seatbelt on macOS carried out, Windows planned only."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from llmos.kernel.jail import seatbelt, view
from llmos.kernel.jail.policy import JailError, Policy, Tier
from llmos.kernel.jail.process import Jailed, Started

_UNSUPPORTED = "use Linux; on Windows, WSL 2"
# The profile is in force before the interpreter starts. What `enter.py` does on Linux is done here as far as it exists.
_START = """import json, os, resource, sys
status, told = int(sys.argv[1]), json.loads(sys.argv[2])
try:
    os.chdir(told["cwd"])
    for limit, value in told["limits"]:
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
except (OSError, ValueError) as error:
    os.write(status, b"failed " + str(error).encode())
    sys.exit(125)
os.write(status, b"closed 0")
os.close(status)
import runpy, site
site.main()
sys.path[:0] = told["path"]
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)"""


class _Seated(Jailed):
    """A process that Seatbelt confines; its temporary directory goes with it."""

    def __init__(self, process: subprocess.Popen[bytes], status: socket.socket, scratch: Path) -> None:
        super().__init__(process, status, mounts=False, share_pid=True)
        self._scratch = scratch

    def _receive(self, timeout: float | None) -> Started | JailError:
        self._status.settimeout(timeout)
        try:
            word, _, detail = self._status.recv(4096).decode(errors="replace").partition(" ")
        except BlockingIOError:
            raise TimeoutError("the jail has not reported yet") from None
        if word == "closed":
            return Started(self._process.pid, 0)
        if word == "failed":
            return JailError(f"the jail could not be closed: {detail}")
        return JailError("the jail could not be built; the reason is on its standard error")

    def wait(self, timeout: float | None = None) -> int:
        status = super().wait(timeout)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return status


def supported() -> bool:
    """Whether jails can be built here at all."""
    return sys.platform == "darwin"


def spawn(
    policy: Policy,
    module: str,
    args: Sequence[str],
    environment: Mapping[str, str],
    *,
    pass_fds: Iterable[int],
    stdin: int | IO[bytes] | None,
    stdout: int | IO[bytes] | None,
    stderr: int | IO[bytes] | None,
) -> Jailed:
    """As `process.spawn`. Raises JailError on a system without jails, and for a policy that requires tier A."""
    if not supported():
        raise JailError(f"there are no jails on {sys.platform} yet", _UNSUPPORTED)
    if policy.tier is Tier.A:
        raise JailError(
            "a jail of tier A is required; Seatbelt, which is experimental here, makes it only B", _UNSUPPORTED
        )
    if not Path(seatbelt.SANDBOX_EXEC).exists():
        raise JailError(f"{seatbelt.SANDBOX_EXEC} is missing", _UNSUPPORTED)
    view.check(policy, mounts=False)
    scratch = Path(tempfile.mkdtemp(prefix="llmos-")).resolve()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with theirs:
            told = {
                "cwd": str(policy.write[0]) if policy.write else "/",
                "limits": _limits(policy),
                "path": [str(path) for path in policy.path],
            }
            inner = ["-I", "-S", "-B", "-c", _START, str(theirs.fileno()), json.dumps(told), module, *args]
            process = subprocess.Popen(
                seatbelt.command(policy, scratch, [sys.executable, *inner]),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={**environment, "TMPDIR": str(scratch)},
                pass_fds=[*pass_fds, theirs.fileno()],
                cwd="/",
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        with suppress(OSError):
            shutil.rmtree(scratch)
        raise
    return _Seated(process, ours, scratch)


def _limits(policy: Policy) -> list[tuple[int, int]]:
    """What macOS enforces. RLIMIT_NPROC counts all of the user's processes there, so it bounds nothing of a jail's own."""
    import resource

    wanted = {
        resource.RLIMIT_AS: policy.limits.address_space,
        resource.RLIMIT_NOFILE: policy.limits.open_files,
        resource.RLIMIT_FSIZE: policy.limits.file_size,
        resource.RLIMIT_CPU: policy.limits.cpu_seconds,
        resource.RLIMIT_CORE: 0,
    }
    return [(limit, value) for limit, value in wanted.items() if value is not None]
