"""`event`: what happens in the system, as it happens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
import typer

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import MAX_TOPIC, TopicPattern
from llmos.userland.cli import session, why
from llmos.userland.cli.output import Format, Output, line_json, note
from llmos.userland.sdk import Event
from llmos.userland.visible import exact, visible

app = typer.Typer(name="event", help="Follow what happens.", no_args_is_help=True)


@app.command(epilog="Example: llmosctl event tail 'proc.*' -o jsonl")
def tail(
    topic: Annotated[str, typer.Argument(help="A topic; * stands for one level, at the end for all the rest.")] = "*",
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="End after so many; 0 for never.")] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Print events as they happen, until Ctrl-C. What a stranger may have written is marked as untrusted."""
    _check(topic)
    with session.connect() as client:
        for number, event in enumerate(client.subscribe(topic), 1):
            if event.lost:
                note(
                    f"{event.lost} of {visible(event.topic)} before this were lost: they came faster than they were read"
                )
            if output is Format.TABLE:
                print(_line(event), flush=True)
            else:
                line_json({name: getattr(event, name) for name in _FIELDS})
            if number == count:
                return


_FIELDS = ("ts", "topic", "sender", "seq", "data", "label", "number", "lost")


def _line(event: Event) -> str:
    time = datetime.fromtimestamp(event.ts).astimezone().strftime("%H:%M:%S")
    label = f"  [{why.in_words(event.label)}]" if event.label[:1] == ["u"] else ""
    return f"{time}  {visible(event.topic)}  {visible(event.sender)}{label}  {exact(event.data)}"


def _check(topic: str) -> None:
    try:
        msgspec.convert(topic, TopicPattern)
    except msgspec.ValidationError:
        detail = f"{exact(topic)} is no topic: levels with dots between them, at most {MAX_TOPIC} characters"
        raise OpError(Code.INVALID_ARGUMENT, detail, "for example proc.started, 'proc.*', or '*' for all") from None
