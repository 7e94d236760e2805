"""`python -m llmos.userland.models import FILE FOLDER [--name NAME]`: one import as a process of its own; `check GRAPH` looks
a graph over.

Standard output is JSON lines: `{"done": bytes, "total": bytes, "what": text}` while it works, and one last line, either
`{"ok": {"name", "folder", "seconds", "peak_rss"}}` (of a check `{"ok": {"external", "quantisation"}}`) or
`{"error": {"code", "detail", "hint"?}}`. The exit status is 0 or 1.
It reads FILE, writes below FOLDER, and needs no network: what it can reach beyond that is its starter's business.
"""

from __future__ import annotations

import argparse
import errno
import json
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from llmos.ipc.errors import Code, OpError
from llmos.userland.models.errors import ModelError

_EVERY = 0.1
"""Seconds between two lines of progress."""


def main(arguments: list[str] | None = None) -> int:
    """Parse, import, report; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m llmos.userland.models", description="Import a GGUF file, or look over a graph."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    importing = verbs.add_parser("import", help="turn FILE into the model folder FOLDER/NAME")
    importing.add_argument("file", type=Path, metavar="FILE")
    importing.add_argument("folder", type=Path, metavar="FOLDER")
    importing.add_argument("--name", help="default: after the file")
    checking = verbs.add_parser("check", help="look over the ONNX graph in FILE")
    checking.add_argument("file", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)
    try:
        _say(
            {
                "ok": _check(options.file)
                if options.verb == "check"
                else _import(options.file, options.folder, options.name)
            }
        )
    except OpError as error:
        _say({"error": error.to_wire()})
    except OSError as error:
        _say({"error": _explained(error).to_wire()})
    except MemoryError:
        _say({"error": ModelError(Code.UNAVAILABLE, "there is not enough memory to import this file").to_wire()})
    else:
        return 0
    return 1


def _import(file: Path, folder: Path, name: str | None) -> dict[str, Any]:
    # Imported here so that a usage error costs nothing.
    from llmos.userland.models.importer import default_name, import_gguf

    started = reported = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        nonlocal reported
        if time.monotonic() - reported >= _EVERY or done == total:
            reported = time.monotonic()
            _say({"done": done, "total": total, "what": what})

    made = import_gguf(file, folder, name or default_name(file), progress)
    return {
        "name": made.name,
        "folder": str(made),
        "seconds": round(time.monotonic() - started, 3),
        "peak_rss": _peak_rss(),
    }


def _check(file: Path) -> dict[str, Any]:
    from llmos.userland.models.graph_check import check_graph

    return check_graph(file)


def _peak_rss() -> int:
    """Bytes. Not from getrusage where it can be had otherwise: that counts what the starter had resident before exec."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _explained(error: OSError) -> ModelError:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(Code.UNAVAILABLE, f"the disk is full{where}", "make room and import again")
    if isinstance(error, FileNotFoundError):
        return ModelError(Code.NOT_FOUND, f"there is no file {error.filename}")
    if isinstance(error, FileExistsError):
        return ModelError(Code.CONFLICT, str(error), "remove it first, or choose another name")
    return ModelError(Code.UNAVAILABLE, f"{error.strerror or error}{where}")


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _leave(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 -- a signal handler's signature
    """End by an exception, so that what is half built is removed."""
    raise SystemExit(128 + signum)
