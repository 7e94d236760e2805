"""`ask`: a question in plain words, answered by the assistant."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from llmos.userland.cli import session
from llmos.userland.cli.output import Format, Output, as_json, line_json, note, plain

AGENT = "assistant"
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

STAGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "tool": lambda step: f"{plain(step.get('summary'))} ({step.get('op')})",
    "call": lambda step: f"{step.get('op')} " + " ".join(f"{k}={plain(v)}" for k, v in step.get("args", {}).items()),
    "found": lambda step: f"{step.get('count')} found",
    "failed": lambda step: f"{step.get('op')}: {plain(step.get('detail'))}",
}
"""How a step of the assistant is told to people; others are not."""


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: llmosctl ask 'what was that article I read last week about LLMs?'")(ask)


def ask(
    question: Annotated[list[str], typer.Argument(help="In plain words.")],
    timings: Annotated[bool, typer.Option("--timings", help="Say how long each stage took.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Ask the assistant.

    It answers with one sentence and the cards it is drawn from: title, address, when, source. Check the cards.
    """
    said = ""
    with session.connect() as client, session.model_may_be_meant(client):
        run = client.spawn(AGENT, {"question": " ".join(question)}, wait=True)
        with session.cancelling(client, run):
            for step in run:
                said += _tell(step, output)
        result: dict[str, Any] = run.result["result"]
    if output is not Format.TABLE:
        as_json(result, output)
    else:
        print("" if said else _tame(str(result.get("answer") or "No answer.")))
        for number, card in enumerate(result.get("cards", ()), 1):
            _show(number, card)
        if timings:
            _show_timings(result.get("timings", {}))


def _tell(step: Mapping[str, Any], output: Format) -> str:
    """Shows one step of the assistant; gives the piece of the answer that went to stdout, if it was one."""
    stage = str(step.get("stage", ""))
    if output is Format.JSONL:
        line_json(step)
    elif stage in STAGES:
        note(f"· {STAGES[stage](step)}")
    elif stage == "answer" and output is Format.TABLE:
        piece = str(step.get("text", ""))
        print(_tame(piece), end="", flush=True)
        return piece
    return ""


def _tame(text: str) -> str:
    """The model's words, which may be a stranger's: without the characters that a terminal obeys."""
    return _COMMANDS.sub(lambda found: repr(found[0])[1:-1], text)


def _show(number: int, card: Mapping[str, Any]) -> None:
    """A card: what it is, where it is, when it was and who says so."""
    address = plain(card.get("url") or card.get("path") or "")
    title = plain(card.get("title") or address)
    print(f"\n{number}. {typer.style(title, bold=True) if sys.stdout.isatty() else title}")
    for line in (address, " · ".join(plain(card[key]) for key in ("when", "source") if card.get(key))):
        if line:
            print(f"   {line}")


def _show_timings(timings: Mapping[str, float]) -> None:
    """Milliseconds per stage; for people, so on stderr."""
    note("")
    for stage, ms in timings.items():
        note(f"{stage:<12} {ms:8.0f} ms")
