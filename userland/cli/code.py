"""`code`: programs, run cut off from everything but their project."""

from __future__ import annotations

import contextlib
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import failure, question, session
from llmos.userland.cli.output import Column, Format, Output, as_json, line_json, note, rows
from llmos.userland.sdk import Client
from llmos.userland.visible import exact, visible

app = typer.Typer(
    name="code", help="Run programs cut off from everything, and see what they made.", no_args_is_help=True
)

PART = 48_000
"""Bytes of a file in one message."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def _project(name: str) -> str:
    if name and not _NAME.fullmatch(name):
        raise OpError(
            Code.INVALID_ARGUMENT, f"{exact(name)} cannot name a project", "lowercase letters, digits and `_`"
        )
    return name


Project = Annotated[
    str,
    typer.Option("-p", "--project", help="Where it runs: its files are there next time.", callback=_project),
]


@app.command(epilog="Example: llmosctl code run plot.py --project numbers --seconds 60 -- --points 100")
def run(
    file: Annotated[str, typer.Argument(metavar="FILE.py|-", help="A Python program; - for standard input.")],
    args: Annotated[list[str] | None, typer.Argument(metavar="args…", help="For the program; after --.")] = None,
    project: Project = "scratch",
    stored: Annotated[bool, typer.Option("--stored", help="FILE is one of the project's.")] = False,
    stdin: Annotated[bool, typer.Option("--stdin", help="It gets what comes on standard input.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="It may take.")] = 30.0,
    memory: Annotated[int, typer.Option(metavar="MB", min=64, max=4096, help="It may need.")] = 512,
    output_bytes: Annotated[
        int, typer.Option(metavar="BYTES", min=1, max=1 << 20, help="It may write to a stream.")
    ] = 65_536,
    processes: Annotated[bool, typer.Option("--processes", help="It may start others.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Run a Python program in a sandbox, and end with its exit status.

    It sees its project's directory and nothing else of yours: no network, no other file, no other program. What it prints comes as it
    prints it; what it has made of the project's files is listed at the end, and `code get` fetches them. One that takes too long ends
    with status 124, one that is ended by a signal with 128 and its number.
    """
    request: dict[str, Any] = {
        "project": project,
        "args": args or [],
        "seconds": seconds,
        "memory_mb": memory,
        "output_bytes": output_bytes,
        "processes": processes,
    }
    if stdin:
        request["stdin"] = sys.stdin.read()
    with session.connect() as client:
        request |= {"file": file} if stored else _program(client, project, file)
        with session.cancelling(client, client.stream("code.run", request)) as stream:
            for chunk in stream:
                if output is Format.JSONL:
                    line_json(chunk)
                elif output is Format.TABLE:
                    _show(chunk["text"], sys.stdout if chunk["stream"] == "stdout" else sys.stderr)
        result = stream.result
    if output is not Format.TABLE:
        as_json(result, output)
    else:
        for row in result["files"]:
            note(f"{row['change']}: {visible(row['path'])}" + (f" ({row['bytes']:,} bytes)" if row["bytes"] else ""))
        if result["more"]:
            note(f"and {result['more']:,} more files")
        if result["reason"]:
            failure.print_error("code.ended", result["reason"], None)
    status = _status(result)
    if status:
        raise typer.Exit(status)


def _status(result: dict[str, Any]) -> int:
    """Of the program, as a shell has it."""
    status = int(result["exit"])
    if status < 0:
        return failure.TIMEOUT if result["reason"].startswith("it took longer") else 128 - status
    return status or (failure.FAILED if result["reason"] else 0)


def _program(client: Client, project: str, file: str) -> dict[str, str]:
    """A program of this machine; one that does not fit a message goes into the project first."""
    source = sys.stdin.buffer.read() if file == "-" else _read(Path(file))
    if len(source) <= PART:
        with contextlib.suppress(UnicodeDecodeError):
            return {"source": source.decode()}
    name = "program.py" if file == "-" else Path(file).name
    _put(client, project, name, source)
    return {"file": name}


def _read(file: Path) -> bytes:
    """Raises `OpError(NOT_FOUND)`."""
    try:
        return file.read_bytes()
    except OSError as error:
        hint = "give a file of this machine; `llmosctl code run --stored` runs one of the project's"
        raise OpError(Code.NOT_FOUND, f"{visible(str(file))}: {error.strerror}", hint) from None


def _put(client: Client, project: str, path: str, content: bytes) -> None:
    for start in range(0, max(len(content), 1), PART):
        part = content[start : start + PART]
        client.call("code.write", project=project, path=path, data=part, append=start > 0)


def _show(text: str, to: IO[str]) -> None:
    """A stranger's words; a terminal obeys none of them."""
    if to.isatty():
        lines = text.split("\n")
        text = "\n".join("\t".join(map(visible, line.removesuffix("\r").split("\t"))) for line in lines)
    to.write(text)
    to.flush()


@app.command(epilog="Example: llmosctl code ls numbers")
def ls(
    project: Annotated[str, typer.Argument(help="Its files; without one, the projects.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List the projects, or the files of one."""
    with session.connect() as client:
        if not project:
            columns = [
                Column("project"),
                Column("label"),
                Column("running"),
                Column("made", lambda row: _time(row["made"])),
            ]
            rows(client.call("code.ls")["projects"], columns, output, "no projects")
            return
        page = client.call("code.ls", project=project)
        found = page["files"]
        while page["next"]:
            page = client.call("code.ls", project=project, after=page["next"])
            found += page["files"]
    columns = [Column("path"), Column("bytes", right=True), Column("modified", lambda row: _time(row["modified"]))]
    rows(found, columns, output, "no files")
    if page["hidden"]:
        note(f"and {page['hidden']:,} links and other things that cannot be read")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


@app.command(epilog="Example: llmosctl code get numbers plot.svg --to plot.svg")
def get(
    project: Annotated[str, typer.Argument(help="See `llmosctl code ls`.")],
    path: Annotated[str, typer.Argument(help="Of a file in it.")],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to put it; by default standard output.")
    ] = None,
) -> None:
    """Fetch a file of a project. What a program made is a stranger's: look at it before you open it."""
    with session.connect() as client, contextlib.ExitStack() as stack:
        page = client.call("code.read", project=project, path=path)
        stream = stack.enter_context(to.open("wb")) if to is not None else None
        while True:
            if stream is not None:
                stream.write(page["data"])
            elif sys.stdout.isatty():
                _show(page["data"].decode(errors="replace"), sys.stdout)
            else:
                sys.stdout.buffer.write(page["data"])
            if not page["next"]:
                break
            page = client.call("code.read", project=project, path=path, offset=page["next"])


@app.command(epilog="Example: llmosctl code put numbers data.csv")
def put(
    project: Annotated[
        str, typer.Argument(help="One that exists, or a new one: lowercase letters, digits, `_`.", callback=_project)
    ],
    file: Annotated[Path, typer.Argument(help="Of this machine.")],
    path: Annotated[str, typer.Argument(help="Its path in the project; by default its name.")] = "",
) -> None:
    """Put a file into a project, for programs to work on."""
    with session.connect() as client:
        _put(client, project, path or file.name, _read(file))


@app.command(epilog="Example: llmosctl code rm numbers plot.svg")
def rm(
    project: Annotated[str, typer.Argument(help="See `llmosctl code ls`.")],
    path: Annotated[str, typer.Argument(help="A file or folder of it; without one, the whole project.")] = "",
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a project, or a file or folder of it."""
    whole = f"the project {project} with all its files"
    if not path and not question.agreed(f"Remove {whole}?", yes, f"whether to remove {whole}"):
        note("nothing was removed")
        raise typer.Exit(failure.FAILED)
    session.ask_kernel("code.rm", {"project": project, **({"path": path} if path else {})}, timeout=10)
