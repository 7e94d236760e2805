"""A typed Python function as an op: its signature becomes the schema that the kernel checks and the model fills.

    def forecast(place: Annotated[str, "a town"], days: int = 3, unit: Literal["C", "F"] = "C") -> str:
        \"\"\"The weather of the coming days.\"\"\"

gives the args `place` (required), `days` (3) and `unit` (one of C, F) and the summary of the first line.
"""

from __future__ import annotations

import inspect
import re
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import Arg, ArgType, Op
from llmos.ipc.protocol import Effect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_TYPES: dict[type, ArgType] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}
_KNOWN = ", ".join(kind.__name__ for kind in _TYPES)
_PARAM = re.compile(r"^\s*:param\s+(?:[\w\[\], |]+\s+)?(\w+):\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A function and the op it became."""

    name: str
    op: Op
    run: Callable[..., Any]

    def registration(self) -> dict[str, Any]:
        """The arguments of `fn.register`."""
        args = {name: _plain(arg) for name, arg in self.op.args.items()}
        return {
            "name": self.name,
            "summary": self.op.summary,
            "utterances": self.op.utterances,
            "args": args,
            "effect": self.op.effect.value,
        }

    def __call__(self, args: dict[str, Any]) -> dict[str, Any]:
        """Checks the arguments and runs it; a result that is no map comes as `{result: …}`. Raises `OpError`."""
        self.op.check(args)
        result = self.run(**args)
        return result if isinstance(result, dict) else {"result": result}


def describe(
    run: Callable[..., Any], name: str = "", utterances: Sequence[str] = (), effect: Effect = Effect.EXEC
) -> Function:
    """Raises `OpError(INVALID_ARGUMENT)` for a function whose signature cannot be said in a schema."""
    name = name or run.__name__
    doc = inspect.getdoc(run) or ""
    summary = doc.partition("\n")[0].strip()
    if not summary:
        raise _unfit(name, "it has no docstring", "its first line tells the model what the function is for")
    said = dict(_PARAM.findall(doc))
    try:
        hints = get_type_hints(run, include_extras=True)
    except NameError as error:
        raise _unfit(name, f"its annotations cannot be resolved: {error}", "import their types at run time") from None
    args = {}
    for parameter in inspect.signature(run).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise _unfit(name, f"{parameter} cannot be passed by name", "declare each argument")
        if parameter.name not in hints:
            raise _unfit(name, f"argument {parameter.name} has no type", "annotate it, e.g. with str")
        try:
            args[parameter.name] = _arg(hints[parameter.name], parameter.default, said.get(parameter.name, ""))
        except TypeError as error:
            raise _unfit(name, f"argument {parameter.name}: {error}", f"use {_KNOWN} or a Literal of strings") from None
    op = Op(effect=effect, summary=summary[:300], utterances=list(utterances), args=args)
    return Function(name, op, run)


def _arg(hint: Any, default: Any, description: str) -> Arg:
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        description = next((note for note in notes if isinstance(note, str)), description)
    if get_origin(hint) in (Union, types.UnionType):
        chosen = [option for option in get_args(hint) if option is not type(None)]
        if len(chosen) != 1:
            raise TypeError("of several types")
        hint = chosen[0]
    required = default is inspect.Parameter.empty
    kind, items, enum = _kind(hint)
    return Arg(
        type=kind,
        items=items,
        enum=enum,
        description=description,
        required=required,
        default=None if required else default,
    )


def _kind(hint: Any) -> tuple[ArgType, ArgType, list[str]]:
    """Type, type of the elements, allowed values."""
    if get_origin(hint) is Literal:
        if not all(isinstance(value, str) for value in get_args(hint)):
            raise TypeError("a Literal of something else than strings")
        return "string", "string", [cast("str", value) for value in get_args(hint)]
    origin = get_origin(hint) or hint
    if origin not in _TYPES:
        raise TypeError(f"{hint} has no place in a schema")
    inside = get_args(hint)[0] if origin is list and get_args(hint) else str
    inside = get_origin(inside) or inside
    if inside not in _TYPES:
        raise TypeError(f"{hint} has no place in a schema")
    return _TYPES[origin], _TYPES[inside], []


def _plain(arg: Arg) -> dict[str, Any]:
    """Only what differs from the defaults of `Arg`."""
    usual = msgspec.to_builtins(Arg(type=arg.type))
    return {key: value for key, value in msgspec.to_builtins(arg).items() if key == "type" or value != usual[key]}


def _unfit(name: str, what: str, hint: str) -> OpError:
    return OpError(Code.INVALID_ARGUMENT, f"function {name}: {what}", hint)
