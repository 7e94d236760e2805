"""Values by reference: results that stay with the kernel, so that a process can pass on what it has not read.

A process asks for a reply to be kept and gets a handle. `{"$v": HANDLE}`, or the whole description, anywhere in the arguments of a
later call stands for the value; its label joins the call's, not the caller's. What a process may learn of a value without being tainted
is little and counted: type and size, coarsely (`describe`), how a call with it ended (`OUTCOME_BITS`), and the answers of
`llm.extract`, each against the task's bit budget. A pure state machine: the randomness of the handles is its only input.

How the kernel calls it:

- `put` for the reply of a call whose header asks to keep it; the caller is answered with `describe` and nothing else, and for
  an error with its code alone, the text being kept as a value like any other. `Budget.spend(OUTCOME_BITS)` before the call goes out.
- `substitute` before an op's arguments are checked and decided upon (`llmos.kernel.flow` wants its `labels`). The reply's label
  joins that of the call; so a caller that wants to stay trusted keeps the reply too.
- `project` for a part of a value. A part that is not there is null, so that asking reveals nothing.
- `get` for `open`: the label goes to `Labels.receive` before the body goes out.
- `endorse` for the user's own decision to trust a value; nobody else may.
- `llm.extract`: `bits(schema)` is spent *before* the model runs; `revealed` checks what came and gives it the label to deliver.
- `ended` with the owner.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmos.ipc import wire
from llmos.ipc.errors import Code, OpError
from llmos.kernel.labels import Integrity, Label, Source, join

MAX_OWNER_BYTES = 2 << 20
"""Bytes of values one process may keep."""
MAX_BYTES = 16 << 20
"""Bytes of values of all processes."""
MAX_VALUES = 256
"""Values one process may keep."""
TASK_BITS = 64
"""Bits of untrusted data that may be revealed to one task while it stays trusted."""
OUTCOME_BITS = 4
"""What the end of a call reveals: one code out of those there are."""
MAX_RANGE = 1 << 16
"""Values an integer in a schema may take."""
MAX_PATH = 16
"""Steps of a path into a value."""

REFERENCE = "$v"
_DESCRIPTION = frozenset({REFERENCE, "type", "bytes", "label"})
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_\-]{0,79})|\[(\d{1,5})\]")
_TYPES = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    bytes: "bytes",
}


def inside(path: str, key: str | int) -> str:
    """The path of an element of an argument; two elements never have the same."""
    return f"{path}[{key!r}]"


@dataclass(frozen=True, slots=True)
class Value:
    """One value, and where it came from."""

    handle: str
    owner: str
    body: bytes
    label: Label
    source: Source
    part: bool = False
    """Of another value: then neither type nor size is told, for there may be many."""

    def describe(self) -> dict[str, Any]:
        """What its owner may know of it without reading: the size is rounded up to a power of two."""
        if self.part:
            return {REFERENCE: self.handle, "type": "part", "bytes": 0, "label": self.label.to_wire()}
        kind = type(wire.decode(self.body))
        return {
            REFERENCE: self.handle,
            "type": _TYPES.get(kind, "null"),
            "bytes": 1 << max(0, len(self.body) - 1).bit_length(),
            "label": self.label.to_wire(),
        }


@dataclass(frozen=True, slots=True)
class Substituted:
    """Arguments with every reference replaced by its value."""

    args: dict[str, Any]
    labels: Mapping[str, Label]
    """Path of each replaced element (`inside`) → the value's label."""
    sources: Mapping[str, Source]
    """The same → where it came from."""

    @property
    def label(self) -> Label:
        """What the references add to the call."""
        return join(self.labels.values())


@dataclass(slots=True)
class _Owner:
    values: dict[str, Value] = field(default_factory=dict)
    bytes: int = 0


class Values:
    """Every value that is kept. One process's handles are nothing in another's hands."""

    def __init__(self) -> None:
        self._owners: dict[str, _Owner] = {}
        self._bytes = 0

    def put(self, owner: str, body: bytes, label: Label, source: Source, *, part: bool = False) -> Value:
        """Keep one msgpack value. Raises `OpError(BUDGET)` when the owner, or everybody, keeps too much."""
        kept = self._owners.setdefault(owner, _Owner())
        if len(kept.values) >= MAX_VALUES or kept.bytes + len(body) > MAX_OWNER_BYTES:
            limit = f"{MAX_VALUES} values or {MAX_OWNER_BYTES} bytes"
            raise OpError(Code.BUDGET, f"{owner} keeps {limit} already", "drop those that are done with")
        if self._bytes + len(body) > MAX_BYTES:
            raise OpError(Code.BUDGET, "too many values are kept on this system", "try again later")
        value = Value(secrets.token_urlsafe(12), owner, body, label, source, part)
        kept.values[value.handle] = value
        kept.bytes += len(body)
        self._bytes += len(body)
        return value

    def get(self, owner: str, handle: object) -> Value:
        """Raises `OpError(NOT_FOUND)`, for another's handle too."""
        kept = self._owners.get(owner)
        value = kept.values.get(handle) if kept is not None and isinstance(handle, str) else None
        if value is None:
            raise OpError(Code.NOT_FOUND, "no such value of yours", "a value ends with the process that kept it")
        return value

    def project(self, owner: str, handle: object, path: str) -> Value:
        """A part of a value as a value of its own, e.g. `.items[0].title`; null when there is no such part.

        Raises `OpError`: `INVALID_ARGUMENT` for a malformed path, `NOT_FOUND`, `BUDGET`.
        """
        value = self.get(owner, handle)
        part = _part(wire.decode(value.body), _steps(path))
        return self.put(owner, wire.encode(part), value.label, value.source, part=True)

    def substitute(self, owner: str, args: Mapping[str, Any]) -> Substituted:
        """Raises `OpError`: `NOT_FOUND`, `INVALID_ARGUMENT` (a malformed reference), `TOO_LARGE`."""
        labels: dict[str, Label] = {}
        sources: dict[str, Source] = {}
        room = [wire.MAX_BODY]

        def replaced(path: str, item: Any) -> Any:
            if isinstance(item, list):
                return [replaced(inside(path, number), part) for number, part in enumerate(item)]
            if not isinstance(item, dict):
                return item
            if REFERENCE not in item:
                return {key: replaced(inside(path, key), part) for key, part in item.items()}
            if not item.keys() <= _DESCRIPTION:
                raise OpError(
                    Code.INVALID_ARGUMENT, f"{path}: a reference is a map of {REFERENCE}, or a value's description"
                )
            value = self.get(owner, item[REFERENCE])
            room[0] -= len(value.body)
            if room[0] < 0:
                raise OpError(
                    Code.TOO_LARGE, f"the values in this call exceed {wire.MAX_BODY} bytes", "pass parts of them"
                )
            labels[path], sources[path] = value.label, value.source
            return wire.decode(value.body)

        made = {name: replaced(name, item) for name, item in args.items()}
        if labels:
            try:
                wire.decode_map(wire.encode(made))  # values fit the limits of a message one by one, not all together
            except wire.Malformed as error:
                raise OpError(Code.TOO_LARGE, f"with its values the call is {error}", "pass parts of them") from None
        return Substituted(made, labels, sources)

    def endorse(self, owner: str, handle: object, label: Label) -> Value:
        """The user has seen the value and takes it for what `label` says: a new value. Only after she has approved."""
        value = self.get(owner, handle)
        return self.put(owner, value.body, label, Source("user", "endorse", taints=value.source.taints))

    def drop(self, owner: str, handle: object) -> None:
        """Raises `OpError(NOT_FOUND)`."""
        value = self.get(owner, handle)
        kept = self._owners[owner]
        del kept.values[value.handle]
        kept.bytes -= len(value.body)
        self._bytes -= len(value.body)

    def ended(self, owner: str) -> None:
        """The process has ended, and its values with it."""
        kept = self._owners.pop(owner, None)
        if kept is not None:
            self._bytes -= kept.bytes


class Budget:
    """The bits of untrusted data that one task may still learn while it stays trusted."""

    def __init__(self, bits: float = TASK_BITS) -> None:
        self.left = bits

    def spend(self, bits: float) -> None:
        """Raises `OpError(BUDGET)`, having spent nothing."""
        if bits > self.left:
            raise OpError(
                Code.BUDGET,
                f"{bits:g} bits of untrusted data asked for, {self.left:g} are left to this task",
                "open the value instead: the process is untrusted from then on",
            )
        self.left -= bits


def bits(schema: Any) -> float:
    """How much an answer under this JSON Schema can say, in bits.

    Only booleans, enumerations, constants, bounded integers and objects of them, each property required. Raises
    `OpError(INVALID_ARGUMENT)` for anything else: a text can carry an order.
    """
    if not isinstance(schema, dict):
        raise _refused("a schema is a map")
    unknown = schema.keys() - {"type", "enum", "const", "minimum", "maximum", "properties", "required"}
    unknown -= {"additionalProperties", "title", "description"}
    if unknown:
        raise _refused(f"{', '.join(sorted(map(str, unknown)))} is not allowed here")
    if "const" in schema or "enum" in schema:
        choices = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(choices, list) or not choices or not all(_scalar(choice) for choice in choices):
            raise _refused("enum is an array of texts, integers and booleans")
        return math.log2(len(choices))
    kind = schema.get("type")
    if kind == "boolean":
        return 1.0
    if kind == "integer":
        low, high = schema.get("minimum"), schema.get("maximum")
        if type(low) is not int or type(high) is not int or not 0 <= high - low < MAX_RANGE:
            raise _refused(f"an integer needs a minimum and a maximum, less than {MAX_RANGE} apart")
        return math.log2(high - low + 1)
    if kind == "object":
        properties = schema.get("properties")
        if not isinstance(properties, dict) or schema.get("additionalProperties") is not False:
            raise _refused("an object needs properties, and additionalProperties: false")
        if set(schema.get("required") or ()) != properties.keys():
            raise _refused("every property of an object must be required")
        return math.fsum(bits(part) for part in properties.values())
    raise _refused(f"a {kind or 'value without a type'} cannot be counted")


def revealed(schema: Mapping[str, Any], answer: Any, values: Label) -> Label:
    """The label under which an answer to `llm.extract` may be delivered: trusted, and as secret as the values.

    Raises `OpError(INTERNAL)` for an answer that the schema does not allow: it must not be delivered.
    """
    if not _conforms(schema, answer):
        raise OpError(Code.INTERNAL, "the model's answer does not follow the schema", "please report it")
    return Label(Integrity.TRUSTED, values.tags)


def _conforms(schema: Mapping[str, Any], answer: Any) -> bool:
    if "const" in schema or "enum" in schema:
        choices = [schema["const"]] if "const" in schema else schema["enum"]
        return any(type(choice) is type(answer) and choice == answer for choice in choices)
    if schema["type"] == "boolean":
        return type(answer) is bool
    if schema["type"] == "integer":
        return type(answer) is int and schema["minimum"] <= answer <= schema["maximum"]
    parts = schema["properties"]
    return (
        isinstance(answer, dict)
        and answer.keys() == parts.keys()
        and all(_conforms(part, answer[name]) for name, part in parts.items())
    )


def _scalar(value: Any) -> bool:
    return type(value) in (str, int, bool)


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None or len(steps) == MAX_PATH:
            raise OpError(
                Code.INVALID_ARGUMENT,
                f"the path is not understood from character {at} on",
                f"at most {MAX_PATH} steps .name or [number], e.g. .items[0].title",
            )
        steps.append(step[1] if step[1] is not None else int(step[2]))
        at = step.end()
    return steps


def _part(value: Any, steps: list[str | int]) -> Any:
    for step in steps:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and step < len(value) else None
    return value


def _refused(what: str) -> OpError:
    return OpError(
        Code.INVALID_ARGUMENT,
        f"schema: {what}",
        "a trusted process may learn booleans, enumerations and bounded integers only",
    )
