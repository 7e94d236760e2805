"""The closed set of errors: values on the wire, exceptions inside a process, mapped here and nowhere else."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self


class Code(StrEnum):
    """Why a call failed, in four families; a client may switch on these and on nothing else."""

    # caller: the request itself is wrong; sending it again cannot help
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNKNOWN_OP = "UNKNOWN_OP"
    NOT_FOUND = "NOT_FOUND"
    TOO_LARGE = "TOO_LARGE"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    CONFLICT = "CONFLICT"
    # authority: the caller may not
    DENIED = "DENIED"
    NEEDS_APPROVAL = "NEEDS_APPROVAL"
    REVOKED = "REVOKED"
    TAINTED = "TAINTED"
    # resource: not now; sending it again may help
    UNAVAILABLE = "UNAVAILABLE"
    BUSY = "BUSY"
    BUDGET = "BUDGET"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    PEER_DIED = "PEER_DIED"
    # kernel: a bug of ours
    INTERNAL = "INTERNAL"


MAX_DETAIL = 2000
"""Characters of `detail` and of `hint` that travel; the rest is cut, so that an error always fits a frame."""


class OpError(Exception):
    """A failed call.

    Args:
        code: one of `Code`.
        detail: what is wrong, naming the argument or the missing right.
        hint: what the person or the program can do about it, if anything.
    """

    def __init__(self, code: Code | str, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.code = Code(code)
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" + (f" (hint: {self.hint})" if self.hint else "")

    def to_wire(self) -> dict[str, Any]:
        """The `error` field of a final reply."""
        wire: dict[str, Any] = {"code": self.code.value, "detail": self.detail[:MAX_DETAIL]}
        if self.hint:
            wire["hint"] = self.hint[:MAX_DETAIL]
        return wire

    @classmethod
    def from_wire(cls, wire: object) -> Self:
        """Rebuild from a reply; an unknown code (a newer peer's) becomes `INTERNAL` with the code in the detail."""
        if not isinstance(wire, dict):
            return cls(Code.INTERNAL, "the reply carried a malformed error")
        code, detail, hint = wire.get("code"), str(wire.get("detail", "")), wire.get("hint")
        if not isinstance(code, str) or code not in set(Code):
            code, detail = Code.INTERNAL, f"{code}: {detail}"
        return cls(Code(str(code)), detail, str(hint) if hint else None)
