"""The real core process with the real embedded model, driven over a socketpair as the kernel drives it."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.ipc.pipe import PeerGone
from tests.system.core_client import EMBEDDER, MODEL, PLENTY, STORY, Core
from tests.system.model_folders import contradict, variant, want_more

STORIES = [
    STORY,
    "The history of the bicycle began in",
    "List of metals: iron, copper, tin,",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n",
    "Q: What is the capital of France?\nA:",
    STORY * 4,
    "A letter to my landlord. Dear",
    "In the year 1900",
]

_labels = (f"cold {number}" for number in itertools.count())


def cold() -> str:
    """A label under which nothing has been read."""
    return next(_labels)


def drain(core: Core) -> None:
    """Read until the pipe ends. Raises `PeerGone`."""
    while True:
        core.receive(2)


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    """One core with both models for the tests that leave it as they found it."""
    made = Core()
    assert made.load()["op"] == "ready"
    assert made.load(EMBEDDER, kind="embedding")["info"] == {"dim": 384}
    yield made
    assert made.end() == 0


@pytest.fixture
def bare() -> Iterator[Core]:
    """A core of the test's own, without a model."""
    with Core() as made:
        yield made


# -- models


def test_a_core_without_a_model_refuses_and_lives(bare: Core, tmp_path: Path) -> None:
    """No model, no folder, a folder with nothing usable in it: each an error with a hint, and the core goes on."""
    error = bare.admit(prompt="x")
    assert (error["about"], error["code"], "llmosctl model" in error["hint"]) == ("job", "UNAVAILABLE", True)
    error = bare.ask("embed", job=7, model="minilm", texts=["x"])
    assert (error["job"], error["code"], "llmosctl model" in error["hint"]) == (7, "UNAVAILABLE", True)
    for kind in ("generator", "embedding"):
        error = bare.load(tmp_path / "none", kind=kind)
        assert (error["about"], error["model"], error["code"]) == ("load", "none", "NOT_FOUND")
        assert str(tmp_path / "none") in error["detail"]
    for content in ("{", "[]", '{"model": {}}', '{"model": {"decoder": 7}}'):
        (tmp_path / "genai_config.json").write_text(content)
        error = bare.load(tmp_path)
        assert (error["code"], "genai_config.json" in error["detail"]) == ("INVALID_ARGUMENT", True), content


@pytest.mark.model
def test_a_damaged_model_is_refused_by_name(bare: Core, tmp_path: Path) -> None:
    """Weights cut in half, and a provider that is not here: errors, after which the good folder still loads."""
    for path in MODEL.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 1 << 16 if path.name.startswith("model.onnx") else None])
    error = bare.load(tmp_path)
    assert (error["code"], str(tmp_path) in error["detail"]) == ("INVALID_ARGUMENT", True)
    error = bare.load(provider="nonesuchExecutionProvider")
    assert (error["code"], "CPUExecutionProvider" in error["hint"]) == ("UNAVAILABLE", True)
    ready = bare.load()
    assert (ready["op"], ready["model"], ready["info"]["engine"]) == ("ready", "smollm2-135m", "batched")


@pytest.mark.model
def test_two_models_in_one_core(bare: Core, tmp_path: Path) -> None:
    """Jobs of two models take turns, and each has the text that it has alone; what one has read the other does not know,
    a context belongs to its model, and unloading one leaves the other's job at work."""
    other = variant(tmp_path / "contrary", contradict)
    bare.load()
    text = bare.generate(prompt=STORY, max_tokens=12)
    assert bare.load(other)["op"] == "ready"
    first = bare.admit(model=other.name, prompt=STORY, max_tokens=12)
    assert first["cached_tokens"] == 0
    contrary = bare.work(first)[0].text
    assert contrary != text
    jobs = [bare.admit(model=name, prompt=STORY, max_tokens=12) for name in (MODEL.name, other.name)]
    texts = {job["job"]: "" for job in jobs}
    for job in jobs * 13:  # the first turn of each reads
        bare.run([job["job"], PLENTY] if not texts[job["job"]] else None, [job["job"], 1])
        texts[job["job"]] += "".join(message["text"] for message in bare.said)
    assert list(texts.values()) == [text, contrary]
    error = bare.admit(context=bare.open(), model=other.name, prompt=STORY)
    assert (error["code"], MODEL.name in error["detail"]) == ("CONFLICT", True)
    kept, gone = bare.admit(prompt=STORY, max_tokens=12), bare.admit(model=other.name, prompt=STORY)
    assert bare.ask("unload", model=other.name) == {"op": "unloaded", "model": other.name}
    assert bare.run([gone["job"], 100]) == {}
    assert bare.admit(model=other.name, prompt=STORY)["code"] == "UNAVAILABLE"
    assert bare.work(kept)[0].text == text


# -- texts


@pytest.mark.model
def test_text_streams_as_it_is_made(core: Core) -> None:
    """Chunks come while the job runs, their tokens add up, and together they are the text."""
    admitted = core.admit(prompt=STORY, max_tokens=40, label=cold())
    counts = core.run([admitted["job"], PLENTY], [admitted["job"], PLENTY])
    assert len(core.said) > 3
    assert core.said[0]["tokens"] == 1
    assert sum(chunk["tokens"] for chunk in core.said) == 40
    assert counts == {admitted["job"]: [admitted["prompt_tokens"], 0, 40, 0, "done", "length"]}
    assert (core.ran["steps"], core.ran["rows"]) == (39, 39)
    assert core.ran["prefill_s"] > 0 < core.ran["decode_s"]
    assert "".join(chunk["text"] for chunk in core.said) == core.generate(prompt=STORY, max_tokens=40)


@pytest.mark.model
def test_greedy_text_is_the_runtimes_own(core: Core) -> None:
    """Every token of a greedy text is the one that GenAI's own loop prefers after those before it, or as good as that: the
    two are no further apart than the likeliest tokens' logits are when GenAI reads the same text in one piece."""
    script = """
import json, os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai as og
model = og.Model(sys.argv[1])
tokenizer = og.Tokenizer(model)
def begin(read):
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=512, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(read)
    return generator
same, gaps, apart = [], [], []
for prompt, text in json.loads(sys.argv[2]):
    length, tokens = len(tokenizer.encode(prompt)), [int(token) for token in tokenizer.encode(prompt + text)]
    generator = begin(tokens[:length])
    for at in range(length, len(tokens)):
        scores = generator.get_logits()[0, -1].copy()
        same.append(int(scores.argmax()) == tokens[at])
        gaps.append(float(scores.max() - scores[tokens[at]]))
        if (at - length) % 8 == 3:
            likeliest = scores.argsort()[-5:]
            apart.append(float(abs(begin(tokens[:at]).get_logits()[0, -1] - scores)[likeliest].max()))
        generator.append_tokens(tokens[at : at + 1])
json.dump({"same": sum(same) / len(same), "gap": max(gaps), "apart": max(apart)}, sys.stdout)
"""
    prompts = [STORIES[0] * 11, *STORIES[:3]]  # the first in several slices
    texts = [(prompt, core.generate(prompt=prompt, max_tokens=30)) for prompt in prompts]
    command = [sys.executable, "-c", script, str(MODEL), json.dumps(texts)]
    bare = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert bare["same"] > 0.9
    assert bare["gap"] <= 2 * bare["apart"] < 3, bare  # logits spread by about 4


@pytest.mark.model
def test_turns_do_not_change_the_text(core: Core) -> None:
    """Any cut into turns, with the job parked between them or not, gives the text of one turn, drawn as well as greedy."""
    samplings: list[dict[str, Any]] = [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 4}]
    for sampling in samplings:
        request = {"prompt": STORY * 3, "max_tokens": 30, **sampling}
        whole = core.generate(label=cold(), **request)
        for park in (False, True):
            outcome = core.work(core.admit(label=cold(), **request), slice_=16, tokens=3, park=park)[0]
            assert outcome.text == whole


@pytest.mark.model
def test_a_yield_interrupts_and_the_job_goes_on(core: Core) -> None:
    """A yield after the first chunk ends the turn early, and the rest of the text comes with the next."""
    whole = core.generate(prompt=STORY, max_tokens=60)
    admitted = core.admit(prompt=STORY, max_tokens=60)
    job = admitted["job"]
    core.start([job, PLENTY], [job, PLENTY])
    text = core.receive()["text"]
    core.send("yield")
    decode, _, state, _ = core.end_turn()[job][2:]
    assert (state, decode < 60) == ("decode", True)
    text += "".join(chunk["text"] for chunk in core.said)
    assert text + core.work(admitted)[0].text == whole


@pytest.mark.model
def test_cancel_acts_in_the_middle_of_a_prompt(core: Core) -> None:
    """A cancel sent right behind the run of a prompt of thousands of tokens ends it after a slice, and the next grant that
    names the job is passed over."""
    admitted = core.admit(prompt=STORY * 300, max_tokens=10, label=cold())
    assert admitted["prompt_tokens"] > 3000
    job = admitted["job"]
    core.start([job, PLENTY], [job, PLENTY])
    core.send("cancel", job=job)
    prefill, _, decode, _, state, finish = core.end_turn()[job]
    assert (decode, state, finish) == (0, "done", "cancelled")
    assert prefill <= 128
    assert core.run([job, 1]) == {}


@pytest.mark.model
def test_cancel_acts_in_the_middle_of_an_answer(core: Core) -> None:
    """A cancel after the first chunk ends the job tokens later, not hundreds, and leaves the one beside it its text."""
    whole = core.generate(prompt=STORY, max_tokens=60)
    beside, admitted = core.admit(prompt=STORY, max_tokens=60), core.admit(prompt=STORIES[1], max_tokens=2000)
    core.run([beside["job"], PLENTY])
    text = "".join(chunk["text"] for chunk in core.said)
    core.start([admitted["job"], PLENTY], [admitted["job"], PLENTY], [beside["job"], 30])
    assert core.receive()["job"] == admitted["job"]
    core.send("cancel", job=admitted["job"])
    counts = core.end_turn()
    _, _, decode, _, state, finish = counts[admitted["job"]]
    assert (state, finish, decode < 100) == ("done", "cancelled", True)
    text += "".join(chunk["text"] for chunk in core.said if chunk["job"] == beside["job"])
    assert text + core.work(beside)[0].text == whole


@pytest.mark.model
def test_constrained_text_parses(core: Core) -> None:
    """Under a schema the text is JSON of that schema, whatever the sampling, and some of it took no decision; choices and
    regex hold as well."""
    schema = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 40},
            "pages": {"type": "integer", "minimum": 1, "maximum": 999},
            "kind": {"enum": ["novel", "poem"]},
        },
        "required": ["title", "pages", "kind"],
        "additionalProperties": False,
    }
    messages = [{"role": "user", "content": "Describe the book Moby-Dick as JSON."}]
    samplings: list[dict[str, Any]] = [
        {},
        {"temperature": 1.5, "seed": 1},
        {"temperature": 1.0, "seed": 2, "top_p": 0.8},
    ]
    for sampling in samplings:
        outcome = core.finish(messages=messages, schema=schema, max_tokens=120, **sampling)
        book = json.loads(outcome.text)
        assert list(book) == ["title", "pages", "kind"]
        assert 1 <= book["pages"] <= 999
        assert book["kind"] in ("novel", "poem")
        assert 5 < outcome.forced < outcome.decode == outcome.tokens
    assert core.generate(prompt=STORY, choices=["über", "unter"], max_tokens=20) in ("über", "unter")
    assert core.generate(prompt=STORY, regex="[0-9]{4}-[0-9]{2}", max_tokens=20)[4] == "-"


@pytest.mark.model
def test_a_stop_string_is_no_part_of_the_text(core: Core) -> None:
    """The text ends just before it, and is otherwise what it would have been."""
    whole = core.generate(prompt=STORY, max_tokens=40)
    stop = whole[20:24]
    outcome = core.finish(prompt=STORY, max_tokens=40, stop=[stop])
    assert (outcome.text, outcome.finish) == (whole[: whole.index(stop)], "stop")


@pytest.mark.model
def test_two_jobs_interleave_exactly(core: Core) -> None:
    """Two jobs taking turns token by token give what each gives alone."""
    alone = [core.generate(prompt=prompt, max_tokens=12) for prompt in STORIES[:2]]
    jobs = [core.admit(prompt=prompt, max_tokens=12)["job"] for prompt in STORIES[:2]]
    texts = dict.fromkeys(jobs, "")
    states = dict.fromkeys(jobs, "prefill")
    while set(states.values()) != {"done"}:
        for job in jobs:
            counts = core.run([job, 5] if states[job] == "prefill" else None, [job, 1])
            texts[job] += "".join(chunk["text"] for chunk in core.said)
            states[job] = counts[job][-2] if counts else "done"
    assert list(texts.values()) == alone


@pytest.mark.model
def test_eight_jobs_decode_together(core: Core) -> None:
    """Every step of theirs is one run for all eight, and each has the text that it has alone."""
    alone = [core.generate(prompt=prompt, max_tokens=13) for prompt in STORIES]
    jobs = [core.admit(prompt=prompt, max_tokens=13)["job"] for prompt in STORIES]
    texts = dict.fromkeys(jobs, "")

    def collect() -> None:
        for chunk in core.said:
            texts[chunk["job"]] += chunk["text"]

    for job in jobs:
        assert core.run([job, PLENTY])[job][-2] == "decode"
        collect()
    counts = core.run(None, *([job, 5] for job in jobs))
    collect()
    assert {tuple(each) for each in counts.values()} == {(0, 0, 5, 0, "decode", None)}
    assert (core.ran["steps"], core.ran["rows"]) == (5, 40)
    counts = core.run(None, *([job, PLENTY] for job in jobs))
    collect()
    assert (core.ran["steps"], core.ran["rows"]) == (7, 56)
    assert list(texts.values()) == alone


@pytest.mark.model
def test_a_text_outgrows_the_room_there_is(bare: Core) -> None:
    """A job that may need more room than rows begin with has it made beneath one that is at work; both have their texts."""
    bare.load()
    texts = [bare.generate(prompt=prompt, max_tokens=20) for prompt in STORIES[:2]]
    working = bare.admit(prompt=STORIES[0], max_tokens=20)
    job = working["job"]
    bare.run([job, PLENTY], [job, 10])
    begun = "".join(chunk["text"] for chunk in bare.said)
    longer = bare.admit(prompt=STORIES[1], max_tokens=6000)
    counts = bare.run([longer["job"], PLENTY], [longer["job"], 20], [job, 20])
    assert counts[job][-1] == "length"
    said = {at: "".join(chunk["text"] for chunk in bare.said if chunk["job"] == at) for at in counts}
    assert begun + said[job] == texts[0]
    assert said[longer["job"]] == texts[1]


@pytest.mark.model
def test_a_prompt_over_the_window_names_both_numbers(core: Core) -> None:
    """It is refused at admission, before a token of it is read."""
    error = core.admit(prompt="word " * 9000)
    assert error["code"] == "TOO_LARGE"
    assert "8192" in error["detail"]
    assert "900" in error["detail"]


# -- embeddings


@pytest.mark.model
def test_similar_sentences_are_closer(core: Core) -> None:
    """Vectors have length 1, texts of like meaning are nearer than others, and order and repetition do not matter."""
    texts = ["A cat sleeps on the sofa.", "A kitten is napping on the couch.", "Interest rates rose again in June."]
    vectors = core.embed(*texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.5 > 0.2 > far
    again = core.embed(texts[2], texts[0], texts[2])
    assert np.allclose(again, vectors[[2, 0, 2]], atol=1e-6)


@pytest.mark.model
def test_embeddings_of_any_texts_are_finite(core: Core) -> None:
    """Empty, very long and odd texts get vectors too, in one batch with short ones."""
    vectors = core.embed("", "word " * 5000, "\x00\ud7ff🦊" * 50, "short")
    assert np.isfinite(vectors).all()


@pytest.mark.model
def test_a_long_embedding_can_be_cancelled_and_interrupted(core: Core) -> None:
    """A turn of few tokens does one batch of it, while a text goes on beside it; a longer turn does the rest, and a cancel
    ends it."""
    texts = [f"{number} " + "words of a text that is rather long " * 30 for number in range(16)]
    job, beside = core.admit_texts(texts), core.admit(prompt=STORY, max_tokens=20)
    core.run([beside["job"], PLENTY])
    counts = core.run([job, 1], [beside["job"], 3])
    assert counts[job][1:] == [0, 0, 0, "prefill", None]
    assert 0 < counts[job][0] < 1000
    assert counts[beside["job"]][2] == 3
    counts = core.run([job, PLENTY])
    assert counts[job][-2:] == ["done", "stop"]
    assert (core.said[0]["op"], len(core.said[0]["vectors"])) == ("embedded", 16 * 384 * 4)
    cancelled = core.admit_texts([f"x{text}" for text in texts])
    core.start([cancelled, 1])
    core.send("cancel", job=cancelled)
    assert core.end_turn()[cancelled][-2:] == ["done", "cancelled"]
    assert core.said == []
    core.work(beside)


# -- the process


@pytest.mark.model
def test_finished_jobs_leave_no_memory_behind() -> None:
    """What is kept of them stays below the limit: after many prompts of their own the process is no larger than after a few."""
    with Core(kv_bytes=24 << 20) as core:
        core.load()

        def work(numbers: range) -> None:
            for number in numbers:
                outcome = core.finish(prompt=f"{number} {STORY * 12}", max_tokens=2000, stop=[" "])
                assert outcome.prefill > 150
                assert core.ran["kv"]["cache"] + core.ran["kv"]["rows"] <= 24 << 20

        work(range(4))
        before = core.resident()
        work(range(4, 16))  # 90 MB of keys and values
        assert core.resident() - before < 16e6


@pytest.mark.model
def test_telemetry_is_off_before_the_runtime_is_imported(tmp_path: Path) -> None:
    """The variable is set when the first module of either runtime is looked for, though the parent did not set it."""
    script = """
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("onnxruntime", "onnxruntime_genai"):
            sys.stderr.write(f"{name}={os.environ.get('ORT_DISABLE_TELEMETRY')}\\n")
sys.meta_path.insert(0, Watch())
from llmos.kernel.core.main import main
sys.stderr.write("imported\\n")
sys.exit(main(sys.argv[1:]))
"""
    core = Core("-c", script)
    assert core.load(variant(tmp_path / "odd", want_more))["info"]["engine"] == "genai"
    core.send("shutdown")
    _, told = core.process.communicate(timeout=20)
    core.pipe.close()
    assert set(told.decode().split()) == {"imported", "onnxruntime=1", "onnxruntime_genai=1"}
    assert told.decode().split()[0] == "imported"


@pytest.mark.model
def test_a_killed_core_closes_its_pipe() -> None:
    """kill -9 in the middle of a job is seen at the other end as the end of the pipe."""
    core = Core()
    core.load()
    job = core.admit(prompt=STORY, max_tokens=2000)["job"]
    core.start([job, PLENTY], [job, PLENTY])
    assert core.receive()["op"] == "chunk"
    core.process.send_signal(signal.SIGKILL)
    with pytest.raises(PeerGone):
        drain(core)
    assert core.end() == -signal.SIGKILL


@pytest.mark.model
def test_a_core_ends_with_its_kernel() -> None:
    """When the kernel's end of the pipe closes, in the middle of a job, the core ends by itself; ^C does not end it."""
    core = Core()
    core.load()
    job = core.admit(prompt=STORY, max_tokens=2000)["job"]
    core.start([job, PLENTY], [job, PLENTY])
    assert core.receive()["op"] == "chunk"
    core.process.send_signal(signal.SIGINT)
    assert core.receive()["op"] == "chunk"
    core.pipe.close()
    _, told = core.process.communicate(timeout=20)
    assert (core.process.returncode, told) == (1, b"")


def test_the_core_is_started_by_the_kernel_only() -> None:
    """Started by hand it says so and does nothing."""
    done = subprocess.run([sys.executable, "-m", "llmos.kernel.core"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "started by the kernel" in done.stderr
