"""What goes wrong with models, each with what to do about it."""

from __future__ import annotations

import re

from llmos.ipc.errors import Code, OpError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ModelError(OpError):
    """A model operation failed; `code` is one of the closed set in `llmos.ipc.errors`."""


class ImportRejected(ModelError):
    """The model file is truncated, corrupt, hostile or of a kind that cannot be imported; the detail names the tensor or key."""

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(Code.INVALID_ARGUMENT, detail, hint)


def checked_name(name: str) -> str:
    """`name`, if it can name a model. Raises `ModelError` INVALID_ARGUMENT."""
    if not _NAME.fullmatch(name):
        raise ModelError(
            Code.INVALID_ARGUMENT,
            f"{name[:80]!r} cannot name a model",
            "use up to 64 lowercase letters, digits, dots, dashes and underscores, beginning with a letter or digit",
        )
    return name
