"""`event`: what happens in the system, as it happens."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer

from llmos.userland.cli import session
from llmos.userland.cli.output import Format, Output, line_json

app = typer.Typer(name="event", help="Follow what happens.", no_args_is_help=True)


@app.command(epilog="Example: llmosctl event tail 'proc.*' -o jsonl")
def tail(
    topic: Annotated[str, typer.Argument(help="A topic; * stands for one level, at the end for all the rest.")] = "*",
    count: Annotated[int, typer.Option("-n", "--count", min=0, help="End after so many; 0 for never.")] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Print events as they happen, until Ctrl-C."""
    with session.connect() as client:
        for number, event in enumerate(client.subscribe(topic), 1):
            if output is Format.TABLE:
                time = datetime.fromtimestamp(event.ts).astimezone().strftime("%H:%M:%S")
                print(
                    f"{time}  {event.topic}  {event.sender}  {json.dumps(event.data, ensure_ascii=False)}", flush=True
                )
            else:
                line_json(
                    {"ts": event.ts, "topic": event.topic, "sender": event.sender, "seq": event.seq, "data": event.data}
                )
            if number == count:
                return
