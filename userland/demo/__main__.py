"""`python -m llmos.userland.demo make DIR` and `… run`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from llmos.userland.demo import home, tour

app = typer.Typer(help="A made-up home to try llmos on.", no_args_is_help=True, add_completion=False)


@app.command()
def make(
    directory: Annotated[Path, typer.Argument(help="Where; histories must not exist there yet.")],
    now: Annotated[datetime | None, typer.Option(help="The moment the home is relative to; by default now.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another person.")] = home.SEED,
) -> None:
    """Write a demo home: browser histories and documents of a made-up person."""
    try:
        made = home.make(directory, now.astimezone() if now else None, seed)
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{made.path}: {made.visits} visits in two browsers, {made.documents} documents")


@app.command()
def run(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the system running, and the home in place.")] = False,
) -> None:
    """Boot llmos on a demo home, ask about an article read last week, and show how long it all took."""
    raise typer.Exit(tour.run(keep=keep))


app()
