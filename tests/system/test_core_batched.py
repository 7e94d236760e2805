"""The engines with a real model: a text is the same alone and in company, read and remembered, bit for bit."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.kernel.core import limits
from llmos.kernel.core.model import Model, load_model
from llmos.kernel.core.passage import next_slice
from llmos.kernel.core.sampler import Logits
from llmos.kernel.core.seats import CachedSeats, Memory
from tests.system.core_variants import STORIES, alone, passage, read, seated_in, tell_positions
from tests.system.model_folders import FOLDER, variant

pytestmark = pytest.mark.model

QUOTE = "Repeat: the quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog. The quick"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """On the batched engine, able to look back."""
    return load_model(variant(tmp_path_factory.mktemp("told") / "smollm2-135m", tell_positions), "cpu")


@pytest.fixture(autouse=True)
def every_row_is_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves somebody seated."""
    yield
    if "model" in request.fixturenames:
        loaded: Model = request.getfixturevalue("model")
        left = [row for row in loaded.engine._taken if row is not None]  # type: ignore[attr-defined]
        for row in left:
            loaded.engine.leave(row)
        assert not left


def prompts(model: Model, count: int) -> list[list[int]]:
    """Of many lengths."""
    texts = [model.tokenizer.encode(story) for story in STORIES]
    return [(texts[at % 5] * 9)[: 5 + 13 * at] for at in range(count)]


@pytest.mark.parametrize("seed", [1, 2])
def test_company_changes_no_bit(model: Model, seed: int) -> None:
    """Nine texts that join and leave at random steps, moved from place to place for it: the logits of every step of each
    are those it has alone, and so is its text."""
    chance, texts, length = random.Random(seed), prompts(model, 9), 12
    expected = [alone(model, text, length) for text in texts]
    waiting, sizes = list(range(9)), set()
    seated: dict[int, tuple[Any, list[Logits]]] = {}
    chance.shuffle(waiting)
    while waiting or seated:
        if waiting and (not seated or chance.random() < 0.5):
            number = waiting.pop()
            row = model.engine.seat(len(texts[number]) + length)
            assert row is not None
            seated[number] = (row, [read(model, row, texts[number])])
        working = [number for number in seated if chance.random() < 0.85]  # the others sit this one out
        chance.shuffle(working)
        if working:
            sizes.add(len(working))
            rows = [seated[number][0] for number in working]
            logits = model.engine.step(rows, [int(seated[number][1][-1].argmax()) for number in working])
            for at, number in enumerate(working):
                seated[number][1].append(logits[at].copy())
        for number in [number for number, (_, steps) in seated.items() if len(steps) == length]:
            row, steps = seated.pop(number)
            model.engine.leave(row)
            for mine, single in zip(steps, expected[number], strict=True):
                assert np.array_equal(mine, single)
    assert len(sizes) >= 4


@pytest.mark.parametrize("size", range(1, 10))
def test_every_size_of_batch(model: Model, size: int) -> None:
    """One step of any number of rows gives each what it gives alone."""
    texts = prompts(model, size)
    expected = [alone(model, text, 2)[1] for text in texts]
    rows = [model.engine.seat(len(text) + 2) for text in texts]
    tokens = [int(read(model, row, text).argmax()) for row, text in zip(rows, texts, strict=True)]
    logits = model.engine.step(rows, tokens).copy()
    for row in rows:
        model.engine.leave(row)
    assert all(np.array_equal(mine, single) for mine, single in zip(logits, expected, strict=True))


def test_even_cuts_change_no_bit(model: Model) -> None:
    """However a prompt is cut between pairs, the logits after it are the same."""
    tokens = (model.tokenizer.encode(STORIES[0]) * 20)[:151]
    chance, results = random.Random(3), set()
    for cuts in ([200], [128], [2], [34, 8], [chance.randrange(2, 90) for _ in range(40)]):
        row, limits_ = seated_in(model, 160), itertools.cycle(cuts)
        while len(row.tokens) < len(tokens):
            count = next_slice(len(tokens) - len(row.tokens), next(limits_))
            logits = model.engine.extend(row, tokens[len(row.tokens) : len(row.tokens) + count])
        results.add(logits[-1].tobytes())
        model.engine.leave(row)
    assert len(results) == 1


def test_what_is_remembered_changes_no_bit(model: Model, tmp_path: Path) -> None:
    """A prefix from the cache, from memory and from a file, gives the logits of reading it; so does one that another text
    left in the middle."""
    memory = Memory(1 << 30, tmp_path, 1 << 30)
    seats = CachedSeats(model.engine, model.info.kv_bytes, memory)
    tokens = (model.tokenizer.encode(STORIES[0]) * 12)[:141]
    other = [*tokens[:70], *tokens[:30]]
    expected = {len(text): alone(model, text, 1)[0] for text in (tokens, other)}
    found = 0
    for text, spilled in ((tokens, False), (tokens, False), (other, False), (tokens, True), (other, False)):
        if spilled:
            seats.cache.read_s = 1.0
            seats.cache.shrink(0)
            assert seats.cache.spilled
        row = seats.seat("", text, 150)
        assert row is not None
        found += seats.catch_up(row, "", text[: min(seats.known("", text), len(text) - 2) & ~1])
        assert np.array_equal(read(model, row, text), expected[len(text)])
        seats.leave(row, "")
    assert found >= 138 + 70 + 138
    memory.part(seats)


def test_parking_changes_nothing(model: Model) -> None:
    """Parked three times, with its row given to nobody and taken again, a text is the one that was never parked."""
    whole, _ = passage(model, STORIES[0], max_tokens=30)
    assert passage(model, STORIES[0], max_tokens=30, parked=(3, 10, 11))[0] == whole


def difference_of_kernels(model: Model) -> float:
    """The largest difference between the logits of a token decoded alone and read as part of a run of eight."""
    largest = 0.0
    for story in STORIES:
        tokens = model.tokenizer.encode(story * 3)
        tokens = tokens[: len(tokens) & ~1]
        row = seated_in(model, len(tokens))
        read(model, row, tokens[:-8])
        together = model.engine.extend(row, tokens[-8:], 8)
        model.engine.cut(row, len(tokens) - 8)
        for at, token in enumerate(tokens[-8:]):
            largest = max(largest, float(np.abs(model.engine.step([row], [token])[0] - together[at]).max()))
        model.engine.leave(row)
    return largest


def assert_rounding(model: Model, prompt: str, one: list[int], other: list[int]) -> None:
    """Two outputs are equal, or differ first where two tokens were as likely as makes no difference to these kernels."""
    if one == other:
        return
    at = next(at for at in range(min(len(one), len(other))) if one[at] != other[at])
    scores = alone_after(model, model.tokenizer.encode(prompt), one[:at])
    assert abs(float(scores[one[at]] - scores[other[at]])) <= difference_of_kernels(model)


def test_the_measure_of_rounding_tells_rounding_from_mistakes(model: Model) -> None:
    """Decoding and reading differ by some, by less than the likeliest tokens stand above the average one; and a text with
    another word in it does not pass for rounding."""
    tokens = model.tokenizer.encode(STORIES[4])
    scores = alone(model, tokens, 1)[0]
    assert 0 < difference_of_kernels(model) < 0.2 * float(scores.max() - scores.mean())
    one = [int(scores.argmax())]
    with pytest.raises(AssertionError):
        assert_rounding(model, STORIES[4], one, [int(scores.argsort()[len(scores) // 2])])


def alone_after(model: Model, prompt: Sequence[int], output: Sequence[int]) -> Logits:
    row = model.engine.seat(len(prompt) + len(output) + 1)
    logits = read(model, row, prompt)
    for token in output:
        logits = model.engine.step([row], [token])[0]
    model.engine.leave(row)
    return logits


@pytest.mark.parametrize("prompt", [*STORIES, QUOTE])
def test_drafts_change_a_text_by_rounding_only(model: Model, prompt: str) -> None:
    """With and without speculation a greedy text is the same, or differs first where the two likeliest tokens are closer
    than decoding one token and reading eight differ on this model."""
    _, plain = passage(model, prompt, max_tokens=32)
    _, drafted = passage(model, prompt, max_tokens=32, speculate=True)
    assert_rounding(model, prompt, plain.passage.output, drafted.passage.output)


def test_drafts_are_used_where_a_text_repeats_itself(model: Model) -> None:
    """A list that goes round takes fewer runs of the model than it has tokens."""
    runs, extend, step = [0], model.engine.extend, model.engine.step

    def count(run: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            runs[0] += 1
            return run(*arguments)

        return counted

    model.engine.extend, model.engine.step = count(extend), count(step)  # type: ignore[method-assign]
    try:
        _, job = passage(model, STORIES[2], max_tokens=32, speculate=True)
    finally:
        del model.engine.extend, model.engine.step
    assert runs[0] < 0.8 * len(job.passage.output)


def test_skipped_tokens_change_a_text_by_rounding_only(model: Model) -> None:
    """Tokens that a schema forces, read together or decoded one by one, lead to the same text; where they do not, the two
    tokens at the first difference were closer than the two kernels are (logits before the mask)."""
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["fox", "whale"]}, "lives_by_the_sea": {"type": "boolean"}},
        "required": ["animal", "lives_by_the_sea"],
        "additionalProperties": False,
    }
    for prompt in STORIES[:3]:
        _, skipped = passage(model, prompt, max_tokens=60, schema=schema)
        _, decoded = passage(model, prompt, max_tokens=60, schema=schema, skip_forced=False)
        one, other = (b"".join(map(model.tokenizer.bytes_of, job.passage.output)) for job in (skipped, decoded))
        if one != other:
            assert_rounding(model, prompt, skipped.passage.output, decoded.passage.output)


def test_a_longer_text_makes_room_under_live_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reservation grows while rows are at work in it: they go on bit for bit."""
    monkeypatch.setattr(limits, "ROOM", 128)
    model = load_model(FOLDER, "cpu")
    text = prompts(model, 5)[4]
    expected = alone(model, text, 6)
    row = seated_in(model, len(text) + 6)
    steps, rows = [read(model, row, text)], [row]
    for room in (0, 300, 0, 2000, 0):
        if room:
            rows.append(model.engine.seat(room))
            read(model, rows[-1], [1, 2])
        tokens = [int(steps[-1].argmax()), *[7] * (len(rows) - 1)]
        steps.append(model.engine.step(rows, tokens)[0].copy())
    assert all(np.array_equal(mine, single) for mine, single in zip(steps, expected, strict=True))


def test_a_full_row_beside_a_ghost(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that has used all of its room may sit where a ghost writes: it, its neighbour and the ghost's partner are whole."""
    text = prompts(model, 4)[3]
    partner = model.engine.seat(len(text) + 3)
    full = seated_in(model, model.engine._room - 1)  # type: ignore[attr-defined]
    after = seated_in(model, 8)
    read(model, after, [5, 6])
    room = model.engine._room  # type: ignore[attr-defined]
    full.tokens += [3] * (room - 1)
    held = [model.engine.take(row, 0, len(row.tokens)).copy() for row in (full, after)]
    steps = [read(model, partner, text)]
    for _ in range(2):
        steps.append(model.engine.step([partner], [int(steps[-1].argmax())])[0].copy())
    for row, before in zip((full, after), held, strict=True):
        assert np.array_equal(model.engine.take(row, 0, len(row.tokens)), before)
    for row in (partner, full, after):
        model.engine.leave(row)
    assert all(np.array_equal(mine, single) for mine, single in zip(steps, alone(model, text, 3), strict=True))


def resident() -> int:
    """Bytes of memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_row_gives_its_memory_back(model: Model) -> None:
    """Rows take memory as they are written and return it when they leave, moved or not."""
    kv = np.ones((60, 3, 1500, 64), np.float32)
    before, rows = resident(), [model.engine.seat(2000) for _ in range(4)]
    for row in rows:
        model.engine.put(row, [1] * 1500, kv)
    grown = resident() - before
    assert grown > 3.5 * kv.nbytes
    for row in (rows[0], rows[2], rows[1], rows[3]):
        model.engine.leave(row)
    assert resident() - before < 0.1 * grown
