"""Why a process ended, in words that a person can do something with."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable

_SIGNALS = {
    signal.SIGKILL: "ended by the system, most likely for lack of memory",
    signal.SIGSYS: "it made a system call that the jail forbids",
    signal.SIGSEGV: "a fault in its compiled code",
    signal.SIGBUS: "a fault in its compiled code, or a file that shrank under it",
    signal.SIGILL: "its compiled code is for another processor",
    signal.SIGFPE: "a fault in the arithmetic of its compiled code",
    signal.SIGABRT: "its compiled code gave up",
    signal.SIGXCPU: "it used more processor time than it may",
    signal.SIGXFSZ: "it wrote a larger file than it may",
    signal.SIGTERM: "somebody asked it to end",
}
_LONGEST = 200
"""Characters of a process's own words."""
_NO_MEMORY = re.compile(r"\bMemoryError\b|Cannot allocate memory|std::bad_alloc|out of memory", re.IGNORECASE)
_REFUSED = re.compile(r"PermissionError|Permission denied|Operation not permitted|Read-only file system")
_NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded")
_FIELD = re.compile(r'"(exception|detail)": "((?:[^"\\]|\\.)*)"')
"""Of a line that `ipc.log` made."""
_MISSING = re.compile(r"(?:ModuleNotFoundError|ImportError): (.*)")


def cause(status: int) -> str:
    """In the kernel's own words, of which everybody may hear. Begins with `exit` or `killed`."""
    if status == 0:
        return "exit: it ended by itself"
    if status > 0:
        return f"exit status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"killed by signal {-status}"
    why = _SIGNALS.get(number)
    return f"killed by {number.name}" + (f": {why}" if why else "")


def last_words(lines: Iterable[str]) -> str:
    """The last line that says something, shortened: with Python that is the exception; of a line of our own log, what it is about."""
    said = next((line.strip() for line in reversed(list(lines)) if line.strip()), "")
    fields: dict[str, str] = dict(_FIELD.findall(said))
    raised = fields.get("exception", "").rpartition("\\n")[2]
    said = (raised or fields.get("detail") or said).replace('\\"', '"')
    return said if len(said) <= _LONGEST else said[: _LONGEST - 1] + "…"


def explain(status: int, lines: Iterable[str]) -> str:
    """`cause`, and what the process itself said last: for whoever may read its log.

    Args:
        lines: of its standard error, oldest first.
    """
    told, said = cause(status), last_words(lines)
    if status in (0, -signal.SIGKILL, -signal.SIGTERM) or not said:
        return told
    recent = "\n".join(list(lines)[-30:])
    if _NO_MEMORY.search(recent):
        told += ": it asked for more memory than it may have"
    elif _NO_ROOM.search(recent):
        told += ": there was no room left to write to"
    elif missing := _MISSING.search(recent):
        told += f": it cannot be imported ({missing[1].strip()[:_LONGEST]})"
        return told
    elif _REFUSED.search(recent):
        told += ": the jail, or a file's own mode, refused it something; see `llmosctl perm show NAME` for what it may"
    return f"{told}; it said last: {said}"
