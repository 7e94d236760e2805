"""Contexts as programs use them, with the real weights: what is kept, shared, forgotten, and whose it is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.app_key import AppKey
from llmos.ipc.connection import Connection
from llmos.ipc.errors import Code, OpError
from llmos.userland.sdk import Client
from tests.system.conftest import STORE, System
from tests.system.test_apps import let_in

pytestmark = pytest.mark.model

RULES = "You are a ship's cook. " + "Weigh the flour, knead the dough, watch the oven. " * 25


def say(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def failure(connection: Connection, op: str, **args: Any) -> OpError:
    with pytest.raises(OpError) as caught:
        connection.call(op, args, timeout=60)
    return caught.value


def test_a_second_turn_reads_only_what_is_new(with_model: System) -> None:
    """What was said and answered is there; the answer to the next turn begins many times sooner than from nothing."""
    with Client(with_model.connect()) as client, client.context() as chat:
        cold = chat.generate(messages=[*say(RULES, "system"), *say("Who are you?")], max_tokens=10)
        assert cold.text
        assert cold.usage["cached"] < 20
        warm = chat.generate(messages=say("And what do you bake?"), max_tokens=10)
        assert warm.text
        assert warm.usage["prompt"] - warm.usage["cached"] < 40
        assert warm.result["timings"]["first_text"] < cold.result["timings"]["first_text"] / 3


def test_append_reads_and_says_nothing(with_model: System) -> None:
    """It answers with the tokens; what follows finds them read."""
    with Client(with_model.connect()) as client, client.context() as chat:
        told = chat.append(messages=say(RULES + "Append.", "system"))
        assert told["tokens"] > 200
        answer = chat.generate(messages=say("Hello"), max_tokens=5)
        assert answer.usage["cached"] > 0.9 * told["tokens"]


def test_forks_share_what_came_before_and_go_their_own_ways(with_model: System) -> None:
    """Each equals what the same words give in a context of their own; nothing is read twice, and neither hears the other."""
    ways = ["What is bread?", "What is soup?"]
    with Client(with_model.connect()) as client, client.context() as chat:
        chat.append(messages=say(RULES, "system"))
        with chat.fork() as one, chat.fork() as two:
            made = [fork.generate(messages=say(way), max_tokens=12) for fork, way in ((one, ways[0]), (two, ways[1]))]
            assert [generation.text for generation in made] == [
                client.generate(messages=[*say(RULES, "system"), *say(way)], max_tokens=12).text for way in ways
            ]
            assert all(g.usage["cached"] > 0.8 * g.usage["prompt"] for g in made)


def test_a_context_goes_on_without_new_words(with_model: System) -> None:
    """Two halves are the whole: with nothing given the model goes on where it stopped."""
    with Client(with_model.connect()) as client, client.context() as text:
        halves = text.generate("Once upon a time", max_tokens=8).text + text.generate(max_tokens=8).text
        assert halves == client.generate("Once upon a time", max_tokens=16).text


def test_a_context_is_nobody_elses(with_model: System) -> None:
    """Neither in use nor after it was closed; one call at a time; turns and raw text are not mixed."""
    mine, other = with_model.connect(), with_model.connect()
    number = mine.call("llm.open")["context"]
    stream = mine.stream("llm.generate", {"prompt": "Count:", "context": number, "max_tokens": 200}, timeout=60)
    next(stream)
    assert failure(mine, "llm.append", context=number, prompt="x").code is Code.CONFLICT
    assert failure(mine, "llm.fork", context=number).code is Code.CONFLICT
    mine.call("llm.close", {"context": number})
    with pytest.raises(OpError) as caught:
        stream.finish()
    assert caught.value.code is Code.CANCELLED
    assert failure(other, "llm.generate", context=number, prompt="x").code is Code.NOT_FOUND
    number = mine.call("llm.open")["context"]
    mine.call("llm.append", {"context": number, "prompt": "raw"}, timeout=60)
    assert failure(mine, "llm.append", context=number, messages=say("hello")).code is Code.INVALID_ARGUMENT
    assert mine.call("llm.append", {"context": number, "prompt": " text"}, timeout=60)["tokens"] >= 2


def test_contexts_end_with_their_connection(with_model: System) -> None:
    """A program that goes away leaves none behind."""
    user = with_model.connect()
    before = user.call("llm.stats")["contexts"]
    gone = with_model.connect()
    for _ in range(5):
        gone.call("llm.open")
    assert user.call("llm.stats")["contexts"] == before + 5
    gone.close()
    with_model.until(lambda: user.call("llm.stats")["contexts"] == before)


def test_a_conversation_over_the_window_goes_on(system: System) -> None:
    """Its middle is paged out, and what the system said stays; it keeps answering, and never fails."""
    window = 512
    store, real = system.root / "store", STORE / "smollm2-135m"
    (store / "narrow").mkdir(parents=True)
    for path in real.iterdir():
        (store / "narrow" / path.name).symlink_to(path)
    config = json.loads((real / "genai_config.json").read_text())
    config["model"]["context_length"] = window
    (store / "narrow" / "genai_config.json").unlink()
    (store / "narrow" / "genai_config.json").write_text(json.dumps(config))
    (store / "beside").symlink_to(real)  # so that the jail shows what the files' links lead to
    system.environment["LLMOS_MODELS"] = str(store)
    system.start("--model", "narrow")
    user = system.connect()
    system.until(lambda: user.call("sys.status")["model"]["state"] == "ready", 60)
    with Client(user) as client, client.context() as chat:
        chat.append(messages=say("You answer briefly.", "system"))
        for number in range(5):
            words = f"Day {number}: " + "the sea was calm and the wind came from the west. " * 10
            told = chat.append(messages=say(words), timeout=60)
        assert told["tokens"] < window
        answer = chat.generate(messages=say("How was the sea?"), max_tokens=8, timeout=60)
        assert answer.text
        assert answer.usage["prompt"] < window
        whole = client.generate("word " * window)
        with pytest.raises(OpError) as caught:
            assert whole.text
    assert caught.value.code is Code.TOO_LARGE


def test_what_one_label_has_read_is_not_found_by_another(system: System) -> None:
    """An app's words, which are a stranger's, and the user's are cached apart: nobody can tell by the clock what others asked."""
    system.use_models()
    system.start()
    user = system.connect()
    system.until(lambda: user.call("sys.status")["model"]["state"] == "ready", 60)
    secret = {"prompt": "The code of the safe is one two three four. " * 20, "max_tokens": 2}
    first, again = (user.call("llm.generate", secret, timeout=60)["usage"] for _ in range(2))
    assert again["cached"] > 0.9 * first["prompt"]
    key = let_in(system, "nosy", "llm.generate")
    with contextlib.closing(Connection(key=AppKey.load(key))) as app:
        assert app.call("llm.generate", secret, timeout=60)["usage"]["cached"] == 0
        assert app.call("llm.generate", secret, timeout=60)["usage"]["cached"] > 0.9 * first["prompt"]


def test_the_cores_scratch_is_private_and_emptied(system: System) -> None:
    """What a core left is gone before the next one starts, and nobody else may look."""
    system.use_models()
    system.start()
    user = system.connect()
    system.until(lambda: user.call("sys.status")["model"]["state"] == "ready", 60)
    scratch = Path(user.call("sys.status")["state"]) / "core"
    assert scratch.stat().st_mode & 0o777 == 0o700
    (scratch / "left").write_text("x")
    user.call("proc.kill", {"pid": system.process_named("core")["pid"], "force": True})
    system.until(lambda: not (scratch / "left").exists())
