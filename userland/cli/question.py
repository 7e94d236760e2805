"""Questions to the person at the terminal. Where nobody is there to ask, that is an error, and never a yes."""

from __future__ import annotations

import sys

import typer

from llmos.ipc.errors import Code, OpError

YES = "add --yes to say so yourself"


def agreed(question: str, yes: bool, about: str, hint: str = YES) -> bool:
    """Her word; `yes` is `--yes`. Raises `OpError(NEEDS_APPROVAL)`, which names what it is about, off a terminal."""
    if yes:
        return True
    if not someone():
        raise OpError(Code.NEEDS_APPROVAL, f"nobody is there to ask {about}", hint)
    return typer.confirm(question, err=True)


def someone() -> bool:
    """Whether a person can answer."""
    return sys.stdin is not None and sys.stdin.isatty()
