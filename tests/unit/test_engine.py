"""The core's life and its models, with a pipe that ends in the test and a supervisor that starts nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.ipc.pipe import Pipe
from llmos.kernel import params
from llmos.kernel.engine import Engine
from llmos.kernel.models import Kind, Memory, Model, Models
from llmos.kernel.process import ProcessTable, State
from tests.unit.inference_world import World, install

Message = dict[str, Any]


class Supervisor:
    """Starts a core by taking the engine's descriptor for it."""

    def __init__(self) -> None:
        self.started = 0
        self.readied = 0
        self.killed: list[str] = []

    def put_down(self, process: Any, reason: str) -> None:
        self.killed.append(reason)

    def start(self, process: Any) -> None:
        self.started += 1

    restart = start

    def ready(self, process: Any) -> None:
        self.readied += 1


class Home(World):
    """The world's jobs and contexts, over a real engine."""

    def __init__(self, store: Path, *, first: str | None = "small") -> None:
        super().__init__(store)
        self.models = Models(store)
        self.supervisor = Supervisor()
        self.remembered: dict[str, str] = {}
        self.told: list[tuple[str, str]] = []
        journal = SimpleNamespace(get=self.remembered.get, set=self.remembered.__setitem__)
        self.engine = Engine(
            self.loop,
            self.models,
            ProcessTable(),
            self.supervisor,  # type: ignore[arg-type]
            journal,  # type: ignore[arg-type]
            store,
            lambda model, state: self.told.append((model.name, state)),
        )
        self.inference._core, self.inference._models = self.engine, self.models
        self.engine.work = self.inference
        self.pipe: Pipe | None = None
        self.engine.choose(first)
        self.models.memory = Memory(10_000, 1 << 20, 0)

    def boot(self) -> Message:
        """A core comes up. → what it is told of limits."""
        self.engine.drivers_ready()
        self.close()
        self.pipe = Pipe(socket.socket(fileno=self.engine.attach()))
        return self.heard()

    def heard(self) -> Message:
        """What the core is told next."""
        assert self.pipe is not None
        message = self.pipe.receive(1)
        assert message is not None, "nothing"
        return message

    def nothing(self) -> bool:
        assert self.pipe is not None
        return self.pipe.receive(0.01) is None

    def say(self, op: str, **fields: Any) -> None:
        """The core says something, and the loop hears it."""
        assert self.pipe is not None
        self.pipe.send({"op": op, **fields})
        self.loop.later(0, lambda: None)
        self.loop.turn()

    def loaded(self) -> str:
        """The core loads what it is told to. → the model's name."""
        message = self.heard()
        assert message["op"] == "load"
        self.say("ready", model=message["model"], info={"kv_bytes": 1}, load_ms=1, warnings=[])
        return str(message["model"])

    def dies(self, reason: str = "killed", state: State = State.WAITING) -> None:
        self.engine.detach(SimpleNamespace(state=state), reason)  # type: ignore[arg-type]

    def load(self, name: str) -> Any:
        call = self.call("llm.load")
        self.engine.load(name, call)
        return call

    def unload(self, name: str) -> Any:
        call = self.call("llm.unload")
        self.engine.unload(name, call)
        return call

    def states(self) -> dict[str, str]:
        return {model.name: model.state.value for model in self.models}

    def close(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "models")
    yield made
    made.dies()
    made.close()


def test_a_core_is_told_its_limits_and_loads_the_default_first(home: Home) -> None:
    """Then the others, one at a time; it is up after the first."""
    limits = home.boot()
    assert (limits["op"], limits["kv_bytes"], limits["spill_dir"]) == ("limits", 1 << 20, str(home.models.store))
    assert home.engine.state == "loading"
    load = home.heard()
    assert (load["model"], load["kind"], load["folder"]) == ("small", "generator", str(home.models.store / "small"))
    assert home.nothing()
    home.say("ready", model="small", info={"kv_bytes": 1}, load_ms=1)
    assert home.supervisor.readied
    assert home.loaded() == "minilm"
    assert (home.engine.state, home.states()) == ("ready", {"small": "ready", "minilm": "ready"})


def test_jobs_wait_for_the_model_that_is_being_loaded(home: Home) -> None:
    """And go to the core when it is there."""
    call = home.generate("hello")
    home.boot()
    assert home.loaded() == "small"
    assert {home.heard()["op"], home.heard()["op"]} == {"job", "load"}
    assert not call.done


def test_a_model_that_cannot_be_loaded_is_left_out(home: Home) -> None:
    """With its own error, for those that wait for it; the others are loaded, and it is tried again when it is loaded again."""
    waiting = home.generate("hello")
    home.boot()
    home.heard()
    home.say("error", about="load", model="small", code="INVALID_ARGUMENT", detail="it is torn")
    assert "torn" in home.reply(waiting)["detail"]
    assert home.loaded() == "minilm"
    assert (home.engine.state, home.engine.problem) == ("failed", "INVALID_ARGUMENT: it is torn")
    with pytest.raises(OpError, match="torn"):
        home.generate("again")
    again = home.load("small")
    assert home.loaded() == "small"
    assert home.reply(again)["model"]["name"] == "small"


def test_a_model_that_kills_the_core_twice_is_left_out(home: Home) -> None:
    """Once may be bad luck, and a kill may be anybody's; the others are loaded after it."""
    for reason in ("killed by SIGKILL: no memory", "killed by SIGSEGV"):
        home.boot()
        assert home.heard()["model"] == "small"
        home.dies(reason)
    assert "SIGSEGV" in home.engine.problem
    home.boot()
    assert home.loaded() == "minilm"
    assert home.states() == {"small": "failed", "minilm": "ready"}


def test_a_core_that_others_kill_is_given_more_tries(home: Home) -> None:
    """Nobody leaves the default out by killing the core twice; if memory is short it ends in the end."""
    for _ in range(params.LOAD_KILLS):
        assert home.engine.state == "starting"
        home.boot()
        home.heard()
        home.dies("killed by SIGKILL: no memory")
    assert home.engine.state == "failed"


def test_all_models_come_back_after_a_crash(home: Home) -> None:
    """The default first, and those that were loaded besides."""
    install(home.models.store, "other")
    home.boot()
    home.loaded()
    home.loaded()
    home.load("other")
    assert home.loaded() == "other"
    home.dies()
    assert set(home.states().values()) == {"waiting"}
    home.boot()
    assert [home.loaded() for _ in range(3)] == ["small", "minilm", "other"]


def test_the_one_used_longest_ago_makes_room(home: Home) -> None:
    """Idle ones only, and the default last of all; what went is named."""
    for name in ("a", "b", "c"):
        install(home.models.store, name, 4000)
    home.boot()
    home.loaded()
    home.loaded()
    for name in ("a", "b"):
        home.now += 1
        home.load(name)
        home.loaded()
    home.now += 1
    home.engine.need("a")
    call = home.load("c")
    assert home.heard() == {"op": "unload", "model": "b"}
    home.loaded()
    assert home.reply(call)["unloaded"] == ["b"]
    with pytest.raises(OpError, match="not loaded") as caught:
        home.engine.need("b")
    assert caught.value.code is Code.UNAVAILABLE
    home.inference.open("user", 1, "a")
    home.inference.open("user", 1, "c")
    install(home.models.store, "huge", 9000)
    with pytest.raises(OpError) as caught:
        home.load("huge")
    assert caught.value.code is Code.BUSY
    install(home.models.store, "vast", 11_000)
    with pytest.raises(OpError) as caught:
        home.load("vast")
    assert caught.value.code is Code.TOO_LARGE
    assert set(home.states()) == {"small", "minilm", "a", "c"}


def test_an_unloaded_model_is_told_to_its_callers_and_the_default_comes_back(home: Home) -> None:
    """The call is answered when the core has let go of it."""
    home.boot()
    home.loaded()
    home.loaded()
    job = home.generate("hello")
    call = home.unload("small")
    assert home.reply(job)["code"] == "CANCELLED"
    assert not call.done
    home.say("unloaded", model="small")
    assert home.reply(call) == {"model": "small"}
    assert home.engine.state == "unloaded"
    home.generate("hello")
    assert home.engine.state in ("starting", "loading")
    with pytest.raises(OpError) as caught:
        home.unload("nothing")
    assert caught.value.code is Code.NOT_FOUND


def test_a_core_that_is_given_up_fails_what_waits_and_comes_back_when_asked(home: Home) -> None:
    """Nobody waits for ever."""
    waiting, loading = home.generate("hello"), home.load("small")
    home.boot()
    home.dies("it crashed", State.FAILED)
    assert home.reply(waiting)["code"] == home.reply(loading)["code"] == "UNAVAILABLE"
    assert home.engine.state == "failed"
    with pytest.raises(OpError, match="crashed"):
        home.generate("again")
    home.load("small")
    home.boot()
    assert home.loaded() == "small"


def test_a_load_that_takes_for_ever_is_noticed(home: Home) -> None:
    """It has its own time-out: nobody works meanwhile."""
    home.boot()
    home.now += params.LOAD_S - 1
    assert not home.engine.stuck()
    home.now += 2
    assert "load" in home.engine.stuck()


@pytest.mark.parametrize(
    "message",
    [
        {"op": "ready"},
        {"op": "ready", "model": "small", "info": {"kv_bytes": float("inf")}, "load_ms": 1},
        {"op": "ready", "model": "small", "info": {"rows": -1}, "load_ms": 1},
        {"op": "error", "about": "load", "model": []},
        [[[]]],
    ],
)
def test_nonsense_ends_the_core(home: Home, message: Any) -> None:
    """A model file may have taken it over: the pipe is closed, and it is killed, since it need not end by itself."""
    home.boot()
    assert home.pipe is not None
    home.pipe.send(message)
    home.loop.turn()
    with pytest.raises(ConnectionError):
        home.heard(), home.heard()
    assert home.supervisor.killed == ["it said what no core says"]


def test_a_named_default_is_remembered_and_one_of_no_use_is_refused(home: Home) -> None:
    """From now on and for the next start."""
    install(home.models.store, "other")
    assert home.engine.default(None) == "small"
    assert home.engine.default("other") == home.remembered["model"] == "other"
    for name, code in (("missing", Code.NOT_FOUND), ("minilm", Code.INVALID_ARGUMENT)):
        with pytest.raises(OpError) as caught:
            home.engine.default(name)
        assert caught.value.code is code


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    """No core is started; the first model that is loaded becomes the default."""
    (tmp_path / "models").mkdir()
    home = Home.__new__(Home)
    World.__init__(home, tmp_path / "elsewhere")
    models = Models(tmp_path / "models")
    engine = Engine(
        home.loop,
        models,
        ProcessTable(),
        Supervisor(),  # type: ignore[arg-type]
        SimpleNamespace(get=lambda name: None, set=lambda name, value: None),  # type: ignore[arg-type]
        tmp_path,
        lambda model, state: None,
    )
    engine.work = home.inference
    engine.choose(None)
    assert engine.state == "none"
    for kind in Kind:
        with pytest.raises(OpError, match="is installed") as caught:
            engine.need(None, kind)
        assert "llmosctl model pull" in str(caught.value.hint)
    with pytest.raises(OpError) as caught:
        engine.choose("missing")
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("machine", "first", "environment", "weights", "kv"),
    [
        (16 << 30, 0, {}, 0.3 * (16 << 30), 0.3 * (16 << 30)),
        (16 << 30, 4 << 30, {}, None, (0.6 * (16 << 30) - (4 << 30)) / 2),
        (1 << 30, 1 << 30, {}, None, params.KV_LEAST),
        (1 << 30, 0, {"LLMOS_MODEL_MEMORY": "8G", "LLMOS_KV_MEMORY": "1024M"}, 7 << 30, 1 << 30),
    ],
)
def test_memory_is_divided(
    machine: int, first: int, environment: dict[str, str], weights: float | None, kv: float
) -> None:
    """KV gets half of what the default's weights leave of the share, and no less than a minimum; the environment has the last word."""
    plan = Memory.plan(machine, first, 100 << 30, environment)
    assert plan.kv == pytest.approx(kv, abs=2)
    if weights is not None:
        assert plan.weights == pytest.approx(weights, abs=2)
    assert plan.spill == params.SPILL_MOST


@pytest.mark.parametrize("text", ["much", "-1", "1.5G", "1T"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    """With the variable's name, at boot."""
    with pytest.raises(OpError, match="LLMOS_SPILL") as caught:
        Memory.plan(1 << 30, 0, 0, {"LLMOS_SPILL": text})
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_model_is_known_by_what_lies_in_its_folder(tmp_path: Path) -> None:
    """A folder of something else, a file, a link to nowhere are none; a name that leads out of the store is none either."""
    models = Models(tmp_path)
    install(tmp_path, "text")
    install(tmp_path, "vectors", embedding=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/nowhere")
    assert (models.names(), models.names(Kind.EMBEDDING)) == (["text"], ["vectors"])
    assert isinstance(models.installed("text"), Model)
    for name in ("empty", "file", "link", "missing"):
        with pytest.raises(OpError):
            models.installed(name)
