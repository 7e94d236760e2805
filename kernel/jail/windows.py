"""Windows, experimental: what a policy would come to there, as a plan of plain values that nothing carries out yet.

An AppContainer without capabilities sees no network and only files whose access list names it; a job object bounds
what it uses up and ends it with us; mitigations keep it from starting programs. A plan holds values, not text of an
access control language: a path with quotes, parentheses or line ends is a path and nothing else.

Source: Microsoft, "Implementing an AppContainer", SECURITY_CAPABILITIES, UpdateProcThreadAttribute and
JOBOBJECT_EXTENDED_LIMIT_INFORMATION; Chromium, sandbox/win/src/app_container_base.cc and job.cc (a less privileged
container, its own folder, low integrity); Codex, codex-rs/windows-sandbox-rs (a restricted token with access lists).
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path, PurePath

from llmos.kernel.jail import view
from llmos.kernel.jail.policy import JailError, Policy

_LONGEST_MONIKER = 64
_SYSTEM_ENVIRONMENT = {"SystemRoot": "C:\\Windows", "PATH": "C:\\Windows\\System32"}
_ENFORCED_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}


class Access(StrEnum):
    """What an entry of an access list allows; on a directory, on all below it too."""

    READ = "FILE_GENERIC_READ"
    RUN = "FILE_GENERIC_READ | FILE_GENERIC_EXECUTE"
    CHANGE = "FILE_GENERIC_READ | FILE_GENERIC_WRITE | DELETE"


@dataclass(frozen=True)
class Grant:
    """An entry that is added to a path's access list for the container, and taken away when the jail has ended."""

    path: PurePath
    access: Access


@dataclass(frozen=True)
class JobLimits:
    """The fields of JOBOBJECT_EXTENDED_LIMIT_INFORMATION and of the job's restrictions; None sets no limit."""

    active_processes: int | None
    process_memory: int | None
    """Bytes committed, per process: Windows counts what is promised, not what is addressed."""
    process_user_time_100ns: int | None
    kill_on_job_close: bool = True
    die_on_unhandled_exception: bool = True
    user_interface: tuple[str, ...] = (
        "DESKTOP",
        "DISPLAYSETTINGS",
        "EXITWINDOWS",
        "GLOBALATOMS",
        "HANDLES",
        "READCLIPBOARD",
        "SYSTEMPARAMETERS",
        "WRITECLIPBOARD",
    )
    """JOB_OBJECT_UILIMIT_*: what of the desktop is denied."""


@dataclass(frozen=True)
class Plan:
    """All that CreateProcess, the container and the job are given."""

    moniker: str
    """Of the AppContainer; its SID is DeriveAppContainerSidFromAppContainerName of it."""
    capabilities: tuple[str, ...]
    """Named capabilities, DeriveCapabilitySidsFromName of each. None leads to a network that the policy does not give."""
    less_privileged: bool
    """PROC_THREAD_ATTRIBUTE_ALL_APPLICATION_PACKAGES_POLICY: what all containers may read is not granted."""
    grants: tuple[Grant, ...]
    job: JobLimits
    mitigations: tuple[str, ...]
    """PROCESS_CREATION_* policies."""
    inherited: tuple[int, ...]
    """PROC_THREAD_ATTRIBUTE_HANDLE_LIST; everything else is closed."""
    environment: Mapping[str, str]
    command_line: str
    directory: str


def plan(policy: Policy, program: Sequence[str], *, scratch: PurePath, name: str, handles: Sequence[int] = ()) -> Plan:
    """What a jail of this policy is made of, for a process called `name`. Raises JailError for what cannot be handed over."""
    for text in (*program, *policy.env, *policy.env.values(), *map(str, (*policy.read, *policy.write, *policy.path))):
        if "\0" in text:
            raise JailError(f"{text!r} cannot be handed over: it holds a NUL")
    limits = policy.limits
    home = str(policy.write[0]) if policy.write else str(scratch)
    return Plan(
        moniker=_moniker(name, scratch),
        # random numbers, and what the C runtime reads at its start
        capabilities=("lpacCryptoServices", "registryRead", *(("internetClient",) if policy.network else ())),
        less_privileged=True,
        grants=tuple(_grants(policy, scratch)),
        job=JobLimits(
            active_processes=limits.processes if policy.allow_fork else 1,
            process_memory=limits.address_space,
            process_user_time_100ns=None if limits.cpu_seconds is None else limits.cpu_seconds * 10_000_000,
        ),
        mitigations=tuple(_mitigations(policy)),
        inherited=tuple(handles),
        environment=_environment(policy, home, scratch),
        command_line=subprocess.list2cmdline(program),
        directory=home,
    )


def _moniker(name: str, scratch: PurePath) -> str:
    """A name that is another for each jail, in the letters that a container's may have."""
    digest = blake2b(f"{name}\0{scratch}".encode(errors="surrogatepass"), digest_size=8).hexdigest()
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    return f"llmos.{plain[: _LONGEST_MONIKER - len(digest) - 7]}.{digest}"


def _grants(policy: Policy, scratch: PurePath) -> list[Grant]:
    run = Access.RUN  # DLLs are mapped as programs are
    rows: dict[PurePath, Access] = {}
    rows |= dict.fromkeys((*view.interpreter(), *view.packages(), *view.kernel_parts(policy)), run)
    rows |= dict.fromkeys(policy.path, run)
    rows |= dict.fromkeys(policy.read, Access.READ)
    rows |= dict.fromkeys((*policy.write, scratch), Access.CHANGE)
    code: tuple[Path, ...] = (*view.interpreter(), *view.packages(), view.KERNEL)
    for path, access in rows.items():
        if access is Access.CHANGE and any(own.is_relative_to(path) for own in code):
            raise JailError(f"{path} may not be writable: code that runs outside of jails is kept there")
    return [Grant(path, access) for path, access in rows.items()]


def _mitigations(policy: Policy) -> list[str]:
    wanted = [
        "EXTENSION_POINT_DISABLE_ALWAYS_ON",
        "FONT_DISABLE_ALWAYS_ON",
        "IMAGE_LOAD_NO_LOW_LABEL_ALWAYS_ON",
        "IMAGE_LOAD_NO_REMOTE_ALWAYS_ON",
        "STRICT_HANDLE_CHECKS_ALWAYS_ON",
        "WIN32K_SYSTEM_CALL_DISABLE_ALWAYS_ON",
    ]
    return [*wanted, *(() if policy.allow_fork else ("CHILD_PROCESS_RESTRICTED",))]


def _environment(policy: Policy, home: str, scratch: PurePath) -> dict[str, str]:
    """Names are compared without regard to case there, so a policy cannot smuggle in another spelling of an enforced one."""
    own = _SYSTEM_ENVIRONMENT | {"USERPROFILE": home, "TEMP": str(scratch), "TMP": str(scratch)}
    enforced = {name.upper() for name in (*_ENFORCED_ENVIRONMENT, *_SYSTEM_ENVIRONMENT)}
    for name in policy.env:
        if not name or "=" in name:
            raise JailError(f"{name!r} is no name of a variable")
    return (
        own
        | {name: value for name, value in policy.env.items() if name.upper() not in enforced}
        | _ENFORCED_ENVIRONMENT
    )
