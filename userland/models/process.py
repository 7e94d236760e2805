"""Runs the importer in a process of its own, jailed by whoever supplies the starter, and follows its progress."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many bytes of it are done, and how many there are (0: unknown)."""

Start = Callable[[Sequence[str], Path, Path], "subprocess.Popen[bytes]"]
"""Starts the command with its standard output piped and its standard error left alone or piped to nobody.

Called with the command, the one file it must read, and the one folder below which it must write; both paths are absolute
and must be seen under the same names inside a jail.
"""


def start_plainly(command: Sequence[str], file: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Without a jail: for trusted files and for tests."""
    del file, folder
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def import_in_process(
    file: Path, parent: Path, name: str, progress: Progress, start: Start = start_plainly
) -> dict[str, Any]:
    """Import `file` as `parent / name`; what the importer said at the end (`name folder seconds peak_rss`).

    Blocks until the importer has ended, and ends it when interrupted.

    Raises:
        ModelError: what the importer reported, with its code and hint; PEER_DIED when it ended without a word.
    """
    return _run(["import", str(file.absolute()), str(parent.absolute()), "--name", name], file, parent, progress, start)


def check_in_process(file: Path, scratch: Path, start: Start = start_plainly) -> dict[str, Any]:
    """What `graph_check.check_graph` finds in a stranger's graph, looked over in a process that may write below `scratch`.

    Raises `ModelError` as `import_in_process` does.
    """
    return _run(["check", str(file.absolute())], file, scratch, _untold, start)


def _run(arguments: list[str], file: Path, folder: Path, progress: Progress, start: Start) -> dict[str, Any]:
    process = start([sys.executable, "-m", "llmos.userland.models", *arguments], file.absolute(), folder.absolute())
    last: dict[str, Any] = {}
    try:
        for line in process.stdout or ():
            last = _message(line)
            if "done" in last:
                progress(f"importing {last.get('what', '')}", int(last["done"]), int(last.get("total", 0)))
    finally:
        if process.poll() is None and not last.keys() & {"ok", "error"}:
            process.terminate()
        status = process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if status == 0 and isinstance(last.get("ok"), dict):
        result: dict[str, Any] = last["ok"]
        return result
    if "error" in last:
        raise ModelError.from_wire(last["error"])
    raise ModelError(
        Code.PEER_DIED,
        f"the importer ended with status {status} and left nothing",
        "the file may be hostile, or the machine out of memory",
    )


def _untold(what: str, done: int, total: int) -> None:
    """Of what takes no time, no progress."""


def _message(line: bytes) -> dict[str, Any]:
    """One line of the importer's; anything that is not a JSON object counts as silence."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
