"""`perm`: who may do what. Only the person at the machine decides that."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import SYSCALLS
from llmos.userland import profiles as files
from llmos.userland.cli import arguments, failure, question, session, words
from llmos.userland.cli.output import Column, Format, Output, Record, as_json, note, record, rows
from llmos.userland.sdk import Client
from llmos.userland.visible import visible

app = typer.Typer(name="perm", help="See, give and take permissions.", no_args_is_help=True)

VERDICTS = {"allow": 0, "ask": failure.APPROVAL, "deny": failure.DENIED}
"""Exit status of `perm check` for each."""

_May = Column("may", lambda row: words.of_capability(row["cap"]))
_Cap = Column("cap", lambda row: visible(row["cap"]))
_Id = Annotated[str, typer.Argument(metavar="ID", help="See `llmosctl perm ls`.")]


@app.command(epilog="Example: llmosctl perm ls browser_history")
def ls(
    holder: Annotated[str, typer.Argument(help="Only those of this driver, agent or app.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List what was granted, and what programs ask for and do not have."""
    found = session.ask_kernel("perm.list", {"holder": holder}, timeout=5)
    if output is not Format.TABLE:
        as_json(found, output)
        return
    rows(found["caps"], [Column("id"), Column("holder"), _May, _Cap, Column("origin")], output)
    wanted = open_requests(found["requests"])
    if wanted:
        print()
        rows(wanted, [Column("asks", lambda row: row["holder"]), _May, _Cap], output)
        note("\ngrant them with: llmosctl perm grant --requested HOLDER")
    _tell_of_more(found, "see one program's with `llmosctl perm ls HOLDER`")


@app.command(epilog="Example: llmosctl perm show assistant")
def show(
    holder: Annotated[str, typer.Argument(help="A driver, an agent, a process such as assistant#7, or app:NAME.")],
    output: Output = Format.TABLE,
) -> None:
    """Show what one program may do, in words, since when and for what, and what it asks for besides."""
    found = session.ask_kernel("perm.list", {"holder": holder}, timeout=5)
    if not found["caps"] and not found["requests"]:
        hint = "`llmosctl perm ls` and `llmosctl ps` list who there is"
        raise OpError(Code.NOT_FOUND, f"{holder} holds nothing and asks for nothing", hint)
    if output is not Format.TABLE:
        as_json(found, output)
        return
    print(f"{visible(holder)} may" + ("" if found["caps"] else " do nothing"))
    for row in found["caps"]:
        reason = f", for: {visible(row['reason'])}" if row.get("reason") else ""
        print(f"  {words.of_capability(row['cap'])}\n    {row['id']}  {visible(row['cap'])}  ({row['origin']}{reason})")
    wanted = open_requests(found["requests"])
    if wanted:
        print("it asks to")
    for row in wanted:
        print(f"  {words.of_capability(row['cap'])}\n    {visible(row['cap'])}")
    _tell_of_more(found, "`llmosctl audit ls --kind grant` lists what was granted")


def _tell_of_more(found: Record, hint: str) -> None:
    if found.get("more", 0):
        note(f"{found['more']} more are not shown: {hint}")


@app.command(epilog="Example: llmosctl perm grant filesystem 'fs.read(path=~/Documents)'")
def grant(
    holder: Annotated[str, typer.Argument(help="A driver, an agent, or app:NAME.")],
    cap: Annotated[str, typer.Argument(help="The capability: object.right(key=value).")] = "",
    requested: Annotated[bool, typer.Option("--requested", help="Everything its manifest asks for.")] = False,
    profile: Annotated[str, typer.Option(help="Everything in this profile; see `llmosctl perm profiles`.")] = "",
    reason: Annotated[str, typer.Option(help="What for; shown by `perm show` and `perm why`.")] = "",
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Let a program do something, from now on and after restarts.

    With --requested or --profile each thing is shown in plain words, and asked for unless --yes is given.
    """
    if bool(cap) + requested + bool(profile) != 1:
        raise OpError(Code.INVALID_ARGUMENT, "give one of these: a capability, --requested, --profile NAME")
    listed = list(files.get(profile).allow) if profile else []
    said = {"reason": reason} if reason else {}
    with session.connect() as client:
        if cap:
            record(client.call("perm.grant", {"holder": holder, "cap": cap, **said}, timeout=5), output)
            return
        granted = [
            {"id": client.call("perm.grant", {"holder": holder, "cap": one, **said}, timeout=5)["id"], "cap": one}
            for one in listed or _wanted(client, holder)
            if _agreed(holder, one, yes)
        ]
    rows(granted, [Column("id"), _Cap], output, f"nothing was granted to {holder}")


def offer(client: Client, holder: str, yes: bool, known: Collection[str] = ()) -> None:
    """Show what a program asks for, one by one, but what is `known`, and grant what is agreed to."""
    for cap in (row["cap"] for row in open_requests(client.call("perm.list", holder=holder, timeout=5)["requests"])):
        if cap not in known and _agreed(holder, cap, yes):
            client.call("perm.grant", {"holder": holder, "cap": cap}, timeout=5)


def open_requests(requests: Sequence[Record]) -> list[Record]:
    """What is asked for, not granted, and of use on this machine."""
    return [row for row in requests if row["present"] and not row["granted"]]


def _wanted(client: Client, holder: str) -> list[str]:
    requests = client.call("perm.list", holder=holder, timeout=5)["requests"]
    if not requests:
        known = sorted({row["holder"] for row in client.call("perm.list", timeout=5)["requests"]})
        raise OpError(
            Code.NOT_FOUND, f"no program {holder!r} asks for anything", f"these do: {', '.join(known) or 'none'}"
        )
    return [row["cap"] for row in open_requests(requests)]


def _agreed(holder: str, cap: str, yes: bool) -> bool:
    said = f"{holder} may {words.of_capability(cap)}"
    if yes:
        note(said)
    return question.agreed(f"{said}. Is that right?", yes, f"whether {said}")


@app.command(epilog="Example: llmosctl perm revoke c12")
def revoke(number: _Id, output: Output = Format.TABLE) -> None:
    """Take a permission back, with everything that was passed on from it."""
    record(session.ask_kernel("perm.revoke", {"id": number}, timeout=5), output)


@app.command(epilog="Example: llmosctl perm check assistant#7 mail.send to=bob@example.com")
def check(
    holder: Annotated[str, typer.Argument(help="A driver, an agent, a process such as assistant#7, or app:NAME.")],
    op: Annotated[str, typer.Argument(metavar="TARGET.OP", help="See `llmosctl ops`.")],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="k=v…", help="The arguments it would call it with.")
    ] = None,
    json_args: Annotated[str, typer.Option("--args", "--json", metavar="OBJECT", help="The same as JSON.")] = "{}",
    output: Output = Format.TABLE,
) -> None:
    """Say whether a program could do something now, and why; nothing is done and nobody is asked.

    Exit status: 0 it could, 4 it could not, 5 you would be asked.
    """
    with session.connect() as client:
        args = {**arguments.from_json(json_args), **_typed(client, op, values or [])}
        found = client.call("perm.check", {"holder": holder, "op": op, "args": args}, timeout=5)
    if output is not Format.TABLE:
        as_json(found, output)
    else:
        print({"allow": "yes", "ask": "yes, once you approve", "deny": "no"}.get(found["verdict"], found["verdict"]))
        for reason in found["reasons"] or ():
            print(f"  {visible(reason)}")
        _show_chain(found["chain"] or ())
        if found.get("hint"):
            note(f"hint: {visible(found['hint'])}")
    raise typer.Exit(VERDICTS.get(found["verdict"], failure.FAILED))


def _typed(client: Client, op: str, values: list[str]) -> dict[str, Any]:
    if op in SYSCALLS:
        return arguments.of_syscall(values, SYSCALLS[op])
    specs = {row["op"]: row["args"] for row in client.ops()} if values else {}
    return arguments.typed(values, specs.get(op, {}))


@app.command(epilog="Example: llmosctl perm why c12")
def why(number: _Id, output: Output = Format.TABLE) -> None:
    """Show where a permission comes from, back to your own, and what is left of its quotas."""
    found = session.ask_kernel("perm.why", {"id": number}, timeout=5)
    if output is not Format.TABLE:
        as_json(found, output)
        return
    _show_chain(found["chain"])
    if found["left"]:
        print("left now: " + ", ".join(f"{amount:,} {unit}" for unit, amount in found["left"].items()))


def _show_chain(chain: Sequence[Record]) -> None:
    """From a capability to the one it was derived from, and so on."""
    for depth, row in enumerate(chain):
        lead = f"{'   ' * (depth - 1)}└─ from " if depth else ""
        reason = f", for: {visible(row['reason'])}" if row.get("reason") else ""
        print(f"{lead}{row['id']}  {visible(row['holder'])}: {visible(row['cap'])}  ({visible(row['origin'])}{reason})")


@app.command(epilog="Example: llmosctl perm profiles reader")
def profiles(
    name: Annotated[str, typer.Argument(help="Show this one.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List the profiles: named sets of permissions, for `spawn --profile` and `perm grant --profile`.

    Your own are files like those that come with the system, and stand in place of one with the same name.
    """
    if name:
        found = files.get(name)
        if output is not Format.TABLE:
            as_json({"name": found.name, "summary": found.summary, "allow": found.allow}, output)
            return
        print(found.summary)
        rows([{"cap": cap} for cap in found.allow], [_May, _Cap], output)
        return
    listed: list[dict[str, Any]] = [
        {
            "name": one.name,
            "whose": "yours" if one.own else "system",
            "allows": len(one.profile.allow) if one.profile else 0,
            "summary": one.profile.summary if one.profile else f"broken: {one.problem}",
            "path": str(one.path),
        }
        for one in files.every()
    ]
    rows(listed, [Column("name"), Column("whose"), Column("allows", right=True), Column("summary")], output)
