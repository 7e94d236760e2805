"""The benchmarks against llama.cpp: that both sides are given the same work, and that their answers are read rightly."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmos.userland.models import description
from tests.bench import agent_task, agent_workload, reference
from tests.bench.agent_workload import Ask, Messages, Run, work
from tests.bench.answer import Answer
from tests.bench.llama_server import read_answer


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [], **fields}).encode() + b"\n"


def delta(**fields: Any) -> bytes:
    return event(choices=[{"delta": fields}])


USAGE = {"completion_tokens": 2, "prompt_tokens": 40, "prompt_tokens_details": {"cached_tokens": 30}}


def test_the_first_piece_of_text_ends_the_wait() -> None:
    """The event that only names the role, sent before any token is there, does not."""

    def lines() -> Iterator[bytes]:
        yield delta(role="assistant", content=None)
        time.sleep(0.05)
        yield delta(content="a")
        time.sleep(0.05)
        yield delta(content="b")
        yield event(usage=USAGE)
        yield b"data: [DONE]\n"

    answer = read_answer(lines(), time.perf_counter())
    assert (answer.text, answer.completion, answer.prompt, answer.cached) == ("ab", 2, 40, 30)
    assert 0.05 <= answer.first < 0.1 <= answer.total


@pytest.mark.parametrize(
    "lines", [[delta(content="a")], [event(error={"message": "no"})], [b'error: {"message": "no"}\n']]
)
def test_an_answer_that_did_not_end_is_an_error(lines: list[bytes]) -> None:
    """A cut stream or an error inside it is never a figure."""
    with pytest.raises(RuntimeError, match="llama-server"):
        read_answer(iter(lines), time.perf_counter())


class Recorder:
    """A side that answers at once and keeps what it was asked; `broken` is the agent whose second step fails."""

    name = "recorder"

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken
        self.asked: dict[int, list[list[Mapping[str, str]]]] = {}
        self.urgent: set[int] = set()

    def said(self, number: int) -> str:
        arguments = {"query": "one two three four", "limit": (5, 10, 20)[number % 3]}
        return json.dumps({"thought": "word " * 9 + "word", "tool": "read_mail", "arguments": arguments})

    @contextmanager
    def caller(self, number: int, *, urgent: bool) -> Iterator[Ask]:
        asked = self.asked.setdefault(number, [])
        if urgent:
            self.urgent.add(number)

        def ask(messages: Messages, call: bool, tokens: int) -> Answer:
            asked.append(list(messages))
            if number == self.broken and len(asked) == 2:
                raise RuntimeError("broken")
            return Answer(self.said(len(asked)), 0.1, 0.2, tokens, 100, 60)

        yield ask


def test_every_agent_takes_its_steps_with_what_it_said_and_was_told() -> None:
    """Each step sends the one before, the answer to it and the tool's result; the prefix is the same for all."""
    side = Recorder()
    run = work(side, 3, 4, "n", period=0.01)
    assert len(run.steps) == 12
    assert side.urgent == {3}
    for agent in range(3):
        last = side.asked[agent][-1]
        assert last[0] == {"role": "system", "content": agent_task.prefix("n")}
        assert last[1]["content"] == agent_task.task(agent)
        assert [turn["content"] for turn in last[2::2]] == [side.said(step) for step in (1, 2, 3)]
        assert [turn["content"] for turn in last[3::2]] == [agent_task.observation(agent, step) for step in range(3)]
        assert all(len(asked) == 2 * step + 2 for step, asked in enumerate(side.asked[agent]))
    assert len({json.dumps(side.asked[agent][-1]) for agent in range(3)}) == 3


def test_a_run_in_which_an_agent_fails_fails() -> None:
    """With that agent's error, and with no thread left over."""
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        work(Recorder(broken=1), 3, 4, "n", period=0.01)
    assert threading.active_count() == before


def test_an_answer_that_is_no_call_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a side cannot be quick by answering something else."""
    for text in ("", "{", "[]", '{"thought": "x"}', Recorder().said(1).replace("read_mail", "x"), "null"):
        side = Recorder()
        monkeypatch.setattr(side, "said", lambda number, text=text: text)
        with pytest.raises(RuntimeError, match="not a call"):
            work(side, 1, 4, "n", period=0.01)


def test_figures_are_of_the_agents_waits_and_the_probes_answers() -> None:
    """The mean and the 90th percentile of the time to the first piece, and what was read anew."""
    answers = [Answer("", first, 9.0, 50, 1000, 900) for first in (1.0, 2.0, 3.0, 10.0)]
    run = Run(20.0, answers, [Answer("", 0.5, 1.0, 8, 30, 0), Answer("", 1.5, 3.0, 8, 30, 0)])
    assert run.figures() == {
        "makespan": 20.0,
        "mean_wait": 4.0,
        "p90_wait": 10.0,
        "probe": 2.0,
        "probe_first": 1.0,
        "tokens": 200,
        "prefill": 400,
    }


def test_a_table_has_a_line_for_each_number_of_agents() -> None:
    """With the ratio first."""
    names = ("makespan", "mean_wait", "p90_wait", "probe", "probe_first", "tokens", "prefill")
    row = {f"{name}_{what}": 0.5 for name in names for what in ("ratio", "llmos", "llama_server")}
    lines = agent_workload.table({1: row, 16: row}).splitlines()
    assert [line.split()[0] for line in lines] == ["N", "1", "16"]
    assert all(line.count("0.50 (0.5 : 0.5)") == len(names) for line in lines[1:])


def test_a_model_is_known_by_the_file_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called; a model of another file, one that does not say and a missing file are not taken for it."""
    monkeypatch.setenv("LLMOS_MODELS", str(tmp_path))
    gguf = tmp_path / "file.gguf"
    with pytest.raises(reference.Missing, match="there is no"):
        reference.installed(gguf)
    gguf.write_bytes(b"weights")
    for name, source in (("other", {"sha256": "0" * 64}), ("silent", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "genai_config.json").write_text("{}")
        description.write(tmp_path / name, {"source": source})
    with pytest.raises(reference.Missing, match="llmosctl model import"):
        reference.installed(gguf)
    description.write(tmp_path / "other", {"source": {"sha256": hashlib.sha256(b"weights").hexdigest()}})
    assert reference.installed(gguf) == "other"


def test_source_that_is_not_the_pinned_one_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it is unpacked."""
    links = tmp_path / "links"
    links.mkdir()
    (links / reference.ARCHIVE).write_bytes(b"something else")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setattr(reference, "PLACE", tmp_path / "reference")
    assert reference.main() == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "reference" / "llama.cpp").exists()


def test_what_is_built_is_not_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And other options, or a program that is gone, build it again."""
    monkeypatch.setattr(reference, "PLACE", tmp_path)
    commands: list[list[str]] = []

    def build(command: list[str], **options: Any) -> None:
        commands.append(command)
        (tmp_path / "cmake" / "bin").mkdir(parents=True, exist_ok=True)
        for name in reference.PROGRAMS:
            (tmp_path / "cmake" / "bin" / name).write_text("")

    monkeypatch.setattr(reference, "_archive", lambda: tmp_path / "archive")
    monkeypatch.setattr(reference, "_tool", lambda name: name)
    monkeypatch.setattr("subprocess.run", build)
    assert (reference.main(), len(commands)) == (0, 3)
    assert (reference.main(), len(commands)) == (0, 3)
    reference.program("llama-bench").unlink()
    assert (reference.main(), len(commands)) == (0, 6)
    monkeypatch.setattr(reference, "OPTIONS", ("CMAKE_BUILD_TYPE=Debug",))
    assert (reference.main(), len(commands)) == (0, 9)
