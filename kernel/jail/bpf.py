"""An assembler for seccomp filters: rules by system call number in, classic BPF out.

A block is a tuple of instructions that always ends in a return, whichever way it is walked. Blocks are joined by
jumping over them, so every jump goes forward by the length of a block and nothing needs labels.

Source: Linux, Documentation/userspace-api/seccomp_filter.rst; include/uapi/linux/{filter,bpf_common,seccomp}.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias


class Instruction(NamedTuple):
    """One `struct sock_filter`: operation, relative jumps if true and if false (0..255), operand."""

    code: int
    jt: int
    jf: int
    k: int


Rule: TypeAlias = tuple[Instruction, ...]

_LD_W_ABS = 0x20  # load the 32-bit word at offset k of struct seccomp_data
_JA = 0x05  # jump forward by k, 32 bits
_JEQ, _JGE, _JSET = 0x15, 0x35, 0x45  # compare with k: equal, unsigned greater or equal, any bit in common
_RET = 0x06

# struct seccomp_data { int nr; u32 arch; u64 instruction_pointer; u64 args[6]; }
_NUMBER, _ARCH, _ARGS = 0, 4, 16

KILL: Rule = (Instruction(_RET, 0, 0, 0x80000000),)  # the whole process, not only the thread
ALLOW: Rule = (Instruction(_RET, 0, 0, 0x7FFF0000),)


def fail(errno: int) -> Rule:
    """The call does nothing and fails with `errno`."""
    return (Instruction(_RET, 0, 0, 0x00050000 | errno),)


def _branch(code: int, k: int, then: Rule, otherwise: Rule) -> Rule:
    """Compare the loaded word with `k` and go on in one of two blocks."""
    if len(then) < 256:
        return (Instruction(code, 0, len(then), k), *then, *otherwise)
    return (Instruction(code, 1, 0, k), Instruction(_JA, 0, 0, len(then)), *then, *otherwise)


def _low(argument: int) -> Instruction:
    """Load the low half of an argument. All arguments judged here are C ints or have their flags in the low half."""
    return Instruction(_LD_W_ABS, 0, 0, _ARGS + 8 * argument + (4 if sys.byteorder == "big" else 0))


def if_any_bit(argument: int, mask: int, then: Rule, otherwise: Rule) -> Rule:
    """`then` when the argument has any bit of `mask`."""
    return (_low(argument), *_branch(_JSET, mask, then, otherwise))


def if_among(argument: int, values: Sequence[int], then: Rule, otherwise: Rule) -> Rule:
    """`then` when the argument's low 32 bits equal one of `values`."""
    block = otherwise
    for value in values:
        block = _branch(_JEQ, value, then, block)
    return (_low(argument), *block)


def filter_program(
    audit_arch: int, by_number: Mapping[int, Rule], default: Rule, beyond: int | None = None
) -> tuple[Instruction, ...]:
    """The whole filter: a foreign architecture or a number from `beyond` up kills, then a binary search by number.

    `default` judges the numbers that `by_number` does not have.
    """
    starts: dict[int, Rule] = {0: default}
    for number in sorted(by_number):
        starts[number] = by_number[number]
        starts.setdefault(number + 1, default)
    if beyond is not None:
        starts[beyond] = KILL
    ordered = sorted(starts.items())
    merged = [ordered[0]] + [b for a, b in pairwise(ordered) if a[1] != b[1]]
    return (
        Instruction(_LD_W_ABS, 0, 0, _ARCH),
        *_branch(_JEQ, audit_arch, (Instruction(_LD_W_ABS, 0, 0, _NUMBER), *_search(merged)), KILL),
    )


def _search(intervals: Sequence[tuple[int, Rule]]) -> Rule:
    """The rule of the last interval that starts at or below the loaded number."""
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    return _branch(_JGE, intervals[middle][0], _search(intervals[middle:]), _search(intervals[:middle]))


def assemble(program: Sequence[Instruction]) -> bytes:
    """The program as an array of `struct sock_filter`, native byte order. Raises ValueError over Linux's 4096."""
    if len(program) > 4096:
        raise ValueError(f"a seccomp filter has at most 4096 instructions, this one has {len(program)}")
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
