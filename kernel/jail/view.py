"""What a jailed process sees: the paths of the system, the interpreter and llmos, and how they get inside.

Two descriptions are made of the same policy: the arguments of bubblewrap, which builds a file system that holds
nothing else, and the rules of Landlock, which deny everything else. A path is at the same place inside and outside.
"""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from llmos.kernel.jail.policy import JailError, Policy

KERNEL = Path(__file__).parents[1]
"""The directory of llmos.kernel: hidden, but for the parts a policy names."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
_CONFIGURATION = ("/etc/ld.so.cache", "/etc/localtime")
_NETWORK = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
)  # what resolves names
_CERTIFICATES = (
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates/extracted",
)  # where the distributions keep them; their links lead to each other
_PROCESSORS = ("/sys/devices/system/cpu", "/sys/devices/system/node")  # thread pools size themselves by these
_DEVICES = {
    "/dev/null": "write",
    "/dev/zero": "read",
    "/dev/full": "read",
    "/dev/random": "read",
    "/dev/urandom": "read",
}
_DEVICE_LINKS = {"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"}
_PAGE, _FEWEST_INODES = 4096, 64
_SCRATCH = ("/tmp", "/dev/shm")  # noqa: S108 - private to the jail, where bubblewrap makes them
# Without an own process id namespace /proc would show everybody.
_PROC_FILES = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory")


def _existing(paths: Iterable[str]) -> list[Path]:
    return [Path(path) for path in paths if Path(path).exists()]


def _inside(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The paths without those that lie below another."""
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not _inside(path, kept):
            kept.append(path)
    return tuple(kept)


def _link_hops(path: Path) -> Iterator[Path]:
    """A path and every path its symbolic links lead through, to the file itself."""
    yield path
    while path.is_symlink():
        path = Path(os.path.normpath(path.parent / path.readlink()))
        yield path


@lru_cache(maxsize=1)
def interpreter() -> tuple[Path, ...]:
    """The Python installation and virtual environment, as named and as resolved, outside of the system directories."""
    schemes = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    named = [
        Path(sys.prefix),
        Path(sys.exec_prefix),
        Path(sys.base_prefix),
        Path(sys.base_exec_prefix),
        *map(Path, schemes),
    ]
    executables = [*_link_hops(Path(sys.executable)), Path(sys.executable).resolve()]
    system = _existing(_SYSTEM)
    wanted = {path for path in (*named, *(path.resolve() for path in named), *executables) if path.exists()}
    if Path("/") in wanted:
        raise JailError(
            "this Python calls the whole file system its own (its prefix is /), so nothing could be hidden from a jail",
            "run llmos from a virtual environment",
        )
    return _outermost(path for path in wanted if not _inside(path, system))


@lru_cache(maxsize=1)
def packages() -> tuple[Path, ...]:
    """The directories of llmos but the kernel's."""
    found: list[Path] = []
    for name in ("ipc", "drivers", "userland"):
        spec = find_spec(f"llmos.{name}")
        found += [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    return tuple(found)


def is_own(path: Path) -> bool:
    """Whether this lies in llmos itself."""
    return _inside(path.resolve(), [place.resolve() for place in packages()])


def sees(path: Path) -> bool:
    """Whether every jail shows this, whatever its policy says."""
    return _inside(path, (*interpreter(), *packages(), *_existing(_SYSTEM)))


def kernel_parts(policy: Policy) -> tuple[Path, ...]:
    """The files and directories of llmos.kernel that a policy names. Raises JailError for one that does not exist."""
    if not policy.kernel_modules:
        return ()
    parts = [KERNEL / "__init__.py"]
    for name in policy.kernel_modules:
        candidates = [path for path in (KERNEL / name, KERNEL / f"{name}.py") if path.exists()]
        if not candidates:
            raise JailError(f"llmos.kernel has no module {name!r}")
        parts += candidates
    return tuple(parts)


def check(policy: Policy, *, mounts: bool) -> None:
    """Raise JailError for a path that is not absolute and canonical, or that would let the jail change its own walls."""
    for path in (*policy.read, *policy.write, *policy.path):
        if not path.exists():
            raise JailError(f"{path} does not exist", "create it first, or take it out of the policy")
        # A link inside a directory that a jail can write to would lead the next jail anywhere.
        if Path(os.path.realpath(path)) != path:
            raise JailError(f"{path} is not a canonical path", f"name {path.resolve()} instead")
    own = (*interpreter(), *packages(), *_existing(_SYSTEM), KERNEL)
    for path in policy.write:
        below = _inside(path, own)
        above = not mounts and any(root.is_relative_to(path) for root in own)
        if below or above:
            raise JailError(f"{path} may not be writable: code that runs outside of jails is kept there")


def identities(policy: Policy) -> list[tuple[str, int, int]]:
    """Path, device and inode of everything granted, found without following a link.

    bubblewrap opens what it mounts by name. So the inner half compares what arrived with what was checked here.
    Raises JailError for a path with a link, or that is gone.
    """
    rows = []
    for path in dict.fromkeys((*policy.read, *policy.write, *policy.path)):
        at = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            for part in path.parts[1:]:
                deeper = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = deeper
            found = os.fstat(at)
        except OSError as error:
            raise JailError(f"{path} was changed while the jail was being built: {error.strerror}") from None
        finally:
            os.close(at)
        if stat.S_ISLNK(found.st_mode):
            raise JailError(f"{path} was changed while the jail was being built: it is a link now")
        rows.append((str(path), found.st_dev, found.st_ino))
    return rows


def bubblewrap(policy: Policy, *, privileged: bool) -> list[str]:
    """The arguments that build the namespaces and the file system. `privileged`: run with root's capabilities.

    Later mounts cover earlier ones: the interpreter and the packages come after the grants, so that a grant that
    contains them does not make them writable, and the mask over the kernel comes last.
    """
    arguments = ["--die-with-parent", "--new-session", "--unshare-ipc", "--unshare-uts"]
    arguments += [] if policy.network else ["--unshare-net"]
    arguments += ["--unshare-cgroup-try", "--hostname", "llmos", "--cap-drop", "ALL"]
    arguments += ["--cap-add", "CAP_SYS_ADMIN"]  # for enter.limit_inodes, which gives it up
    if privileged:  # see enter.count_processes_under, which drops these
        arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    else:
        arguments += ["--unshare-user"]
    arguments += [] if policy.share_pid else ["--unshare-pid", "--proc", "/proc"]
    # bubblewrap's own --dev brings terminals, and for them a second user namespace, where scratch could not be bounded.
    arguments += ["--tmpfs", "/dev"]
    for device in _DEVICES:
        arguments += ["--dev-bind", device, device]
    for name, target in _DEVICE_LINKS.items():
        arguments += ["--symlink", target, name]
    for scratch in _SCRATCH:
        arguments += ["--perms", "1777", "--size", str(policy.scratch), "--tmpfs", scratch]
    granted = dict.fromkeys((*policy.read, *policy.path), "--ro-bind") | dict.fromkeys(policy.write, "--bind")
    for path, bind in sorted(granted.items()):
        arguments += [bind, str(path), str(path)]
    for path in (*_existing(_SYSTEM), *_configuration(policy), *_existing(_PROCESSORS)):
        if path.is_symlink() and path.parent == Path("/"):
            arguments += ["--symlink", str(path.readlink()), str(path)]
        else:
            arguments += _read_only(path)
    own = (*interpreter(), *(() if policy.bare else packages()))
    for path in own:
        arguments += _read_only(path)
    for path in packages() if policy.bare else ():
        if _inside(path, (*own, *granted, *_existing(_SYSTEM))):
            arguments += ["--tmpfs", str(path), "--remount-ro", str(path)]
    parts = kernel_parts(policy)
    if parts or _inside(KERNEL, (*own, *granted, *_existing(_SYSTEM))):
        arguments += ["--tmpfs", str(KERNEL)]
        for path in parts:
            arguments += _read_only(path)
        arguments += ["--remount-ro", str(KERNEL)]
    arguments += [] if policy.share_pid else ["--remount-ro", "/proc"]  # as root, /proc/sys would be writable
    return [*arguments, "--remount-ro", "/dev", "--remount-ro", "/"]


def inodes(policy: Policy) -> dict[str, int]:
    """How many files each scratch directory may hold: one for every page, since an empty one costs memory too."""
    return dict.fromkeys(_SCRATCH, max(policy.scratch // _PAGE, _FEWEST_INODES))


def _configuration(policy: Policy) -> list[Path]:
    network = _NETWORK if policy.network else ()
    certificates = _CERTIFICATES if policy.network or policy.certificates else ()
    return _existing((*_CONFIGURATION, *network, *certificates))


def _read_only(path: Path) -> list[str]:
    return ["--ro-bind", str(path), str(path)]


def landlock(policy: Policy, *, mounts: bool) -> list[tuple[str, str]]:
    """The rules of Landlock: path and kind of access (`read`, `run`, `write`). Everything else is denied."""
    run = "run" if policy.allow_exec else "read"
    rules = [(path, run) for path in (*_existing(_SYSTEM), *interpreter())]
    own = () if policy.bare else packages()
    rules += [(path, "read") for path in (*own, *kernel_parts(policy), *policy.path, *policy.read)]
    rules += [(path, "read") for path in (*_configuration(policy), *_existing(_PROCESSORS))]
    rules += [(Path(path), kind) for path, kind in _DEVICES.items()]
    rules += [(path, "write") for path in policy.write]
    if policy.kernel_modules:  # imports list the directory of a package
        rules += [(KERNEL, "read")]
    if mounts:
        rules += [(Path(path), "write") for path in _SCRATCH]
    if mounts and not policy.share_pid:
        rules += [(Path("/proc"), "read")]
    elif not mounts:
        rules += [(path, "read") for path in (*_existing(_PROC_FILES), Path("/proc/self"))]
    return [(str(path), kind) for path, kind in rules]
