"""`driver new` and `driver check`: writing a driver."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmos.ipc.errors import OpError
from llmos.userland.cli import failure, progress
from llmos.userland.cli.output import Column, Format, Output, as_json, note, record, rows
from llmos.userland.visible import visible


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command(epilog="Example: llmosctl driver new weather")(new)
    app.command(epilog="Example: llmosctl driver check ./llmos-weather --run")(check)


def new(
    name: Annotated[str, typer.Argument(help="What to call the driver: lowercase letters, digits, `_`.")],
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="By default ./llmos-NAME.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Write a new driver package: a manifest, a class with one op, a test, a README. It works as it is; change it from there."""
    from llmos.userland.authoring import scaffold

    root, files = scaffold.write(name, directory)
    record({"directory": str(root), "files": [str(file.relative_to(root)) for file in files]}, output)
    note(f"next: llmosctl driver check {root} --run")


def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The package's source directory.")],
    run: Annotated[
        bool, typer.Option("--run", help="Build it, and start it in a jail with nothing granted, too.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Grade a driver package: bronze, silver or gold, and what is missing. Exit status 1 below bronze.

    What is looked at is read as data. Only --run runs any of it, in jails: its build without a network, its start with nothing granted.
    """
    from llmos.userland.authoring import project, rules

    found = project.read(directory)
    findings = rules.grade(found)
    if run:
        findings = [*_tried(str(found.root)), *findings]
    level = rules.reached(findings)
    if output is Format.TABLE:
        shown = [{**asdict(one), "passed": "ok" if one.passed else "failed"} for one in findings]
        rows(shown, [Column("level"), Column("rule"), Column("passed")], output)
        for one in findings:
            if not one.passed:
                print(f"\n{one.rule}: {visible(one.problem)}\n  hint: {visible(one.hint)}")
        print(f"\n{level.value if level else 'below bronze'}")
    else:
        as_json({"level": level.value if level else "", "rules": [asdict(one) for one in findings]}, output)
    if level is None:
        raise typer.Exit(failure.FAILED)


def _tried(directory: str) -> list[Any]:
    """Whether it can be installed, and each of its drivers starts."""
    from llmos.userland import packages
    from llmos.userland.authoring.rules import Level, finding
    from llmos.userland.packages import jailed
    from llmos.userland.packages.removal import remove

    with contextlib.ExitStack() as stack:
        report = stack.enter_context(progress.shown())
        stage = Path(tempfile.mkdtemp(prefix="llmos-check-")).resolve()
        stack.callback(remove, stage)
        try:
            made = packages.fetch(directory if "/" in directory else f"./{directory}", stage, report)
        except OpError as error:
            return [finding("installs", Level.BRONZE, [error.detail], error.hint or "")]
        problems = []
        for name, manifest in packages.manifests(made):
            state = stage / f"state-{name}"
            state.mkdir()
            job = jailed.Job("llmos.drivers.tryout", (str(manifest),), (state,), path=(made.directory,))
            done = jailed.run(job)
            if done.status:
                problems.append(f"{name}: {done.reason}")
            else:
                note(f"{name} starts: {visible(done.lines[-1]) if done.lines else ''}")
    hint = (
        "its methods must fit the manifest, and with nothing granted it must start all the same, and say so in status()"
    )
    return [
        finding("installs", Level.BRONZE, [], ""),
        finding("starts", Level.BRONZE, problems, hint),
    ]
