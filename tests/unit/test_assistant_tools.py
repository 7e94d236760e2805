"""Which op a question asks for."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.userland.assistant.reading import read
from llmos.userland.assistant.tools import Toolbox, read_tools
from tests.unit.assistant_doubles import NOW, RECIPES, embed


@pytest.mark.parametrize(
    ("question", "op"),
    [
        ("the recipe about beans I cooked last month", "pantry.search"),
        ("what have we got in the pantry", "pantry.stock"),
        ("start the timer for the rice", "pantry.timer"),
    ],
)
def test_ranking(question: str, op: str) -> None:
    """The op whose utterances are nearest comes first, whatever driver it is of."""
    toolbox = Toolbox(read_tools(RECIPES), NOW, embed)
    assert toolbox.rank(read(question, NOW, toolbox.words))[0].tool.op == op


def test_topic_wants_an_op_that_takes_one() -> None:
    """Of two ops that fit alike, the one that can be told the topic comes first."""
    twins: list[dict[str, Any]] = [
        {"op": "box.list", "summary": "Look into the box", "utterances": ["look into the box"]},
        {
            "op": "box.find",
            "summary": "Look into the box",
            "utterances": ["look into the box"],
            "args": {"q": {"type": "string", "role": "query"}},
        },
    ]
    toolbox = Toolbox(read_tools(twins), NOW, embed)
    assert toolbox.rank(read("look into the box about marbles", NOW, toolbox.words))[0].tool.op == "box.find"


def test_unknown_shapes_are_left_out() -> None:
    """An entry of `sys.ops` that this version does not understand does not stop the others."""
    assert [
        tool.op
        for tool in read_tools([{"op": 7}, {"op": "a.b", "summary": "c", "args": {"x": {"type": "odd"}}}, *RECIPES])
    ] == [
        "pantry.search",
        "pantry.stock",
        "pantry.timer",
    ]
