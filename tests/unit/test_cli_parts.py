"""The parts of llmosctl that need no system: arguments, words, tables, exit statuses, help."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from llmos.ipc import protocol
from llmos.ipc.connection import Unreachable
from llmos.userland.cli import arguments, failure, main, output, process, words
from llmos.userland.sdk import Code, OpError


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "5", "5"),
        ("string", "a=b", "a=b"),
        ("integer", "-5", -5),
        ("number", "5", 5.0),
        ("boolean", "Yes", True),
        ("boolean", "off", False),
        ("array", "a, b", ["a", "b"]),
        ("array", "", []),
        ("array", '["a,b"]', ["a,b"]),
        ("object", '{"a": 1}', {"a": 1}),
    ],
)
def test_argument_by_manifest_type(kind: str, text: str, value: object) -> None:
    """`k=v` becomes what the manifest says `k` is."""
    assert arguments.typed([f"k={text}"], {"k": {"type": kind}}) == {"k": value}


@pytest.mark.parametrize(("kind", "text"), [("integer", "a"), ("boolean", "maybe"), ("object", "{"), ("array", "[1")])
def test_argument_of_wrong_type(kind: str, text: str) -> None:
    """A value that is none of its type is refused with the argument's name."""
    with pytest.raises(OpError, match="argument k: ") as caught:
        arguments.typed([f"k={text}"], {"k": {"type": kind}})
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("values", [["k"], ["=v"], ["k=1", "k=2"]])
def test_argument_malformed(values: list[str]) -> None:
    """A word that is no `k=v`, and a key given twice, are refused."""
    with pytest.raises(OpError):
        arguments.pairs(values)


def test_argument_array_items() -> None:
    """Elements between commas have the manifest's item type."""
    assert arguments.typed(["k=1,2"], {"k": {"type": "array", "items": "integer"}}) == {"k": [1, 2]}


def test_argument_of_syscall() -> None:
    """A syscall's strings stay strings, even where they look like numbers; the rest goes by its looks."""
    assert arguments.of_syscall(["name=12", "lines=3"], protocol.Logs) == {"name": "12", "lines": 3}
    assert arguments.of_syscall(["prompt=7", "temperature=0.5"], protocol.Generate) == {
        "prompt": "7",
        "temperature": 0.5,
    }


def test_capability_in_words() -> None:
    """A person reads what a program may do, not a formula."""
    assert words.of_capability("fs.read(path=/home/me/Documents)") == "see the files in /home/me/Documents"
    assert words.of_capability("browser_history.read") == "look things up with browser_history"
    assert words.of_capability("mail.send(folder=Drafts)") == "send things with mail (only folder Drafts)"
    assert words.of_capability("bus.subscribe") == "hear of anything"
    assert words.of_capability("not a capability") == "not a capability"


def test_every_code_has_an_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    """No error of the closed set is without a name and a status, and the special ones are told apart."""
    assert set(failure.CODES) == set(Code)
    assert failure.show(OpError(Code.DENIED, "no", "ask")) == 4
    assert capsys.readouterr().err == "error[perm.denied]: no\nhint: ask\n"
    assert failure.show(Unreachable("not running")) == 6
    assert failure.show(failure.ModelUnavailable(Code.UNAVAILABLE, "no model")) == 7
    assert failure.show(OpError(Code.TIMEOUT, "late")) == 124
    assert capsys.readouterr().out == ""


def test_table_without_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal a table has one line per record, whatever its width, and no colours."""
    long = "x" * 300
    records = [{"name": "a", "n": 5, "text": f"{long}\nsecond line"}, {"name": "bcd", "n": 12, "text": None}]
    columns = [output.Column("name"), output.Column("n", right=True), output.Column("text")]
    output.rows(records, columns, output.Format.TABLE)
    assert capsys.readouterr().out.splitlines() == [
        "NAME   N  TEXT",
        f"a      5  {long} second line",
        "bcd   12",
    ]


def test_record_formats(capsys: pytest.CaptureFixture[str]) -> None:
    """One result: lines for people, a document for programs, a line per item with jsonl."""
    found = {"items": [{"title": "é", "n": 1}, {"title": "b", "n": 2}], "next": "c"}
    output.record(found, output.Format.JSON)
    assert json.loads(capsys.readouterr().out) == found
    output.record(found, output.Format.JSONL)
    assert [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()] == [1, 2]
    output.record(found, output.Format.TABLE)
    assert capsys.readouterr().out.splitlines() == ["TITLE  N", "é      1", "b      2", "next  c"]


def _leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(" ".join(path), command)]
    return [leaf for name, one in inner.items() for leaf in _leaves(one, (*path, name))]


def test_every_command_teaches() -> None:
    """Each command's help says what it does and shows an example of itself."""
    import typer.main

    leaves = _leaves(typer.main.get_command(main.app))
    assert len(leaves) > 20
    for name, command in leaves:
        assert command.help, name
        assert f"llmosctl {name}" in command.epilog, name


@pytest.mark.parametrize("argv", [["frobnicate"], ["ps", "--nope"], ["call"], ["logs", "-n", "0"], ["-o", "xml", "ps"]])
def test_usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that makes no sense ends with status 2, in the form of every other error."""
    assert main.run(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error[usage]: ")
    assert "\nhint: " in err


def test_help_texts_are_not_broken_in_mid_sentence() -> None:
    """Each paragraph reaches the terminal as one line, which breaks where the terminal ends."""

    def commands(group: typer.Typer) -> Iterator[str]:
        for command in group.registered_commands:
            assert command.help, command.callback
            yield command.help
        for inner in group.registered_groups:
            assert inner.typer_instance is not None
            yield from commands(inner.typer_instance)

    found = list(commands(main.app))
    assert len(found) > 30
    assert any("\n\n" in text for text in found)
    assert not [text for text in found if "\n" in text.replace("\n\n", "")]


def test_a_log_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What a process wrote is shown as it is, tabs apart."""
    process._print_lines({"lines": ["a\tb", "\x1b]0;owned\x07\x1b[2J", "\u202eevil"]})
    assert capsys.readouterr().out == "a\tb\n\\x1b]0;owned\\x07\\x1b[2J\n\\u202eevil\n"
