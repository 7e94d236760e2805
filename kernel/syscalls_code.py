"""Syscalls for programs that are run, and their projects. The right to call each has been checked when a handler runs."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmos.ipc import protocol
from llmos.ipc.errors import Code, OpError
from llmos.kernel import code_files, params
from llmos.kernel.calls import Call
from llmos.kernel.labels import join
from llmos.kernel.syscalls import Request, Result, fitting, syscall

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel


TEXT_BYTES = 20_000
"""Of a file in one answer as text: each may become a replacement character of three."""


@syscall(protocol.RunCode)
def _run(kernel: Kernel, request: Request, args: protocol.RunCode) -> Result:
    process = request.peer.process
    kernel.code.run(request.call, args, process.pid if process is not None else 0)
    return None


@syscall(protocol.ListCode)
def _list(kernel: Kernel, request: Request, args: protocol.ListCode) -> Result:
    call, code = request.call, kernel.code
    if args.project:
        code.look(call, args.project, lambda _, found: _reply(kernel, call, args.project, _page(kernel, args, found)))
        return None
    shown = [one for one in code.projects if kernel.caps.allowed(call.holder, "code", "read", {"project": (one.name,)})]
    rows = [
        {"project": one.name, "label": str(one.label), "running": code.running(one.name), "made": one.made}
        for one in shown
    ]
    label = join(one.label for one in shown)  # their names are words of whoever made them
    call.reply({"projects": rows}, label, kernel.authority.labels.source("projects", call.op, label))
    return None


def _page(kernel: Kernel, args: protocol.ListCode, found: code_files.Listing) -> dict[str, Any]:
    rows = [
        {"path": path, "bytes": entry.bytes, "modified": entry.modified}
        for path, entry in sorted(found.files.items())
        if path > args.after
    ]
    shown = fitting(rows)
    return {
        "project": args.project,
        "label": str(kernel.code.projects.label(args.project)),
        "bytes": found.bytes,
        "entries": found.entries,
        "files": shown,
        "hidden": found.hidden,
        "next": shown[-1]["path"] if len(shown) < len(rows) else "",
    }


@syscall(protocol.ReadCode)
def _read(kernel: Kernel, request: Request, args: protocol.ReadCode) -> Result:
    with _inside(kernel, request.call, args.project), kernel.code.projects.opened(args.project) as directory:
        limit = min(args.limit, TEXT_BYTES) if args.text else args.limit
        data, size = code_files.read(directory, args.path, args.offset, limit)
        content, taken = _text(data, args.offset + len(data) >= size) if args.text else ({"data": data}, len(data))
        following = args.offset + taken
        rest = {"bytes": size, "next": following if taken and following < size else 0}
        _reply(kernel, request.call, args.project, {**content, **rest})
    return None


def _text(data: bytes, final: bool) -> tuple[dict[str, Any], int]:
    """What it says up to its last whole character, and how many bytes that was."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final)
    begun = len(decoder.getstate()[0])
    if begun == len(data):  # less than a character was asked for
        return {"text": data.decode(errors="replace")}, len(data)
    return {"text": text}, len(data) - begun


@syscall(protocol.WriteCode)
def _write(kernel: Kernel, request: Request, args: protocol.WriteCode) -> Result:
    """Its label is there before it is; so it stays when what was to be written does not fit."""
    call, code = request.call, kernel.code
    if (args.text is None) == (args.data is None):
        raise OpError(Code.INVALID_ARGUMENT, "code.write: give either text or data")
    data = args.data if args.data is not None else str(args.text).encode(errors="replace")
    code.refuse_running(args.project)
    code.enter(call, args.project)

    def write(directory: int, found: code_files.Listing) -> None:
        code.refuse_running(args.project)
        if found.over or found.bytes + len(data) > params.CODE_BYTES or found.entries >= params.CODE_FILES:
            detail = found.over or f"the project holds {found.entries:,} files and {found.bytes:,} bytes"
            raise OpError(Code.TOO_LARGE, detail, f"llmosctl code rm {args.project} PATH")
        code_files.write(directory, args.path, data, append=args.append)
        call.reply({})  # and nothing of what is there: who writes what it has not read stays as trusted as it was

    code.look(call, args.project, write)
    return None


@syscall(protocol.RemoveCode)
def _remove(kernel: Kernel, request: Request, args: protocol.RemoveCode) -> Result:
    code = kernel.code
    code.refuse_running(args.project)
    with _inside(kernel, request.call, args.project):
        if args.path is None:
            code.projects.remove(args.project)
        else:
            with code.projects.opened(args.project) as directory:
                code_files.discard(directory, args.path, code.projects.rubbish)
        code.sweep()
        request.call.reply({})
    return None


def _reply(kernel: Kernel, call: Call, project: str, answer: dict[str, Any]) -> None:
    call.reply(answer, *kernel.code.told_by(project, call))


@contextmanager
def _inside(kernel: Kernel, call: Call, project: str) -> Iterator[None]:
    """What goes wrong in a project tells something of what is in it."""
    try:
        yield
    except OpError as error:
        call.fail(error, *kernel.code.told_by(project, call))
