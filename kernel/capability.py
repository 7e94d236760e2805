"""Capabilities: who may do what to which object. A pure state machine: no clock of its own, no I/O, no logging.

A capability is `object.right(scope)` in a holder's hands, e.g. `filesystem.read(path=~/Documents)`. Scope keys narrow it;
without a key it is unbounded in that key. How a value lies within a bound depends on the key:

- `path`: a bound covers itself and everything beneath it (`~/Documents` and `~/Documents/**` say the same);
- `topic`: level by level, `*` for one level, at the end for all that follow;
- `host`: the host itself; `*.example.com` for its subdomains;
- `class`: written `class<=event`: that class of job or a less urgent one;
- any other key: equal, or `*`.

A process can pass on only what lies within its own (`derive`), and taking one back takes back all that came of it (`revoke`).
"""

from __future__ import annotations

import itertools
import os.path
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass, topic_matches

Scope = Mapping[str, tuple[str, ...]]
"""Scope key → the bounds, any of which a value may lie within."""

USER = "user"
"""The holder that is the person at the machine; born with everything."""

_TEXT = re.compile(r"^(\*|[a-z][a-z0-9_]*)\.(\*|[a-z][a-z0-9_]*)(?:\((.*)\))?$", re.DOTALL)
_BOUND = re.compile(r'\s*([a-z_]+)\s*(<=|=)\s*("(?:[^"\\]|\\.)*"|[^,"]*?)\s*(?:,|$)', re.DOTALL)


@dataclass(frozen=True)
class Right:
    """What a capability allows, without who holds it: an object, a verb on it (`*`: any) and the scope."""

    object: str
    verb: str
    scope: Scope = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, home: str = "/") -> Right:
        """From its text form; `~` in a path is `home`. Raises `OpError(INVALID_ARGUMENT)`."""
        match = _TEXT.match(text.strip())
        if not match:
            raise OpError(
                Code.INVALID_ARGUMENT,
                f"{text!r} is not a capability",
                "the form is object.right(key=value), e.g. filesystem.read(path=~/Documents)",
            )
        scope: dict[str, tuple[str, ...]] = {}
        inside = match[3] or ""
        at = 0
        while at < len(inside):
            bound = _BOUND.match(inside, at)
            if not bound or not bound[3]:
                raise OpError(
                    Code.INVALID_ARGUMENT,
                    f"{text!r}: the scope is not understood from {inside[at:]!r} on",
                    "write key=value, key=value",
                )
            key, value = bound[1], bound[3]
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            if (bound[2] == "<=") != (key == "class"):
                raise OpError(
                    Code.INVALID_ARGUMENT,
                    f"{text!r}: {key}{bound[2]} has no meaning; `class` takes <=, every other key takes =",
                )
            if key == "path":
                value = _without_stars(value)
            scope[key] = (*scope.get(key, ()), normal_value(key, value, home))
            at = bound.end()
        return cls(match[1], match[2], scope)

    def __str__(self) -> str:
        bounds = ", ".join(
            f"{key}{'<=' if key == 'class' else '='}{_quoted(value)}"
            for key in sorted(self.scope)
            for value in self.scope[key]
        )
        return f"{self.object}.{self.verb}" + (f"({bounds})" if bounds else "")

    def covers(self, other: Right) -> bool:
        """Whether everything that `other` allows, this allows too."""
        return (
            self.object in ("*", other.object)
            and self.verb in ("*", other.verb)
            and all(
                key in other.scope and _all_within(key, other.scope[key], bounds) for key, bounds in self.scope.items()
            )
        )

    def allows(self, object_: str, verb: str, values: Scope) -> bool:
        """Whether a request lies within; a bounded key that the request leaves open is the driver's to narrow."""
        return (
            self.object in ("*", object_)
            and self.verb in ("*", verb)
            and all(key not in values or _all_within(key, values[key], bounds) for key, bounds in self.scope.items())
        )


@dataclass(frozen=True)
class Capability:
    """A right in somebody's hands."""

    id: str
    holder: str
    right: Right
    parent: str | None
    origin: str
    """Why it exists, for people: `boot`, `granted`, `spawn by user`."""


class Table:
    """All capabilities there are."""

    def __init__(self) -> None:
        self._caps: dict[str, Capability] = {}
        self._held: dict[str, dict[str, Capability]] = {}
        self._children: dict[str, set[str]] = {}
        self._ids = itertools.count(1)

    def mint(
        self,
        holder: str,
        right: Right,
        origin: str,
        *,
        parent: str | None = None,
        id: str | None = None,  # noqa: A002
    ) -> Capability:
        """A new capability. Only the kernel calls this: on boot, and for what the user grants."""
        if id is not None:
            self._ids = itertools.count(max(next(self._ids), int(id.removeprefix("c")) + 1))
        cap = Capability(id or f"c{next(self._ids)}", holder, right, parent, origin)
        self._caps[cap.id] = cap
        self._held.setdefault(holder, {})[cap.id] = cap
        if parent is not None:
            self._children.setdefault(parent, set()).add(cap.id)
        return cap

    def derive(self, giver: str, right: Right, holder: str, origin: str) -> Capability:
        """Pass on a part of what `giver` holds. Raises `OpError(DENIED)` when it holds nothing that covers `right`."""
        for cap in self.held(giver):
            if cap.right.covers(right):
                return self.mint(holder, right, origin, parent=cap.id)
        raise OpError(
            Code.DENIED,
            f"{giver} cannot hand on {right}: it does not hold it",
            _how_to_grant(giver, right),
        )

    def check(self, holder: str, object_: str, verb: str, values: Scope, cap_id: str = "") -> Capability:
        """The capability that allows a request, the named one or any that fits. Raises `OpError(DENIED)` that names what is missing."""
        held = self._held.get(holder, {})
        if cap_id:
            named = held.get(cap_id)
            if named is not None and named.right.allows(object_, verb, values):
                return named
        else:
            for cap in held.values():
                if cap.right.allows(object_, verb, values):
                    return cap
        missing = Right(object_, verb, values)
        raise OpError(
            Code.DENIED,
            f"{holder} may not: missing the capability {missing}",
            _how_to_grant(holder, missing),
        )

    def allowed(self, holder: str, object_: str, verb: str, values: Scope) -> bool:
        """`check` as a question."""
        return any(cap.right.allows(object_, verb, values) for cap in self.held(holder))

    def can(self, holder: str, object_: str, verb: str) -> bool:
        """Whether some request of this kind could pass."""
        return self.allowed(holder, object_, verb, {})

    def revoke(self, id: str) -> list[Capability]:  # noqa: A002
        """Take one back with its whole subtree; empty when there is none of that id."""
        gone: list[Capability] = []
        queue = [id]
        while queue:
            cap = self._caps.pop(queue.pop(), None)
            if cap is None:
                continue
            gone.append(cap)
            queue.extend(self._children.pop(cap.id, ()))
            self._held[cap.holder].pop(cap.id, None)
            if cap.parent in self._children:
                self._children[cap.parent].discard(cap.id)
        return gone

    def drop(self, holder: str) -> list[Capability]:
        """A holder has ceased to exist: what went with it."""
        gone = [one for cap in list(self.held(holder)) for one in self.revoke(cap.id)]
        self._held.pop(holder, None)
        return gone

    def get(self, id: str) -> Capability | None:  # noqa: A002
        return self._caps.get(id)

    def held(self, holder: str) -> Iterable[Capability]:
        """In the order they were given."""
        return self._held.get(holder, {}).values()

    def __iter__(self) -> Iterator[Capability]:
        return iter(self._caps.values())


def normal_value(key: str, value: str, home: str) -> str:
    """The one way to write a scope value, so that values can be compared. Raises `OpError(INVALID_ARGUMENT)`."""
    if not value or any(ord(character) < 32 for character in value):
        raise OpError(Code.INVALID_ARGUMENT, f"{key} may be neither empty nor hold control characters")
    if key == "path":
        if value == "~" or value.startswith("~/"):
            value = home + value[1:]
        return os.path.normpath(os.path.join(home, value)).replace("//", "/", 1)  # noqa: PTH118  (lexical: nothing is looked up)
    if key == "host":
        return value.lower().rstrip(".")
    if key == "class" and value.upper() not in JobClass.__members__:
        raise OpError(
            Code.INVALID_ARGUMENT,
            f"{value!r} is not a class",
            f"classes are {', '.join(name.lower() for name in JobClass.__members__)}",
        )
    return value


def _all_within(key: str, values: Iterable[str], bounds: tuple[str, ...]) -> bool:
    return all(any(_within(key, value, bound) for bound in bounds) for value in values)


def _within(key: str, value: str, bound: str) -> bool:
    if value == bound:
        return True
    if key == "path":
        return bound == "/" or value.startswith(bound + "/")
    if key == "topic":
        return topic_matches(bound, value) and (not value.endswith("*") or bound.endswith("*"))
    if key == "host":
        return bound == "*" or (bound.startswith("*.") and value.endswith(bound[1:]))
    if key == "class":
        return JobClass[value.upper()] >= JobClass[bound.upper()]
    return bound == "*"


def _without_stars(path: str) -> str:
    """`~/Documents/**`, and what else ends like it, is `~/Documents`."""
    while True:
        shorter = path.rstrip("/").removesuffix("/**").removesuffix("/*").removesuffix("/.")
        if shorter in (path, ""):
            return shorter or "/"
        path = shorter


def _quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"' if re.search(r'[,"()\s]', value) else value


def _how_to_grant(holder: str, right: Right) -> str:
    """The command; a process's rights are granted to its program. What is in it may come from anybody, so it is quoted."""
    return f"llmosctl perm grant {holder.partition('#')[0]} {shlex.quote(str(right))}"
