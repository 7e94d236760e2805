"""`k=v` on the command line, as typed arguments of a call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, get_args, get_origin

import msgspec

from llmos.ipc import protocol
from llmos.ipc.errors import Code, OpError

_YES_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_WANTED = {"boolean": "true or false", "array": "elements with commas between them, or JSON", "object": "JSON"}


def pairs(values: Sequence[str]) -> dict[str, str]:
    """`k=v` words as a map. Raises `OpError(INVALID_ARGUMENT)` for another word, or one key twice."""
    found: dict[str, str] = {}
    for word in values:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise OpError(Code.INVALID_ARGUMENT, f"{word!r} is not an argument", "write them as name=value")
        if key in found:
            raise OpError(Code.INVALID_ARGUMENT, f"argument {key}: given twice")
        found[key] = value
    return found


def literals(values: Sequence[str]) -> dict[str, Any]:
    """Typed by how they look: JSON where it is JSON (`3`, `true`, `[1, 2]`), otherwise a string."""
    return {key: literal(value) for key, value in pairs(values).items()}


def literal(text: str) -> Any:
    """One value by its looks."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def typed(values: Sequence[str], specs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Typed by a manifest's args. An unknown name is taken by its looks: the kernel refuses it by name.

    Raises `OpError(INVALID_ARGUMENT)` that names the argument and what is wanted.
    """
    return {
        key: convert(key, text, specs[key]["type"], specs[key].get("items", "string"))
        if key in specs
        else literal(text)
        for key, text in pairs(values).items()
    }


def convert(name: str, text: str, kind: str, items: str = "string") -> Any:
    """One value of a manifest's type. An array is JSON, or elements with commas between them."""
    try:
        match kind:
            case "string":
                return text
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "boolean":
                return _YES_NO[text.lower()]
            case "array" if not text.lstrip().startswith("["):
                return [convert(name, item.strip(), items) for item in text.split(",") if item.strip()]
            case _:
                return json.loads(text)
    except (ValueError, KeyError):
        raise OpError(Code.INVALID_ARGUMENT, f"argument {name}: {text!r} is no {kind}", _WANTED.get(kind)) from None


def of_syscall(values: Sequence[str], call: type[protocol.Syscall]) -> dict[str, Any]:
    """Typed by a syscall's fields: strings stay strings, everything else goes by its looks."""
    strings = {field.name for field in msgspec.structs.fields(call) if _is_string(field.type)}
    return {key: text if key in strings else literal(text) for key, text in pairs(values).items()}


def _is_string(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _is_string(get_args(hint)[0])
    options = [option for option in get_args(hint) if option is not type(None)]
    return all(map(_is_string, options)) if options else isinstance(hint, type) and issubclass(hint, str)


def from_json(text: str) -> dict[str, Any]:
    """`--json`. Raises `OpError(INVALID_ARGUMENT)`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"--json: {error}", """quote it: --json '{"k": 3}'""") from None
    if not isinstance(found, dict):
        raise OpError(Code.INVALID_ARGUMENT, "--json: an object is wanted", """such as '{"k": 3}'""")
    return found
