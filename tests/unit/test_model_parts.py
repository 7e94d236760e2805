"""Small parts of the kernel's side of the model: namespaces of labels, quotas of a turn, rates, the core's directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc.protocol import JobClass
from llmos.kernel import launch
from llmos.kernel.capability_quota import Account, Limit
from llmos.kernel.contexts import namespace
from llmos.kernel.jobs import Grant, Job, Turn
from llmos.kernel.labels import Integrity, Label
from llmos.kernel.purse import affordable
from llmos.kernel.statistics import PerSecond

LABELS = st.builds(
    Label, st.sampled_from(Integrity), st.frozensets(st.from_regex(r"\A[a-z0-9][a-z0-9_.:\-]{0,5}\Z"), max_size=4)
)


@given(LABELS, LABELS)
def test_two_labels_share_a_cache_only_when_they_are_one(one: Label, other: Label) -> None:
    """Equal labels have the same namespace however they came about, different ones never."""
    assert (namespace(one) == namespace(other)) == (one == other)
    assert namespace(one | other) == namespace(other | one)


@given(st.integers(0, 60), st.integers(1, 40), st.lists(st.integers(1, 64), max_size=5), st.booleans())
def test_a_turn_never_costs_more_than_its_account_has(left: int, unread: int, grants: list[int], append: bool) -> None:
    """With the token that a prompt's last slice makes; who finds nothing left is broke only if nothing was there before the turn."""
    account = Account("c1", "tokens", Limit(1000, 0), None, 0.0)
    jobs = [Job(number, "a", JobClass.EVENT, max_tokens=64) for number in range(len(grants) + 1)]
    jobs[-1].unread, jobs[-1].max_tokens = unread, 0 if append else 64
    decode = tuple(Grant(job, tokens) for job, tokens in zip(jobs, grants, strict=False))
    paid = affordable(Turn(1, "m", Grant(jobs[-1], unread), decode), lambda _: (account, left))
    first = int(paid.prefill is not None and not append)
    assert sum(grant.tokens for grant in paid.grants) + first <= left
    assert (paid.prefill is None) == (left < unread + (not append))
    assert all(grant.tokens <= wanted for grant, wanted in zip(paid.decode, grants, strict=False))
    assert bool(paid.broke) == (paid.prefill is None or (not left and bool(grants)))
    free = affordable(Turn(1, "m", None, decode), lambda _: None)
    assert [grant.tokens for grant in free.decode] == grants


def test_a_rate_follows_what_happens_and_fades() -> None:
    """Ten a second are ten a second after a while, whether in ones or in bursts, and nothing is nothing."""
    now = 0.0
    rate, bursts = PerSecond(lambda: now), PerSecond(lambda: now)
    for step in range(300):
        now += 0.1
        rate.add(1)
        if step % 5 == 4:
            bursts.add(5)
    assert rate.now() == pytest.approx(10, rel=0.1)
    assert bursts.now() == pytest.approx(10, rel=0.2)
    now += 60
    assert rate.now() < 0.01


def test_the_cores_directory_is_emptied_and_nothing_else(tmp_path: Path) -> None:
    """Links in it go, what they lead to stays; a link in its own place is replaced by a private directory."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    scratch = tmp_path / "core"
    scratch.mkdir(mode=0o755)
    (scratch / "spilled").write_text("x")
    (scratch / "deep").mkdir()
    (scratch / "deep" / "er").write_text("x")
    (scratch / "link").symlink_to(precious)
    launch.emptied(scratch)
    assert not list(scratch.iterdir())
    assert scratch.stat().st_mode & 0o777 == 0o700
    scratch.rmdir()
    scratch.symlink_to(precious)
    launch.emptied(scratch)
    assert scratch.is_dir()
    assert not scratch.is_symlink()
    assert (precious / "file").exists()


def test_the_cores_directory_is_emptied_whatever_a_core_left_there(tmp_path: Path) -> None:
    """Neither directories deeper than a path can name, nor closed ones, keep the next core from starting."""
    scratch = tmp_path / "core"
    scratch.mkdir()
    closed = scratch / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    (closed / "inner").chmod(0)
    closed.chmod(0)
    at = os.open(scratch, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep" * 10, dir_fd=at)
        inner = os.open("deep" * 10, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    launch.emptied(scratch)
    assert not list(scratch.iterdir())
