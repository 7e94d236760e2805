"""The assistant: reads the question, chooses an op, calls it, looks at what came, tries again if need be, and answers.

Whatever code can decide, code decides; the model breaks ties, fills in what no rule can, rephrases, and words the answer,
each time under a grammar. Every step is emitted as it happens and returned in `steps`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from llmos.ipc.errors import Code, OpError
from llmos.userland.agent import Agent
from llmos.userland.assistant import sentence
from llmos.userland.assistant.attempts import MAX_CALLS, Attempt, plan, with_query
from llmos.userland.assistant.cards import MAX_CARDS, Card, from_result
from llmos.userland.assistant.reading import FUNCTION_WORDS, Question, read
from llmos.userland.assistant.tools import Choice, Tool, Toolbox, read_tools
from llmos.userland.assistant.words import mentions, stems

TIE = 0.04
"""Scores of ops closer than this are a tie: searches are all made and compared, among others the model decides."""
MOST_TIED = 3
NO_TOOL = 0.25
"""An op that fits less than this is not what was asked for."""
SAID = 0.6
"""Likeness of a card that holds all the words asked for."""
SURE = 0.3
"""Likeness below which the answer says that it is not certain."""
SHOWN = 3
"""Titles of a finding that its step names."""

HELP = Tool(
    op="",
    summary="Say what this assistant is and can do",
    utterances=[
        "what can you do",
        "who are you",
        "help",
        "hello",
        "how does this work",
        "what can I ask you",
        "thank you",
    ],
)


def run(agent: Agent) -> dict[str, Any]:
    """The agent's entry: answers `agent.args["question"]`. → `{answer, cards, steps, timings}`, timings in ms."""
    return Assistant(agent).answer(str(agent.args["question"]))


@dataclass(frozen=True, slots=True)
class Finding:
    """What an attempt brought."""

    attempt: Attempt
    cards: list[Card]
    likeness: float
    """Of the words asked for and the first card."""

    @property
    def worth(self) -> float:
        """For comparing findings."""
        return self.likeness - self.attempt.cost if self.cards else -1.0


@dataclass(slots=True)
class Assistant:
    """One question's way to its answer."""

    agent: Agent
    steps: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    def answer(self, text: str) -> dict[str, Any]:
        """Raises `OpError` when the system itself fails; an op's own failure becomes part of the answer."""
        now = self.agent.now()
        with self._timed("total"):
            with self._timed("choose"):
                toolbox = Toolbox([*read_tools(self.agent.client.ops()), HELP], now, self.agent.client.embed)
                question = read(text, now, toolbox.words)
                choices = toolbox.rank(question)
            top = choices[0]
            searchable = top.tool.can_be_compared and question.announced
            if top.tool.op == "" or (top.score < NO_TOOL and not searchable):
                self._step("direct", best=top.tool.op, score=round(top.score, 3))
                said, cards = _say_abilities(toolbox.tools), list[Card]()
                self._step("answer", text=said)
            else:
                tools, rivals = self._choose(text, [choice for choice in choices if choice.tool.op])
                said, cards = self._say(question, self._find(question, tools, rivals))
        return {
            "answer": said,
            "cards": [msgspec.to_builtins(card) for card in cards],
            "steps": self.steps,
            "timings": {name: round(ms, 1) for name, ms in self.timings.items()},
        }

    # -- choosing --------------------------------------------------------------------------------------------------

    def _choose(self, text: str, choices: list[Choice]) -> tuple[list[Tool], int]:
        """The tools in the order to try them, and how many after the first are its rivals."""
        best = choices[0]
        near = [choice for choice in choices[1:MOST_TIED] if best.score - choice.score < TIE]
        if best.tool.can_be_compared:
            near = [choice for choice in near if choice.tool.can_be_compared]
            by = "likeness"
        elif near:
            best, near = self._break_tie(text, [best, *near]), []
            by = "model"
        else:
            by = "likeness"
        rest = [choice.tool for choice in choices if choice not in (best, *near) and choice.score >= NO_TOOL]
        self._step(
            "tool", op=best.tool.op, by=by, score=round(best.score, 3), rivals=[choice.tool.op for choice in near]
        )
        return [best.tool, *(choice.tool for choice in near), *rest], len(near)

    def _break_tie(self, text: str, tied: list[Choice]) -> Choice:
        with self._timed("choose"):
            lines = "\n".join(f"{choice.tool.op}: {choice.tool.summary}" for choice in tied)
            prompt = f"{lines}\n\nWhich of these answers: {text}"
            picked = self._generate(prompt, 40, choices=[choice.tool.op for choice in tied])
        return next((choice for choice in tied if choice.tool.op == picked), tied[0])

    # -- acting and observing --------------------------------------------------------------------------------------

    def _find(self, question: Question, tools: list[Tool], rivals: int) -> list[Finding]:
        """The findings, best first; empty when no call could be made."""
        findings: list[Finding] = []
        made: list[tuple[str, dict[str, Any]]] = []
        for attempt in self._attempts(question, tools, rivals, findings):
            if len(made) == MAX_CALLS or (_enough(findings) and not attempt.rival):
                break
            if (attempt.tool.op, attempt.args) not in made:
                made.append((attempt.tool.op, attempt.args))
                finding = self._try(attempt, question)
                findings += [finding] if finding else []
        return sorted(findings, key=lambda finding: -finding.worth)

    def _attempts(
        self, question: Question, tools: list[Tool], rivals: int, findings: list[Finding]
    ) -> Iterator[Attempt]:
        for attempt in plan(tools, question, rivals):
            yield self._complete(attempt, question, tools) if attempt.missing else attempt
        asked = next((f.attempt for f in findings if f.attempt.query and f.attempt.tool.taking("query")), None)
        if asked is not None and not _enough(findings):
            with self._timed("rephrase"):
                other = self._rephrase(asked.query)
            if other:
                yield with_query(asked, other, f"in other words: {other}", cost=0.3)

    def _try(self, attempt: Attempt, question: Question) -> Finding | None:
        self._step("call", op=attempt.tool.op, args=attempt.args, why=attempt.why)
        try:
            with self._timed("call"):
                result = self.agent.client.call(attempt.tool.op, attempt.args)
        except OpError as error:
            if error.code in (Code.DENIED, Code.NEEDS_APPROVAL, Code.UNAVAILABLE, Code.PEER_DIED):
                raise
            self._step("failed", op=attempt.tool.op, code=str(error.code), detail=error.detail)
            return None
        period = question.period if attempt.timely else None
        cards = from_result(result, attempt.tool.provider, self.agent.now(), period)
        if question.announced == "title":
            cards.sort(key=lambda card: attempt.query.lower() not in card.title.lower())
        with self._timed("judge"):
            cards, likeness = self._judge(attempt, cards)
        self._step(
            "found", count=len(cards), likeness=round(likeness, 3), titles=[card.title for card in cards[:SHOWN]]
        )
        return Finding(attempt, cards[:MAX_CARDS], likeness)

    def _judge(self, attempt: Attempt, cards: list[Card]) -> tuple[list[Card], float]:
        """The cards, and how much the first is what was asked for, up to 1; 1 for any when no words were asked for.

        The op's own order stands, unless it was not told the words.
        """
        wanted = [word for word in attempt.query.split() if word.lower() not in FUNCTION_WORDS]
        if not wanted or not cards:
            return cards, float(bool(cards))
        told = attempt.tool.taking("query") in attempt.args
        vectors = self.agent.client.embed([attempt.query, *(card.title for card in (cards[:1] if told else cards))])
        likeness = (vectors[1:] @ vectors[0]).tolist()
        said = [all(mentions(card.words, word) for word in wanted) for card in cards[: len(likeness)]]
        scores = [max(like, SAID) if has else like for like, has in zip(likeness, said, strict=True)]
        if told:
            return cards, max(scores[0], cards[0].score or 0.0)  # an op may know more about likeness than these words
        cards = [card for _, card in sorted(zip(scores, cards, strict=True), key=lambda pair: -pair[0])]
        return cards, max(scores)

    # -- what only the model can ------------------------------------------------------------------------------------

    def _complete(self, attempt: Attempt, question: Question, tools: list[Tool]) -> Attempt:
        """The attempt with its missing arguments: a path by looking for it, the others by the model."""
        args = dict(attempt.args)
        path = attempt.tool.taking("path")
        if path in attempt.missing:
            found = self._look_up(attempt, question, tools)
            if found:
                args[path] = found
        missing = {name: attempt.tool.args[name] for name in attempt.missing if name not in args}
        if missing:
            schema = {"type": "object", "properties": {}, "required": list(missing), "additionalProperties": False}
            schema["properties"] = {
                name: {"type": arg.type}
                | ({"enum": arg.enum} if arg.enum else {})
                | ({"maxLength": 200} if arg.type == "string" else {})
                for name, arg in missing.items()
            }
            asked = "\n".join(f"{name}: {arg.description or arg.type}" for name, arg in missing.items())
            prompt = f"{attempt.tool.summary}. Fill in, as JSON:\n{asked}\n\nRequest: {question.text}"
            with self._timed("fill"):
                filled = self._generate(prompt, 120, schema=schema)
            try:
                args |= json.loads(filled)
            except ValueError:  # empty, or cut short by the token limit: the op will say what is missing
                self._step("failed", op=attempt.tool.op, code="INVALID_ARGUMENT", detail="the model gave no arguments")
        return replace(attempt, args=args, missing=[])

    def _look_up(self, attempt: Attempt, question: Question, tools: list[Tool]) -> str:
        """The path of what the question describes, by a search of the same provider; empty when there is none."""
        for tool in tools:
            if tool.provider == attempt.tool.provider and tool.taking("query") and tool.effect == attempt.tool.effect:
                first = next(plan([tool], question))
                finding = None if first.missing else self._try(first, question)
                if finding and finding.cards:
                    return finding.cards[0].path
        return ""

    def _rephrase(self, query: str) -> str:
        """Other words for the same, by the model; empty when it has none."""
        prompt = f"Other words for the same topic.\ncars: automobiles\nWWII: second world war\n{query}:"
        words = self._generate(prompt, 16, regex=r" ?[a-z][a-z \-]{2,50}", stop=["\n"]).strip()
        return "" if set(stems(words)) <= set(stems(query)) else words

    def _generate(self, prompt: str, max_tokens: int, **constraint: Any) -> str:
        """What the model says; empty when it cannot be asked, for then code goes on alone."""
        messages = [{"role": "user", "content": prompt}]
        try:
            return self.agent.client.generate(messages=messages, max_tokens=max_tokens, **constraint).text
        except OpError as error:
            self._step("failed", op="llm.generate", code=str(error.code), detail=error.detail)
            return ""

    # -- answering -------------------------------------------------------------------------------------------------

    def _say(self, question: Question, findings: list[Finding]) -> tuple[str, list[Card]]:
        best = next((finding for finding in findings if finding.cards), None)
        with self._timed("sentence"):
            if best is None:
                said = self._stream(
                    iter([_say_nothing(question, [step for step in self.steps if step["stage"] == "call"])])
                )
                return said, []
            card = best.cards[0]
            if card.text and not best.attempt.tool.taking("query") and len(best.cards) == 1:
                said = sentence.from_text(question.text, card.text, self.agent.client) or card.text
                return self._stream(iter([said])), best.cards
            sure = best.likeness >= SURE
            if not best.attempt.query and len(best.cards) > 1:
                return self._stream(iter([f"Here is what I found, {len(best.cards)} entries:"])), best.cards
            try:
                return self._stream(sentence.about(card, question.text, self.agent.client, sure=sure)), best.cards
            except OpError as error:  # no model, or a busy one: the cards are the answer
                self._step("failed", op="llm.generate", code=str(error.code), detail=error.detail)
                return self._stream(iter([sentence.plain(card, sure=sure)])), best.cards

    def _stream(self, pieces: Iterator[str]) -> str:
        said = ""
        for piece in pieces:
            said += piece
            self.agent.emit(stage="answer", text=piece)
        self.steps.append({"stage": "answer", "text": said})
        return said

    def _step(self, stage: str, **facts: Any) -> None:
        self.steps.append({"stage": stage, **facts})
        self.agent.emit(stage=stage, **facts)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + (time.perf_counter() - start) * 1000


def _enough(findings: list[Finding]) -> bool:
    return any(finding.worth >= finding.attempt.enough for finding in findings)


def _say_abilities(tools: list[Tool]) -> str:
    lines = [
        f"- {tool.summary}. Say for example: “{tool.utterances[0]}”" for tool in tools if tool.op and tool.utterances
    ]
    return "\n".join(["I look things up with what you let me use:", *lines]) if lines else _NOTHING_GRANTED


_NOTHING_GRANTED = (
    "I may not use anything yet. See what drivers ask for with `llmosctl perm ls`, and grant what you want."
)


def _say_nothing(question: Question, calls: list[dict[str, Any]]) -> str:
    first = calls[0] if calls else None
    if first is None:
        return "I did not find it."
    looked = ", ".join(f"{name} “{value}”" for name, value in first["args"].items())
    more = f" and {len(calls) - 1} looser ways" if len(calls) > 1 else ""
    wider = "without the time" if question.period else "with a word from its title"
    return f"I did not find it. I called {first['op']} with {looked or 'nothing'}{more}. Try it {wider}, or in other words."
