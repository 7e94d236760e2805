"""`ps`, `spawn`, `kill`, `logs`: processes."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import typer

from llmos.ipc.connection import Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.userland import profiles
from llmos.userland.cli import arguments, failure, perm, question, session, system, words
from llmos.userland.cli.output import Column, Format, Output, as_json, line_json, note, record, rows
from llmos.userland.sdk import Client
from llmos.userland.visible import visible

FOLLOW_S = 0.3
"""Seconds between two looks at a log that is followed."""

COLUMNS = (
    Column("pid", right=True),
    Column("name"),
    Column("kind"),
    Column("state"),
    Column("up", lambda row: system.since(row["started"]), right=True),
    Column("mb", lambda row: f"{memory(row):.0f}", right=True),
    Column("cpu", lambda row: f"{row['cpu_s']:.1f} s", right=True),
    Column("%", lambda row: row.get("cpu_pct", 0), right=True),
    Column("disk", lambda row: f"{row.get('disk_mb', 0):.0f}", right=True),
    Column("calls", right=True),
    Column("restarts", right=True),
    Column("status"),
)


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl ps -o json")(ps)
    app.command(epilog="Example: llmosctl spawn assistant question='what did I read?' --wait")(spawn)
    app.command(epilog="Example: llmosctl kill 5")(kill)
    app.command(epilog="Example: llmosctl logs browser_history -n 50 -f --since 10m")(logs)


def ps(output: Output = Format.TABLE) -> None:
    """List the processes of the system, with what each uses over its whole jail.

    MB is memory, shared pages counted by their share; CPU the seconds of processor so far, % the share of one of late; DISK the MB in
    its own directory.
    """
    with session.connect() as client:
        rows(processes(client), COLUMNS, output)


def processes(client: Client) -> list[dict[str, Any]]:
    """All rows of `proc.list`, however many pages there are."""
    found: list[dict[str, Any]] = []
    page = client.call("proc.list", timeout=5)
    found += page["processes"]
    while page.get("next"):
        page = client.call("proc.list", after=page["next"], timeout=5)
        found += page["processes"]
    return found


def memory(row: Any) -> float:
    """MB: the program's own where its jail has not been looked at yet."""
    return float(row.get("pss_mb") or row["rss_mb"])


def spawn(
    program: Annotated[str, typer.Argument(help="Name of an installed agent.")],
    values: Annotated[list[str] | None, typer.Argument(metavar="k=v…", help="Its arguments.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="A capability it is born with, in place of what it requests; may be repeated."),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Born with what this profile lists, and --allow besides; see `llmosctl perm profiles`.")
    ] = "",
    wait: Annotated[bool, typer.Option(help="Wait for its result and print that.")] = False,
    strict: Annotated[
        bool, typer.Option(help="Ask about every effect once it has read a stranger's words, planned or not.")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Give it what it asks for without asking.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Start an agent.

    Without --allow and --profile it gets what its manifest requests: what of that it was not granted before is shown in plain
    words, and asked for unless --yes is given. With them it gets exactly what they name.
    """
    args = arguments.literals(values or [])
    handed = [*(profiles.get(profile).allow if profile else ()), *(allow or ())]
    born_with = handed if profile or allow else None
    with session.connect() as client:
        if born_with is None and not _may_have_what_it_asks(client, program, yes):
            note(f"{program} was not started; --allow and --profile give it less")
            raise typer.Exit(failure.FAILED)
        if not wait:
            pid = client.spawn(program, args, allow=born_with, strict=strict)
            badge = f"{program}#{pid}"
            if output is Format.TABLE:
                print(pid)
                note(
                    f"it is {badge}: see `llmosctl logs {program}`, `llmosctl perm show {badge}`, `llmosctl why {badge}`"
                )
            else:
                record({"pid": pid, "badge": badge}, output)
            return
        with session.model_may_be_meant(client):
            started = client.spawn(program, args, allow=born_with, wait=True, strict=strict)
            with session.cancelling(client, started) as run:
                for data in run:
                    if output is Format.JSONL:
                        line_json(data)
                    else:
                        note(visible(" ".join(f"{key}={value}" for key, value in data.items())))
            result: dict[str, Any] = run.result["result"]
    as_json(result, output)


def _may_have_what_it_asks(client: Client, program: str, yes: bool) -> bool:
    """The person's word on what it asks for and was not granted before. Raises `OpError(NEEDS_APPROVAL)` off a terminal."""
    wanted = perm.open_requests(client.call("perm.list", holder=program, timeout=5)["requests"])
    if not wanted or yes:
        return True
    note(f"{program} asks to")
    for row in wanted:
        note(f"  {words.of_capability(row['cap'])}")
    hint = "add --yes to say so yourself; --allow and --profile give it something else"
    return question.agreed("Start it with that?", yes, f"whether {program} may do that", hint)


def kill(
    pid: Annotated[int, typer.Argument(help="See `llmosctl ps`.")],
    force: Annotated[bool, typer.Option(help="At once, without the two seconds to end in order.")] = False,
) -> None:
    """End a process. Drivers and the system's own come back."""
    session.ask_kernel("proc.kill", {"pid": pid, "force": force}, timeout=5)


def logs(
    name: Annotated[str, typer.Argument(help="A process, or `kernel`.")] = "kernel",
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=1000, help="How many, from the end.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    since: Annotated[str, typer.Option(help="Only what came since: 90s, 10m, 2h, 1d.")] = "",
) -> None:
    """Show what a process wrote to its log, oldest first, over all its restarts."""
    earliest = time.time() - _seconds(since) if since else 0.0
    with session.connect() as client:
        try:
            told = client.call("proc.logs", name=name, lines=lines, since=earliest, timeout=5)
        except Unreachable:
            path = system.log_file()
            if name != "kernel" or not path.exists():
                raise
            told = {"lines": path.read_text(errors="replace").splitlines()[-lines:]}
            follow = False
        _print_lines(told)
        while follow:
            if not told["more"]:
                time.sleep(FOLLOW_S)
            try:
                told = client.call("proc.logs", name=told["name"], after=told["next"], lines=1000, timeout=5)
            except OpError as error:
                if error.code is not Code.PEER_DIED:  # the gate was restarted: the next call finds the new one
                    raise
                told = {**told, "more": False}
            else:
                _print_lines(told)


def _print_lines(told: dict[str, Any]) -> None:
    """A stranger's words; a terminal obeys none of them."""
    for line in told["lines"]:
        print("\t".join(map(visible, line.split("\t"))), flush=True)


def _seconds(text: str) -> float:
    """Of `90s`, `10m`, `2h`, `1d`. Raises `OpError(INVALID_ARGUMENT)`."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text.strip())
    if found is None:
        raise OpError(Code.INVALID_ARGUMENT, f"{text!r} is no span of time", "for example 90s, 10m, 2h, 1d")
    return int(found[1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]]
