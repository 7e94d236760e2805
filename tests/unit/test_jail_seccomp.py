"""The seccomp filter, run by an interpreter of classic BPF: what Linux would answer to each call."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.jail import bpf, seccomp
from llmos.kernel.jail.syscalls import ARCHITECTURES

KILL, ALLOW = 0x80000000, 0x7FFF0000
ENOSYS, EPERM, EACCES = (0x00050000 | code for code in (errno.ENOSYS, errno.EPERM, errno.EACCES))
MACHINES = sorted(ARCHITECTURES)
NEWUSER, THREAD = 0x10000000, 0x00010000


def interpret(program: bytes, number: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """What the filter returns for a call. Raises on an instruction or a jump that Linux would reject."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *args, *(0,) * (6 - len(args)))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, jt, jf, k = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x06:
            return int(k)
        elif operation == 0x05:
            at += k
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[operation]
            at += jt if holds else jf


def answer(
    machine: str, name: str, *args: int, allow_fork: bool = False, allow_exec: bool = False, own_mounts: bool = True
) -> int:
    """The filter's answer to a call by name."""
    arch = ARCHITECTURES[machine]
    program = seccomp.program(machine, allow_fork=allow_fork, allow_exec=allow_exec, own_mounts=own_mounts)
    return interpret(program, arch.numbers[name], arch.audit, args)


@given(st.dictionaries(st.integers(0, 2000), st.integers(1, 400), max_size=700), st.integers(0, 3000))
def test_the_search_finds_the_rule_of_every_number(errors: dict[int, int], number: int) -> None:
    """Whatever numbers have rules, and however far the jumps get, a number gets its own rule or the default."""
    rules = {key: bpf.fail(code) for key, code in errors.items()}
    program = bpf.assemble(bpf.filter_program(7, rules, bpf.fail(errno.ENOSYS), beyond=2500))
    expected = KILL if number >= 2500 else 0x00050000 | errors.get(number, errno.ENOSYS)
    assert interpret(program, number, 7) == expected


def test_a_block_longer_than_a_short_jump_is_jumped_over() -> None:
    """Past 255 instructions a long jump is used, to both sides of the comparison."""
    values = tuple(range(0, 2000, 2))
    rule = bpf.if_any_bit(1, 1, bpf.if_among(0, values, bpf.ALLOW, bpf.KILL), bpf.fail(errno.EPERM))
    program = bpf.assemble(bpf.filter_program(7, {5: rule}, bpf.KILL))
    assert interpret(program, 5, 7, (1998, 1)) == ALLOW
    assert interpret(program, 5, 7, (1999, 1)) == KILL
    assert interpret(program, 5, 7, (1998, 2)) == EPERM


def test_a_filter_that_linux_would_not_take_is_refused() -> None:
    """More than 4096 instructions raise here, not in the jail."""
    with pytest.raises(ValueError, match="at most 4096"):
        bpf.assemble(bpf.filter_program(7, {n: bpf.fail(n % 100 + 1) for n in range(4000)}, bpf.KILL))


@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_gets_its_answer(machine: str) -> None:
    """On each machine the allowed are allowed, the refused fail with EPERM, the deadly kill."""
    for names, expected in ((seccomp.ALLOWED, ALLOW), (seccomp.REFUSED, EPERM), (seccomp.DEADLY, KILL)):
        for name in names & ARCHITECTURES[machine].numbers.keys():
            assert answer(machine, name) == expected, name


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_not_listed_does_not_exist(machine: str) -> None:
    """Every other number, up to where another numbering begins, fails with ENOSYS."""
    arch = ARCHITECTURES[machine]
    program = seccomp.program(machine, allow_fork=True, allow_exec=True, own_mounts=True)
    for number in (*(set(range(2000)) - set(arch.numbers.values())), 0x3FFFFFFF):
        assert interpret(program, number, arch.audit) == ENOSYS, number


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_kills(machine: str) -> None:
    """A call by the numbering of i386, or of the other machine, ends the process."""
    i386 = 0x40000003
    others = {arch.audit for name, arch in ARCHITECTURES.items() if name != machine} | {i386}
    program = seccomp.program(machine, allow_fork=True, allow_exec=True, own_mounts=True)
    for audit in others:
        assert interpret(program, ARCHITECTURES[machine].numbers["read"], audit) == KILL


@pytest.mark.parametrize("number", [0x40000000, 0x40000027, 0xFFFFFFFF])
def test_the_x32_numbering_kills(number: int) -> None:
    """On x86_64, calls with the x32 bit end the process."""
    program = seccomp.program("x86_64", allow_fork=True, allow_exec=True, own_mounts=True)
    assert interpret(program, number, ARCHITECTURES["x86_64"].audit) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("fork", [False, True])
def test_clone_makes_threads_always_processes_when_allowed_namespaces_never(machine: str, fork: bool) -> None:
    """The flags decide; clone3 hides them behind a pointer and is absent."""
    assert answer(machine, "clone", THREAD, allow_fork=fork) == ALLOW
    assert answer(machine, "clone", 17, allow_fork=fork) == (ALLOW if fork else EPERM)
    for namespace in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(machine, "clone", THREAD | namespace, allow_fork=fork) == EPERM
    assert answer(machine, "clone3", allow_fork=fork) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_exec_follows_the_policy(machine: str) -> None:
    """execve is what allow_exec says; execveat never."""
    assert answer(machine, "execve") == EPERM
    assert answer(machine, "execve", allow_exec=True) == ALLOW
    assert answer(machine, "execveat", allow_exec=True) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_only_unix_sockets_open(machine: str, call: str) -> None:
    """Every family but AF_UNIX is denied, in the low half that Linux looks at."""
    assert answer(machine, call, socket.AF_UNIX) == ALLOW
    assert answer(machine, call, socket.AF_UNIX | 1 << 32) == ALLOW
    for family in (*range(1), *range(2, 50)):
        assert answer(machine, call, family) == EACCES


@pytest.mark.parametrize("machine", MACHINES)
def test_the_network_is_tcp_and_udp_alone(machine: str) -> None:
    """With the network, sockets of the internet open as streams and datagrams of TCP and UDP, whatever their flags."""
    arch = ARCHITECTURES[machine]
    program = seccomp.program(machine, allow_fork=False, allow_exec=False, own_mounts=True, network=True)

    def opens(*args: int, call: str = "socket") -> bool:
        verdict = interpret(program, arch.numbers[call], arch.audit, args)
        assert verdict in (ALLOW, EACCES)
        return verdict == ALLOW

    flags = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    internet = (socket.AF_INET, socket.AF_INET6)
    for family in internet:
        assert opens(family, socket.SOCK_STREAM | flags, socket.IPPROTO_TCP)
        assert opens(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        assert not any(opens(family, kind, 0) for kind in range(3, 16))
        assert not any(
            opens(family, kind, number) for kind in (1, 2) for number in range(1, 300) if number not in (6, 17)
        )
        assert not opens(family, socket.SOCK_STREAM, call="socketpair")
    assert not any(opens(family, 1, 0) for family in range(50) if family not in (*internet, socket.AF_UNIX))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("call", "args", "expected"),
    [
        ("ioctl", (0, 0x5401), ALLOW),  # TCGETS: isatty
        ("ioctl", (0, 0x5412), EPERM),  # TIOCSTI
        ("ioctl", (0, 0x5412 | 1 << 32), EPERM),
        ("ioctl", (0, 0x541C), EPERM),  # TIOCLINUX
        ("prctl", (15,), ALLOW),  # PR_SET_NAME
        ("prctl", (1,), EPERM),  # PR_SET_PDEATHSIG
        ("prctl", (4,), EPERM),  # PR_SET_DUMPABLE
        ("prctl", (22,), EPERM),  # PR_SET_SECCOMP
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (1,), EPERM),
    ],
)
def test_arguments_decide(machine: str, call: str, args: tuple[int, ...], expected: int) -> None:
    """Calls that are fine with some arguments only."""
    assert answer(machine, call, *args) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_modes_change_by_path_only_where_mounts_hide_the_rest(machine: str) -> None:
    """Landlock does not see chmod; with the whole file system in sight, only a descriptor shows that a file is granted."""
    assert answer(machine, "fchmodat") == ALLOW
    assert answer(machine, "fchmodat", own_mounts=False) == EPERM
    assert answer(machine, "fchmod", own_mounts=False) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_scheduling_of_others_is_refused_where_they_have_numbers(machine: str) -> None:
    """With the host's process ids, scheduling another does nothing, and no descriptor for another is to be had."""
    nothing = 0x00050000
    arch = ARCHITECTURES[machine]
    for own_pids, another in ((True, ALLOW), (False, EPERM)):
        program = seccomp.program(machine, allow_fork=False, allow_exec=False, own_mounts=True, own_pids=own_pids)
        for name in ("sched_setaffinity", "sched_setparam", "sched_setscheduler"):
            assert interpret(program, arch.numbers[name], arch.audit, (0,)) == ALLOW
            assert interpret(program, arch.numbers[name], arch.audit, (7,)) == (ALLOW if own_pids else nothing)
        assert interpret(program, arch.numbers["pidfd_open"], arch.audit, (7,)) == another


def test_the_table_of_numbers_is_what_the_rules_use() -> None:
    """Every rule has a number somewhere, every number a rule, and no two calls of a machine share one."""
    named = seccomp.rules(allow_fork=False, allow_exec=False, own_mounts=True).keys()
    tables = [arch.numbers for arch in ARCHITECTURES.values()]
    assert set().union(*tables) == set(named)
    for table in tables:
        assert len(set(table.values())) == len(table)


def test_an_unknown_machine_is_named() -> None:
    """There is no filter for a machine whose numbers are unknown."""
    with pytest.raises(KeyError, match="riscv64"):
        seccomp.program("riscv64", allow_fork=False, allow_exec=False, own_mounts=True)
