"""What the user said, and whether a value occurs in it.

A process that has seen a stranger's words may still act on a value that its user wrote herself. `Prompt.quotes` decides that
by comparison alone, per kind of value; it understands nothing:

- text: the very characters, at least `MIN_TEXT` of them, as whole words: `example.com` is not quoted by `bob@example.com`,
  nor `eve` by `steve`. Runs of white space in the prompt count as one space; a value with characters that cannot be seen is
  never quoted. Nothing else is folded, because the driver gets the value as it was sent, except what means the same
  everywhere: the domain of an e-mail address and the host of a URL in lower case, and a scheme that the prompt leaves out;
- paths: also written from the user's home (`~/notes.txt`, `notes.txt`);
- numbers: by value, `1,200.50` being 1200.5; digits inside a date, a time, an address or an account number are no numbers;
- dates: an ISO date that the prompt names in ISO form or in English words; one named without a year is quoted in any year. A
  time with it must be one the prompt names, unless it names none;
- booleans: never, one bit is always there to be found.

What this leaves to a stranger: to choose *which* of the quoted values goes where. That is why a quoted value alone allows
nothing: the op itself must be in a plan (`llmos.kernel.flow`).
"""

from __future__ import annotations

import re
from decimal import Decimal

MIN_TEXT = 3
"""Characters below which a text occurs by chance."""
MAX_PROMPT = 64 * 1024
"""Characters kept of what the user said; the rest quotes nothing."""

_JOINERS = r"@./\\+\-_:~%&=#?"
"""What makes a longer address, path or number of the words on both its sides."""
_BEFORE = rf"(?<![\w{_JOINERS}])"
_AFTER = rf"(?!\w|[{_JOINERS}]+\w)"
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_MONTH = rf"({'|'.join(_MONTHS)})[a-z]*\.?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,?\s+(\d{4})\b)?"

_EMAIL = re.compile(r"(?<=@)[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)+")
_HOST = re.compile(r"(?:(?<=://)|(?<![\w@./\-])(?=www\.))[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)+", re.IGNORECASE)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w@./:,\-])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w@/:\-]|[.,]\d)")
_ISO = re.compile(r"(?<![\w\-])(\d{4})-(\d{2})-(\d{2})(?![\d\-])")
_MONTH_DAY = re.compile(rf"\b{_MONTH}\s+(?:the\s+)?{_DAY}\b{_YEAR}", re.IGNORECASE)
_DAY_MONTH = re.compile(rf"\b{_DAY}\s+(?:of\s+)?{_MONTH}\b{_YEAR}", re.IGNORECASE)
_CLOCK = re.compile(r"(?<![\w:.])(\d{1,2}):(\d{2})(?![\d:])(?!\s*[ap]\.?m)", re.IGNORECASE)
_AM_PM = re.compile(r"(?<![\w:.])(\d{1,2})(?::(\d{2}))?\s*([ap])\.?m\b", re.IGNORECASE)
_WHEN = re.compile(r"(\d{4})-(\d{2})-(\d{2})(?:[T ](\d{2}):(\d{2})(?::00)?)?")


class Prompt:
    """The words of one user in one task.

    Args:
        home: her home directory, from which her paths start.
    """

    def __init__(self, text: str = "", home: str = "/") -> None:
        self._home = home.rstrip("/") + "/"
        self._text = ""
        self._numbers: set[Decimal] = set()
        self._dates: set[tuple[int, int, int]] = set()
        """(year, month, day); year 0 for any."""
        self._times: set[tuple[int, int]] = set()
        self.add(text)

    def add(self, text: str) -> None:
        """She has said more."""
        text = text[: max(0, MAX_PROMPT - len(self._text))]
        self._text += "\n" + _canonical(" ".join(text.split()))
        self._numbers |= {Decimal(whole.replace(",", "") + part) for whole, part in _NUMBER.findall(text)}
        self._dates |= {(int(year), int(month), int(day)) for year, month, day in _ISO.findall(text)}
        for month, day, year in _MONTH_DAY.findall(text):
            self._dates.add((int(year or 0), _month(month), int(day)))
        for day, month, year in _DAY_MONTH.findall(text):
            self._dates.add((int(year or 0), _month(month), int(day)))
        self._times |= {(int(hour), int(minute)) for hour, minute in _CLOCK.findall(text)}
        for hour, minute, half in _AM_PM.findall(text):
            self._times.add((int(hour) % 12 + (12 if half in "pP" else 0), int(minute or 0)))

    def quotes(self, value: object) -> bool:
        """Whether she wrote this value: one text or number, not a collection."""
        if isinstance(value, bool):
            return False
        if isinstance(value, (int, float)):
            return Decimal(str(value)) in self._numbers
        if not isinstance(value, str):
            return False
        when = _WHEN.fullmatch(value)
        return (when is not None and self._names(when)) or any(self._holds(form) for form in self._forms(value))

    def _names(self, when: re.Match[str]) -> bool:
        year, month, day = (int(part) for part in when.group(1, 2, 3))
        if not {(year, month, day), (0, month, day)} & self._dates:
            return False
        return when[4] is None or not self._times or (int(when[4]), int(when[5])) in self._times

    def _forms(self, value: str) -> list[str]:
        """The ways she may have written it."""
        forms = [value, value.removesuffix("/")]
        if _SCHEME.match(value):
            forms.append(_SCHEME.sub("", value).removesuffix("/"))
        if value.startswith(self._home):
            inside = value.removeprefix(self._home)
            forms += [f"~/{inside}", inside]
        return forms

    def _holds(self, form: str) -> bool:
        form = _canonical(form)
        if len(form) < MIN_TEXT or form != form.strip() or not form.isprintable() or form not in self._text:
            return False
        return re.search(_BEFORE + re.escape(form) + _AFTER, self._text) is not None


def same(one: object, other: object) -> bool:
    """Whether two values mean the same: numbers by value, texts by the characters, with hosts in lower case."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if isinstance(one, str) and isinstance(other, str):
        return _canonical(one) == _canonical(other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other


def _canonical(text: str) -> str:
    return _HOST.sub(lambda host: host[0].lower(), _EMAIL.sub(lambda domain: domain[0].lower(), text))


def _month(name: str) -> int:
    return _MONTHS.index(name[:3].lower()) + 1
