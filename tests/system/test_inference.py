"""The model as processes see it, through gate, kernel and core, with the real weights."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from tests.system.conftest import System

pytestmark = pytest.mark.model

STORY = "Once upon a time, in a village by the sea,"


def generate(connection: Connection, **args: Any) -> dict[str, Any]:
    """One greedy generation."""
    return connection.call("llm.generate", {"prompt": STORY, "max_tokens": 12, **args}, timeout=60)


def failure(connection: Connection, **args: Any) -> OpError:
    """The error that a generation ends with."""
    with pytest.raises(OpError) as caught:
        generate(connection, **args)
    return caught.value


def test_text_streams_and_adds_up(with_model: System) -> None:
    """The chunks are the text, in order, and the usage counts them."""
    stream = with_model.connect().stream("llm.generate", {"prompt": STORY, "max_tokens": 40}, timeout=60)
    chunks = list(stream)
    assert len(chunks) > 2
    assert "".join(chunk["text"] for chunk in chunks) == stream.result["text"]
    assert stream.result["usage"]["completion"] == sum(chunk["tokens"] for chunk in chunks) == 40
    assert stream.result["finish"] == "length"
    assert set(stream.result["timings"]) == {"queue", "prefill", "decode", "first_text", "total"}


def test_a_prompt_that_was_read_before_is_not_read_again(with_model: System) -> None:
    """Whoever asks, without a context: only its last tokens are computed, and the answer is the same."""
    long = "The lighthouse keeper wrote down the weather every hour. " * 20
    first = generate(with_model.connect(), prompt=long)
    second = generate(with_model.connect(), prompt=long)
    assert second["text"] == first["text"]
    assert second["usage"]["cached"] > 0.9 * second["usage"]["prompt"]


def test_the_statistics_say_what_runs_and_why(with_model: System) -> None:
    """The engine and provider of the model with the reason, tokens and hits; and one line in the log for each job."""
    connection = with_model.connect()
    before = connection.call("llm.stats")
    generate(connection, max_tokens=7)
    after = connection.call("llm.stats")
    assert after["tokens"]["decode"] == before["tokens"]["decode"] + 7
    assert after["tokens_s"]["decode"] > 0
    model = next(row for row in after["models"] if row["default"])
    assert model["state"] == "ready"
    assert model["engine"] in ("batched", "genai")
    assert model["provider"]
    assert model["why"]
    line = json.loads([line for line in with_model.log().splitlines() if '"job.done"' in line][-1])
    assert line["decode"] == 7
    assert {"queue_ms", "prefill_ms", "first_text_ms", "total_ms", "cached", "forced", "finish"} <= set(line)


def test_greedy_text_does_not_depend_on_the_company(with_model: System) -> None:
    """Two callers at once each get what they would have got alone, token for token."""
    connections = [with_model.connect() for _ in range(3)]
    prompts = [STORY, "The capital of France is", "def fibonacci(n):"]
    alone = [generate(connections[0], prompt=prompt, max_tokens=30)["text"] for prompt in prompts]
    together: list[str] = ["", "", ""]

    def run(index: int) -> None:
        together[index] = generate(connections[index], prompt=prompts[index], max_tokens=30)["text"]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_more_texts_than_rows_are_all_written(with_model: System) -> None:
    """Twenty at once, where a model has sixteen rows at most: the others wait, and none fails."""
    connections = [with_model.connect() for _ in range(20)]
    outcome: list[int] = []

    def run(index: int) -> None:
        answer = generate(connections[index], prompt=f"{index}. {STORY}", max_tokens=60)
        outcome.append(answer["usage"]["completion"])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcome == [60] * 20


def test_an_interactive_job_does_not_wait_for_a_background_one(with_model: System) -> None:
    """It starts while the long one is under way, and the long one goes on afterwards to its end."""
    background, person = with_model.connect(), with_model.connect()
    outcome: list[dict[str, Any]] = []
    long = {"prompt": STORY, "max_tokens": 150, "job_class": "background"}
    thread = threading.Thread(target=lambda: outcome.append(background.call("llm.generate", long, timeout=90)))
    thread.start()
    time.sleep(0.3)
    answer = generate(person, max_tokens=5)
    assert not outcome, "the background job had ended: nothing was preempted"
    assert answer["usage"]["completion"] == 5
    thread.join()
    assert outcome[0]["usage"]["completion"] == 150
    assert outcome[0]["text"].startswith(generate(person, max_tokens=20)["text"])


def test_a_cancelled_generation_ends_and_the_next_one_runs(with_model: System) -> None:
    """At once, with CANCELLED, without its remaining tokens being computed."""
    connection = with_model.connect()
    stream = connection.stream("llm.generate", {"prompt": STORY, "max_tokens": 4000}, timeout=300)
    next(stream)
    stream.cancel()
    with pytest.raises(OpError) as caught:
        stream.finish()
    assert caught.value.code is Code.CANCELLED
    started = time.monotonic()
    generate(connection, max_tokens=2)
    assert time.monotonic() - started < 10


def test_a_deadline_ends_a_generation(with_model: System) -> None:
    """With TIMEOUT; the core does not go on in secret."""
    connection = with_model.connect()
    with pytest.raises(OpError) as caught:
        connection.call("llm.generate", {"prompt": STORY, "max_tokens": 4000}, timeout=0.5)
    assert caught.value.code is Code.TIMEOUT
    assert generate(connection, max_tokens=2)["timings"]["queue"] < 5000


def test_a_schema_is_kept(with_model: System) -> None:
    """What comes out parses and has the shape, whatever the model would have liked to say."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer", "maximum": 99}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    result = generate(with_model.connect(), prompt="A city:", schema=schema, max_tokens=60)
    made = json.loads(result["text"])
    assert set(made) == {"city", "people"}
    assert isinstance(made["people"], int)


def test_a_choice_is_one_of_the_choices(with_model: System) -> None:
    """And a regular expression is matched."""
    connection = with_model.connect()
    assert generate(connection, choices=["north", "south"])["text"] in ("north", "south")
    assert generate(connection, regex="[0-9]{3}-[0-9]{2}")["text"].replace("-", "").isdecimal()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ({"prompt": "word " * 9000}, Code.TOO_LARGE, "window"),
        ({"prompt": None}, Code.INVALID_ARGUMENT, "prompt or messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, Code.INVALID_ARGUMENT, "prompt or messages"),
        ({"schema": {"type": "no such type"}}, Code.INVALID_ARGUMENT, "no such type"),
        ({"regex": "("}, Code.INVALID_ARGUMENT, "regex"),
        ({"choices": ["a"], "regex": "a"}, Code.INVALID_ARGUMENT, "constraint"),
        ({"context": 12345}, Code.NOT_FOUND, "context"),
        ({"model": "no-such-model"}, Code.NOT_FOUND, "no-such-model"),
        ({"model": "minilm"}, Code.INVALID_ARGUMENT, "minilm"),
    ],
)
def test_a_request_that_cannot_be_served_says_why(
    with_model: System, args: dict[str, Any], code: Code, says: str
) -> None:
    """And the next one is served."""
    connection = with_model.connect()
    error = failure(connection, **args)
    assert error.code is code
    assert says in error.detail
    assert generate(connection, max_tokens=1)["usage"]["completion"] == 1


def test_texts_that_mean_the_same_lie_close(with_model: System) -> None:
    """Unit vectors, and a paraphrase nearer than another subject."""
    texts = ["How do I water my plants?", "Advice on giving houseplants enough water", "The stock market fell today"]
    answer = with_model.connect().call("llm.embed", {"texts": texts}, timeout=30)
    vectors = np.frombuffer(answer["vectors"], "<f4").reshape(len(texts), answer["dim"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_a_reader_that_is_slow_loses_nothing(with_model: System) -> None:
    """The stream waits for its credit and arrives whole."""
    stream = with_model.connect().stream("llm.generate", {"prompt": STORY, "max_tokens": 150}, timeout=120)
    pieces = [next(stream)["text"]]
    time.sleep(3)
    pieces += [chunk["text"] for chunk in stream]
    assert "".join(pieces) == stream.result["text"]


def test_the_core_sees_the_model_and_nothing_else(with_model: System) -> None:
    """It is jailed like everybody: no capabilities, no new privileges, a seccomp filter, and no connection on the bus."""
    row = with_model.process_named("core")
    facts = Path(f"/proc/{row['os_pid']}/status").read_text()
    assert "Seccomp:\t2" in facts
    assert "NoNewPrivs:\t1" in facts
    assert "CapEff:\t0000000000000000" in facts
