"""Rights: what a capability allows, and the text that people and manifests write for it.

    right  = object "." verb *("+" verb) ["(" term *("," term) ")"]        ; * stands for any object or verb
    term   = key "=" bound | key "<=" bound                                ; the scope; a key given twice takes either bound
           | ("calls" | "bytes" | "tokens") "=" amount ["k"|"M"|"G"] ["/" ("s"|"m"|"h"|"d"|"w")]
           | "expires=" date | "expires=" date-time                        ; ISO 8601, UTC unless it says otherwise
           | "for=" number ("s"|"m"|"h"|"d"|"w")                           ; from when it is given
           | "approval=" ("first" | "each")                                ; the user is asked, once or each time
           | "grantable=yes"                                               ; its holder may hand it on
           | "integrity=trusted"                                           ; the ceiling: no untrusted data in what is asked under it,
           | "clearance=" (tag | "none")                                   ; and of secrets only those of these tags; may be repeated
    bound  = text without , or "  |  '"' text with \\ before " and \\ '"'

`fs.read+write(path=~/Documents)`, `mail.send(to=bob@example.com, calls=20/d, approval=each)`, `web.fetch(host=*.example.com, for=2h)`.
`str` writes the one normal form, which reads back as the same right. What is left out does not bound: no quota, no end, no question;
but nobody can hand it on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum

from llmos.ipc.errors import Code, OpError
from llmos.kernel.capability_quota import UNITS, Limit, format_duration, parse_duration
from llmos.kernel.labels import ANY, Integrity, Label
from llmos.kernel.scope import (
    DEFAULTS,
    NO_KINDS,
    KeyKinds,
    Kind,
    Scope,
    all_within,
    kind_of,
    normal_value,
    without_stars,
)

NO_OBJECTS: Mapping[str, KeyKinds] = {}

_TEXT = re.compile(r"(\*|[a-z][a-z0-9_]*)\.(\*|[a-z][a-z0-9_]*(?:\+[a-z][a-z0-9_]*)*)(?:\((.*)\))?", re.DOTALL)
_TERM = re.compile(r'\s*([a-z_]+)\s*(<=|=)\s*("(?:[^"\\]|\\.)*"|[^,"]*?)\s*(?:,|$)', re.DOTALL)


class Approval(IntEnum):
    """How often the user is asked; more is stricter."""

    NEVER = 0
    FIRST = 1
    EACH = 2


@dataclass(frozen=True)
class Right:
    """What a capability allows, without who holds it."""

    object: str
    verb: str
    """One, `*` for any, or several: `read+write`."""
    scope: Scope = field(default_factory=dict)
    quota: Mapping[str, Limit] = field(default_factory=dict)
    """Unit → limit."""
    expires: int | None = None
    """Seconds since 1970 UTC; at that moment it is over."""
    lifetime: int | None = None
    """Seconds from when it is given; None in a capability, which has `expires`."""
    approval: Approval = Approval.NEVER
    grantable: bool = False
    trusted_only: bool = False
    """Whether a request under it may hold no untrusted data."""
    clearance: frozenset[str] | None = None
    """Tags of the secrets that a request under it may hold; None for any."""
    kinds: KeyKinds = field(default_factory=dict, repr=False)
    """Kinds of the scope's keys, as the object's driver declares them."""
    verbs: frozenset[str] = field(init=False, repr=False, compare=False)
    _bounds: tuple[tuple[str, Kind, tuple[str, ...]], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        verbs = frozenset(self.verb.split("+"))
        object.__setattr__(self, "verbs", verbs)
        object.__setattr__(self, "verb", "*" if "*" in verbs else "+".join(sorted(verbs)))
        object.__setattr__(self, "kinds", {key: kind for key, kind in self.kinds.items() if key in self.scope})
        bounds = tuple((key, kind_of(key, self.kinds), bounds) for key, bounds in self.scope.items())
        object.__setattr__(self, "_bounds", bounds)

    @classmethod
    def parse(cls, text: str, home: str = "/", objects: Mapping[str, KeyKinds] = NO_OBJECTS) -> Right:
        """From its text form.

        Args:
            home: what `~` means in a path.
            objects: object → the kinds that its driver declares for its scope keys.

        Raises `OpError(INVALID_ARGUMENT)`.
        """
        match = _TEXT.fullmatch(text.strip())
        if not match:
            hint = "the form is object.right(key=value), e.g. filesystem.read(path=~/Documents)"
            raise _wrong(f"{text!r} is not a capability", hint)
        declared = objects.get(match[1], NO_KINDS)
        scope: dict[str, tuple[str, ...]] = {}
        terms: dict[str, str] = {}
        cleared: frozenset[str] | None = None
        for key, sign, text_value in _terms(match[3] or "", text):
            ordered = key not in _TERMS and kind_of(key, declared).ordered
            if (sign == "<=") != ordered:
                raise _wrong(f"{text!r}: {key}{sign} has no meaning; {key} takes {'<=' if ordered else '='}")
            value = without_stars(text_value) if key == "path" else text_value
            if key not in _TERMS:
                scope[key] = (*scope.get(key, ()), normal_value(key, value, home, declared))
            elif key == "clearance":
                cleared = (cleared or frozenset()) | (frozenset() if value == "none" else {value})
            elif key in terms:
                raise _wrong(f"{text!r}: {key} stands in it twice", "give it once")
            else:
                terms[key] = value
        if "expires" in terms and "for" in terms:
            raise _wrong(f"{text!r}: it has both expires= and for=", "give one of them")
        return cls(
            match[1],
            match[2],
            {**DEFAULTS.get(match[1], {}), **scope},
            quota={unit: Limit.parse(terms[unit]) for unit in UNITS if unit in terms},
            expires=_moment(terms["expires"]) if "expires" in terms else None,
            lifetime=parse_duration(terms["for"]) if "for" in terms else None,
            approval=Approval[_one_of(terms, "approval", ("never", "first", "each")).upper()],
            grantable=_one_of(terms, "grantable", ("no", "yes")) == "yes",
            trusted_only=_one_of(terms, "integrity", ("any", "trusted")) == "trusted",
            clearance=None if cleared is None or ANY in cleared else Label.make("trusted", cleared).tags,
            kinds=declared,
        )

    def __str__(self) -> str:
        terms = [
            f"{key}{'<=' if kind.ordered else '='}{_quoted(value)}"
            for key, kind, bounds in sorted(self._bounds, key=lambda bound: bound[0])
            for value in bounds
            if bounds != DEFAULTS.get(self.object, {}).get(key)
        ]
        terms += [f"{unit}={self.quota[unit]}" for unit in UNITS if unit in self.quota]
        if self.expires is not None:
            terms.append(f"expires={_moment_text(self.expires)}")
        if self.lifetime is not None:
            terms.append(f"for={format_duration(self.lifetime)}")
        if self.approval is not Approval.NEVER:
            terms.append(f"approval={self.approval.name.lower()}")
        if self.grantable:
            terms.append("grantable=yes")
        if self.trusted_only:
            terms.append("integrity=trusted")
        if self.clearance is not None:
            terms += [f"clearance={_quoted(tag)}" for tag in sorted(self.clearance)] or ["clearance=none"]
        return f"{self.object}.{self.verb}" + (f"({', '.join(terms)})" if terms else "")

    def does(self, verb: str) -> bool:
        """Whether `verb` is among its verbs."""
        return verb in self.verbs or "*" in self.verbs

    def names(self, object_: str, verb: str) -> bool:
        """Whether it is about this verb on this object at all."""
        return self.object in ("*", object_) and self.does(verb)

    def admits(self, values: Scope) -> bool:
        """Whether a request's values lie within the scope; a bounded key that it leaves open is the driver's to narrow."""
        for key, kind, bounds in self._bounds:  # noqa: SIM110  (a generator would double what a check costs)
            if key in values and not all_within(kind, values[key], bounds):
                return False
        return True

    def allows(self, object_: str, verb: str, values: Scope) -> bool:
        """Whether a request lies within, terms aside."""
        return self.names(object_, verb) and self.admits(values)

    def reaches(self, other: Right) -> bool:
        """Whether object, verbs and scope of `other` lie within, terms aside."""
        return (
            self.object in ("*", other.object)
            and ("*" in self.verbs or other.verbs <= self.verbs)
            and all(
                key in other.scope and kind is kind_of(key, other.kinds) and all_within(kind, other.scope[key], bounds)
                for key, kind, bounds in self._bounds
            )
        )

    def covers(self, other: Right) -> bool:
        """Whether everything that `other` allows, this allows too, on terms no worse."""
        return (
            self.reaches(other)
            and all(unit in other.quota and limit.covers(other.quota[unit]) for unit, limit in self.quota.items())
            and (self.expires is None or (other.expires is not None and other.expires <= self.expires))
            and (self.lifetime is None or (other.lifetime is not None and other.lifetime <= self.lifetime))
            and self.approval <= other.approval
            and (self.grantable or not other.grantable)
            and (other.trusted_only or not self.trusted_only)
            and (self.clearance is None or (other.clearance is not None and other.clearance <= self.clearance))
        )

    @property
    def unconditional(self) -> bool:
        """Whether it neither asks nor has a ceiling."""
        return self.approval is Approval.NEVER and not self.trusted_only and self.clearance is None

    @property
    def ceiling(self) -> Label:
        """The highest label that a request under it may have."""
        return Label(
            Integrity.TRUSTED if self.trusted_only else Integrity.UNTRUSTED,
            frozenset({ANY}) if self.clearance is None else self.clearance,
        )

    def lowered(self, other: Right) -> Right:
        """Itself under the lower of both ceilings."""
        tags = other.clearance if self.clearance is None else self.clearance
        if self.clearance is not None and other.clearance is not None:
            tags = self.clearance & other.clearance
        return replace(self, trusted_only=self.trusted_only or other.trusted_only, clearance=tags)


_TERMS = frozenset({*UNITS, "expires", "for", "approval", "grantable", "integrity", "clearance"})
"""Keys that are not a scope's."""


def _terms(inside: str, text: str) -> list[tuple[str, str, str]]:
    """(key, sign, value) of each."""
    found = []
    at = 0
    while at < len(inside):
        term = _TERM.match(inside, at)
        if not term or not term[3]:
            rest = f"{text!r}: the scope is not understood from {inside[at:]!r} on"
            raise _wrong(rest, "write key=value, key=value")
        value = term[3]
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
        if not value:
            raise _wrong(f"{text!r}: {term[1]} is empty", "leave it out, or give it a value")
        found.append((term[1], term[2], value))
        at = term.end()
    return found


def _one_of(terms: Mapping[str, str], key: str, known: tuple[str, ...]) -> str:
    """The first is what it is without a word."""
    value = terms.get(key, known[0])
    if value not in known:
        raise _wrong(f"{key}={value} has no meaning", f"{key} is one of {', '.join(known)}")
    return value


def _moment(text: str) -> int:
    """Seconds since 1970 of an ISO 8601 date (its first moment) or date and time."""
    try:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = -1
    if seconds < 0:
        hint = "write 2026-12-01, or 2026-12-01T18:30:00Z"
        raise _wrong(f"{text!r} is not a date since 1970, or a date and a time", hint)
    return int(seconds)


def _moment_text(seconds: int) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%d}" if seconds % 86_400 == 0 else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"' if re.search(r'[,"()\s]', value) else value


def _wrong(detail: str, hint: str | None = None) -> OpError:
    return OpError(Code.INVALID_ARGUMENT, detail, hint)
