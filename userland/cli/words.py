"""Capabilities in plain words: what a program may do, where, how much, how long, and whether you are asked.

The texts come from manifests, and so from strangers: what cannot be seen in them is written out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from llmos.userland.visible import visible

_CAPABILITY = re.compile(r"(\*|[a-z][a-z0-9_]*)\.(\*|[a-z][a-z0-9_]*(?:\+[a-z][a-z0-9_]*)*)(?:\((.*)\))?", re.DOTALL)
_TERM = re.compile(r'\s*([a-z_]+)\s*(<=|=)\s*("(?:[^"\\]|\\.)*"|[^,"]*?)\s*(?:,|$)', re.DOTALL)

_SAID = {
    "fs.read": "see the files in {path}",
    "fs.write": "change the files in {path}",
    "net.connect": "connect to {host}",
    "llm.generate": "use the language model",
    "llm.embed": "compare texts by meaning",
    "bus.subscribe": "hear of {topic}",
    "bus.publish": "tell others of {topic}",
    "bus.read": "see which programs listen to which topics",
    "proc.spawn": "start {program}",
    "proc.read": "see the processes and their logs",
    "proc.kill": "end processes",
    "fn.register": "lend the model {name}",
    "app.call": "call {name} of running programs",
    "sys.read": "see how the system is doing",
    "sys.control": "shut the system down, load models, and start, stop and set drivers",
    "perm.read": "see which permissions every program has",
    "perm.control": "give permissions to programs, itself included, and take them away",
    "driver.read": "see the drivers",
    "approval.read": "see the calls that wait for your approval, with all they hold",
    "approval.control": "approve and deny calls in your name",
    "undo.read": "see which changes can be undone",
    "undo.control": "undo changes that programs made",
    "label.read": "see which program has read what, and from whom it came",
    "label.trust": "be believed: what it says counts as your own words, not as a stranger's",
    "code.exec": "write and run programs, cut off from everything else, in {project}",
    "code.read": "read what is in {project}",
    "audit.read": "read the log of all that was decided and done",
    "*.*": "do anything at all",
}
_VERBS = {
    "read": "look things up with",
    "write": "change things with",
    "send": "send things with",
    "exec": "run things with",
    "actuate": "operate things with",
    "delete": "delete things with",
    "call": "call",
    "*": "do anything with",
}
_ANY = {
    "program": "any program",
    "name": "any function",
    "host": "any address",
    "topic": "anything",
    "project": "any code project",
}
"""What a key means that is left open, or is `*`."""
_CLASSES = {"interactive": "", "event": "for events and in the background", "background": "in the background"}
_PERIODS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week"}
_UNITS = {"calls": "times", "bytes": "bytes", "tokens": "tokens"}


def of_capability(text: str) -> str:
    """What a capability lets its holder do: `fs.read(path=~/Documents)` → `see the files in ~/Documents`.

    A text that is no capability comes back as it is.
    """
    match = _CAPABILITY.fullmatch(text.strip())
    terms = _terms(match[3] or "") if match else None
    if match is None or terms is None:
        return visible(text)
    said_of = {key: _any_of(key, bounds) for key, bounds in terms.items() if key not in _LIMITS}
    deeds, used = [], set()
    for verb in match[2].split("+"):
        sentence = _SAID.get(f"{match[1]}.{verb}") or f"{_VERBS.get(verb, f'{verb} with')} {match[1]}"
        used |= set(re.findall(r"\{(\w+)\}", sentence))
        deeds.append(re.sub(r"\{(\w+)\}", lambda key: said_of.get(key[1]) or _ANY.get(key[1], "anything"), sentence))
    bounds = [_bound(key, said_of[key], terms[key][0][0]) for key in said_of if key not in used]
    bounds = [bound for bound in bounds if bound]
    limits = [_LIMITS[key](values[0][1]) for key, values in terms.items() if key in _LIMITS]
    said = " and ".join(deeds) + (f" (only {', '.join(bounds)})" if bounds else "")
    return ", ".join([said, *filter(None, limits)])


Bounds = list[tuple[str, str]]
"""Of one key: `=` or `<=`, and the value."""


def _terms(inside: str) -> dict[str, Bounds] | None:
    """Each key's bounds; None for a text that is not understood to its end."""
    found: dict[str, Bounds] = {}
    at = 0
    while at < len(inside):
        term = _TERM.match(inside, at)
        if not term or not term[3]:
            return None
        value = re.sub(r"\\(.)", r"\1", term[3][1:-1], flags=re.DOTALL) if term[3].startswith('"') else term[3]
        found.setdefault(term[1], []).append((term[2], value))
        at = term.end()
    return found


def _any_of(key: str, bounds: Bounds) -> str:
    return " or ".join(_value(key, _quoted(visible(value))) for _, value in bounds)


def _quoted(value: str) -> str:
    """In quotation marks where it could be taken for more than one value."""
    return f'"{value}"' if re.search(r"[\s,()]", value) else value


def _value(key: str, value: str) -> str:
    """One bound of one key: patterns in words."""
    if value in ("*", "/**"):
        return _ANY.get(key, "anything")
    if value.startswith("*@"):
        return f"anyone at {value[2:]}"
    if key == "topic" and value.endswith(".*"):
        return f"everything under {value[:-2]}"
    if key == "host" and value.startswith("*."):
        return f"any site under {value[2:]}"
    if key == "path":
        return "every folder" if value == "/" else value.removesuffix("/**").removesuffix("/*")
    if key == "name":
        return f"the function {value}"
    if key == "project":
        return f"the code project {value}"
    return f"the program {value}" if key == "program" else value


def _bound(key: str, said: str, sign: str) -> str:
    if key == "class":
        return _CLASSES.get(said, f"class {said}")
    if sign == "<=":
        return f"{key} up to {said}"
    return {"path": f"in {said}", "host": f"at {said}", "topic": f"about {said}"}.get(key, f"{key} {said}")


def _quota(unit: str, text: str) -> str:
    """`20k/h` → `at most 20,000 tokens an hour`."""
    match = re.fullmatch(r"(\d{1,15})([kMG]?)(?:/([smhdw]))?", text)
    if match is None:
        return f"{unit} {visible(text)}"
    amount = int(match[1]) * {"": 1, "k": 1000, "M": 1_000_000, "G": 1_000_000_000}[match[2]]
    much = "once" if (unit, amount) == ("calls", 1) else f"{amount:,} {_UNITS[unit][: -1 if amount == 1 else None]}"
    article = "an" if match[3] == "h" else "a"
    return f"at most {much} " + (f"{article} {_PERIODS[match[3]]}" if match[3] else "in all")


def _until(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return f"until {visible(text)}"
    day = f"until {moment.day} {moment:%B %Y}"
    return f"{day} at {moment:%H:%M} UTC" if moment.hour or moment.minute else day


def _lifetime(text: str) -> str:
    match = re.fullmatch(r"(\d{1,9})([smhdw])", text)
    if match is None:
        return f"for {visible(text)}"
    return f"for {match[1]} {_PERIODS[match[2]]}{'' if match[1] == '1' else 's'}"


def _asking(text: str) -> str:
    said = {"each": "asking you every time", "first": "asking you the first time", "never": ""}
    return said.get(text, f"approval {visible(text)}")


_LIMITS: dict[str, Callable[[str], str]] = {
    "calls": lambda text: _quota("calls", text),
    "bytes": lambda text: _quota("bytes", text),
    "tokens": lambda text: _quota("tokens", text),
    "expires": _until,
    "for": _lifetime,
    "approval": _asking,
    "private": lambda text: "on this machine and in your own network too" if text in ("yes", "*") else "",
    "grantable": lambda text: "and may hand it on" if text == "yes" else "",
}
"""Keys that bound how much, how long and on what terms."""
