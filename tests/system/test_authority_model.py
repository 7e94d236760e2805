"""Labels and quotas where the model is concerned: what it reads, what it may say, and how much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.conftest import System
from tests.system.test_authority import READ, SEND, install, run

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """With the real model, loaded."""
    system = System(tmp_path_factory.mktemp("s"))
    system.use_models()
    system.environment["PYTHONPATH"] = str(install(system.root / "packages"))
    assert system.start()["ready"], system.log()
    connection = system.connect()
    connection.call("perm.grant", {"holder": "post", "cap": "label.trust"})
    system.until(lambda: connection.call("sys.status")["model"]["state"] == "ready", 60)
    yield system
    system.stop()


def test_an_agent_asks_about_what_it_does_not_read_and_stays_trusted(world: System) -> None:
    """A yes or no of the model about a kept letter costs bits and taints nobody; afterwards it may still send."""
    schema = {
        "type": "object",
        "properties": {"urgent": {"type": "boolean"}},
        "required": ["urgent"],
        "additionalProperties": False,
    }
    ask = {"op": "llm.extract", "args": {"prompt": "Is the letter urgent?", "values": ["@0.kept"], "schema": schema}}
    send = {"op": SEND, "args": {"to": "bob@example.com"}}
    done = run(world, {**READ, "keep": True}, ask, send, allow=["post.read", "post.send", "llm.generate"])
    assert set(done[1]["result"]["answer"]) == {"urgent"}
    assert isinstance(done[1]["result"]["answer"]["urgent"], bool)
    assert "result" in done[2]


def test_what_the_model_writes_is_as_untrusted_as_what_it_read(world: System) -> None:
    """A text made from a kept letter taints whoever gets it, and stays kept when that is asked for."""
    part = {"op": "value.project", "args": {"value": "@0.kept", "path": ".items[0].text"}}
    prompt = [{"role": "user", "content": {"ref": "@1.kept"}}]
    write = {"op": "llm.generate", "args": {"messages": prompt, "max_tokens": 8}}
    send = {"op": SEND, "args": {"to": "bob@example.com"}, "timeout": 0.3}
    rights = ["post.read", "post.send", "llm.generate"]
    kept = run(world, {**READ, "keep": True}, part, {**write, "keep": True}, send, allow=rights)
    read = run(world, {**READ, "keep": True}, part, write, send, allow=rights)
    assert kept[2]["result"]["label"] == ["u", "mail"]
    assert "result" in kept[3]
    assert "text" in read[2]["result"]
    assert read[3]["error"] == "NEEDS_APPROVAL"


def test_tokens_are_counted_while_they_come(world: System) -> None:
    """A quota ends the generation that passes it, and the next one before it begins."""
    write = {"op": "llm.generate", "args": {"prompt": "Once upon a time", "max_tokens": 300}}
    done = run(world, write, write, allow=["llm.generate(tokens=60/d)"])
    assert [step.get("error") for step in done] == ["BUDGET", "BUDGET"]


def test_a_prefix_is_shared_within_a_label_only(world: System) -> None:
    """What an agent that has read mail has the model read comes from no cache for the user; for another like it, it does."""
    text = "The password of the safe is four seven one one, and nobody knows it but me. " * 4
    write = {"op": "llm.generate", "args": {"prompt": text, "max_tokens": 1}}
    rights = ["post.read", "llm.generate"]
    assert run(world, READ, write, allow=rights)[1]["result"]["usage"]["cached"] == 0
    connection = world.connect()
    probe = connection.call("llm.generate", {"prompt": text, "max_tokens": 1})
    number = connection.call("llm.open")["context"]
    other = connection.call("llm.generate", {"prompt": text + "!", "context": number, "max_tokens": 1})
    assert probe["usage"]["cached"] == 0
    assert other["usage"]["cached"] > 50, "of the user's own"
    assert run(world, READ, write, allow=rights)[1]["result"]["usage"]["cached"] > 50
