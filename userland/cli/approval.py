"""`approval`, `approve`, `deny`: what waits for the user's word, shown in full before she gives it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, TextIO

import typer

from llmos.ipc.errors import Code, OpError
from llmos.userland import notifier
from llmos.userland.cli import failure, question, session, why
from llmos.userland.cli.output import Column, Format, Output, as_json, line_json, note, record, rows
from llmos.userland.visible import exact, visible

app = typer.Typer(
    name="approval", help="See what waits for your word, and what you said for good.", no_args_is_help=True
)

Shown = Mapping[str, Any]

_ORIGINS = {
    "own": "{holder} chose it before it had read anything untrusted",
    "plan": "fixed in the plan, before anything untrusted was read",
    "quoted": "it stands in what you said",
    "value": "passed on unread",
    "seen": "{holder} chose it after reading untrusted data: a stranger may have",
}
"""Where an element of a control argument came from."""
_MARK = "  │ "


class State(StrEnum):
    """What `--state` takes."""

    PENDING = "pending"
    APPROVED = "approved"
    USED = "used"
    DENIED = "denied"
    EXPIRED = "expired"
    ANY = "any"


def add_to(main: typer.Typer) -> None:
    main.command(epilog="Example: llmosctl approve a1b2c3d4 --for-task")(approve)
    main.command(epilog="Example: llmosctl deny a1b2c3d4 --reason 'write to Jane instead'")(deny)


_Id = Annotated[str, typer.Argument(metavar="ID", help="See `llmosctl approval ls`.")]


@app.command(epilog="Example: llmosctl approval ls --state any")
def ls(
    state: Annotated[State, typer.Option(help="Only those in this state.")] = State.PENDING,
    output: Output = Format.TABLE,
) -> None:
    """List the calls that wait for your word, newest first."""
    wanted = "" if state is State.ANY else state.value
    found = session.ask_kernel("approval.list", {"state": wanted}, timeout=5)["approvals"]
    columns = [
        Column("id"),
        Column("state"),
        Column("holder", lambda row: visible(row["holder"])),
        Column("op", lambda row: visible(row["op"])),
        Column("asked", lambda row: _clock(row["asked"])),
        Column("until", lambda row: _clock(row["expires"])),
        Column("undoable"),
    ]
    rows(found, columns, output, "nothing waits for you" if state is State.PENDING else "there are none")


@app.command(epilog="Example: llmosctl approval show a1b2c3d4")
def show(number: _Id, output: Output = Format.TABLE) -> None:
    """Show one request: its exact arguments, where each came from, why you are asked, and what it would change."""
    found = session.ask_kernel("approval.show", {"id": number}, timeout=5)
    if output is not Format.TABLE:
        as_json(found, output)
        return
    for line in folded(in_full(found), _columns(sys.stdout)):
        print(line)


@app.command(epilog="Example: llmosctl approval rules")
def rules(output: Output = Format.TABLE) -> None:
    """List what you approved for a task or for good; nobody asks you about it any more."""
    found = session.ask_kernel("approval.rules", timeout=5)["rules"]
    columns = [
        Column("id"),
        Column("task", lambda row: row["task"] or "every"),
        Column("rule", lambda row: visible(row["text"])),
        Column("since", lambda row: _clock(row["created"])),
    ]
    rows(found, columns, output, "there are no rules")


@app.command(epilog="Example: llmosctl approval forget r1b2c3d4")
def forget(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="See `llmosctl approval rules`.")],
    output: Output = Format.TABLE,
) -> None:
    """Take a rule back: you are asked again."""
    record(session.ask_kernel("approval.forget", {"id": rule}, timeout=5) or {"forgotten": rule}, output)


@app.command(epilog="Example: llmosctl approval watch --notify")
def watch(
    notify: Annotated[bool, typer.Option("--notify", help="Show each on the desktop as well, with buttons.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Print requests as they come and are settled, until Ctrl-C; first those that wait already."""
    with _beside(notify), session.connect() as client:
        events = client.subscribe("approval.*")
        waiting = client.call("approval.list", timeout=5)["approvals"]
        for row in reversed(waiting):
            _tell("approval.requested", row, row["asked"], output)
        told = {row["id"] for row in waiting}
        for event in events:
            if event.topic != "approval.requested" or event.data["id"] not in told:
                _tell(event.topic, event.data, event.ts, output)


@contextlib.contextmanager
def _beside(notify: bool) -> Iterator[None]:
    """The desktop's notifier, as a process of its own that ends with this."""
    process = notifier.start_beside(os.environ) if notify else None
    if notify and process is None:
        note(notifier.NO_DESKTOP)
    try:
        yield
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def _tell(topic: str, row: Shown, at: float, output: Format) -> None:
    if output is not Format.TABLE:
        line_json({"ts": at, "topic": topic, **row})
        return
    who, what = visible(str(row["holder"])), visible(str(row["op"]))
    if topic == "approval.requested":
        print(f"{_clock(at)}  {row['id']}  {who} wants {what}: llmosctl approve {row['id']}", flush=True)
    else:
        print(f"{_clock(at)}  {row['id']}  {who}, {what}: {row['state']}", flush=True)


def approve(
    number: _Id,
    once: Annotated[bool, typer.Option("--once", help="This call only; what is meant without a word.")] = False,
    for_task: Annotated[bool, typer.Option("--for-task", help="And others like it, until its task ends.")] = False,
    always: Annotated[bool, typer.Option("--always", help="And others like it, in every task.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Let a call that waits for you go out, after showing what exactly it is.

    --for-task and --always save a rule, which is shown before you are asked.
    """
    if once + for_task + always > 1:
        raise OpError(Code.INVALID_ARGUMENT, "--once, --for-task and --always exclude each other")
    answer = "task" if for_task else "always" if always else "once"
    with session.connect() as client:
        shown = client.call("approval.show", {"id": number}, timeout=5)
        if shown["state"] != State.PENDING:
            raise OpError(Code.CONFLICT, f"{number} is {shown['state']} already", "see `llmosctl approval ls`")
        if output is Format.TABLE or not yes:
            for line in folded(in_full(shown, answer), _columns(sys.stderr)):
                note(line)
        about = f"whether {visible(shown['holder'])} may {visible(shown['op'])}"
        if not question.agreed("Approve it?", yes, about):
            note(f"it still waits; `llmosctl deny {number}` says no")
            raise typer.Exit(failure.FAILED)
        _settled(client.call("approval.answer", {"id": number, "answer": answer}, timeout=5), output)


def deny(
    number: _Id,
    reason: Annotated[str, typer.Option(help="What the agent is told, so that it can do better.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Refuse a call that waits for you."""
    said = {"id": number, "answer": "reject", "words": reason} if reason else {"id": number, "answer": "no"}
    _settled(session.ask_kernel("approval.answer", said, timeout=5), output)


def _settled(found: Shown, output: Format) -> None:
    if output is Format.TABLE:
        found = {key: found[key] for key in ("id", "holder", "op", "state", "answer") if key in found}
    record(found, output)


def in_full(shown: Shown, answer: str = "") -> Iterator[str]:
    """Lines that tell all there is to know of a request; `answer` is what is about to be said."""
    holder = visible(shown["holder"])
    yield f"{holder} wants to call {visible(shown['op'])}, with exactly:"
    width = max((len(visible(name)) for name in shown["args"]), default=0)
    for name, value in shown["args"].items():
        yield f"  {visible(name):<{width}} = {exact(value)}"
    if not shown["args"]:
        yield "  no arguments"
    if shown["provenance"]:
        yield "where that comes from:"
    for given in shown["provenance"]:
        origin = _ORIGINS.get(given["origin"], visible(str(given["origin"]))).format(holder=holder)
        yield f"  {visible(given['path'])}: {exact(given['value'])}: {origin} ({why.in_words(given['label'])})"
    if (untold := shown["provenance_of"] - len(shown["provenance"])) > 0:
        yield f"  …and {untold} more, of which no origin is told"
    if shown["reasons"]:
        yield "why you are asked:"
    for reason in shown["reasons"]:
        yield f"  {visible(reason)}"
    if shown["why"]:
        yield f"what {holder} has read:"
    for line in why.tree(shown["why"]):
        yield f"  {line}"
    if shown["preview"]:
        yield "what it would change:"
    for line in shown["preview"].split("\n") if shown["preview"] else ():
        yield f"{_MARK}{visible(line)}"
    yield f"it carries data that is {why.in_words(shown['label'])}"
    yield "it can be undone afterwards" if shown["undoable"] else "it cannot be undone"
    if shown["state"] == State.PENDING:
        yield f"without an answer it is refused in {_left(shown['expires'])}"
    else:
        words = f": {visible(shown['words'])}" if shown["words"] else ""
        yield f"it is {shown['state']}{words}"
    if answer == "always":
        yield f"from now on, in every task, without asking you: {visible(shown['rule'])}"
    elif answer == "task":
        yield f"until this task ends, without asking you: {visible(shown['rule'])}"


def folded(lines: Iterable[str], columns: int) -> Iterator[str]:
    """Lines of at most so many columns; what is left of a longer one stands behind a mark, so that none of it looks like ours."""
    for line in lines:
        width, piece = 0, ""
        for char in line:
            width += 2 if unicodedata.east_asian_width(char) in "WF" else 1
            if width > columns:
                yield piece
                piece, width = _MARK, len(_MARK) + 2
            piece += char
        yield piece


def _columns(stream: TextIO) -> int:
    return max(20, shutil.get_terminal_size().columns) if stream.isatty() else sys.maxsize


def _left(expires: float) -> str:
    seconds = max(0, int(expires - time.time()))
    return f"{seconds // 60} min" if seconds >= 120 else f"{seconds} s"


def _clock(moment: float) -> str:
    """A time of today by the clock, others with their day."""
    then, now = datetime.fromtimestamp(moment).astimezone(), datetime.now().astimezone()
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M")
