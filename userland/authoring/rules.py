"""What makes a driver good: rules in three levels, each with what to do about it. AUTHORING.md explains them.

Bronze is what a driver needs to be installed and trusted with anything, silver what makes it good to use, gold what lets an agent use
it without harm. A level holds when all its rules do, and those below. Source: the idea is Home Assistant's integration quality scale.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

import msgspec

from llmos.ipc.manifest import KERNEL_OPS, Arg, DriverManifest, Op
from llmos.ipc.protocol import Effect
from llmos.userland.authoring.project import DriverSource, Project, text

UTTERANCES = 3
_LISTS = frozenset(("list", "ls", "search", "find", "recent", "latest", "history", "all", "browse"))
_NOT_PLURAL = ("ss", "us", "is")
_COUNTS = frozenset(("k", "limit", "count", "n"))
_EVERYTHING = frozenset(("~", "/", "~/**", "/**", "/home", "/home/**", "/etc", "~/.ssh", "~/.config", "~/.local"))


class Level(StrEnum):
    """How good; each holds what those before it hold."""

    BRONZE = "bronze"
    SILVER = "silver"
    GOLD = "gold"


@dataclass(frozen=True)
class Rule:
    """One thing that is looked at."""

    name: str
    level: Level
    hint: str
    check: Callable[[Project], Iterator[str]]
    """What is wrong, one by one."""


@dataclass(frozen=True)
class Finding:
    """What came of a rule."""

    rule: str
    level: Level
    passed: bool
    problem: str = ""
    hint: str = ""


RULES: list[Rule] = []


def grade(project: Project) -> list[Finding]:
    """Every rule, in order."""
    return [finding(rule.name, rule.level, list(rule.check(project)), rule.hint) for rule in RULES]


def finding(rule: str, level: Level, problems: list[str], hint: str) -> Finding:
    """The first problems in words."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return Finding(rule, level, not problems, "; ".join(problems[:3]) + more, hint if problems else "")


def reached(findings: list[Finding]) -> Level | None:
    """The highest level that holds; None below bronze."""
    best = None
    for level in Level:
        if not all(one.passed for one in findings if one.level is level):
            break
        best = level
    return best


def _rule(
    level: Level, hint: str
) -> Callable[[Callable[[Project], Iterator[str]]], Callable[[Project], Iterator[str]]]:
    def add(check: Callable[[Project], Iterator[str]]) -> Callable[[Project], Iterator[str]]:
        RULES.append(Rule(check.__name__.replace("_", "-"), level, hint, check))
        return check

    return add


# -- bronze: it can be installed and trusted with anything -------------------------------------------------------------


@_rule(Level.BRONZE, 'add [project.entry-points."llmos.drivers"] with NAME = "the_package" to pyproject.toml')
def entry_point(project: Project) -> Iterator[str]:
    """It is known as a driver."""
    if not project.drivers:
        yield "pyproject.toml names no driver"
    for driver in project.drivers:
        if driver.directory is None:
            yield f"{driver.point}: {driver.trouble}"


@_rule(Level.BRONZE, "see the table of fields in AUTHORING.md")
def manifest(project: Project) -> Iterator[str]:
    """It loads, and has the entry point's name."""
    for driver in project.drivers:
        if driver.manifest is None:
            yield driver.trouble
        elif driver.manifest.name != driver.point:
            yield f"the entry point is called {driver.point}, the manifest {driver.manifest.name}"


@_rule(Level.BRONZE, 'entry = "package.module:Class", and the class in that file')
def entry(project: Project) -> Iterator[str]:
    """The class that serves the ops is where the manifest says."""
    for driver, found in _sound(project):
        module, _, name = found.entry.partition(":")
        inside = module.removeprefix(driver.module).lstrip(".") if module.startswith(driver.module) else None
        file = driver.directory / PurePosixPath(*inside.split(".")) if driver.directory and inside else None
        source = (
            text(file.with_suffix(".py"))
            if file
            else text(driver.directory / "__init__.py")
            if driver.directory and inside == ""
            else ""
        )
        if not re.search(rf"^class {re.escape(name)}\b", source, re.MULTILINE):
            yield f"{found.name}: there is no {found.entry} in {driver.module}"


@_rule(Level.BRONZE, 'with setuptools: [tool.setuptools.package-data] "*" = ["*.toml"]')
def package_data(project: Project) -> Iterator[str]:
    """The manifest is built into the wheel."""
    system = project.settings.get("build-system", {})
    if "setuptools" not in str(system.get("build-backend", "setuptools")):
        return
    settings = project.settings.get("tool", {}).get("setuptools", {})
    patterns = [str(one) for some in settings.get("package-data", {}).values() for one in some]
    if (
        not any(fnmatch.fnmatch("manifest.toml", pattern) for pattern in patterns)
        and not (project.root / "MANIFEST.in").is_file()
    ):
        yield "manifest.toml is not among the package's data"


@_rule(Level.BRONZE, "say the same version in pyproject.toml and manifest.toml")
def version(project: Project) -> Iterator[str]:
    """Both say the same."""
    said = project.project.get("version")
    for _, found in _sound(project):
        if not re.match(r"\d+(\.\d+)*", found.version):
            yield f"{found.name}: {found.version!r} is no version"
        elif said is not None and said != found.version:
            yield f"{found.name}: the manifest says {found.version}, pyproject.toml {said}"


@_rule(Level.BRONZE, "control = [the arguments that decide where the effect lands]: recipient, path, URL, amount")
def control(project: Project) -> Iterator[str]:
    """No stranger can fill in where an effect lands."""
    for name, op, _ in _ops(project):
        unknown = [arg for arg in op.control if arg not in op.args]
        if unknown:
            yield f"{name}: control names {', '.join(unknown)}, which it does not take"
        elif op.effect is not Effect.READ and op.args and not op.control:
            yield f"{name}: it can {op.effect.value}, and names no control argument"


@_rule(Level.BRONZE, 'tags = ["weather"], of the driver or of each op; leave integrity out')
def labels(project: Project) -> Iterator[str]:
    """Results say what they are about, and do not call themselves trusted."""
    for _, found in _sound(project):
        if found.integrity == "trusted" or any(
            op.label and op.label.integrity == "trusted" for op in found.ops.values()
        ):
            yield f"{found.name}: it calls its results trusted, and the system takes no package's word for that"
        for verb, op in found.ops.items():
            if verb not in KERNEL_OPS and not (op.label.tags if op.label else found.tags):
                yield f"{found.name}.{verb}: its results have no tag"


@_rule(Level.BRONZE, "name the folders and sites it needs, one by one")
def permissions(project: Project) -> Iterator[str]:
    """It asks for little."""
    for _, found in _sound(project):
        asked = found.permissions
        for host in asked.hosts:
            if "*" in host and host.rpartition("*")[2].strip(".").count(".") < 1:
                yield f"{found.name}: hosts: {host} is half the world"
        for path in (*asked.read, *asked.write):
            if path.rstrip("/") in _EVERYTHING or not path.strip("/"):
                yield f"{found.name}: {path} is too much"
        yield from (f"{found.name}: calls: {cap} is too much" for cap in asked.calls if cap.startswith("*"))


@_rule(Level.BRONZE, "each has type, default and description, and a default of that type")
def settings(project: Project) -> Iterator[str]:
    """They can be shown and checked."""
    for _, found in _sound(project):
        for name, table in found.settings.items():
            try:
                msgspec.convert(table, Arg).check("default", table.get("default"))
            except Exception as error:  # noqa: BLE001  (whatever msgspec and our own check say)
                yield f"{found.name}: {name}: {error}"
            else:
                if not table.get("description"):
                    yield f"{found.name}: {name} has no description"


# -- silver: it is good to use -----------------------------------------------------------------------------------------


@_rule(
    Level.SILVER,
    "utterances = what people would say, at least three, in different words: the assistant finds ops by them",
)
def utterances(project: Project) -> Iterator[str]:
    """The assistant finds it."""
    for name, op, _ in _ops(project):
        if len({said.casefold() for said in op.utterances}) < UTTERANCES:
            yield f"{name}: {len(op.utterances)} utterances"


@_rule(Level.SILVER, "timeout_s = seconds after which nobody waits any more, for every op")
def timeouts(project: Project) -> Iterator[str]:
    """Somebody has thought about how long it takes."""
    yield from (f"{name}: no timeout_s" for name, _, raw in _ops(project) if "timeout_s" not in raw)


@_rule(
    Level.SILVER, 'give it k (role = "count", with a maximum) and cursor (role = "cursor"), and `next` in its result'
)
def paging(project: Project) -> Iterator[str]:
    """No list grows beyond what one answer holds."""
    for name, op, _ in _ops(project):
        verb = name.partition(".")[2]
        counts = [arg for key, arg in op.args.items() if arg.role == "count" or key in _COUNTS]
        plural = verb.endswith("s") and not verb.endswith(_NOT_PLURAL)
        if op.effect is not Effect.READ or not (counts or plural or verb in _LISTS):
            continue
        if not any(arg.maximum is not None for arg in counts):
            yield f"{name}: it lists, and takes no count with a maximum"
        if not any(arg.role == "cursor" or key == "cursor" for key, arg in op.args.items()):
            yield f"{name}: it lists, and takes no cursor"


@_rule(Level.SILVER, "description = one line for each argument")
def arguments(project: Project) -> Iterator[str]:
    """Each is explained."""
    for name, op, _ in _ops(project):
        yield from (f"{name}: {arg} has no description" for arg, spec in op.args.items() if not spec.description)


@_rule(Level.SILVER, "tests/test_*.py that runs the driver: llmos.drivers.testing")
def tests(project: Project) -> Iterator[str]:
    """There are some, and they run it."""
    if not project.tests:
        yield "no tests/test_*.py imports llmos.drivers"


@_rule(Level.SILVER, "README.md: what it reads, its ops by name, its limits")
def docs(project: Project) -> Iterator[str]:
    """People can read what it does."""
    if not project.readme:
        yield "there is no README"
        return
    yield from (
        f"the README does not mention `{name}`"
        for name, _, _ in _ops(project)
        if name.partition(".")[2] not in project.readme
    )
    for _, found in _sound(project):
        asked = (*found.permissions.read, *found.permissions.write, *found.permissions.hosts)
        yield from (f"the README does not say that it asks for {one}" for one in asked if one not in project.readme)


@_rule(Level.SILVER, 'license = "MIT", or whichever, below [project]')
def licence(project: Project) -> Iterator[str]:
    """Others know what they may do with it."""
    if not project.project.get("license") and not any(project.root.glob("LICEN[CS]E*")):
        yield "no licence"


# -- gold: an agent can use it without harm ----------------------------------------------------------------------------


@_rule(Level.GOLD, "undo = true, and an op undo that puts back exactly what was there")
def undo(project: Project) -> Iterator[str]:
    """What it changes can be taken back."""
    for name, op, _ in _ops(project):
        if op.effect in (Effect.WRITE, Effect.DELETE) and not op.undo:
            yield f"{name} cannot be undone"


@_rule(Level.GOLD, "preview = true, and a method marked @previews that says what would change")
def previews(project: Project) -> Iterator[str]:
    """Whoever has to approve it sees what would happen."""
    yield from (
        f"{name} has no preview" for name, op, _ in _ops(project) if op.effect is not Effect.READ and not op.preview
    )


@_rule(Level.GOLD, "minimum and maximum for numbers, max_length or enum for texts and arrays")
def bounds(project: Project) -> Iterator[str]:
    """Every argument has limits of its own."""
    for name, op, raw in _ops(project):
        for arg, spec in op.args.items():
            given = raw.get("args", {}).get(arg, {})
            open_number = spec.type in ("integer", "number") and (spec.minimum is None or spec.maximum is None)
            open_text = spec.type in ("string", "array") and not spec.enum and "max_length" not in given
            if open_number or open_text:
                yield f"{name}: {arg} has no bounds"


@_rule(Level.GOLD, 'scope = { key = "argument" } lets the user narrow a grant')
def scopes(project: Project) -> Iterator[str]:
    """Where an effect lands can be bounded by a grant."""
    for name, op, _ in _ops(project):
        bounded = set(op.scope.values())
        yield from (
            f"{name}: no scope bounds {arg}"
            for arg in op.control
            if arg in op.args and op.args[arg].type in ("string", "array") and arg not in bounded
        )


@_rule(Level.GOLD, "summary = what an event says, for each topic")
def topics(project: Project) -> Iterator[str]:
    """Each is explained."""
    for _, found in _sound(project):
        yield from (f"{topic} has no summary" for topic, one in found.topics.items() if not one.summary)


@_rule(Level.GOLD, 'requires-python = ">=3.11" below [project]')
def python(project: Project) -> Iterator[str]:
    """pip refuses it where it cannot run."""
    if not project.project.get("requires-python"):
        yield "no requires-python"


# -- what rules look at ------------------------------------------------------------------------------------------------


def _sound(project: Project) -> Iterator[tuple[DriverSource, DriverManifest]]:
    for driver in project.drivers:
        if driver.manifest is not None:
            yield driver, driver.manifest


def _ops(project: Project) -> Iterator[tuple[str, Op, dict[str, Any]]]:
    """Those that others call: name, op, and its table as it is written."""
    for driver, found in _sound(project):
        for verb, op in found.ops.items():
            if verb not in KERNEL_OPS:
                yield f"{found.name}.{verb}", op, driver.raw.get("ops", {}).get(verb, {})
