"""`perm`: who may do what. Only the person at the machine decides that."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland.cli import session, words
from llmos.userland.cli.output import Column, Format, Output, line_json, note, print_json, record, rows
from llmos.userland.sdk import Client

app = typer.Typer(name="perm", help="See, give and take permissions.", no_args_is_help=True)


@app.command(epilog="Example: llmosctl perm ls browser_history")
def ls(
    holder: Annotated[str, typer.Argument(help="Only those of this driver or agent.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List what was granted, and what programs ask for and do not have."""
    found = session.ask_kernel("perm.list", {"holder": holder}, timeout=5)
    if output is not Format.TABLE:
        (print_json if output is Format.JSON else line_json)(found)
        return
    may = Column("may", lambda row: words.of_capability(row["cap"]))
    rows(found["caps"], [Column("id"), Column("holder"), may, Column("cap"), Column("origin")], output)
    open_requests = [row for row in found["requests"] if row["present"] and not row["granted"]]
    if open_requests:
        print()
        rows(open_requests, [Column("asks", lambda row: row["holder"]), may, Column("cap")], output)
        note("\ngrant them with: llmosctl perm grant --requested HOLDER")


@app.command(epilog="Example: llmosctl perm grant filesystem 'fs.read(path=~/Documents)'")
def grant(
    holder: Annotated[str, typer.Argument(help="A driver or an agent.")],
    cap: Annotated[str, typer.Argument(help="The capability: object.right(key=value).")] = "",
    requested: Annotated[bool, typer.Option("--requested", help="Everything its manifest asks for.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Let a program do something, from now on and after restarts.

    With --requested each thing that its manifest asks for is shown in plain words, and asked for unless --yes is given.
    """
    if bool(cap) == requested:
        raise OpError(Code.INVALID_ARGUMENT, "give either a capability or --requested")
    with session.connect() as client:
        if cap:
            record(client.call("perm.grant", holder=holder, cap=cap, timeout=5), output)
            return
        granted = [
            {"id": client.call("perm.grant", holder=holder, cap=wanted, timeout=5)["id"], "cap": wanted}
            for wanted in _wanted(client, holder)
            if _agreed(holder, wanted, yes)
        ]
    rows(granted, [Column("id"), Column("cap")], output, f"nothing was granted to {holder}")


def _wanted(client: Client, holder: str) -> list[str]:
    """What it asks for, has not, and could use on this machine."""
    requests = client.call("perm.list", holder=holder, timeout=5)["requests"]
    if not requests:
        known = sorted({row["holder"] for row in client.call("perm.list", timeout=5)["requests"]})
        raise OpError(
            Code.NOT_FOUND, f"no program {holder!r} asks for anything", f"these do: {', '.join(known) or 'none'}"
        )
    return [row["cap"] for row in requests if row["present"] and not row["granted"]]


def _agreed(holder: str, cap: str, yes: bool) -> bool:
    said = f"{holder} may {words.of_capability(cap)}"
    if yes:
        note(said)
        return True
    if not sys.stdin.isatty():
        raise OpError(Code.NEEDS_APPROVAL, f"nobody is there to ask whether {said}", "add --yes to say so for all")
    return typer.confirm(f"{said}. Is that right?", err=True)


@app.command(epilog="Example: llmosctl perm revoke c12")
def revoke(
    number: Annotated[str, typer.Argument(metavar="ID", help="See `llmosctl perm ls`.")],
    output: Output = Format.TABLE,
) -> None:
    """Take a permission back, with everything that was passed on from it."""
    record(session.ask_kernel("perm.revoke", {"id": number}, timeout=5), output)
