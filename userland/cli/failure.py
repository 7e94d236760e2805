"""Errors as the command line shows them: one table from code to name and exit status."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from llmos.ipc.connection import Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.userland.visible import lines

FAILED, USAGE, NOT_FOUND, DENIED, APPROVAL, UNREACHABLE, NO_MODEL, CONFLICT = 1, 2, 3, 4, 5, 6, 7, 8
TIMEOUT, INTERRUPT = 124, 130

CODES: dict[Code, tuple[str, int]] = {
    Code.INVALID_ARGUMENT: ("call.invalid_argument", USAGE),
    Code.UNKNOWN_OP: ("call.unknown_op", NOT_FOUND),
    Code.NOT_FOUND: ("call.not_found", NOT_FOUND),
    Code.TOO_LARGE: ("call.too_large", FAILED),
    Code.VERSION_MISMATCH: ("call.version_mismatch", FAILED),
    Code.CONFLICT: ("call.conflict", CONFLICT),
    Code.DENIED: ("perm.denied", DENIED),
    Code.NEEDS_APPROVAL: ("perm.needs_approval", APPROVAL),
    Code.REVOKED: ("perm.revoked", DENIED),
    Code.TAINTED: ("perm.tainted", DENIED),
    Code.UNAVAILABLE: ("resource.unavailable", FAILED),
    Code.BUSY: ("resource.busy", FAILED),
    Code.BUDGET: ("resource.budget", FAILED),
    Code.TIMEOUT: ("resource.timeout", TIMEOUT),
    Code.CANCELLED: ("resource.cancelled", INTERRUPT),
    Code.PEER_DIED: ("resource.peer_died", FAILED),
    Code.INTERNAL: ("kernel.internal", FAILED),
}


_JARGON = {
    ": Value error, ": ": ",
    ": Input should be a valid integer, unable to parse string as an integer": ": it has to be a whole number",
    ": Input should be a valid number, unable to parse string as a number": ": it has to be a number",
    ": Input should be ": ": it has to be ",
}
"""Of the parser's messages, in the order they are looked for."""


class ModelUnavailable(OpError):
    """`UNAVAILABLE`, and what is missing is the model."""


@contextlib.contextmanager
def model_is_meant() -> Iterator[None]:
    """Around a call that needs nothing else: its `UNAVAILABLE` becomes `ModelUnavailable`."""
    try:
        yield
    except Unreachable:
        raise
    except OpError as error:
        if error.code is Code.UNAVAILABLE:
            raise ModelUnavailable(error.code, error.detail, error.hint) from None
        raise


def plainly(message: str) -> str:
    """What the parser says of a wrong option, in words."""
    for jargon, words in _JARGON.items():
        message = message.replace(jargon, words)
    return message


def name_and_status(error: OpError) -> tuple[str, int]:
    """What stands in the brackets, and the exit status."""
    if isinstance(error, Unreachable):
        return "kernel.unreachable", UNREACHABLE
    if isinstance(error, ModelUnavailable):
        return "model.unavailable", NO_MODEL
    return CODES[error.code]


def show(error: OpError) -> int:
    """Prints `error[name]: detail` and the hint on stderr; the exit status."""
    name, status = name_and_status(error)
    print_error(name, error.detail, error.hint)
    return status


def print_error(name: str, detail: str, hint: str | None) -> None:
    """The two lines of every error. They may be a stranger's words: a terminal obeys none of them."""
    print(f"error[{name}]: {lines(detail)}", file=sys.stderr)
    if hint:
        print(f"hint: {lines(hint)}", file=sys.stderr)
