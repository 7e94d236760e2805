"""The capability table against a model that is slow and plainly right: sets of requests, and a book of everything ever spent.

`World` does one operation at a time to both and compares. Hypothesis drives it in `test_capability_machine.py`; for millions of
operations: `python -m tests.unit.capability_machine --operations 1000000 [--seed N]`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from llmos.ipc.errors import Code, OpError
from llmos.kernel.capability import USER, Approval, Capability, Limit, Right, Spending, Table

_T = TypeVar("_T")
Choose = Callable[[Sequence[_T]], _T]

OBJECTS, VERBS = ("mail", "fs"), ("read", "write")
PATHS = ("/a", "/a/x", "/a/x/y", "/ab")
NAMES = ("n", "m")
BENEATH = {
    "/": frozenset(PATHS), "/a": frozenset({"/a", "/a/x", "/a/x/y"}), "/a/x": frozenset({"/a/x", "/a/x/y"}), "/ab": frozenset({"/ab"}),
}  # fmt: skip
HOLDERS = ("a", "b", "c")
PERIODS = (0, 60, 3600)
UNITS = ("calls", "bytes", "tokens")
MAX_ALIVE = 40

Request = tuple[str, str, str | None, str | None]
"""object, verb, path and name; None where the request leaves one open."""

ALL: frozenset[Request] = frozenset(itertools.product(OBJECTS, VERBS, (*PATHS, None), (*NAMES, None)))
ORDERED = sorted(ALL, key=repr)


def meaning(right: Right) -> frozenset[Request]:
    """Every request that it allows, by trying them all."""
    paths = [BENEATH[bound] for bound in right.scope.get("path", ())]
    names = right.scope.get("name")
    return frozenset(
        (object_, verb, path, name)
        for object_, verb, path, name in ALL
        if right.object in ("*", object_)
        and (right.verb == "*" or verb in right.verb.split("+"))
        and (not paths or path is None or any(path in beneath for beneath in paths))
        and (not names or name is None or name in names or "*" in names)
    )


def _outcome(call: Callable[[], _T]) -> _T | OpError:
    """What it returns, or how it was refused."""
    try:
        return call()
    except OpError as error:
        return error


@dataclass(eq=False)
class Modelled:
    """What the model knows of one capability."""

    id: str
    holder: str
    handle: str
    right: Right
    allows: frozenset[Request]
    line: list[Modelled]
    """Itself and its ancestors: whatever it spends, each of these has spent."""
    alive: bool = True
    kept: bool = False
    own: set[str] = field(default_factory=set)
    """Units of which it was given an amount of its own."""
    inexact: bool = False
    """Something in its subtree had another period, or was lost in a crash: less may be left than was not spent."""
    spent: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(unit, number of the window) → amount, by it and all that ever came of it."""

    def over(self, now: float) -> bool:
        return not self.alive or any(one.right.expires is not None and one.right.expires <= now for one in self.line)


class World:
    """A table, its model, and a clock that moves when told. Each method is one operation; it raises AssertionError on a difference."""

    def __init__(self) -> None:
        self.now = self.latest = 1_800_000_000.0
        self.table = Table(lambda: self.now)
        self.known: dict[str, Modelled] = {}
        self.saved: dict[str, dict[str, Spending]] = {}
        """The journal: id → unit → what was spent."""
        self.counts: Counter[str] = Counter()
        self._boot()

    # -- operations ------------------------------------------------------------------------------------------------

    def derive(self, giver: str, right: Right, holder: str, keep: bool) -> None:
        """The giver passes something on; the user's may be kept across restarts."""
        before = {one.id: one for one in self._live() if one.holder == giver}
        cap = _outcome(lambda: self.table.derive(giver, right, holder, "test"))
        if isinstance(cap, OpError):
            self.counts[f"derive {cap.code}"] += 1
            if cap.code is Code.DENIED:
                for one in before.values():
                    same = (one.right.object, one.right.verb, one.right.scope) == (
                        right.object,
                        right.verb,
                        right.scope,
                    )
                    assert not (same and one.right.grantable), f"{giver} holds {one.right} and was denied {right}"
            else:
                assert cap.code is Code.BUDGET
                assert any(unit in one.right.quota for one in before.values() for unit in right.quota)
            return
        self.counts["derive"] += 1
        assert cap.parent in before, "derived from what the giver does not hold, or no longer"
        parent = before[cap.parent]
        made = self._know(cap, parent)
        made.own = set(right.quota)
        assert parent.right.grantable
        assert made.allows <= parent.allows, f"{cap.right} is wider than {parent.right}"
        assert cap.right.approval >= max(parent.right.approval, right.approval)
        assert cap.right.grantable <= right.grantable
        if parent.right.expires is not None:
            assert cap.right.expires is not None
            assert cap.right.expires <= parent.right.expires
        for unit, limit in parent.right.quota.items():
            assert unit in cap.right.quota, "a child without the bound of its parent"
            assert cap.right.quota[unit].amount <= limit.amount
            if cap.right.quota[unit].per != limit.per:
                for one in parent.line:
                    one.inexact = True
        if keep and giver == USER:
            self.table.keep(cap)
            made.kept = True
            self.saved[cap.id] = {}
            self._save()

    def lend(self, cap: Modelled, holder: str) -> None:
        """A process of a program gets what the program has."""
        found = self.table.get(cap.id)
        assert (found is None) == cap.over(self.now)
        if found is not None:
            self._know(self.table.lend(found, holder, "test"), cap)

    def check(self, holder: str, request: Request, handle: str = "") -> None:
        """A request, by its name or with a handle."""
        object_, verb, path, name = request
        values = {key: (value,) for key, value in (("path", path), ("name", name)) if value is not None}
        fitting = [one for one in self._live() if one.holder == holder and request in one.allows]
        if handle:
            fitting = [one for one in fitting if one.handle == handle]
        cap = _outcome(lambda: self.table.check(holder, object_, verb, values, handle))
        if isinstance(cap, OpError):
            self.counts[f"check {cap.code}"] += 1
            if cap.code is Code.DENIED:
                assert not fitting, f"denied {request} although {holder} holds {fitting[0].right}"
            else:
                assert cap.code is Code.BUDGET
                assert fitting, f"{holder} holds nothing that allows {request}: DENIED was due"
                assert all(self._is_used_up(one) for one in fitting)
            return
        self.counts["check"] += 1
        one = self.known[cap.id]
        assert one in fitting, f"{holder} was allowed {request} by {cap.right}"
        assert all(one.right.approval <= other.right.approval or self._is_used_up(other) for other in fitting), (
            "asked the user where it need not"
        )
        self._book(one, "calls", 1)
        self._save()

    def charge(self, cap: Modelled, unit: str, amount: int) -> None:
        """What a call turned out to have used."""
        found = self.table.get(cap.id)
        if found is None:
            assert cap.over(self.now)
            return
        left = self.table.left(found, unit)
        error = _outcome(lambda: self.table.charge(found, **{unit: amount}))
        if error is None:
            assert left is None or left >= amount
        else:
            assert error.code is Code.BUDGET
            assert left is not None
            assert left < amount
            amount = left
        self._book(cap, unit, amount)
        self._save()

    def revoke(self, cap: Modelled) -> None:
        """With its whole subtree, and nothing else."""
        below = {one.id for one in self._live() if cap in one.line}
        gone = self.table.revoke(cap.id)
        assert {one.id for one in gone} == below
        self._gone(gone)

    def drop(self, holder: str) -> None:
        """A holder has ceased to exist."""
        below = {one.id for one in self._live() if any(above.holder == holder for above in one.line)}
        gone = self.table.drop(holder)
        assert {one.id for one in gone} == below
        self._gone(gone)

    def wait(self, seconds: float) -> None:
        """Time passes, or the clock is set back."""
        if seconds < 0:
            self._expire_all()
        self.now += seconds
        self.latest = max(self.latest, self.now)

    def expire(self) -> None:
        """What ended since."""
        gone = self.table.expire()
        assert all(one.right.expires is not None and one.right.expires <= self.latest for one in gone)
        self._gone(gone)
        assert self.table.due > self.now

    def find(self, holder: str, cap: Modelled) -> None:
        """A handle serves its holder while it lasts, and nobody else."""
        found = cap.handle in {one.handle for one in self.table.held(holder)}
        assert found == (holder == cap.holder and not cap.over(self.now))

    def crash(self) -> None:
        """The kernel dies at once and is started again with what its journal says; a clock that was set back has been put right."""
        self.wait(self.latest - self.now)
        self._expire_all()
        kept = [one for one in self._live() if one.kept]
        for one in self.known.values():
            one.alive = False
        self.table = Table(lambda: self.now)
        self._boot()
        for one in kept:
            cap = self.table.mint(one.holder, Right.parse(str(one.right)), "test", id=one.id, spent=self.saved[one.id])
            self.table.keep(cap)
            assert Right.parse(str(one.right)) == cap.right
            one.alive, one.inexact, one.handle, one.line = True, True, cap.handle, [one]
            self.known[cap.id] = one
        self.latest = (
            self.table._latest
        )  # of a clock set back just before, the journal knows no more than its accounts do
        self._save()

    def invariants(self) -> None:
        """What must hold at every moment: the same capabilities in both, and no quota lost."""
        self._expire_all()
        assert {cap.id for cap in self.table} == {one.id for one in self._live()}
        for cap in self.table:
            one = self.known[cap.id]
            for account in cap.accounts:
                left, limit = self.table.left(cap, account.unit), cap.right.quota[account.unit]
                unspent = limit.amount - one.spent[self._window(account.unit, one)]
                assert left is not None
                assert left >= 0
                if account.owner == cap.id:
                    assert left <= unspent, f"{cap.right}: {left} left, {one.spent} spent"
                if not one.inexact and account.owner == cap.id:
                    moved = sum(
                        other.right.quota[account.unit].amount - other.spent[self._window(account.unit, other)]
                        for other in self._live()
                        if one in other.line[1:]
                        and account.unit in other.own
                        and self._source(other, account.unit) is one
                    )
                    assert left == unspent - moved, (
                        f"{one.id} {cap.right}: {left} left, {one.spent} spent, {moved} moved"
                    )

    # -- the model -------------------------------------------------------------------------------------------------

    def pick(self, choose: Choose[Modelled]) -> Modelled:
        """Any capability, dead ones among them, but for the user's own."""
        return choose(
            [one for one in self.known.values() if len(one.line) > 1 or one.kept] or list(self.known.values())
        )

    def full(self) -> bool:
        return len(self._live()) > MAX_ALIVE

    def forget(self) -> None:
        """The model need not remember for ever: some of the dead are enough to try to use."""
        dead = [id_ for id_, one in self.known.items() if not one.alive]
        for id_ in dead[: max(0, len(dead) - 10)]:
            del self.known[id_]

    def _boot(self) -> None:
        cap = self.table.mint(USER, Right("*", "*", grantable=True), "boot", id="c0")
        self.known[cap.id] = made = Modelled(cap.id, USER, cap.handle, cap.right, ALL, [])
        made.line = [made]

    def _know(self, cap: Capability, parent: Modelled) -> Modelled:
        made = Modelled(cap.id, cap.holder, cap.handle, cap.right, meaning(cap.right), [])
        made.line = [made, *parent.line]
        made.inexact = False
        self.known[cap.id] = made
        self.counts["deepest"] = max(self.counts["deepest"], len(made.line))
        return made

    def _live(self) -> list[Modelled]:
        return [one for one in self.known.values() if not one.over(self.now)]

    def _window(self, unit: str, one: Modelled) -> tuple[str, int]:
        per = one.right.quota[unit].per
        return unit, int(self.latest // per) if per else 0

    def _book(self, one: Modelled, unit: str, amount: int) -> None:
        """Nobody has ever spent more than it was given, counting all that came of it, dead or alive."""
        for above in one.line:
            if unit in above.right.quota:
                window = self._window(unit, above)
                above.spent[window] += amount
                assert above.spent[window] <= above.right.quota[unit].amount, (
                    f"{above.right} spent {above.spent[window]} {unit}"
                )

    def _source(self, one: Modelled, unit: str) -> Modelled | None:
        """From whose amount its own was taken."""
        return next((above for above in one.line[1:] if unit in above.own), None)

    def _is_used_up(self, one: Modelled) -> bool:
        cap = self.table.get(one.id)
        return cap is not None and any(self.table.left(cap, unit) == 0 for unit in cap.right.quota)

    def _gone(self, gone: list[Capability]) -> None:
        for cap in gone:
            self.known[cap.id].alive = False
            self.saved.pop(cap.id, None)
        self._save()

    def _expire_all(self) -> None:
        over = {one.id for one in self.known.values() if one.alive and one.over(self.now)}
        gone = self.table.expire()
        assert over <= {cap.id for cap in gone}, "something outlived its end"
        self._gone(gone)

    def _save(self) -> None:
        if self.table.unsaved:
            for id_, unit, spending in self.table.take_unsaved():
                if id_ in self.saved:
                    self.saved[id_][unit] = spending


def some_right(rng: Callable[[int], int], now: float, near: Right | None) -> Right:
    """A right over a few objects, verbs, paths and names, so that two of them often meet; or one as wide as `near`, on other terms.

    Args:
        rng: n → a number from 0 to n-1.
    """
    scope: dict[str, tuple[str, ...]] = {}
    if rng(3) == 0:
        scope["path"] = tuple(sorted(BENEATH)[rng(4)] for _ in range(1 + rng(2)))
    if rng(4) == 0:
        scope["name"] = (("n", "m", "*")[rng(3)],)
    quota = {}
    for unit in UNITS:
        if rng(4) == 0:
            quota[unit] = Limit(1 + rng(12), PERIODS[1] if rng(8) else PERIODS[rng(3)])
    return Right(
        near.object if near else (*OBJECTS, "*")[rng(3)],
        near.verb if near else (*VERBS, "*", "read+write")[rng(4)],
        {**near.scope, **(scope if rng(2) else {})} if near else scope,
        quota=quota,
        expires=int(now) + 1 + rng(200) if rng(10) == 0 else None,
        lifetime=1 + rng(200) if rng(10) == 0 else None,
        approval=Approval((0, 0, 0, 1, 2)[rng(5)]),
        grantable=rng(4) > 0,
    )


def step(world: World, rng: Callable[[int], int]) -> None:
    """One random operation."""

    def choose(among: Sequence[_T]) -> _T:
        return among[rng(len(among))]

    what = rng(1000)
    if what < 200 and not world.full():
        near = world.pick(choose)
        giver = near.holder if rng(4) else choose((USER, *HOLDERS))
        right = some_right(rng, world.now, near.right if rng(2) else None)
        world.derive(giver, right, choose(HOLDERS), keep=rng(3) == 0)
    elif what < 240 and not world.full():
        world.lend(world.pick(choose), choose(HOLDERS))
    elif what < 600:
        world.check(choose(HOLDERS), choose(ORDERED))
    elif what < 680:
        one = world.pick(choose)
        world.check(choose((one.holder, *HOLDERS)), choose(ORDERED), one.handle)
    elif what < 800:
        world.charge(world.pick(choose), choose(UNITS[1:]), 1 + rng(6))
    elif what < 830:
        world.revoke(world.pick(choose))
    elif what < 832:
        world.drop(choose(HOLDERS))
    elif what < 900:
        world.wait(choose((0.3, 1.0, 1.0, 20.0, 60.0, -30.0)) if rng(10) else 3600.0)
    elif what < 930:
        world.expire()
    elif what < 998:
        world.find(choose(HOLDERS), world.pick(choose))
    else:
        world.crash()
    world.forget()


def main() -> None:
    """Random operations, as many as asked for; says which seed and step failed."""
    parser = argparse.ArgumentParser(description="The capability table against its model.")
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)

    def rng(n: int) -> int:
        return int(generator.random() * n)

    world = World()
    started = time.perf_counter()
    for number in range(arguments.operations):
        try:
            step(world, rng)
            if number % 10 == 0:
                world.invariants()
        except AssertionError:
            print(f"failed at operation {number} with --seed {arguments.seed}")
            raise
    seconds = time.perf_counter() - started
    print(f"{arguments.operations} operations in {seconds:.0f} s, seed {arguments.seed}: {dict(world.counts)}")


if __name__ == "__main__":
    main()
