"""Capabilities in plain words."""

from __future__ import annotations

import re

_CAPABILITY = re.compile(r"^([a-z0-9_*]+)\.([a-z0-9_*]+)(?:\((.*)\))?$", re.DOTALL)
_SAID = {
    "fs.read": "see the files in {path}",
    "fs.write": "change the files in {path}",
    "fs.delete": "delete files in {path}",
    "llm.generate": "use the language model",
    "llm.embed": "compare texts by meaning",
    "bus.subscribe": "hear of {topic}",
    "bus.publish": "tell others of {topic}",
    "proc.spawn": "start the program {program}",
    "fn.register": "lend the model its function {name}",
    "sys.read": "see how the system is doing",
    "sys.control": "control the system",
    "perm.control": "give and take permissions",
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


def of_capability(text: str) -> str:
    """What a capability lets its holder do: `fs.read(path=~/Documents)` → `see the files in ~/Documents`."""
    match = _CAPABILITY.match(text)
    if match is None:
        return text
    scope = dict(part.strip().split("=", 1) for part in (match[3] or "").split(",") if "=" in part)
    sentence = _SAID.get(f"{match[1]}.{match[2]}")
    if sentence is None:
        bounds = f" ({', '.join(f'only {key} {value}' for key, value in scope.items())})" if scope else ""
        return f"{_VERBS.get(match[2], match[2] + ' with')} {match[1]}{bounds}"
    return re.sub(r"\{(\w+)\}", lambda key: scope.get(key[1], "anything").strip('"'), sentence)
