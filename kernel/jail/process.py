"""Starting a jail and holding on to it: the outer half."""

from __future__ import annotations

import marshal
import os
import platform
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import IO, TYPE_CHECKING, Any, cast

from llmos.kernel.jail import seccomp, view
from llmos.kernel.jail.policy import ALL_LAYERS, JailError, Layer, Limits, Policy, Tier, reachable

if TYPE_CHECKING:
    from llmos.kernel.jail.enter import Settings

INSTALL_BUBBLEWRAP = "install bubblewrap 0.8 or newer, for example: sudo apt-get install bubblewrap"

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
_KEPT_ENVIRONMENT = ("TZ", "LLMOS_RUN")  # LLMOS_RUN: whose jail it is, for `guard.py`
_ENFORCED_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1"}
_LANDLOCK_MINIMUM = {Tier.A: 6, Tier.B: 1, Tier.C: 1}
_UCRED = struct.Struct("@iII")  # struct ucred: pid, uid, gid
_LONGEST_STATUS = 4096
_START = """import marshal, os
with os.fdopen({fd}, "rb") as inner: code, settings = marshal.load(inner)
exec(code)
main(settings)"""

# Real user ids for the jails that root starts: one nobody has, and another for each jail, since they are counted by it.
_FIRST_JAIL_UID, _JAIL_UIDS = 0x7000_0000, 1 << 24
_CAP_SETGID, _CAP_SETUID, _CAP_SETPCAP, _CAP_SYS_ADMIN = 6, 7, 8, 21


@dataclass(frozen=True)
class Started:
    """What a jail reports once it is closed and before its module runs."""

    pid: int
    """The module's process as the host sees it, which is what SO_PEERCRED shows to a peer outside."""
    landlock_abi: int
    """The Landlock ABI in force, 0 without Landlock."""


class Jailed:
    """A process in a jail, from `spawn`. Close its pipes and call `wait`, as with subprocess.Popen."""

    def __init__(
        self, process: subprocess.Popen[bytes], status: socket.socket, *, mounts: bool, share_pid: bool
    ) -> None:
        self._process = process  # bubblewrap's monitor, or the module's process itself without mounts
        self._status = status
        self._mounts = mounts
        self._share_pid = share_pid
        self._outcome: Started | JailError | None = None
        self._init: int | None = None  # pid 1 of the jail; everything in it ends with this process

    @property
    def pid(self) -> int | None:
        """Host pid of the module's process; None before `started` has returned."""
        return self._outcome.pid if isinstance(self._outcome, Started) else None

    @property
    def monitor(self) -> int:
        """Host pid of the process that `spawn` started: everything in the jail is, or descends from, it."""
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe to its standard input, when `spawn` was asked for one."""
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        """The pipe from its standard output, when `spawn` was asked for one."""
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes] | None:
        """The pipe from its standard error, when `spawn` was asked for one."""
        return self._process.stderr

    def fileno(self) -> int:
        """The status socket: readable from when `started` will not block until `wait` has closed it, so that a loop can keep it."""
        return self._status.fileno()

    def started(self, timeout: float | None = None) -> Started:
        """Wait until the jail is closed, at most `timeout` seconds, and return what is known of it.

        Raises JailError when it could not be closed, in which case nothing of the module has run, and TimeoutError.
        The outcome is kept: later calls return or raise it again.
        """
        if self._outcome is None:
            self._outcome = self._receive(timeout)
        if isinstance(self._outcome, JailError):
            raise self._outcome
        return self._outcome

    def _receive(self, timeout: float | None) -> Started | JailError:
        self._status.settimeout(timeout)
        try:
            message, ancillary, _, _ = self._status.recvmsg(_LONGEST_STATUS, socket.CMSG_SPACE(_UCRED.size))
        except BlockingIOError:
            raise TimeoutError("the jail has not reported yet") from None
        word, _, detail = message.decode().partition(" ")
        if word == "closed":
            pid, _, _ = _UCRED.unpack(ancillary[0][2])
            if self._mounts and not self._share_pid:
                self._init = self._init_above(pid)
            return Started(pid, int(detail))
        if word == "failed":
            return JailError(
                f"the jail could not be closed: {detail}", "llmosctl doctor shows what this machine offers"
            )
        # It ended without a word: bubblewrap failed, or the interpreter did not come up. Either has said why on stderr.
        return JailError("the jail could not be built; the reason is on its standard error", "")

    def _init_above(self, pid: int) -> int | None:
        """The parent of a process of ours; None when it has ended, and the number may be somebody else's by now."""
        init = _parent_of(pid)
        return init if init is not None and _parent_of(init) == self._process.pid else None

    @property
    def init(self) -> int | None:
        """Host pid of the process with which everything in the jail ends; None before `started` has returned, or without mounts."""
        return self._init

    def poll(self) -> int | None:
        """The exit status, None while it runs: 0..255, or a negative signal number."""
        status = self._process.poll()
        return None if status is None else self._own_status(status)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status as `poll` does. Raises subprocess.TimeoutExpired."""
        status = self._process.wait(timeout)
        if self._mounts and self._outcome is None and not self._has_started():
            # A monitor that was killed while it built the jail leaves its child waiting for it for ever, in a group that is still theirs.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._outcome = self._outcome or JailError("it ended before its jail was closed")
        self._status.close()
        return self._own_status(status)

    def _own_status(self, status: int) -> int:
        # bubblewrap passes on death by signal n as exit status 128 + n.
        return 128 - status if self._mounts and 128 < status <= 128 + signal.NSIG else status

    def terminate(self) -> None:
        """Ask the module's process to end (SIGTERM). A jail that is not closed yet is killed instead."""
        if not self._has_started():
            self.kill()
        elif self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid or self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End everything in the jail at once (SIGKILL). Without mounts: its process group."""
        if self._process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            if not self._mounts:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                if (
                    not self._has_started()
                ):  # the child that bubblewrap's monitor has not let go yet would wait for ever
                    with suppress(ProcessLookupError):
                        os.killpg(self._process.pid, signal.SIGKILL)
                # Killing the monitor ends the jail too, but only some time after `wait` has returned.
                os.kill(self._init or self.pid or self._process.pid, signal.SIGKILL)

    def _has_started(self) -> bool:
        """Whether the jail has reported that it is closed; does not wait."""
        with suppress(JailError, TimeoutError):
            self.started(0)
        return self.pid is not None


def spawn(
    policy: Policy,
    module: str,
    args: Sequence[str] = (),
    *,
    layers: frozenset[Layer] = ALL_LAYERS,
    pass_fds: Iterable[int] = (),
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    prefix: Sequence[str] = (),
) -> Jailed:
    """Run `python -m module args…` in a jail made of `layers`; does not wait for it.

    `prefix` is a command that executes the rest in place.

    `pass_fds` keep their numbers inside; all others are closed. `layers` is what `probe` found. Call from a thread
    that outlives the jail: Linux ends the jail when the thread that started it ends.

    Raises JailError when the policy makes no sense or `layers` cannot make its tier. What only shows while the jail
    is being built is raised by `Jailed.started`.
    """
    if sys.platform != "linux":
        from llmos.kernel.jail import elsewhere

        environment = _environment(policy, str(policy.write[0]) if policy.write else "/")
        return elsewhere.spawn(
            policy, module, args, environment, pass_fds=pass_fds, stdin=stdin, stdout=stdout, stderr=stderr
        )
    best = reachable(layers)
    if not best.at_least(policy.tier):
        missing = ", ".join(sorted(ALL_LAYERS - layers))
        raise JailError(f"a jail of tier {policy.tier} is required; without {missing} it is only {best}")
    mounts = Layer.MOUNTS in layers
    view.check(policy, mounts=mounts)
    with ExitStack() as open_here:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        open_here.enter_context(theirs)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with ExitStack() as on_failure:
            on_failure.callback(ours.close)
            settings = _settings(policy, module, args, layers, theirs.fileno())
            inner = marshal.dumps((_inner_half(), cast("Any", settings)))
            inner_fd = open_here.enter_context(_in_memory(inner)).fileno()
            fds = [*pass_fds, theirs.fileno(), inner_fd]
            # the module and its arguments are named for whoever looks at the process list
            command = [sys.executable, "-I", "-S", "-B", "-c", _START.format(fd=inner_fd), module, *args]
            if mounts:
                options = "\0".join(view.bubblewrap(policy, privileged=_privileged())).encode()
                options_fd = open_here.enter_context(_in_memory(options)).fileno()
                fds.append(options_fd)
                command = [_bubblewrap(), "--args", str(options_fd), "--", *command]
            process = subprocess.Popen(
                [*prefix, *command],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=_environment(policy, settings["cwd"]),
                pass_fds=fds,
                cwd="/",
                start_new_session=True,  # a signal from the terminal is for the kernel process, which ends jails in order
            )
            on_failure.pop_all()
    if policy.limits.nice:  # what comes before the jail is closed stands back too
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, policy.limits.nice)
    return Jailed(process, ours, mounts=mounts, share_pid=policy.share_pid)


def _settings(policy: Policy, module: str, args: Sequence[str], layers: frozenset[Layer], status: int) -> Settings:
    mounts = Layer.MOUNTS in layers
    program = None
    if Layer.SECCOMP in layers:
        machine = platform.machine()
        try:
            program = seccomp.program(
                machine,
                allow_fork=policy.allow_fork,
                allow_exec=policy.allow_exec,
                own_mounts=mounts,
                own_pids=not policy.share_pid,
                network=policy.network,
            )
        except KeyError:
            raise JailError(f"the system calls of {machine} are not known here; x86_64 and aarch64 are") from None
    return {
        "status": status,
        "module": module,
        "args": list(args),
        "path": [str(path) for path in policy.path],
        "cwd": str(policy.write[0]) if policy.write else "/",
        "parent": None if mounts else os.getpid(),
        "real_uid": _FIRST_JAIL_UID + secrets.randbelow(_JAIL_UIDS) if _privileged() else None,
        "nice": policy.limits.nice,
        "limits": _limits(policy.limits, shared_user=not mounts and not _privileged()),
        "granted": view.identities(policy),
        "inodes": view.inodes(policy) if mounts else {},
        "landlock": view.landlock(policy, mounts=mounts) if Layer.LANDLOCK in layers else None,
        "network": policy.network,
        "landlock_minimum": _LANDLOCK_MINIMUM[policy.tier],
        "seccomp": program,
    }


def _limits(limits: Limits, *, shared_user: bool) -> list[tuple[int, int, int]]:
    """Resource, soft and hard limit. `shared_user`: Linux counts the processes outside of the jail too."""
    import resource  # not on Windows, where this file still has to say that there are no jails

    wanted: dict[int, int | None] = {
        resource.RLIMIT_AS: limits.address_space,
        resource.RLIMIT_DATA: limits.data,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_NPROC: limits.processes,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_CPU: limits.cpu_seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
    }
    if shared_user and limits.processes is not None:
        wanted[resource.RLIMIT_NPROC] = limits.processes + _threads_of_user()
    rows = []
    for limit, value in wanted.items():
        if value is None:
            continue
        hard = value + 1 if limit == resource.RLIMIT_CPU else value  # SIGXCPU first, SIGKILL a second later
        present = resource.getrlimit(limit)[1]
        ceiling = present if present != resource.RLIM_INFINITY else hard
        rows.append((limit, min(value, ceiling), min(hard, ceiling)))
    return rows


def _threads_of_user() -> int:
    """How many threads this user has, as RLIMIT_NPROC counts them."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended while we looked
                count += len(list((entry / "task").iterdir())) if entry.stat().st_uid == os.getuid() else 0
    return count


def _environment(policy: Policy, home: str) -> dict[str, str]:
    """The whole environment of the jail. Raises JailError for a variable that loads code."""
    for name in policy.env:
        if name.startswith("LD_"):
            raise JailError(f"{name} may not be set in a jail: it loads code before the jail is closed")
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return _ENVIRONMENT | {"HOME": home} | kept | dict(policy.env) | _ENFORCED_ENVIRONMENT


@lru_cache(maxsize=1)
def _privileged() -> bool:
    """Whether we are the host's root, with the capabilities to build a jail without a user namespace.

    Such a jail can drop to a real user id of its own, which a namespace made for it would not map.
    """
    status = Path("/proc/self/status").read_text().split("CapEff:")[1].split()[0]
    capabilities = int(status, 16)
    enough = all(capabilities >> bit & 1 for bit in (_CAP_SETGID, _CAP_SETUID, _CAP_SETPCAP, _CAP_SYS_ADMIN))
    first, _, count = (int(word) for word in Path("/proc/self/uid_map").read_text().split()[:3])
    return enough and os.geteuid() == 0 and first + count >= _FIRST_JAIL_UID + _JAIL_UIDS


def _bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise JailError("bwrap (bubblewrap) is not installed", INSTALL_BUBBLEWRAP)
    return found


@lru_cache(maxsize=1)
def _inner_half() -> CodeType:
    """`enter.py`, compiled once: every jail starts with it."""
    return compile(Path(__file__).with_name("enter.py").read_bytes(), "enter.py", "exec")


def _in_memory(content: bytes) -> IO[bytes]:
    """A file without a name, positioned at its start."""
    file = os.fdopen(os.memfd_create("llmos-jail"), "w+b")
    file.write(content)
    file.seek(0)
    return file


def _parent_of(pid: int) -> int | None:
    """The parent of a process, None when it has already ended."""
    try:
        # The name, in parentheses, may itself contain anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
