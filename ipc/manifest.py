"""Manifests: what a driver or an agent is and asks for, read as data before any of its code runs.

A driver's is `manifest.toml`, an agent's `agent.toml`, each in the directory of its package. The kernel reads them to route
and check, the driver host to serve, the assistant to choose.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import tomllib
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect, Name

MAX_MANIFEST = 128 * 1024
"""Bytes of a manifest."""
MAX_DOTS = 100
"""In one line of it: what reads TOML takes a time that grows with the square of a dotted key's parts."""

ArgType = Literal["string", "integer", "number", "boolean", "array", "object"]
Role = Literal["", "query", "period", "host", "path", "count", "cursor"]
_M = TypeVar("_M")
_PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class Arg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One argument of an op."""

    type: ArgType
    description: str = ""
    required: bool = False
    default: Any = None
    enum: list[str] = []
    items: ArgType = "string"
    """Type of the elements of an array."""
    minimum: float | None = None
    maximum: float | None = None
    max_length: int = 16_384
    """Characters of a string, elements of an array."""
    role: Role = ""
    """What code may fill it with from a plain sentence."""

    def check(self, name: str, value: Any) -> None:
        """Raises `OpError(INVALID_ARGUMENT)` that names the argument, what is wanted and what came."""
        if value is None and not self.required:
            return
        if not isinstance(value, _PYTHON[self.type]) or (isinstance(value, bool) and self.type != "boolean"):
            raise _wrong(name, f"expected {self.type}, got {type(value).__name__}")
        if self.enum and value not in self.enum:
            raise _wrong(name, f"expected one of {', '.join(self.enum)}")
        if isinstance(value, (str, list)) and len(value) > self.max_length:
            raise _wrong(name, f"longer than {self.max_length}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if self.minimum is not None and value < self.minimum:
                raise _wrong(name, f"less than {self.minimum:g}")
            if self.maximum is not None and value > self.maximum:
                raise _wrong(name, f"more than {self.maximum:g}")
        if isinstance(value, list) and not all(isinstance(item, _PYTHON[self.items]) for item in value):
            raise _wrong(name, f"expected an array of {self.items}")


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a result comes from: integrity, and the tags of its sources."""

    integrity: Literal["trusted", "untrusted"] = "untrusted"
    tags: list[str] = []


class Op(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One op of a driver."""

    effect: Effect
    summary: Annotated[str, Meta(min_length=1, max_length=300)]
    utterances: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=40)] = []
    """What a person would say to want this op."""
    args: dict[str, Arg] = {}
    control: list[str] = []
    """Arguments that decide where an effect lands: recipient, path, URL, amount."""
    scope: dict[str, str] = {}
    """Capability scope key → the argument it bounds."""
    label: Label | None = None
    """Of its results, where it differs from the driver's."""
    idempotent: bool = False
    undo: bool = False
    """Whether its result carries `undo`, a text by which the driver's op `undo(token)` reverses it."""
    preview: bool = False
    """Whether the driver's op `preview(op, args)` can say what it would change, for whoever has to approve it."""
    timeout_s: Annotated[float, Meta(gt=0, le=1800)] = 10.0

    def check(self, args: dict[str, Any]) -> None:
        """Raises `OpError(INVALID_ARGUMENT)` for a missing, unknown or ill-typed argument."""
        for name, value in args.items():
            if name not in self.args:
                raise _wrong(name, f"unknown; known: {', '.join(self.args) or 'none'}")
            self.args[name].check(name, value)
        for name, arg in self.args.items():
            if arg.required and name not in args:
                raise _wrong(name, "missing")


class Permissions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a program asks the user for; nothing of it is given by asking."""

    read: list[str] = []
    """Directories and files to read; `~` is the user's home. Those that do not exist are left out."""
    write: list[str] = []
    hosts: list[str] = []
    """Hosts to connect to: `imap.example.com:993`, `*.example.org`; without a port, any of its ports."""
    devices: list[str] = []
    calls: list[Annotated[str, Meta(max_length=400)]] = []
    """Capabilities on the bus, in their text form."""

    def capabilities(self) -> list[str]:
        """Paths, hosts and calls in the text form of capabilities."""
        paths = [("read", path) for path in self.read] + [("write", path) for path in self.write]
        files = [f"fs.{verb}(path={json.dumps(path, ensure_ascii=False)})" for verb, path in paths]
        return files + [_connection(host) for host in self.hosts] + list(self.calls)


def _connection(text: str) -> str:
    """A host, with a port or without, as a capability."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or (":" in host and not host.startswith("[")):  # no port, or an IPv6 address
        host, port = text, ""
    scope = f"host={json.dumps(host.removeprefix('[').removesuffix(']'), ensure_ascii=False)}"
    return f"net.connect({scope}, port={port})" if port else f"net.connect({scope})"


class Topic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A topic that a driver publishes on."""

    summary: str = ""
    retain: bool = False
    """Whether a new subscriber gets the last event at once."""
    durable: bool = False
    """Whether events are stored, for `bus.replay`."""


_KERNEL_OPS: dict[str, tuple[Effect, dict[str, ArgType]]] = {
    "undo": (Effect.WRITE, {"token": "string"}),
    "preview": (Effect.READ, {"op": "string", "args": "object"}),
}
KERNEL_OPS = frozenset(_KERNEL_OPS)
"""Ops of a driver that the kernel alone calls."""


class DriverManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A driver: `manifest.toml`."""

    name: Name
    version: str
    summary: Annotated[str, Meta(min_length=1, max_length=300)]
    entry: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.]+:[A-Za-z0-9_]+$")]
    ops: dict[Name, Op]
    integrity: Literal["trusted", "untrusted"] = "untrusted"
    tags: list[str] = []
    topics: dict[Annotated[str, Meta(pattern=r"^[a-z0-9_]+(\.[A-Za-z0-9_\-]+)*$", max_length=128)], Topic] = {}
    """Its to publish, unless the first level is the name of another program or of an object of the kernel."""
    scope_kinds: dict[str, Literal["name", "path", "topic", "host", "address", "number"]] = {}
    """How values of its own scope keys compare; `name` where nothing is said."""
    permissions: Permissions = Permissions()
    settings: dict[str, dict[str, Any]] = {}
    directory: str = ""


class AgentManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An agent: `agent.toml`."""

    name: Name
    version: str
    summary: Annotated[str, Meta(min_length=1, max_length=300)]
    entry: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.]+:[A-Za-z0-9_]+$")]
    args: dict[str, Arg] = {}
    permissions: Permissions = Permissions()
    directory: str = ""


def load_driver(path: Path) -> DriverManifest:
    """Raises `OpError(INVALID_ARGUMENT)` that names the file and the field."""
    manifest = _load(path, DriverManifest)
    for name, (effect, args) in _KERNEL_OPS.items():
        users = [verb for verb, op in manifest.ops.items() if getattr(op, name)]
        declared = manifest.ops.get(name)
        if users and declared is None:
            detail = f"{path}: ops.{users[0]}: {name} is true, and {name} is not in the manifest"
            raise OpError(Code.INVALID_ARGUMENT, detail, f"declare [ops.{name}]")
        if declared and (
            declared.effect is not effect
            or {arg: one.type for arg, one in declared.args.items() if one.required} != args
            or declared.args.keys() != args.keys()
            or declared.undo
            or declared.preview
        ):
            wanted = ", ".join(f"{arg}: {kind}" for arg, kind in args.items())
            detail = (
                f"{path}: ops.{name} must have effect {effect.value} and the required arguments {wanted}, and no other"
            )
            raise OpError(Code.INVALID_ARGUMENT, detail)
    return manifest


def load_agent(path: Path) -> AgentManifest:
    """Raises `OpError(INVALID_ARGUMENT)` that names the file and the field."""
    return _load(path, AgentManifest)


GROUPS = {"llmos.drivers": "manifest.toml", "llmos.agents": "agent.toml"}
"""Entry point group → name of the manifest beside the module."""


def discover(group: str, packages: Path) -> Iterator[tuple[str, Path]]:
    """Name and manifest of every installed package with an entry point in `group`, without importing any of them.

    First those of this Python, then those in a directory of their own below `packages`. An entry whose package carries no
    manifest still appears, with the path where it should be.
    """
    file_name = GROUPS[group]
    for name, module in sorted(_entries(group, None)):
        directory = _package_directory(module)
        yield name, (directory or Path(module.replace(".", "/"))) / file_name
    for place in sorted(path for path in packages.glob("*") if path.is_dir() and path.name[0] != "."):
        for name, module in sorted(_entries(group, place)):
            yield name, place.joinpath(*filter(None, module.split("."))) / file_name


def _entries(group: str, place: Path | None) -> set[tuple[str, str]]:
    """(name, module) of every entry point in a directory, or in this Python's; those of a package that cannot be read are left out."""
    from importlib import metadata  # slow to import, and only the kernel looks for packages

    found = set()
    where = metadata.distributions() if place is None else metadata.distributions(path=[str(place)])
    for distribution in where:
        try:
            found |= {(point.name, point.module) for point in distribution.entry_points if point.group == group}
        except (ValueError, OSError, AttributeError, TypeError, configparser.Error):  # somebody else's broken file
            continue
    return found


def _package_directory(module: str) -> Path | None:
    top, _, rest = module.partition(".")
    if (
        top == "llmos"
    ):  # a namespace package: looking one level further runs no code, and editable installs map that level
        second, _, rest = rest.partition(".")
        top = f"llmos.{second}"
    spec = importlib.util.find_spec(top)
    for part in filter(None, rest.split(".")):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def _load(path: Path, kind: type[_M]) -> _M:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_MANIFEST + 1)
        if len(raw) > MAX_MANIFEST:
            raise OpError(Code.INVALID_ARGUMENT, f"{path}: larger than {MAX_MANIFEST} bytes")
        if any(line.count(b".") > MAX_DOTS for line in raw.split(b"\n")):
            raise OpError(Code.INVALID_ARGUMENT, f"{path}: a line with more than {MAX_DOTS} dots")
        data = tomllib.loads(raw.decode())
        data["directory"] = str(path.parent)
        return msgspec.convert(data, kind, strict=True)
    except OSError as error:
        raise OpError(Code.NOT_FOUND, f"{path}: {error.strerror}") from None
    except (ValueError, msgspec.ValidationError, RecursionError) as error:  # of TOML, UTF-8, or a number too long
        raise OpError(Code.INVALID_ARGUMENT, f"{path}: {error}") from None


def _wrong(name: str, what: str) -> OpError:
    return OpError(Code.INVALID_ARGUMENT, f"argument {name}: {what}")
