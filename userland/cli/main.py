"""llmosctl: the system from a terminal. Verbs at the top, nouns with `ls show …` below them."""

from __future__ import annotations

import inspect
import sys

import typer

from llmos.ipc.errors import OpError
from llmos.userland.cli import (
    app_key,
    approval,
    ask,
    audit,
    call,
    code,
    doctor,
    driver,
    event,
    failure,
    metrics,
    model,
    perm,
    process,
    system,
    top,
    undo,
    why,
)
from llmos.userland.cli.output import Format, Output

app = typer.Typer(
    name="llmosctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `llmosctl up -d`, then `llmosctl ask 'what did I read yesterday?'`. "
    "Exit status: 0 ok, 1 failed, 2 usage, 3 not found, 4 denied, 5 approval needed, 6 system not running, "
    "7 model unavailable, 8 conflict, 124 timeout, 130 interrupted.",
)


@app.callback()
def options(output: Output = Format.TABLE) -> None:
    """An operating system for local language models."""


for part in (system, doctor, ask, process, top, metrics, call, approval, undo, why):
    part.add_to(app)
for noun in (model, driver, app_key, perm, approval, audit, event, code):
    app.add_typer(noun.app)


def _unwrap(group: typer.Typer) -> None:
    """One line for each paragraph of the help texts: a terminal breaks them where it ends, not where the source does."""
    for command in group.registered_commands:
        text = inspect.getdoc(command.callback) or ""
        command.help = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")) or None
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _unwrap(inner.typer_instance)


_unwrap(app)


def main() -> None:
    """The entry point: runs the command line and ends with its exit status."""
    sys.exit(run())


def run(argv: list[str] | None = None) -> int:
    """The exit status of a command line; errors are printed, none is raised."""
    try:
        status = app(args=argv, standalone_mode=False, prog_name="llmosctl")
        return status if isinstance(status, int) else 0
    except OpError as error:
        return failure.show(error)
    except typer.TyperException as error:
        failure.print_error("usage", failure.plainly(error.format_message()), "add --help to see what is possible")
        return error.exit_code
    except typer.Abort:
        return failure.INTERRUPT
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None  # nothing to flush into at exit
        return 0
    except OSError as error:
        failure.print_error("failed", f"{error.filename}: {error.strerror}" if error.filename else str(error), None)
        return failure.FAILED
