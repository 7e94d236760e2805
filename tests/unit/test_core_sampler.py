"""The sampler: what each parameter keeps, and that a seed settles everything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.kernel.core.request import Sampling
from llmos.kernel.core.sampler import Logits, Sampler, nucleus


def row(*scores: float) -> Logits:
    return np.array(scores, dtype=np.float32)


def picks(sampling: Sampling, logits: Logits, count: int = 300) -> set[int]:
    sampler = Sampler(sampling)
    return {sampler.pick(logits.copy()) for _ in range(count)}


def test_temperature_0_picks_the_first_of_the_likeliest() -> None:
    """Greedy is argmax, and a tie goes to the lower token as it does in the model runtime."""
    assert Sampler(Sampling()).pick(row(0.0, 3.0, 3.0, 1.0)) == 1


def test_one_seed_gives_one_sequence() -> None:
    """Two samplers with the same seed agree draw by draw; another seed differs somewhere."""
    logits = np.linspace(0, 1, 1000, dtype=np.float32)

    def draws(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.pick(logits.copy()) for _ in range(50)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)


def test_draws_follow_the_softmax() -> None:
    """At temperature 1 a token comes as often as its probability says, within five standard deviations."""
    sampler = Sampler(Sampling(temperature=1.0, seed=1))
    probabilities, count = np.array([0.6, 0.3, 0.1]), 4000
    logits = np.log(probabilities).astype(np.float32)
    counts = np.bincount([sampler.pick(logits.copy()) for _ in range(count)], minlength=3)
    spread = np.sqrt(count * probabilities * (1 - probabilities))
    assert (np.abs(counts - count * probabilities) < 5 * spread).all()


def test_top_k_keeps_the_k_likeliest() -> None:
    """Only the k highest logits are ever drawn, and k above the vocabulary keeps all of it."""
    logits = row(1.0, 5.0, 4.9, 0.0)
    assert picks(Sampling(temperature=5.0, top_k=2, seed=0), logits) == {1, 2}
    assert picks(Sampling(temperature=50.0, top_k=99, seed=0), logits) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, {0}), (0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2})],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    """The nucleus has the token that crosses `top_p` in it and none after, and is never empty."""
    logits = np.log(np.array([0.5, 0.3, 0.2])).astype(np.float32)
    assert picks(Sampling(temperature=1.0, top_p=top_p, seed=0), logits) == kept


def test_min_p_is_relative_to_the_likeliest() -> None:
    """A token stays when it is at least `min_p` times as likely as the likeliest."""
    logits = np.log(np.array([0.5, 0.3, 0.2])).astype(np.float32)
    assert picks(Sampling(temperature=1.0, min_p=0.5, seed=0), logits) == {0, 1}
    assert picks(Sampling(temperature=1.0, min_p=1.0, seed=0), logits) == {0}


def test_a_ruled_out_token_is_never_picked() -> None:
    """-inf stays out at any temperature and penalty, even where only one token is left."""
    logits = row(*[-np.inf] * 999, 0.0)
    for sampling in (
        Sampling(),
        Sampling(temperature=100.0, seed=0),
        Sampling(temperature=1.0, top_k=40, top_p=0.9, min_p=0.1, repetition_penalty=2.0, seed=0),
    ):
        assert Sampler(sampling, seen=range(999)).pick(logits.copy()) == 999


def test_repetition_penalty_lowers_what_was_seen() -> None:
    """Seen tokens lose whether their logit is positive or negative; tokens not seen keep theirs."""
    assert Sampler(Sampling(repetition_penalty=2.0), seen=[0]).pick(row(3.0, 2.0)) == 1
    assert Sampler(Sampling(repetition_penalty=2.0), seen=[0]).pick(row(-1.0, -1.5)) == 1
    sampler = Sampler(Sampling(repetition_penalty=2.0))
    assert sampler.pick(row(3.0, 2.0)) == 0
    sampler.see([0])
    assert sampler.pick(row(3.0, 2.0)) == 1


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1)), max_size=600).map(lambda rest: [*rest, 1.0]),
    st.floats(0.001, 0.999),
)
def test_the_nucleus_is_minimal(weights: list[float], top_p: float) -> None:
    """What `nucleus` returns reaches `top_p`, holds the largest weights, and without its last one does not reach it."""
    values = np.array(weights)
    kept = nucleus(values, top_p)
    wanted = top_p * values.sum()
    slack = 1e-9 * values.sum()
    assert values[kept].sum() >= wanted - slack
    assert values[kept[:-1]].sum() < wanted + slack
    assert sorted(values[kept], reverse=True) == sorted(values, reverse=True)[: len(kept)]
