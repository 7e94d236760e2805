"""The real core process with the real embedded model, driven over a socketpair as the kernel drives it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.ipc.pipe import PeerGone, Pipe
from tests.system.conftest import STORE

MODEL, EMBEDDER = STORE / "smollm2-135m", STORE / "minilm"
STORY = "Once upon a time there was a fox who lived by the sea."

Message = dict[str, Any]


class Core:
    """A core process and the kernel's end of its pipe; `run_as` is what Python runs instead of the module."""

    def __init__(self, *run_as: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
            command = [sys.executable, *(run_as or ("-m", "llmos.kernel.core")), "--fd", str(theirs.fileno())]
            self.process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), env=environment, stderr=subprocess.PIPE
            )
        self.pipe = Pipe(ours)
        self._jobs = 0

    def send(self, op: str, **fields: Any) -> None:
        self.pipe.send({"op": op, **fields})

    def receive(self, seconds: float = 60) -> Message:
        message = self.pipe.receive(seconds)
        assert message is not None, "the core said nothing"
        return message

    def ask(self, op: str, **fields: Any) -> Message:
        self.send(op, **fields)
        return self.receive()

    def load(self, model: Path = MODEL, embedder: Path | None = EMBEDDER, provider: str = "cpu") -> Message:
        return self.ask("load", model=str(model), embedder=embedder and str(embedder), provider=provider)

    def admit(self, **request: Any) -> Message:
        self._jobs += 1
        return self.ask("job", job=self._jobs, **request)

    def finish(self, admitted: Message, quantum: int = 1 << 20) -> tuple[list[str], Message]:
        """Run an admitted job to its end; its chunks, and its last `ran` with the counts of all of them."""
        chunks, prefill, decode = [], 0, 0
        while True:
            self.send("run", job=admitted["job"], tokens=quantum)
            while (message := self.receive())["op"] == "chunk":
                chunks.append(message["text"])
            assert message["op"] == "ran", message
            assert message["prefill"] + message["decode"] <= quantum + 2
            prefill, decode = prefill + message["prefill"], decode + message["decode"]
            if message["state"] == "done":
                return chunks, {**message, "prefill": prefill, "decode": decode}

    def generate(self, quantum: int = 1 << 20, **request: Any) -> str:
        return "".join(self.finish(self.admit(**request), quantum)[0])

    def embed(self, *texts: str) -> np.ndarray[Any, Any]:
        self._jobs += 1
        message = self.ask("embed", job=self._jobs, texts=list(texts))
        return np.frombuffer(message["vectors"], dtype="<f4").reshape(len(texts), message["dim"])

    def resident(self) -> int:
        """Bytes of memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> int:
        with contextlib.suppress(PeerGone):
            self.send("shutdown")
        status = self.process.wait(20)
        self.pipe.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


def drain(core: Core) -> None:
    """Read until the pipe ends. Raises `PeerGone`."""
    while True:
        core.receive(2)


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    """One core with both models for the tests that leave it as they found it."""
    made = Core()
    assert made.load()["op"] == "ready"
    yield made
    assert made.end() == 0


@pytest.fixture
def bare() -> Iterator[Core]:
    """A core of the test's own, without a model."""
    made = Core()
    yield made
    made.end()


def test_a_core_without_a_model_refuses_and_lives(bare: Core, tmp_path: Path) -> None:
    """No model, no folder, a folder with nothing usable in it: each an error with a hint, and the core goes on."""
    error = bare.admit(prompt="x")
    assert (error["code"], "llmosctl model pull" in error["hint"]) == ("UNAVAILABLE", True)
    error = bare.load(tmp_path / "none", None)
    assert (error["about"], error["code"], str(tmp_path / "none") in error["detail"]) == ("load", "NOT_FOUND", True)
    for content in ("{", "[]", '{"model": {}}', '{"model": {"decoder": 7}}'):
        (tmp_path / "genai_config.json").write_text(content)
        error = bare.load(tmp_path, None)
        assert (error["code"], "genai_config.json" in error["detail"]) == ("INVALID_ARGUMENT", True), content


@pytest.mark.model
def test_a_damaged_model_is_refused_by_name(bare: Core, tmp_path: Path) -> None:
    """Weights cut in half, and a provider that is not here: errors, after which the good folder still loads."""
    for path in MODEL.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[: 1 << 16 if path.name.startswith("model.onnx") else None])
    error = bare.load(tmp_path, None)
    assert (error["code"], str(tmp_path) in error["detail"]) == ("INVALID_ARGUMENT", True)
    error = bare.load(provider="nonesuch")
    assert (error["code"], "CPUExecutionProvider" in error["hint"]) == ("UNAVAILABLE", True)
    ready = bare.load()
    assert (ready["op"], ready["model"]["name"], ready["embedder"]) == ("ready", "smollm2-135m", {"dim": 384})


@pytest.mark.model
def test_text_streams_as_it_is_made(core: Core) -> None:
    """Chunks come while the job runs, their tokens add up, and together they are the text."""
    admitted = core.admit(prompt=STORY, max_tokens=40)
    core.send("run", job=admitted["job"], tokens=1000)
    first = core.receive()
    chunks = [first]
    while (message := core.receive())["op"] == "chunk":
        chunks.append(message)
    assert len(chunks) > 3
    assert first["tokens"] == 1
    assert sum(chunk["tokens"] for chunk in chunks) == message["decode"] == 40
    assert (message["prefill"], message["finish"]) == (admitted["prompt_tokens"], "length")


@pytest.mark.model
def test_greedy_text_is_the_runtimes_own(core: Core) -> None:
    """Sampled outside, sliced and streamed, greedy text equals that of the runtime's own generation loop."""
    script = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai as og
model = og.Model(sys.argv[1])
tokenizer = og.Tokenizer(model)
tokens = tokenizer.encode(sys.argv[2])
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(tokens) + 60, do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(tokens)
while not generator.is_done():
    generator.generate_next_token()
sys.stdout.write(tokenizer.decode(generator.get_sequence(0)[len(tokens):]))
"""
    prompt = STORY * 20  # several slices
    command = [sys.executable, "-c", script, str(MODEL), prompt]
    expected = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert core.generate(prompt=prompt, max_tokens=60) == expected


@pytest.mark.model
def test_logits_do_not_depend_on_how_a_prompt_came() -> None:
    """Read whole, in slices of any size, or from the point where it leaves what a cache holds: the same bits."""
    script = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from pathlib import Path
from llmos.kernel.core.job import next_slice
from llmos.kernel.core.model import load_model
model = load_model(Path(sys.argv[1]), "cpu")
prompt = model.tokenizer.encode(sys.argv[2])[:131]
other = [*prompt[:70], *prompt[:30]]
def logits(context, tokens, limit):
    at = context.align(tokens, len(tokens))
    while at < len(tokens):
        count = next_slice(len(tokens) - at, limit)
        model.engine.extend([(context, tokens[at:at + count])])
        at += count
    return context.logits().tobytes()
whole = logits(model.engine.open(lasting=False), prompt, 200)
for limit in (1, 3, 33, 130):
    assert logits(model.engine.open(lasting=False), prompt, limit) == whole, limit
kept = model.engine.open(lasting=True)
for tokens in (prompt, prompt, other, prompt, prompt[:50], prompt):
    assert (logits(kept, tokens, 128) == whole) == (tokens is prompt)
"""
    done = subprocess.run([sys.executable, "-c", script, str(MODEL), STORY * 20], capture_output=True, timeout=60)
    assert done.stderr == b""


@pytest.mark.model
def test_quanta_do_not_change_the_text(core: Core) -> None:
    """Any cut into quanta gives the text of one, drawn as well as greedy."""
    samplings: list[dict[str, Any]] = [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 4}]
    for extra in samplings:
        whole = core.generate(prompt=STORY, max_tokens=30, **extra)
        assert core.generate(quantum=3, prompt=STORY, max_tokens=30, **extra) == whole


@pytest.mark.model
def test_a_yield_interrupts_and_the_job_goes_on(core: Core) -> None:
    """A yield after the first chunk ends the quantum early, and the rest of the text comes with the next run."""
    whole = core.generate(prompt=STORY, max_tokens=60)
    admitted = core.admit(prompt=STORY, max_tokens=60)
    core.send("run", job=admitted["job"], tokens=1000)
    text = core.receive()["text"]
    core.send("yield")
    while (message := core.receive())["op"] == "chunk":
        text += message["text"]
    assert message["state"] == "more"
    assert message["decode"] < 60
    assert text + "".join(core.finish(admitted)[0]) == whole


@pytest.mark.model
def test_cancel_acts_in_the_middle_of_a_prompt(core: Core) -> None:
    """A cancel sent right behind the run of a prompt of thousands of tokens ends it after a few slices at most."""
    admitted = core.admit(prompt=STORY * 300, max_tokens=10)
    assert admitted["prompt_tokens"] > 3000
    core.send("run", job=admitted["job"], tokens=1 << 20)
    core.send("cancel", job=admitted["job"])
    message = core.receive()
    assert (message["state"], message["finish"]) == ("done", "cancelled")
    assert message["prefill"] <= 512
    assert core.ask("run", job=admitted["job"], tokens=1)["code"] == "NOT_FOUND"


@pytest.mark.model
def test_cancel_acts_in_the_middle_of_an_answer(core: Core) -> None:
    """A cancel after the first chunk ends the job tokens later, not hundreds."""
    admitted = core.admit(prompt=STORY, max_tokens=2000)
    core.send("run", job=admitted["job"], tokens=1 << 20)
    core.receive()
    core.send("cancel", job=admitted["job"])
    while (message := core.receive())["op"] == "chunk":
        pass
    assert (message["state"], message["finish"]) == ("done", "cancelled")
    assert message["decode"] < 100


@pytest.mark.model
def test_constrained_text_parses(core: Core) -> None:
    """Under a schema the text is JSON of that schema, whatever the sampling; choices and regex hold as well."""
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
        book = json.loads(core.generate(messages=messages, schema=schema, max_tokens=120, **sampling))
        assert list(book) == ["title", "pages", "kind"]
        assert 1 <= book["pages"] <= 999
        assert book["kind"] in ("novel", "poem")
    assert core.generate(prompt=STORY, choices=["über", "unter"], max_tokens=20) in ("über", "unter")
    assert core.generate(prompt=STORY, regex="[0-9]{4}-[0-9]{2}", max_tokens=20)[4] == "-"


@pytest.mark.model
def test_a_stop_string_is_no_part_of_the_text(core: Core) -> None:
    """The text ends just before it, and is otherwise what it would have been."""
    whole = core.generate(prompt=STORY, max_tokens=40)
    stop = whole[20:24]
    chunks, message = core.finish(core.admit(prompt=STORY, max_tokens=40, stop=[stop]))
    assert (("".join(chunks)), message["finish"]) == (whole[: whole.index(stop)], "stop")


@pytest.mark.model
def test_a_context_gives_the_text_of_a_cold_start(core: Core) -> None:
    """A prompt that shares its beginning with the last one is read from the difference on, the same prompt hardly at
    all, and each answer is the one that a fresh cache gives."""
    core.send("open", context=1)
    system = {"role": "system", "content": "You know much about animals."}
    asked = ["Name a fox.", "Name a whale and three kinds of fish.", "Name a whale and three kinds of fish."]
    for question, least in zip(asked, (0, 15, 25), strict=True):
        messages = [system, {"role": "user", "content": question}]
        cold = core.generate(messages=messages, max_tokens=24)
        admitted = core.admit(messages=messages, context=1, max_tokens=24)
        assert least <= admitted["cached_tokens"] < admitted["prompt_tokens"]
        chunks, message = core.finish(admitted)
        assert "".join(chunks) == cold
        assert message["prefill"] == admitted["prompt_tokens"] - admitted["cached_tokens"]
    core.send("close", context=1)


@pytest.mark.model
def test_a_conversation_reads_its_own_answer_from_the_cache(core: Core) -> None:
    """The next turn in a context reads the new question only: what was asked and answered before is still there."""
    core.send("open", context=3)
    talk = [{"role": "user", "content": "Name a fox."}]
    admitted = core.admit(messages=talk, context=3, max_tokens=24)
    chunks, message = core.finish(admitted)
    talk += [{"role": "assistant", "content": "".join(chunks)}, {"role": "user", "content": "And a bear."}]
    again = core.admit(messages=talk, context=3, max_tokens=24)
    assert again["cached_tokens"] >= admitted["prompt_tokens"] + message["decode"] - 2
    assert core.finish(again)[1]["prefill"] < 25
    core.send("close", context=3)


@pytest.mark.model
def test_a_context_outgrows_its_first_room(core: Core) -> None:
    """A job that may need more room than a context began with has its prompt read again, and gives the cold answer."""
    core.send("open", context=2)
    core.generate(prompt=STORY, context=2, max_tokens=8)
    request: dict[str, Any] = {"prompt": STORY + " Every", "max_tokens": 3000, "stop": [","]}
    admitted = core.admit(context=2, **request)
    assert admitted["cached_tokens"] == 0
    assert "".join(core.finish(admitted)[0]) == core.generate(**request)
    assert core.admit(context=2, **request)["cached_tokens"] >= admitted["prompt_tokens"] - 3
    core.send("close", context=2)
    assert core.receive()["finish"] == "cancelled"


@pytest.mark.model
def test_two_jobs_interleave_exactly(core: Core) -> None:
    """Two jobs taking turns token by token give what each gives alone."""
    prompts = [STORY, "The history of the bicycle began in"]
    alone = [core.generate(prompt=prompt, max_tokens=12) for prompt in prompts]
    jobs, texts = [core.admit(prompt=prompt, max_tokens=12) for prompt in prompts], ["", ""]
    open_jobs = [0, 1]
    while open_jobs:
        for index in list(open_jobs):
            core.send("run", job=jobs[index]["job"], tokens=5)
            while (message := core.receive())["op"] == "chunk":
                texts[index] += message["text"]
            if message["state"] == "done":
                open_jobs.remove(index)
    assert texts == alone


@pytest.mark.model
def test_a_prompt_over_the_window_names_both_numbers(core: Core) -> None:
    """It is refused at admission, before a token of it is read."""
    error = core.admit(prompt="word " * 9000)
    assert error["code"] == "TOO_LARGE"
    assert "8192" in error["detail"]
    assert "900" in error["detail"]


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
    """A yield pauses it, a run of few tokens does one batch of it, a longer one the rest, and a cancel ends it."""
    texts = [f"{number} " + "words of a text that is rather long " * 30 for number in range(16)]
    core.send("embed", job=9001, texts=texts)
    core.send("yield")
    paused = core.receive()
    assert (paused["op"], paused["state"]) == ("ran", "more")
    batch = core.ask("run", job=9001, tokens=1)
    assert batch["state"] == "more"
    assert 0 < batch["prefill"] < 1000
    resumed = core.ask("run", job=9001, tokens=1 << 20)
    assert (resumed["op"], len(resumed["vectors"])) == ("embedded", 16 * 384 * 4)
    core.send("embed", job=9002, texts=[f"x{text}" for text in texts])
    core.send("cancel", job=9002)
    assert core.receive()["finish"] == "cancelled"


@pytest.mark.model
def test_finished_jobs_leave_no_memory_behind(core: Core) -> None:
    """A cache is freed with its job: after many jobs with large caches the process is no larger than after a few."""

    def work(count: int) -> None:
        for number in range(count):
            core.finish(core.admit(prompt=f"{number} {STORY}", max_tokens=2000, stop=[" "]))

    work(4)
    before = core.resident()
    work(20)
    assert core.resident() - before < 60e6


@pytest.mark.model
def test_telemetry_is_off_before_the_runtime_is_imported() -> None:
    """The variable is set when the first module of the runtime is looked for, though the parent did not set it."""
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
    assert core.load()["op"] == "ready"
    core.send("shutdown")
    _, told = core.process.communicate(timeout=20)
    core.pipe.close()
    assert set(told.decode().split()) == {"imported", "onnxruntime=1", "onnxruntime_genai=1"}
    assert told.decode().split()[0] == "imported"


@pytest.mark.model
def test_a_killed_core_closes_its_pipe() -> None:
    """kill -9 in the middle of a job is seen at the other end as the end of the pipe."""
    core = Core()
    core.load(embedder=None)
    admitted = core.admit(prompt=STORY, max_tokens=2000)
    core.send("run", job=admitted["job"], tokens=1 << 20)
    assert core.receive()["op"] == "chunk"
    core.process.send_signal(signal.SIGKILL)
    with pytest.raises(PeerGone):
        drain(core)
    assert core.end() == -signal.SIGKILL


@pytest.mark.model
def test_a_core_ends_with_its_kernel() -> None:
    """When the kernel's end of the pipe closes, in the middle of a job, the core ends by itself; ^C does not end it."""
    core = Core()
    core.load(embedder=None)
    admitted = core.admit(prompt=STORY, max_tokens=2000)
    core.send("run", job=admitted["job"], tokens=1 << 20)
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
