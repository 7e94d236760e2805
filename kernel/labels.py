"""Labels: what a datum has been touched by, and who has seen it. A pure state machine with an injected clock.

A label is `(integrity, tags)`: whether a stranger may have written any of it, and the sources it was made from. Labels form
a lattice: joining takes the worse integrity and all the tags. Nothing here ever lowers a label; only the user does, by
endorsing a value (`llmos.kernel.values`) or approving a call (`llmos.kernel.approvals`).

How the kernel calls it:

- `born` for every holder: an agent with the join of its parent's label and its arguments', a driver with its manifest's
  label and `fixed`, the user with `BOTTOM` and `fixed`. A fixed holder's own label never changes: a driver answers many
  requests and keeps them apart, so its replies carry `reply_label(manifest, request, item)` instead; a person who reads a
  stranger's words is not taken over by them.
- `receive` for everything that is about to be delivered to a holder (a reply, a chunk, an event, an opened value), *before*
  it is sent, so that no answer overtakes its label.
- `of(holder)` stamps every message a holder sends; a driver's nested call is stamped `of(driver) | parent request's label`.
- `mark` for each call of a sink, so that `why` can explain it later; `ended` when a holder ceases to exist.
- a context carries the join of its owner's label at each append, and the reply of a generation carries the context's.
  Prefixes are cached apart for each label (`contexts.namespace`), so text cached under one label is never reused under another.

Source: Denning, "A Lattice Model of Secure Information Flow" (CACM 1976); Costa et al., "Securing AI Agents with
Information-Flow Control" (FIDES, 2025).
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from llmos.ipc.errors import Code, OpError

MAX_TAGS = 64
"""Tags of one label; more become `ANY`, which is all of them."""
KEEP_ENDED = 256
"""Holders that have ended and can still be asked about."""
KEEP_CALLS = 2048
"""Calls of sinks that can still be asked about."""

ANY = "*"
"""The tag that stands for every tag."""
_TAG = re.compile(r"[a-z0-9][a-z0-9_.:\-]{0,59}")


class Integrity(IntEnum):
    """Who may have had a hand in it; larger is worse."""

    TRUSTED = 0
    """The user and this system only."""
    UNTRUSTED = 1
    """Possibly a stranger."""


@dataclass(frozen=True, slots=True)
class Label:
    """Integrity and secrecy of a datum or a process. `a <= b`: what may flow to `a`'s level and above may flow to `b`."""

    integrity: Integrity = Integrity.TRUSTED
    tags: frozenset[str] = frozenset()

    @classmethod
    def make(cls, integrity: str, tags: Iterable[str] = ()) -> Label:
        """From a manifest's words. Raises `OpError(INVALID_ARGUMENT)` for a tag that is not one, or another integrity."""
        if integrity not in ("trusted", "untrusted"):
            raise OpError(Code.INVALID_ARGUMENT, f"integrity {integrity!r} is neither trusted nor untrusted")
        return cls(Integrity[integrity.upper()], _tags(tags))

    @classmethod
    def from_wire(cls, value: object) -> Label:
        """From `to_wire`. Raises `OpError(INVALID_ARGUMENT)`."""
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise OpError(Code.INVALID_ARGUMENT, "a label is an array of strings")
        if not value:
            return BOTTOM
        if value[0] not in ("t", "u"):
            raise OpError(Code.INVALID_ARGUMENT, f"a label begins with t or u, not {value[0][:8]!r}")
        return cls(Integrity.UNTRUSTED if value[0] == "u" else Integrity.TRUSTED, _tags(value[1:]))

    def to_wire(self) -> list[str]:
        """`[]` for `BOTTOM`, otherwise `t` or `u` and the tags in order."""
        if self == BOTTOM:
            return []
        return ["u" if self.integrity else "t", *sorted(self.tags)]

    @property
    def trusted(self) -> bool:
        return self.integrity is Integrity.TRUSTED

    def __or__(self, other: Label) -> Label:
        """The join: what both together are."""
        if self is other or other <= self:
            return self
        if self <= other:
            return other
        return Label(max(self.integrity, other.integrity), _bounded(self.tags | other.tags))

    def __le__(self, other: Label) -> bool:
        return self.integrity <= other.integrity and within(self.tags, other.tags)

    def __str__(self) -> str:
        return self.integrity.name.lower() + (f" {{{', '.join(sorted(self.tags))}}}" if self.tags else "")


BOTTOM = Label()
"""Trusted and about nothing: what everything starts from."""
TOP = Label(Integrity.UNTRUSTED, frozenset({ANY}))
"""What is not known, for anything could be in it."""


def within(tags: frozenset[str], bound: frozenset[str]) -> bool:
    """Whether everything in `tags` is in `bound`."""
    return ANY in bound or tags <= bound


def join(labels: Iterable[Label]) -> Label:
    """Of any number of labels; `BOTTOM` of none."""
    made = BOTTOM
    for label in labels:
        made = made | label
    return made


def reply_label(manifest: Label, request: Label, item: object = None, known: Container[str] | None = None) -> Label:
    """Of a driver's reply: its manifest's, the request's and what the driver says of this item, in wire form.

    The join makes lowering impossible. A label that is not one is `TOP`: a driver that cannot say is taken at its worst. A tag that is
    not `known` (None: all are) becomes `ANY`, for whoever could choose tags freely could write with them.
    """
    made = manifest | request
    if item is not None:
        try:
            said = Label.from_wire(item)
        except OpError:
            return TOP
        if known is not None and not all(tag in known or tag in made.tags for tag in said.tags):
            said = Label(said.integrity, frozenset({ANY}))
        made = made | said
    return made


@dataclass(frozen=True, slots=True)
class Source:
    """Where a datum came from: who sent it through what, and which taints of the sender explain its label."""

    sender: str
    via: str
    """The op, or `event TOPIC`, or `spawn`."""
    call: int = 0
    """The kernel's number of the call; 0 for none."""
    taints: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Taint:
    """One raise of one holder's label, and the datum that did it. It names the datum and holds nothing of it."""

    number: int
    at: float
    holder: str
    source: Source
    added: Label
    """What it brought that the holder did not have: an integrity, tags, or both."""

    def describe(self) -> dict[str, Any]:
        """A row of `why`."""
        return {
            "taint": self.number,
            "at": self.at,
            "holder": self.holder,
            "sender": self.source.sender,
            "via": self.source.via,
            "call": self.source.call,
            "added": str(self.added),
        }


@dataclass(slots=True)
class _State:
    label: Label
    fixed: bool
    taints: list[Taint] = field(default_factory=list)
    """At most one for integrity and one per tag: each raises the label, and a label has only so many steps to the top."""


class Labels:
    """Every holder's label, and how it came to it.

    Args:
        clock: seconds since 1970 UTC.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[str, _State] = {}
        self._ended: OrderedDict[str, _State] = OrderedDict()
        self._taints: dict[int, Taint] = {}
        self._marks: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._numbers = itertools.count(1)

    def born(self, holder: str, label: Label = BOTTOM, source: Source | None = None, *, fixed: bool = False) -> None:
        """A new holder; `source` says where a label above `BOTTOM` came from. A driver that starts again is born again."""
        self._forget(self._ended.pop(holder, None))
        self._forget(self._states.get(holder))
        self._states[holder] = _State(BOTTOM if source is not None else label, fixed=False)
        if source is not None:
            self.receive(holder, label, source)
        self._states[holder].fixed = fixed

    def ended(self, holder: str) -> None:
        """It ceased to exist; what is known of it is kept for a while."""
        state = self._states.pop(holder, None)
        if state is not None:
            self._ended[holder] = state
            if len(self._ended) > KEEP_ENDED:
                self._forget(self._ended.popitem(last=False)[1])

    def known(self, holder: str) -> bool:
        """Whether it lives, or ended not long ago."""
        return holder in self._states or holder in self._ended

    def of(self, holder: str) -> Label:
        """What it has seen; `TOP` for one that is not known."""
        state = self._states.get(holder)
        return state.label if state is not None else TOP

    def last_of(self, holder: str) -> Label:
        """The same, or what it had seen when it ended."""
        state = self._states.get(holder) or self._ended.get(holder)
        return state.label if state is not None else TOP

    def source(self, sender: str, via: str, label: Label, call: int = 0) -> Source:
        """Where a datum with this label comes from, as of now."""
        return Source(sender, via, call, self._explaining(sender, label))

    def receive(self, holder: str, label: Label, source: Source) -> Taint | None:
        """Something with this label is about to reach it. → the taint, when that raised its label; the audit log wants it."""
        added = self.added(holder, label)
        if added is None:
            return None
        state = self._states[holder]
        state.label = state.label | label
        taint = Taint(next(self._numbers), self._clock(), holder, source, added)
        state.taints.append(taint)
        self._taints[taint.number] = taint
        return taint

    def added(self, holder: str, label: Label) -> Label | None:
        """What receiving this would add to a holder's label; None for nothing."""
        state = self._states.get(holder)
        if state is None or state.fixed or label <= state.label:
            return None
        joined = state.label | label
        worse = joined.integrity > state.label.integrity
        return Label(Integrity.UNTRUSTED if worse else Integrity.TRUSTED, joined.tags - state.label.tags)

    def mark(self, call: int, holder: str, label: Label) -> tuple[int, ...]:
        """Remember what explains this call's label, for `why_call`. → the taints' numbers, for an approval of it."""
        taints = self._explaining(holder, label)
        self._marks[call] = taints
        if len(self._marks) > KEEP_CALLS:
            self._marks.popitem(last=False)
        return taints

    def why(self, holder: str) -> list[Taint]:
        """Which datum raised whom through which call, from this holder back to the sources. Empty when nothing did."""
        return self.chain(self._explaining(holder, TOP))

    def why_call(self, call: int) -> list[Taint]:
        """The same for a call of a sink. Raises `OpError(NOT_FOUND)`."""
        if call not in self._marks:
            raise OpError(
                Code.NOT_FOUND,
                f"nothing is kept about call {call}",
                "reads are not kept, and other calls for a while only",
            )
        return self.chain(self._marks[call])

    def chain(self, numbers: Iterable[int]) -> list[Taint]:
        """The taints of these numbers and what led to them, nearest first; those long forgotten are left out."""
        found: dict[int, Taint] = {}
        queue = list(numbers)
        for number in queue:
            taint = self._taints.get(number)
            if taint is not None and number not in found:
                found[number] = taint
                queue.extend(taint.source.taints)
        return list(found.values())

    def _explaining(self, holder: str, label: Label) -> tuple[int, ...]:
        """The taints of a holder that brought any part of a label."""
        state = self._states.get(holder) or self._ended.get(holder)
        if state is None:
            return ()
        return tuple(
            taint.number
            for taint in state.taints
            if (taint.added.integrity and label.integrity)
            or ANY in label.tags | taint.added.tags
            or taint.added.tags & label.tags
        )

    def _forget(self, state: _State | None) -> None:
        for taint in state.taints if state is not None else ():
            self._taints.pop(taint.number, None)


def _tags(tags: Iterable[str]) -> frozenset[str]:
    made = frozenset(tags)
    for tag in made:
        if tag != ANY and not _TAG.fullmatch(tag):
            raise OpError(
                Code.INVALID_ARGUMENT, f"{tag[:60]!r} is not a tag", "a tag is lower-case letters, digits and _ . : -"
            )
    return _bounded(made)


def _bounded(tags: frozenset[str]) -> frozenset[str]:
    return frozenset({ANY}) if ANY in tags or len(tags) > MAX_TAGS else tags
