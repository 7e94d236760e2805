"""Capabilities: who may do what to which object. A pure state machine with an injected clock: no I/O, no logging.

A capability is a right (`capability_right.py`) in a holder's hands. It only ever adds: of several that allow a request, the one
that asks the user least and has something left is used, so that giving one never takes anything away and taking one back never
adds anything.

- `derive`: a holder passes on what lies within its own. Object, verbs and scope that do not, or a quota that is not left, are refused;
  expiry and approval become the stricter of both. A quota that is asked for is *moved* from the giver's account, and comes back with
  what is unspent when the child ends; without one the child draws on the giver's account. Either way one unit is spent once.
- `revoke` takes back a capability with all that came of it. Expiry is the same, by the clock.
- An account is charged in one place, however long the chain: a check costs the same at any depth.

A capability has two names: its id (`c12`), for people, the journal and the audit log, and its handle, 128 random bits that only its
holder learns and only its holder can use.
"""

from __future__ import annotations

import heapq
import itertools
import math
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from llmos.kernel.capability_quota import UNITS, Account, Limit, Spending
from llmos.kernel.capability_right import NO_OBJECTS, Approval, Right
from llmos.kernel.scope import NO_KINDS, KeyKinds, Scope, normal_value

__all__ = ["USER", "Approval", "Capability", "Limit", "Right", "Scope", "Spending", "Table", "normal_value"]

USER = "user"
"""The holder that is the person at the machine; born with everything."""

NOTHING: Mapping[str, Spending] = {}

_SAVED_PARTS = 32


@dataclass(frozen=True, eq=False)
class Capability:
    """A right in somebody's hands, its terms made definite."""

    id: str
    handle: str
    """What its holder calls it; a secret between the holder and the kernel."""
    holder: str
    right: Right
    parent: str | None
    origin: str
    """Where it comes from, for people: `boot`, `granted by user`, `spawned by user`."""
    reason: str
    """What it is wanted for, in the words of whoever asked."""
    accounts: tuple[Account, ...]
    """What it draws on, its own or an ancestor's; at most one per unit, in the order of `UNITS`."""


class Table:
    """All capabilities there are.

    Args:
        clock: seconds since 1970 UTC.
        objects: object → the kinds that its driver declares for its scope keys; may grow.
    """

    def __init__(self, clock: Callable[[], float] = time.time, objects: Mapping[str, KeyKinds] = NO_OBJECTS) -> None:
        self._clock = clock
        self._objects = objects
        self._caps: dict[str, Capability] = {}
        self._held: dict[str, dict[str, Capability]] = {}
        self._fitting: dict[str, dict[tuple[str, str], tuple[Capability, ...]]] = {}
        """Holder → (object, verb) → what it holds on that, the least asking first; forgotten when what it holds changes."""
        self._children: dict[str, set[str]] = {}
        self._ids = itertools.count(1)
        self._ends: list[tuple[int, str]] = []
        """Heap of (expiry, id); may name what is gone already."""
        self._due: float = math.inf
        self._latest = 0.0
        """For accounts time only goes forward: a clock that is set back begins no window again. Across a restart this is known only as
        far as what was saved tells."""
        self._expired: list[Capability] = []
        self.unsaved: dict[Account, None] = {}
        """Accounts of which the journal must hear before what they were charged for happens."""

    # -- giving ----------------------------------------------------------------------------------------------------

    def mint(
        self,
        holder: str,
        right: Right,
        origin: str,
        *,
        reason: str = "",
        id: str | None = None,  # noqa: A002
        spent: Mapping[str, Spending] = NOTHING,
        parent: str | None = None,
    ) -> Capability:
        """A new capability out of nothing. Only the kernel calls this: on boot, with the last three for what the journal kept."""
        self._now()
        accounts = []
        if id is not None:
            self.go_on_after(id)
        made = id or self._next_id()
        for unit in (unit for unit in UNITS if unit in right.quota):
            if unit in spent:  # the clock was set back since: time goes on from there
                self._latest = max(self._latest, float(spent[unit].window * right.quota[unit].per))
            account = Account(made, unit, right.quota[unit], None, self._latest)
            if unit in spent:
                account.resume(spent[unit])
            accounts.append(account)
        return self._add(made, holder, self._definite(right), parent, origin, reason, tuple(accounts))

    def go_on_after(self, id: str) -> None:  # noqa: A002
        """This id, and those before it, are given to nothing from now on."""
        self._ids = itertools.count(max(next(self._ids), int(id.removeprefix("c")) + 1))

    def derive(
        self, giver: str, right: Right, holder: str, origin: str, *, reason: str = "", handle: str = ""
    ) -> Capability:
        """Pass on a part of what `giver` holds, of the capability with this handle or of any that fits.

        Raises `OpError`: `DENIED` when it holds nothing that covers `right` or may not hand it on, `BUDGET` when too little is left,
        `BUSY` when `holder` has its hands full.
        """
        now = self._now()
        if holder != USER and len(self._held.get(holder, ())) >= params.MAX_HELD:
            raise OpError(
                Code.BUSY, f"{holder} holds {params.MAX_HELD} capabilities already", "give it fewer and wider ones"
            )
        covering = [
            cap for cap in self.held(giver) if cap.right.reaches(right) and (not handle or cap.handle == handle)
        ]
        if not covering:
            raise OpError(
                Code.DENIED,
                f"{giver} cannot hand on {right}: it does not hold it",
                _how_to_grant(giver, replace(right, grantable=True)),
            )
        giving = [cap for cap in covering if cap.right.grantable]
        if not giving:
            raise OpError(
                Code.DENIED,
                f"{giver} cannot hand on {right}: it holds {covering[0].right} for itself alone",
                _how_to_grant(giver, replace(right, grantable=True)),
            )
        for cap in sorted(giving, key=lambda cap: cap.right.approval):
            if all(_movable(account, right, now) for account in cap.accounts):
                return self._derive(cap, right, holder, origin, reason, now)
        left = ", ".join(_left_text(account, now) for account in giving[0].accounts)
        raise OpError(
            Code.BUDGET,
            f"{giver} cannot hand on {right}: of {giving[0].right} there is left {left}",
            "ask for no more than is left, for the same period or a longer one",
        )

    def lend(self, cap: Capability, holder: str, origin: str) -> Capability:
        """A program's own capability in the hands of a process that runs it: the same right, the same accounts."""
        return self._add(self._next_id(), holder, cap.right, cap.id, origin, cap.reason, cap.accounts)

    # -- using -----------------------------------------------------------------------------------------------------

    def check(self, holder: str, object_: str, verb: str, values: Scope, handle: str = "") -> Capability:
        """The capability that allows a request, the one with this handle or any that fits; one call is charged to it.

        Raises `OpError`: `DENIED` that names what is missing, `BUDGET` when all that fit are used up.
        """
        now = self._now()
        empty: Account | None = None
        for cap in self._on(holder, object_, verb):
            if (handle and cap.handle != handle) or not cap.right.admits(values):
                continue
            if not cap.accounts:
                return cap
            for account in cap.accounts:
                if account.left(now) < 1:
                    empty = empty or account
                    break
            else:
                if cap.accounts[0].unit == "calls":  # units are in the order of `UNITS`
                    self._spend(cap.accounts[0], 1)
                return cap
        if empty is not None:
            raise used_up(holder, empty)
        raise self._missing(holder, object_, verb, values)

    def charge(self, cap: Capability, *, bytes: int = 0, tokens: int = 0) -> None:  # noqa: A002
        """What a request that `cap` allowed has used, as soon as it is known.

        When less is left, that is used up and the request must end there: raises `OpError(BUDGET)`; `REVOKED` when `cap` is gone.
        """
        now = self._now()
        if cap.id not in self._caps:
            raise OpError(Code.REVOKED, f"{cap.holder}: the capability {cap.right} was taken back, or is over")
        empty = None
        for account in cap.accounts:
            wanted = bytes if account.unit == "bytes" else tokens if account.unit == "tokens" else 0
            left = account.left(now)
            if wanted > left:
                empty = account
            self._spend(account, min(wanted, left))
        if empty is not None:
            raise used_up(cap.holder, empty)

    def left(self, cap: Capability, unit: str) -> int | None:
        """How much of a unit is left in the present window; None when it is not limited."""
        now = self._now()
        return next((account.left(now) for account in cap.accounts if account.unit == unit), None)

    def drawn(self, cap: Capability, unit: str) -> tuple[Account, int] | None:
        """The account that a unit is charged to, which others may draw on too, and how much is left in it; None without a limit."""
        now = self._now()
        return next(((account, account.left(now)) for account in cap.accounts if account.unit == unit), None)

    def fitting(self, holder: str, object_: str, verb: str, values: Scope) -> Capability | None:
        """The capability that would allow a request of this kind, whatever is left of quotas. Nothing is charged."""
        self._now()
        return next((cap for cap in self._on(holder, object_, verb) if cap.right.admits(values)), None)

    def must_fit(self, holder: str, object_: str, verb: str, values: Scope) -> Capability:
        """`fitting`. Raises `OpError(DENIED)` that names what is missing."""
        cap = self.fitting(holder, object_, verb, values)
        if cap is None:
            raise self._missing(holder, object_, verb, values)
        return cap

    def allowed(self, holder: str, object_: str, verb: str, values: Scope) -> bool:
        """`fitting` as a question."""
        return self.fitting(holder, object_, verb, values) is not None

    def can(self, holder: str, object_: str, verb: str) -> bool:
        """Whether some request of this kind could pass."""
        return self.allowed(holder, object_, verb, {})

    # -- taking back -----------------------------------------------------------------------------------------------

    def revoke(self, id: str) -> list[Capability]:  # noqa: A002
        """Take one back with its whole subtree; empty when there is none of that id. What it allowed must end with it."""
        now = self._now()
        return self._remove(id, now)

    def drop(self, holder: str) -> list[Capability]:
        """A holder has ceased to exist, and with it all that came of what it held."""
        now = self._now()
        gone = [lost for cap in list(self._held.get(holder, {}).values()) for lost in self._remove(cap.id, now)]
        self._held.pop(holder, None)
        self._fitting.pop(holder, None)
        return gone

    def expire(self) -> list[Capability]:
        """What has come to its end since this was last asked. What it allowed must end with it."""
        self._now()
        gone, self._expired = self._expired, []
        return gone

    @property
    def due(self) -> float:
        """When `expire` next has something to say, in seconds since 1970; infinite when nothing ends."""
        return self._clock() if self._expired else self._due

    # -- looking ---------------------------------------------------------------------------------------------------

    def get(self, id: str) -> Capability | None:  # noqa: A002
        """By the id that people see; for the user's tools."""
        self._now()
        return self._caps.get(id)

    def held(self, holder: str) -> Iterable[Capability]:
        """In the order they were given."""
        self._now()
        return self._held.get(holder, {}).values()

    def __iter__(self) -> Iterator[Capability]:
        self._now()
        return iter(self._caps.values())

    # -- what outlives a restart -----------------------------------------------------------------------------------

    def keep(self, cap: Capability) -> None:
        """From now on the journal is to know what was spent of it."""
        for account in cap.accounts:
            if account.owner == cap.id:
                account.saved = -1
                self.unsaved[account] = None

    def take_unsaved(self, *, exact: bool = False) -> list[tuple[str, str, Spending]]:
        """(id, unit, what to remember) of accounts that the journal must hear of; call it when `unsaved` is not empty.

        To be written before what was charged happens. It says a little more than was spent, so that it need not be written at each
        call, and a crash can lose some of a quota but never give it twice. `exact`, at an orderly end, says what is true, of all.
        """
        accounts = [
            account
            for account in (
                dict.fromkeys(account for cap in self._caps.values() for account in cap.accounts)
                if exact
                else self.unsaved
            )
            if account.saved != math.inf and account.owner in self._caps
        ]
        self.unsaved.clear()
        rows = []
        for account in accounts:
            given = self._caps[account.owner].right.quota[account.unit].amount
            ahead = 0 if exact else max(1, given // _SAVED_PARTS)
            account.saved = min(account.limit, account.spent + ahead)
            rows.append(
                (account.owner, account.unit, Spending(account.window, int(account.saved), given - account.limit))
            )
        return rows

    # -- inside ----------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        """The time for accounts, once everything that has come to its end is gone."""
        now = self._clock()
        if now > self._latest:
            self._latest = now
        if now >= self._due:
            self._sweep(now)
        return self._latest

    def _next_id(self) -> str:
        return f"c{next(self._ids)}"

    def _missing(self, holder: str, object_: str, verb: str, values: Scope) -> OpError:
        missing = Right(object_, verb, values, kinds=self._objects.get(object_, NO_KINDS))
        detail = f"{holder} may not: missing the capability {missing}"
        return OpError(Code.DENIED, detail, _how_to_grant(holder, missing))

    def _on(self, holder: str, object_: str, verb: str) -> tuple[Capability, ...]:
        fitting = self._fitting.setdefault(holder, {}) if holder in self._held else {}
        found = fitting.get((object_, verb))
        if found is None:
            caps = [cap for cap in self._held.get(holder, {}).values() if cap.right.names(object_, verb)]
            found = fitting[object_, verb] = tuple(sorted(caps, key=lambda cap: cap.right.approval))
        return found

    def _derive(self, cap: Capability, right: Right, holder: str, origin: str, reason: str, now: float) -> Capability:
        made = self._next_id()
        theirs = {account.unit: account for account in cap.accounts}
        accounts = []
        for unit in UNITS:
            asked, source = right.quota.get(unit), theirs.get(unit)
            if asked is None:
                accounts += [source] if source is not None else []
            elif source is None:
                accounts.append(Account(made, unit, asked, None, now))
            else:
                accounts.append(source.move(made, asked, now))
                self._changed(source)
        asked_for = self._definite(right)
        ends = [end for end in (cap.right.expires, asked_for.expires) if end is not None]
        given = replace(
            asked_for.lowered(cap.right),
            quota={**cap.right.quota, **right.quota},
            expires=min(ends, default=None),
            approval=max(cap.right.approval, right.approval),
        )
        return self._add(made, holder, given, cap.id, origin, reason, tuple(accounts))

    def _add(
        self,
        id: str,  # noqa: A002
        holder: str,
        right: Right,
        parent: str | None,
        origin: str,
        reason: str,
        accounts: tuple[Account, ...],
    ) -> Capability:
        cap = Capability(id, secrets.token_hex(16), holder, right, parent, origin, reason, accounts)
        self._caps[id] = cap
        self._held.setdefault(holder, {})[id] = cap
        self._fitting.pop(holder, None)
        if parent is not None:
            self._children.setdefault(parent, set()).add(id)
        if right.expires is not None:
            heapq.heappush(self._ends, (right.expires, id))
            self._due = self._ends[0][0]
        return cap

    def _remove(self, id: str, now: float) -> list[Capability]:  # noqa: A002
        gone: list[Capability] = []
        queue = [id]
        while queue:
            cap = self._caps.pop(queue.pop(), None)
            if cap is None:
                continue
            gone.append(cap)
            queue.extend(self._children.pop(cap.id, ()))
            self._held[cap.holder].pop(cap.id, None)
            self._fitting.pop(cap.holder, None)
            if cap.parent in self._children:
                self._children[cap.parent].discard(cap.id)
        for cap in reversed(gone):  # children before their parents, whose account theirs returns to
            for account in cap.accounts:
                if account.owner == cap.id:
                    account.close(now)
                    self.unsaved.pop(account, None)
                    if account.source is not None:
                        self._changed(account.source)
        return gone

    def _definite(self, right: Right) -> Right:
        """With the end that `for=` comes to."""
        if right.lifetime is None:
            return right
        return replace(right, expires=math.ceil(self._clock() + right.lifetime), lifetime=None)

    def _sweep(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            self._expired += self._remove(heapq.heappop(self._ends)[1], self._latest)
        self._due = self._ends[0][0] if self._ends else math.inf

    def _spend(self, account: Account, amount: int) -> None:
        account.spent += amount
        if account.spent > account.saved:
            self.unsaved[account] = None

    def _changed(self, account: Account) -> None:
        if account.saved != math.inf:
            self.unsaved[account] = None


def _movable(account: Account, right: Right, now: float) -> bool:
    """Whether what `right` asks for can be taken out of this account."""
    asked = right.quota.get(account.unit)
    if asked is None:
        return True
    return asked.amount <= account.left(now) and Limit(account.limit, account.per).spans(asked)


def _left_text(account: Account, now: float) -> str:
    period = str(Limit(1, account.per)).removeprefix("1")
    return f"{account.unit}={account.left(now)}{period}"


def used_up(holder: str, account: Account) -> OpError:
    """What somebody hears who wants more than is left."""
    refills = account.refills()
    when = (
        "" if refills == math.inf else f"wait until {datetime.fromtimestamp(refills, UTC):%Y-%m-%d %H:%M:%S} UTC, or "
    )
    return OpError(
        Code.BUDGET,
        f"{holder}: the {account.unit} of its quota are used up",
        f"{when}give it more: `llmosctl perm why {account.owner}`",
    )


def _how_to_grant(holder: str, right: Right) -> str:
    """The command; a process's rights are granted to its program. What is in it may come from anybody, so it is quoted."""
    return f"llmosctl perm grant {holder.partition('#')[0]} {shlex.quote(str(right))}"
