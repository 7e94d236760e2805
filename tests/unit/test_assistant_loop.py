"""The assistant from question to answer, on a driver that it has never heard of."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.userland.assistant.attempts import MAX_CALLS
from tests.unit.assistant_doubles import RECIPES, System

DAL = {"title": "Red lentil dal", "ts": "2026-11-18T19:30:00Z", "path": "/cook/book/dal.md", "source": "cookbook"}
PIE = {"title": "Apple pie", "ts": "2026-10-02T12:00:00Z", "path": "/cook/book/pie.md", "source": "cookbook"}


def system(*found: dict[str, Any], says: tuple[str, ...] = ()) -> System:
    """A pantry whose search always finds the same."""
    return System(
        RECIPES,
        {"pantry.search": lambda _: {"items": list(found)}, "pantry.stock": lambda _: {"items": []}},
        list(says),
    )


def test_arguments_come_from_roles() -> None:
    """Topic, place and time of a question reach a driver's arguments by the roles in its manifest, whatever their names."""
    pantry = system(DAL)
    pantry.answer("the recipe about red lentils from Priya that I cooked last week")
    assert pantry.calls[0] == (
        "pantry.search",
        {"query": "red lentils", "cooked": "last week", "cook": "Priya", "most": 20},
    )


def test_answer_has_cards_steps_and_timings() -> None:
    """What was found comes as cards, with when in people's words, the steps that led there and how long they took."""
    answer = system(DAL, says=("It was “Red lentil dal”.",)).answer(
        "the recipe about red lentil dal I cooked last week"
    )
    assert answer["answer"] == "It was “Red lentil dal”."
    card = answer["cards"][0]
    assert (card["title"], card["when"], card["source"]) == (
        "Red lentil dal",
        "Wednesday 18 November at 19:30",
        "cookbook",
    )
    assert [step["stage"] for step in answer["steps"]] == ["tool", "call", "found", "answer"]
    assert {"choose", "call", "judge", "sentence", "total"} <= answer["timings"].keys()


def test_progress_is_emitted_and_the_sentence_streamed() -> None:
    """Whoever waits sees each step as it happens, and the sentence in pieces that make it up."""
    pantry = system(DAL, says=("It was “Red lentil dal”.",))
    answer = pantry.answer("the recipe about red lentil dal I cooked last week")
    assert [data["stage"] for data in pantry.emitted[:3]] == ["tool", "call", "found"]
    assert "".join(data["text"] for data in pantry.emitted[3:]) == answer["answer"]


def test_model_says_only_facts_of_the_card() -> None:
    """The grammar of the sentence leaves the model no room for a title, place or time of its own."""
    pantry = system(DAL, says=("It was …",))
    pantry.answer("the recipe about red lentil dal I cooked last week")
    grammar = pantry.asked[-1]["regex"]
    assert "“Red lentil dal”" in grammar
    assert grammar.endswith(r", Wednesday 18 November at 19:30\.")
    assert "*" not in grammar


def test_without_a_model_code_words_the_answer() -> None:
    """No model: the cards come all the same, with a plain sentence."""
    answer = system(DAL).answer("the recipe about red lentil dal I cooked last week")
    assert answer["answer"] == "It was “Red lentil dal” in /cook/book, Wednesday 18 November at 19:30."


def test_looser_when_nothing_is_found() -> None:
    """When the time finds nothing, a wider one is tried, then any; the finding of the loosest call is still an answer."""
    pantry = system()
    pantry.serve["pantry.search"] = lambda args: {"items": [] if "cooked" in args else [PIE]}
    answer = pantry.answer("the recipe about apple pie I cooked last week")
    assert answer["cards"][0]["title"] == "Apple pie"
    assert [call[1].get("cooked", "")[:10] for call in pantry.calls] == ["last week", "2026-11-09", ""]


def test_nothing_found_says_what_was_tried() -> None:
    """When nothing is found, the answer says so, with the op and the words, and calls stay within their limit."""
    pantry = system()
    answer = pantry.answer("the recipe about unicorn stew from Merlin I cooked last week")
    assert answer["cards"] == []
    assert answer["answer"].startswith("I did not find it. I called pantry.search with query “unicorn stew”")
    assert 1 < len(pantry.calls) <= MAX_CALLS


def test_of_the_right_time_before_better_matches() -> None:
    """What an op found beyond the time asked for comes after what is of that time."""
    answer = system({**PIE, "relevance": 0.9}, {**DAL, "relevance": 0.4}).answer(
        "the dish I cooked last week about pie"
    )
    assert [card["title"] for card in answer["cards"]] == ["Red lentil dal", "Apple pie"]


def test_missing_argument_is_the_models() -> None:
    """A required argument that no rule can fill is asked of the model under the op's own schema, and an effect happens once."""
    pantry = system(says=('{"minutes": 7}', "It was …"))
    pantry.serve["pantry.timer"] = lambda _: {}
    pantry.answer("start the kitchen timer")
    assert pantry.calls == [("pantry.timer", {"minutes": 7})]
    assert pantry.asked[0]["schema"]["properties"]["minutes"] == {"type": "integer"}


def test_denial_is_an_error() -> None:
    """What the user has not allowed ends the run with the kernel's own words, which say what would grant it."""
    pantry = system()

    def deny(_: dict[str, Any]) -> dict[str, Any]:
        raise OpError(Code.DENIED, "assistant has no pantry.read", "llmosctl perm grant assistant pantry.read")

    pantry.serve["pantry.search"] = deny
    with pytest.raises(OpError) as caught:
        pantry.answer("find a recipe for pancakes")
    assert caught.value.hint == "llmosctl perm grant assistant pantry.read"


@pytest.mark.parametrize("question", ["what can you do?", "hello"])
def test_no_tool_needed(question: str) -> None:
    """Small talk gets what can be asked here, and no call."""
    pantry = system(DAL)
    answer = pantry.answer(question)
    assert pantry.calls == []
    assert "Find recipes in the cook book" in answer["answer"]


def test_nothing_granted() -> None:
    """With no op at all, the answer says how to grant some."""
    assert "llmosctl perm" in System([], {}).answer("find my article")["answer"]
