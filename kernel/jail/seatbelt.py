"""macOS, experimental: a policy as a profile of Seatbelt, for `sandbox-exec -p`.

The profile denies by default. No path is ever written into its text: each is a parameter (`-D NAME=path`, read by
`(param "NAME")`), so that a path with quotes, parentheses or line ends is a path and nothing else. What remains to be
read without a grant is what dyld and Python need of the system. There is no mount namespace: the names of what lies
above a grant can be seen, and nothing bounds memory as tightly as on Linux.

Source: sandbox-exec(1), sandbox(7); Chromium, sandbox/policy/mac/common.sb and sandbox/mac/seatbelt_sandbox_design.md
(deny by default, parameters, the system's files and sysctls); OpenAI Codex, codex-rs/core/src/seatbelt.rs and
seatbelt_base_policy.sbpl (the absolute path of sandbox-exec, parameters on the command line, real paths because /var is
a link); anthropic-experimental/sandbox-runtime, src/sandbox/macos-sandbox-utils.ts (unix sockets need system-socket and
a rule for each end); Bazel, DarwinSandboxedSpawnRunner.java (the last rule that matches wins).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmos.kernel.jail import view
from llmos.kernel.jail.policy import JailError, Policy

SANDBOX_EXEC = "/usr/bin/sandbox-exec"
"""By its full path: one that is found by PATH may be anybody's."""

_SYSTEM = (
    "/System/Cryptexes",
    "/System/Library",
    "/System/Volumes/Preboot/Cryptexes",
    "/private/var/db/dyld",
    "/private/var/db/timezone",
    "/usr/lib",
    "/usr/share/icu",
    "/usr/share/zoneinfo.default",
)
_PROGRAMS = ("/bin", "/sbin", "/usr/bin", "/usr/libexec", "/usr/sbin")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/dtracehelper")
_CERTIFICATES = ("/private/etc/ssl", "/private/etc/resolv.conf", "/private/etc/hosts")
_RESOLVER = '(literal "/private/var/run/mDNSResponder")'
# What libSystem, Python and thread pools ask for when they start.
_SYSCTLS = """
    hw.activecpu hw.byteorder hw.cachelinesize_compat hw.cpufamily hw.cputype hw.logicalcpu hw.logicalcpu_max hw.machine
    hw.memsize hw.ncpu hw.nperflevels hw.pagesize hw.pagesize_compat hw.physicalcpu hw.physicalcpu_max
    hw.tbfrequency_compat kern.argmax kern.hostname kern.maxfilesperproc kern.osproductversion kern.osrelease
    kern.ostype kern.osvariant_status kern.osversion kern.secure_kernel kern.usrstack64 kern.version
    sysctl.proc_cputype vm.loadavg
""".split()
_SYSCTL_PREFIXES = ("hw.optional.", "hw.perflevel", "machdep.cpu.")
# getpwuid, which expanduser calls. Every other service of the system stays out of reach.
_SERVICES = ("com.apple.system.opendirectoryd.libinfo",)


def command(policy: Policy, scratch: Path, program: Sequence[str]) -> list[str]:
    """The command line that runs `program` so confined. `scratch`: a directory of its own, for temporary files.

    Raises JailError for a path that cannot be handed over.
    """
    rules = _Rules(policy, scratch)
    definitions = [word for name, path in rules.parameters.items() for word in ("-D", f"{name}={path}")]
    return [SANDBOX_EXEC, "-p", rules.text(), *definitions, *program]


def executables() -> tuple[Path, ...]:
    """What the interpreter is started through: its links, itself, and the program inside of a framework."""
    named = Path(sys.executable)
    framework = Path(sys.base_prefix, "Resources", "Python.app", "Contents", "MacOS", "Python")
    return tuple(dict.fromkeys(path for path in (named, named.resolve(), framework) if path.exists()))


class _Rules:
    """The profile, and the paths that its parameters stand for."""

    def __init__(self, policy: Policy, scratch: Path) -> None:
        self.policy = policy
        self.parameters: dict[str, str] = {}
        self._code = self._named("CODE", (*view.interpreter(), *view.packages(), *policy.path))
        self._parts = self._named("PART", view.kernel_parts(policy))
        self._read = self._named("READ", policy.read)
        self._write = self._named("WRITE", (scratch, *policy.write))
        self._kernel = self._named("KERNEL", (view.KERNEL,) if policy.kernel_modules else ())
        self._executable = self._named("EXECUTABLE", executables())
        shown = (*view.interpreter(), *view.packages(), *view.kernel_parts(policy), *policy.path, *policy.read)
        above = {parent for path in (*shown, *policy.write, scratch, *executables()) for parent in path.parents}
        self._above = self._named("ABOVE", sorted(above))

    def _named(self, kind: str, paths: Iterable[Path]) -> list[str]:
        names = []
        for index, path in enumerate(paths):
            if "\0" in str(path) or not path.is_absolute():
                raise JailError(f"{str(path)!r} cannot be named in a profile")
            names.append(f"{kind}_{index}")
            self.parameters[names[-1]] = str(path)
        return names

    def text(self) -> str:
        """The profile. It depends on the number of paths, not on what they are."""
        write, read = _subpaths(self._write), _subpaths(self._read)
        code = [*_fixed("subpath", _SYSTEM), *_subpaths(self._code), *_subpaths(self._parts)]
        lines = ["(version 1)", "(deny default)"]
        lines += _allow("file-read*", [*code, *_fixed("subpath", _PROGRAMS if self.policy.allow_exec else ())])
        lines += _allow("file-map-executable", code)
        lines += _allow("file-read*", ['(literal "/")', *_fixed("literal", _DEVICES), *_literals(self._executable)])
        lines += _allow("file-read*", _literals(self._kernel))  # imports list the directory of a package
        lines += _allow("file-read-metadata", _literals(self._above))
        lines += _allow("file-read*", [*read, *write])
        lines += _allow("file-write*", write)
        lines += _allow("file-write-data", ['(require-all (literal "/dev/null") (vnode-type CHARACTER-DEVICE))'])
        lines += _allow("file-ioctl", _fixed("literal", _DEVICES))
        # sandbox-exec runs the interpreter under this profile already, so that much may always be run.
        programs = [*_fixed("subpath", _PROGRAMS), *_subpaths(self._code)] if self.policy.allow_exec else []
        lines += _allow("process-exec", [*_literals(self._executable), *programs])
        if self.policy.allow_fork:
            lines += ["(allow process-fork)", "(allow signal (target same-sandbox))", "(allow ipc-posix-sem)"]
        else:
            lines += ["(allow signal (target self))"]
        lines += ["(allow process-info* (target self))"]
        lines += _allow("sysctl-read", [*_fixed("sysctl-name", _SYSCTLS), *_prefixes()])
        lines += _allow("mach-lookup", _fixed("global-name", _SERVICES))
        lines += ["(allow system-socket (socket-domain AF_UNIX))"]
        lines += _allow("network-outbound", [f"(remote unix-socket {place})" for place in (*read, *write)])
        lines += _allow("network-bind", [f"(local unix-socket {place})" for place in write])
        lines += _allow("network-inbound", [f"(local unix-socket {place})" for place in write])
        if self.policy.network:
            lines += _allow("system-socket", [f"(socket-domain {family})" for family in ("AF_INET", "AF_INET6")])
            lines += _allow("network-outbound", ['(remote ip "*:*")', f"(remote unix-socket {_RESOLVER})"])
        if self.policy.network or self.policy.certificates:
            lines += _allow("file-read*", _fixed("subpath", _CERTIFICATES))
        # The last rule that matches wins: code is never written, whatever grant contains it.
        lines += [f"(deny file-write* {place})" for place in (*_subpaths(self._code), *_subpaths(self._parts))]
        return "\n".join(lines) + "\n"


def _allow(operation: str, filters: Sequence[str]) -> list[str]:
    """A rule; none at all without filters, because that would allow everything."""
    return [f"(allow {operation}", *(f"  {each}" for each in filters), ")"] if filters else []


def _fixed(kind: str, values: Iterable[str]) -> list[str]:
    return [f'({kind} "{value}")' for value in values]


def _prefixes() -> list[str]:
    return _fixed("sysctl-name-prefix", _SYSCTL_PREFIXES)


def _subpaths(names: Iterable[str]) -> list[str]:
    return [f'(subpath (param "{name}"))' for name in names]


def _literals(names: Iterable[str]) -> list[str]:
    return [f'(literal (param "{name}"))' for name in names]
