"""How far a scope reaches. Each key has a kind, and each kind one pure comparison of a value with a bound.

- `path`: a bound covers itself and everything beneath it (`~/Documents` and `~/Documents/**` say the same);
- `topic`: level by level, `*` for one level, at the end for all that follow;
- `host`: the host itself; `*.example.com` for its subdomains;
- `class`: written `class<=event`: that class of job or a less urgent one;
- `address`: a mail address; `*@example.com` for everyone there;
- `private`: `yes` covers `no` as well;
- `number`: written `amount<=100`: that much or less;
- `name`: equal. What a key is that nobody declared.

A driver's manifest may declare kinds for its own keys. `*` is any value of a known kind; a kind that this kernel does not know
compares by equality alone, so that a newer driver is never understood too widely.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from types import MappingProxyType

from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import JobClass, topic_matches

Scope = Mapping[str, tuple[str, ...]]
"""Scope key → the bounds, any of which a value may lie within."""
KeyKinds = Mapping[str, str]
"""Scope key → its kind, as one driver declares it."""

DEFAULTS: Mapping[str, Scope] = {"net": {"private": ("no",)}}
"""Object → bounds that a right on it has without saying so: what may reach addresses inside has to be granted as that."""

NO_KINDS: KeyKinds = MappingProxyType({})

_NUMBER_DIGITS = 30


@dataclass(frozen=True)
class Kind:
    """`normal(value, home)` is the one way to write a value; `within(value, bound)` compares two of these."""

    normal: Callable[[str, str], str]
    within: Callable[[str, str], bool]
    ordered: bool = False
    """Whether its bounds are upper bounds, written with `<=`."""


def kind_of(key: str, declared: KeyKinds) -> Kind:
    """The kernel's own keys are what they are, whatever a manifest says."""
    return KINDS.get(_OWN_KEYS.get(key) or declared.get(key, "name"), _UNKNOWN)


def normal_value(key: str, value: str, home: str, declared: KeyKinds = NO_KINDS) -> str:
    """The one way to write a scope value, so that values can be compared. Raises `OpError(INVALID_ARGUMENT)`."""
    if not value or any(ord(character) < 32 for character in value):
        raise _wrong(f"{key} may be neither empty nor hold control characters")
    return kind_of(key, declared).normal(value, home)


def without_stars(path: str) -> str:
    """`~/Documents/**`, and what else ends like it in a capability's text, is `~/Documents`."""
    while True:
        shorter = path.rstrip("/").removesuffix("/**").removesuffix("/*").removesuffix("/.")
        if shorter in (path, ""):
            return shorter or "/"
        path = shorter


def all_within(kind: Kind, values: Iterable[str], bounds: tuple[str, ...]) -> bool:
    """Whether each value lies within some bound."""
    for value in values:  # loops, not generators: this is what most of a check costs
        if value not in bounds:
            for bound in bounds:
                if kind.within(value, bound):
                    break
            else:
                return False
    return True


def _path(value: str, home: str) -> str:
    if value == "~" or value.startswith("~/"):
        value = home + value[1:]
    return os.path.normpath(os.path.join(home, value)).replace("//", "/", 1)  # noqa: PTH118  (lexical: nothing is looked up)


def _within_path(value: str, bound: str) -> bool:
    return bound == "/" or value == bound or value.startswith(bound + "/")


def _host(value: str, _home: str) -> str:
    """A value with anything else around the host is refused: another parser might see another host in it."""
    if re.search(r"[\s/@\\?#]", value):
        raise _wrong(f"{value!r} is not a host", "give the bare name, e.g. example.com")
    return value.lower().rstrip(".")


def _within_host(value: str, bound: str) -> bool:
    return bound == "*" or (bound.startswith("*.") and value.endswith(bound[1:]))


def _within_topic(value: str, bound: str) -> bool:
    return topic_matches(bound, value) and (not value.endswith("*") or bound.endswith("*"))


def _class(value: str, _home: str) -> str:
    if value.upper() not in JobClass.__members__:
        known = ", ".join(name.lower() for name in JobClass.__members__)
        raise _wrong(f"{value!r} is not a class", f"classes are {known}")
    return value.lower()


def _within_class(value: str, bound: str) -> bool:
    return JobClass[value.upper()] >= JobClass[bound.upper()]


def _address(value: str, _home: str) -> str:
    """One plain address: `"bob@x" <eve@y>` or a list would reach somebody else than it seems to."""
    if value != "*" and not re.fullmatch(r"[^\s@<>()\[\],;:\\\"]+@[^\s@<>()\[\],;:\\\"]+", value):
        raise _wrong(f"{value!r} is not one mail address", "give it without a name, e.g. bob@example.com")
    return value.lower().rstrip(".")


def _within_address(value: str, bound: str) -> bool:
    return bound == "*" or (bound.startswith("*@") and value.endswith(bound[1:]))


def _number(value: str, _home: str) -> str:
    try:
        number = Decimal(value.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if (
        not number.is_finite()
        or abs(number.adjusted()) > _NUMBER_DIGITS
        or len(number.as_tuple().digits) > _NUMBER_DIGITS
    ):
        raise _wrong(f"{value!r} is not a number")
    return f"{number.normalize() + 0:f}"


def _within_number(value: str, bound: str) -> bool:
    return Decimal(value) <= Decimal(bound)


def _as_is(value: str, _home: str) -> str:
    return value


def _any_name(_value: str, bound: str) -> bool:
    return bound == "*"


def _within_private(value: str, bound: str) -> bool:
    return value == "no" or bound == "*"


def _never(_value: str, _bound: str) -> bool:
    return False


KINDS = {
    "path": Kind(_path, _within_path),
    "topic": Kind(_as_is, _within_topic),
    "host": Kind(_host, _within_host),
    "class": Kind(_class, _within_class, ordered=True),
    "address": Kind(_address, _within_address),
    "number": Kind(_number, _within_number, ordered=True),
    "private": Kind(_as_is, _within_private),
    "name": Kind(_as_is, _any_name),
}
_UNKNOWN = Kind(_as_is, _never)
_OWN_KEYS = {"path": "path", "topic": "topic", "host": "host", "class": "class", "private": "private"}


def _wrong(detail: str, hint: str | None = None) -> OpError:
    return OpError(Code.INVALID_ARGUMENT, detail, hint)
