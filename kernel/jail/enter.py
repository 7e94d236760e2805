"""The inner half of the jail: closes it around this very process, then runs the module.

`process.py` compiles this file and passes it in over a descriptor, with the `Settings`, to `python -I -S -B -c …`: so
nothing of the kernel has to be visible inside, and the file imports nothing of llmos. The order matters: while anything
is still open, only the standard library has been imported. `-S` keeps out the packages of the virtual environment,
whose `.pth` files are code; `site.main()` brings them in once the jail is closed. `-I` keeps out what the environment,
the user's own packages and the working directory would add; `-B` writes no bytecode next to packages.

Whatever fails here ends the process before a line of the module has run.

Source: Linux, Documentation/userspace-api/landlock.rst; include/uapi/linux/{landlock,seccomp,prctl,capability}.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct
import sys

TYPE_CHECKING = False  # typing and signal stay out: to import them takes longer than to close the jail
if TYPE_CHECKING:
    from typing import Any, TypedDict

    class Settings(TypedDict):
        """What the outer half tells the inner one. Paths are as seen inside."""

        status: int
        """Socket to the outer half; closed before the module runs."""
        module: str
        args: list[str]
        path: list[str]
        """Directories to import from first."""
        cwd: str
        parent: int | None
        """Pid of the process to die with; None where bubblewrap sees to that."""
        real_uid: int | None
        """When started as root: the user that processes are counted under, all capabilities being dropped."""
        nice: int
        limits: list[tuple[int, int, int]]
        """Resource, soft, hard."""
        granted: list[tuple[str, int, int]]
        """Path, device and inode of what was granted."""
        inodes: dict[str, int]
        """Directories in memory, and how many files each may hold."""
        landlock: list[tuple[str, str]] | None
        """Path and one of `read run write`; None leaves the layer out."""
        network: bool
        """Whether TCP may be connected, as far as Landlock is concerned."""
        landlock_minimum: int
        seccomp: bytes | None
        """The filter program; None leaves the layer out."""


NOT_CLOSED = 125
"""Exit status of a process whose jail could not be closed."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_SECCOMP_MODE_FILTER = 2
_SIGKILL = 9
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 2, 4, 32
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# System call numbers are one for all architectures from Linux 5.0 on.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1

# Rights to files are bits, lowest first; each ABI knows this many.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_FILE_RIGHTS = 16
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
_ALL = (1 << _NEWEST_FILE_RIGHTS) - 1
_FOR_NON_DIRECTORIES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_RIGHTS = {
    "read": _READ_FILE | _READ_DIR,
    "run": _READ_FILE | _READ_DIR | _EXECUTE,
    "write": _ALL & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV),
}
_BIND_TCP, _CONNECT_TCP = 1, 2  # ABI 4
_ABSTRACT_SOCKETS_AND_SIGNALS = 3  # ABI 6


def _checked(result: int, what: str) -> int:
    """The result of a C call, or OSError naming what was tried."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _syscall(what: str, number: int, *args: Any) -> int:
    return _checked(_LIBC.syscall(ctypes.c_long(number), *args), what)


def _prctl(what: str, operation: int, argument: int = 0, pointer: int = 0) -> None:
    _checked(_LIBC.prctl(operation, argument, pointer, 0, 0), what)


def landlock_abi() -> int:
    """The Landlock ABI of this Linux; 0 when it is absent or switched off."""
    version = _LANDLOCK_CREATE_RULESET_VERSION
    abi: int = _LIBC.syscall(
        ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(version)
    )
    return max(abi, 0)


def restrict_files(
    rules: list[tuple[str, str]],
    minimum: int,
    *,
    network: bool = False,
    granted: list[tuple[str, int, int]] | None = None,
) -> int:
    """Landlock: deny all files but `rules`, TCP, and abstract sockets and signals to processes outside.

    `network` leaves TCP connections alone; binding a port stays denied. Uses as much as this Linux offers and returns its
    ABI. Raises OSError, also when the ABI is below `minimum`, and as `compare`: without mounts a path may change until here.
    """
    abi = landlock_abi()
    if abi < minimum:
        raise OSError(errno.ENOSYS, f"Landlock ABI {minimum} is required, this Linux has {abi or 'none'}")
    handled = (1 << _FILE_RIGHTS.get(abi, _NEWEST_FILE_RIGHTS)) - 1
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", _BIND_TCP if network else _BIND_TCP | _CONNECT_TCP)
    if abi >= 6:
        attributes += struct.pack("=Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
    size = ctypes.c_size_t(len(attributes))
    ruleset = _syscall("landlock_create_ruleset", _LANDLOCK_CREATE_RULESET, attributes, size, 0)
    expected = {path: (device, inode) for path, device, inode in granted or ()}
    for path, kind in rules:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if path in expected:
            _same(path, os.fstat(fd), expected[path])
        applicable = handled if stat.S_ISDIR(os.fstat(fd).st_mode) else handled & _FOR_NON_DIRECTORIES
        rule = struct.pack("=Qi", _RIGHTS[kind] & applicable, fd)
        _syscall(f"landlock_add_rule {path}", _LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(fd)
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return abi


def restrict_syscalls(program: bytes) -> None:
    """seccomp: from here on every system call of this process and its children is judged by `program`.

    There is only one thread so far, so there is nothing to synchronise with.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions)))
    _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def compare(granted: list[tuple[str, int, int]]) -> None:
    """Raise OSError when a path is not what it was when the policy was checked: somebody has put a link in its place."""
    for path, device, inode in granted:
        _same(path, os.stat(path), (device, inode))  # noqa: PTH116  (pathlib takes longer to import than all of this)


def _same(path: str, found: os.stat_result, expected: tuple[int, int]) -> None:
    if (found.st_dev, found.st_ino) != expected:
        raise OSError(errno.EXDEV, f"{path} was changed while the jail was being built")


def limit_inodes(inodes: dict[str, int]) -> None:
    """Bound the number of files of each directory in memory, which bubblewrap cannot.

    A security module may forbid it (AppArmor's profile for bubblewrap does). Linux's own bound holds then: what the
    empty files of one directory cost together is at most an eighth of the machine's memory.
    """
    for path, number in inodes.items():
        flags = _MS_REMOUNT | _MS_NOSUID | _MS_NODEV
        try:
            _checked(_LIBC.mount(None, path.encode(), None, flags, b"nr_inodes=%d" % number), f"remount {path}")
        except PermissionError:
            return


def give_up_capabilities() -> None:
    """For good: programs that this process runs get none either, because of no_new_privs."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _checked(_LIBC.capset(header, bytes(24)), "capset")


def count_processes_under(real_uid: int) -> None:
    """Root only: become another user in all but file access, and take every capability from what is run from here on.

    RLIMIT_NPROC does not hold for the real user 0, whatever its capabilities. File access goes by the effective user,
    which stays: the user's own files may well belong to root.
    """
    os.setgroups([])
    os.setresuid(real_uid, 0, 0)
    capability = 0
    try:
        while True:
            _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
            capability += 1
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: past the last capability this Linux has
            raise


def close(settings: Settings) -> int:
    """Close the jail around this process. Returns the Landlock ABI in force, 0 without; raises OSError."""
    compare(settings["granted"])
    os.chdir(settings["cwd"])
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    limit_inodes(settings["inodes"])
    if settings["real_uid"] is not None:
        count_processes_under(settings["real_uid"])
    give_up_capabilities()
    if settings["parent"] is not None:
        _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, _SIGKILL)
        if os.getppid() != settings["parent"]:
            raise OSError(errno.ESRCH, "the kernel process is gone")
    os.setpriority(os.PRIO_PROCESS, 0, max(settings["nice"], os.getpriority(os.PRIO_PROCESS, 0)))  # never forward
    for limit, soft, hard in settings["limits"]:
        resource.setrlimit(limit, (soft, hard))
    # RLIMIT_CORE does not keep a dump from a handler program named in core_pattern; this does.
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)
    abi = 0
    if settings["landlock"] is not None:
        abi = restrict_files(
            settings["landlock"],
            settings["landlock_minimum"],
            network=settings["network"],
            granted=settings["granted"],
        )
    if settings["seccomp"] is not None:
        restrict_syscalls(settings["seccomp"])
    return abi


def main(settings: Settings) -> None:
    """Close the jail, report, and become the module."""
    try:
        abi = close(settings)
    except OSError as error:
        os.write(settings["status"], b"failed " + str(error.strerror).encode())
        sys.exit(NOT_CLOSED)
    # The receiver has SO_PASSCRED set, so this message also tells it our pid as it sees it.
    os.write(settings["status"], b"closed %d" % abi)
    os.close(settings["status"])

    import runpy
    import site

    site.main()
    sys.path[:0] = settings["path"]
    sys.argv = [settings["module"], *settings["args"]]
    runpy.run_module(settings["module"], run_name="__main__", alter_sys=True)
