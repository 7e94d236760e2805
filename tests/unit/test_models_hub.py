"""Models of the hub: pulled whole or not at all, whatever the hub, the network, or the files say."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc.errors import Code
from llmos.userland.models import catalog, description, download, genai_folder, hub, hub_install, store
from llmos.userland.models.catalog import Entry, HubSource
from llmos.userland.models.errors import ModelError
from llmos.userland.models.graph_check import check_graph
from llmos.userland.models.hub import HubSettings
from llmos.userland.models.importer import import_gguf
from llmos.userland.models.index import Settings
from llmos.userland.models.install import pull
from tests.unit.hub_server import COMMIT, FakeHub
from tests.unit.tiny_gguf import TinyModel

DIRECT = Settings(indexes=(), find_links=(), cert=None, trusted_hosts=frozenset(), proxy=None, timeout=5.0)
CPU = "cpu_and_mobile/cpu-int4"
TAKEN = ("genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json")


def nothing(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny model's GenAI folder."""
    place = tmp_path_factory.mktemp("tiny")
    made = import_gguf(TinyModel(layers=1).write(place / "tiny.gguf"), place, "tiny", lambda done, total, what: None)
    files = {name: (made / name).read_bytes() for name in TAKEN}
    assert len(files["model.onnx.data"]) > 20_000
    return files


@pytest.fixture
def server(folder: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tiny model for the CPU, the same for CUDA, and what nobody wants; nothing waits between tries.

    Graphs are looked over in this process; `tests/system/test_cli.py` has the jail.
    """
    monkeypatch.setattr(hub_install, "check_in_process", lambda file, scratch, start: check_graph(file))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(download.fetch, "__defaults__", (lambda seconds: None,))
    monkeypatch.setattr(hub.Hub.__init__, "__defaults__", (lambda seconds: None,))
    files = {f"{CPU}/{name}": content for name, content in folder.items()}
    files |= {f"cuda/cuda-int4/{name}": content for name, content in folder.items()}
    files |= {
        "README.md": b"# tiny",
        f"{CPU}/modeling.py": b"raise SystemExit",
        f"{CPU}/weights.pkl": b"cos\nsystem\n.",
    }
    with FakeHub(files).running() as running:
        yield running


def get(server: FakeHub, what: str = "hf:owner/tiny", token: str | None = None, **options: Any) -> store.Model:
    settings = HubSettings(server.url, token)
    return pull(what, options.pop("progress", nothing), settings=DIRECT, hub=settings, **options)


def refused(server: FakeHub, code: Code, match: str, what: str = "hf:owner/tiny", **options: Any) -> ModelError:
    """The error of a pull that fails as it should and leaves no model."""
    with pytest.raises(ModelError, match=match) as caught:
        get(server, what, **options)
    assert caught.value.code is code, caught.value
    assert store.list() == []
    return caught.value


def downloads(home: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in (home / "models" / ".downloads").glob("*")}


def change(server: FakeHub, name: str, content: bytes | str) -> None:
    server.files[f"{CPU}/{name}"] = content if isinstance(content, bytes) else content.encode()


def configure(server: FakeHub, **changes: Any) -> None:
    """Change keys of the configuration, named by their path with dots as `__`."""
    said = json.loads(server.files[f"{CPU}/genai_config.json"])
    for path, value in changes.items():
        *places, key = path.split("__")
        inner = said
        for place in places:
            inner = inner.setdefault(place, {})
        inner[key] = value
    change(server, "genai_config.json", json.dumps(said))


# -- what is installed --------------------------------------------------------------------------------------------------


def test_the_folder_for_the_cpu_is_installed(server: FakeHub, llmos_home: Path, folder: dict[str, bytes]) -> None:
    """Of several folders the one for the CPU is chosen; its files arrive as they are, with nothing that was not needed."""
    seen: set[str] = set()
    model = get(server, progress=lambda what, done, total: seen.add(what))
    assert (model.name, model.kind, model.license, model.problem) == ("tiny", "generator", "mit", "")
    assert model.source == f"hf:owner/tiny/{CPU}@{COMMIT[:12]}"
    assert {file.name for file in model.path.iterdir()} == {*TAKEN, "llmos.json"}
    for name in TAKEN[1:]:
        assert (model.path / name).read_bytes() == folder[name]
    assert json.loads((model.path / "genai_config.json").read_bytes()) == json.loads(folder["genai_config.json"])
    said = description.read(model.path)
    assert (said["context"], said["quantisation"], said["eos"]) == (64, "int8 block 64", [2, 0])
    assert "fetching model.onnx.data" in seen
    assert downloads(llmos_home) == {}


def test_an_installed_model_is_not_asked_for_again(server: FakeHub, llmos_home: Path) -> None:
    """The same reference returns at once; another one under the same name is a conflict, and `name` settles it."""
    model = get(server)
    before = len(server.asked)
    assert get(server) == model
    assert get(server, f"hf:owner/tiny/{CPU}@{COMMIT[:7]}") == get(server, "hf:owner/tiny@main") == model
    assert len(server.asked) == before
    for other in ("hf:owner/tiny/cuda/cuda-int4", "hf:other/tiny", "hf:owner/tiny@abc"):
        with pytest.raises(ModelError, match="another model") as caught:
            get(server, other)
        assert caught.value.code is Code.CONFLICT
    assert get(server, "hf:owner/tiny/cuda/cuda-int4", name="other").name == "other"


def test_the_core_loads_what_was_pulled(server: FakeHub, llmos_home: Path) -> None:
    """The installed folder is one that the engine runs."""
    from llmos.kernel.core.model import load_model

    loaded = load_model(get(server).path, "cpu")
    assert loaded.info.name == "tiny"


def test_a_graph_of_another_name_is_renamed(server: FakeHub, llmos_home: Path, folder: dict[str, bytes]) -> None:
    """Whatever the graph is called at the hub, here it is `model.onnx`, and the configuration says so."""
    server.files[f"{CPU}/phi-cpu.onnx"] = server.files.pop(f"{CPU}/model.onnx")
    configure(server, model__decoder__filename="phi-cpu.onnx")
    model = get(server)
    assert (model.path / "model.onnx").read_bytes() == folder["model.onnx"]
    assert json.loads((model.path / "genai_config.json").read_bytes())["model"]["decoder"]["filename"] == "model.onnx"


def test_files_of_one_content(server: FakeHub, llmos_home: Path) -> None:
    """Two names for the same bytes are two files."""
    change(server, "added_tokens.json", "{}")
    change(server, "special_tokens_map.json", "{}")
    folder = get(server).path
    assert (folder / "added_tokens.json").read_bytes() == (folder / "special_tokens_map.json").read_bytes() == b"{}"


def test_a_gguf_is_imported(server: FakeHub, llmos_home: Path, tmp_path: Path) -> None:
    """A GGUF file of the hub goes through the importer; where it came from is written down beside its digest."""
    content = TinyModel(layers=1).write(tmp_path / "t.gguf").read_bytes()
    server.files["Tiny-Q4_1.gguf"] = content
    model = get(server, "hf:owner/tiny/Tiny-Q4_1.gguf")
    source = description.read(model.path)["source"]
    assert (model.name, source["hub"], source["path"]) == ("tiny-q4_1", "owner/tiny", "Tiny-Q4_1.gguf")
    assert source["sha256"] == hashlib.sha256(content).hexdigest()
    assert downloads(llmos_home) == {}


def test_a_long_list_comes_in_pages(server: FakeHub, llmos_home: Path) -> None:
    """All pages of the list are read."""
    server.page = 3
    assert get(server).problem == ""


def test_a_list_of_too_many_files_is_given_up_on(
    server: FakeHub, llmos_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list costs memory: pages that are longer than a hub's are counted too."""
    monkeypatch.setattr(hub, "FILES", 2)
    monkeypatch.setattr(hub, "ASKS", 1)
    refused(server, Code.UNAVAILABLE, "more than 2 files")


def test_names_that_would_command_a_terminal_are_not_seen(server: FakeHub, llmos_home: Path) -> None:
    """What a hub calls its files is shown in hints."""
    server.files = {"m-Q8_0.gguf": b"x", "\x1b]0;owned\x07.gguf": b"x"}
    hint = refused(server, Code.NOT_FOUND, "no GenAI folder").hint or ""
    assert "m-Q8_0.gguf" in hint
    assert hint.isprintable()


# -- which folder -------------------------------------------------------------------------------------------------------


def test_several_folders_that_would_do_are_listed(server: FakeHub, llmos_home: Path) -> None:
    """Two for the CPU: the hint names them all; naming one installs it."""
    for path in [path for path in server.files if path.startswith(CPU)]:
        server.files[path.replace("int4", "int8")] = server.files[path]
    error = refused(server, Code.INVALID_ARGUMENT, "2 of them for the CPU")
    assert f"hf:owner/tiny/{CPU}, " in (error.hint or "")
    assert "hf:owner/tiny/cuda/cuda-int4" in (error.hint or "")
    assert get(server, f"hf:owner/tiny/{CPU}").source.startswith(f"hf:owner/tiny/{CPU}@")


def test_no_folder_at_all(server: FakeHub, llmos_home: Path) -> None:
    """A repository of something else says what there is; one with GGUF files names them."""
    server.files = {"model.safetensors": b"x", "m-Q8_0.gguf": b"x"}
    assert "hf:owner/tiny/m-Q8_0.gguf" in (refused(server, Code.NOT_FOUND, "no GenAI folder").hint or "")
    assert "m-Q8_0.gguf" in (refused(server, Code.NOT_FOUND, "no genai_config", "hf:owner/tiny/cpu").hint or "")
    assert "m-Q8_0.gguf" in (refused(server, Code.NOT_FOUND, "no such file", "hf:owner/tiny/n.gguf").hint or "")
    server.files = {"model.safetensors": b"x"}
    assert "GenAI folders" in (refused(server, Code.NOT_FOUND, "no GenAI folder").hint or "")


def test_a_folder_for_other_hardware_has_to_be_named(server: FakeHub, llmos_home: Path) -> None:
    """What is for CUDA alone is not chosen for a processor, by its path or by its configuration."""
    server.files = {path: content for path, content in server.files.items() if path.startswith("cuda/")}
    refused(server, Code.INVALID_ARGUMENT, "0 of them for the CPU")
    server.files = {path.replace("cuda/cuda-int4/", ""): content for path, content in server.files.items()}
    said = json.loads(server.files["genai_config.json"])
    said["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"enable_cuda_graph": "0"}}]
    server.files["genai_config.json"] = json.dumps(said).encode()
    refused(server, Code.INVALID_ARGUMENT, "made for cuda")


@pytest.mark.parametrize(
    ("path", "provider"),
    [
        (CPU, "cpu"),
        ("gpu/gpu-int4-rtn-block-32", "cuda"),
        ("directml/x", "dml"),
        ("onnx", None),
        ("qnn-npu", "npu"),
        ("", None),
    ],
)
def test_a_path_says_what_it_is_for(path: str, provider: str | None) -> None:
    """By its words."""
    assert genai_folder.provider_of(path) == provider


# -- the network --------------------------------------------------------------------------------------------------------


def test_a_cut_connection_is_continued(server: FakeHub, llmos_home: Path) -> None:
    """After a cut only the rest is asked for, from a fresh address of the storage."""
    server.cut, server.cuts = 10_000, 2
    get(server)
    assert "bytes=10000-" in [asked for _, asked, _ in server.asked]


def test_an_interrupted_pull_goes_on(server: FakeHub, llmos_home: Path) -> None:
    """What a failed pull brought is kept, and the next one asks for the rest only, even by another reference."""
    address = f"/storage/{CPU}/model.onnx.data"

    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "fetching model.onnx.data" and done > 5_000:
            raise Stop

    with pytest.raises(Stop):
        get(server, progress=stop)
    assert store.list() == []
    part = next(size for name, size in downloads(llmos_home).items() if name.endswith(".part"))
    assert part > 5_000
    server.asked.clear()
    get(server, f"hf:owner/tiny/{CPU}@main")
    fetched = [(path, asked) for path, asked, _ in server.asked if path.startswith("/storage/")]
    assert fetched == [(address, f"bytes={part}-")]


@pytest.mark.parametrize("content", [b"x", b""])
def test_a_truncated_file_is_not_installed(server: FakeHub, llmos_home: Path, content: bytes) -> None:
    """A storage that has less than the list says is given up on, and its name is in the error."""
    server.served[f"{CPU}/model.onnx.data"] = content
    assert "model.onnx.data" in refused(server, Code.UNAVAILABLE, "stopped at").detail


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json"])
def test_a_wrong_hash_is_not_installed(server: FakeHub, llmos_home: Path, name: str) -> None:
    """Files are checked by SHA-256 where they lie in the storage, otherwise by their git id; nothing wrong is kept."""
    right = server.files[f"{CPU}/{name}"]
    server.served[f"{CPU}/{name}"] = right[:-1] + bytes([right[-1] ^ 1])
    refused(server, Code.UNAVAILABLE, f"{name} is not the file it should be")
    assert not [file for file in downloads(llmos_home) if file.endswith(".part")]


def test_an_endless_body_fills_no_disk(server: FakeHub, llmos_home: Path) -> None:
    """Of a body without an end no more than one byte beyond what the list says is ever written."""
    server.endless = {f"{CPU}/model.onnx.data"}
    limit = len(server.files[f"{CPU}/model.onnx.data"])
    seen = [0]

    def look(what: str, done: int, total: int) -> None:
        seen.extend(size for name, size in downloads(llmos_home).items() if name.endswith(".part") and total == limit)

    refused(server, Code.UNAVAILABLE, "longer than it should be", progress=look)
    assert 0 < max(seen) <= limit + 1


def test_a_list_without_an_end_is_given_up_on(
    server: FakeHub, llmos_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither endless pages nor a page of any length are read."""
    with monkeypatch.context() as small:
        small.setattr(hub, "ANSWER_BYTES", 1000)
        refused(server, Code.UNAVAILABLE, "longer than")
    monkeypatch.setattr(hub, "PAGES", 5)
    server.page = 0
    refused(server, Code.UNAVAILABLE, "pages")


@pytest.mark.parametrize(
    ("entry", "code", "match"),
    [
        ({"size": 10**15, "lfs": {"oid": "0" * 64, "size": 10**15}}, Code.UNAVAILABLE, "are needed"),
        ({"lfs": {"oid": "0" * 64, "size": 100}}, Code.INVALID_ARGUMENT, "the graph reads"),
        ({"lfs": {"oid": "0" * 64, "size": -1}}, Code.INVALID_ARGUMENT, "no data file"),
        ({"lfs": {"oid": "../../../etc/passwd", "size": 100}}, Code.INVALID_ARGUMENT, "no data file"),
        ({"lfs": {"oid": "0" * 64, "size": "many"}}, Code.INVALID_ARGUMENT, "no data file"),
    ],
    ids=["huge", "small", "negative", "path for a digest", "not a number"],
)
def test_a_list_that_lies_about_sizes(
    server: FakeHub, llmos_home: Path, entry: dict[str, Any], code: Code, match: str
) -> None:
    """What cannot be true is refused before its bytes are fetched."""
    server.entries[f"{CPU}/model.onnx.data"] = entry
    refused(server, code, match)
    assert server.ranges(f"{CPU}/model.onnx.data") == []


def test_a_list_that_says_less_than_there_is(server: FakeHub, llmos_home: Path) -> None:
    """A body longer than the list says is refused."""
    content = server.files[f"{CPU}/model.onnx.data"]
    server.served[f"{CPU}/model.onnx.data"] = content + b"more"
    refused(server, Code.UNAVAILABLE, "longer than it should be")


@pytest.mark.parametrize("answer", [b"<html>log in</html>", b"[]", b'{"sha": "main"}', b"{" * 100_000, b'{"sha": 7}'])
def test_an_answer_that_is_none(server: FakeHub, llmos_home: Path, answer: bytes) -> None:
    """A captive portal's page, or anything else, is no hub's answer, and is said to be none."""
    server._answer = lambda address, query: ({}, answer)  # type: ignore[method-assign]
    assert "HF_ENDPOINT" in (refused(server, Code.UNAVAILABLE, "hub").hint or "")


# -- who may ------------------------------------------------------------------------------------------------------------


def test_a_gated_model_says_what_to_do(server: FakeHub, llmos_home: Path) -> None:
    """Without a token, or with one that may not, the hint says how to be let in; with the right one it is installed."""
    server.token = "hf_right"
    assert "HF_TOKEN" in (refused(server, Code.UNAVAILABLE, "accept conditions").hint or "")
    error = refused(server, Code.UNAVAILABLE, "accept conditions", token="hf_wrong")
    assert "hf_wrong" not in f"{error.detail} {error.hint}"
    assert get(server, token="hf_right").problem == ""


def test_the_token_stays_with_the_hub(server: FakeHub, llmos_home: Path) -> None:
    """A storage at another origin, to which the hub redirects, never sees the token; the hub itself always does."""
    with FakeHub(server.files).running() as storage:
        server.storage, server.token = storage.url, "hf_right"
        get(server, token="hf_right")
        assert storage.asked
        assert {token for _, _, token in storage.asked} == {None}
    assert {token for _, _, token in server.asked} == {"Bearer hf_right"}


def test_the_token_goes_over_no_open_network() -> None:
    """A hub that is asked over plain http on another machine gets no token."""
    network = hub.HubNetwork(DIRECT, HubSettings("http://hub.example", "hf_right"))
    assert network.credentials("http://hub.example/api") is None
    network = hub.HubNetwork(DIRECT, HubSettings("https://hub.example", "hf_right"))
    assert network.credentials("https://hub.example/api") == "Bearer hf_right"
    assert network.credentials("https://hub.example.evil/api") is None
    assert network.credentials("https://hub.example:8443/api") is None
    assert "hf_right" not in repr(HubSettings("https://hub.example", "hf_right"))


@pytest.mark.parametrize(
    ("status", "headers", "code", "match", "tries"),
    [
        (401, {}, Code.UNAVAILABLE, "not for everybody", 1),
        (403, {}, Code.UNAVAILABLE, "not for everybody", 1),
        (404, {"X-Error-Code": "RevisionNotFound"}, Code.NOT_FOUND, "404", 1),
        (404, {}, Code.NOT_FOUND, "404", 1),
        (429, {"Retry-After": "7"}, Code.UNAVAILABLE, "429", hub.ASKS),
        (500, {}, Code.UNAVAILABLE, "500", hub.ASKS),
    ],
)
def test_refusals_of_the_hub(
    server: FakeHub, llmos_home: Path, status: int, headers: dict[str, str], code: Code, match: str, tries: int
) -> None:
    """Each refusal has its code and a hint, and only those that may pass are tried again."""
    server.failing["/api/models/owner/tiny"] = (status, headers, 99)
    assert refused(server, code, match).hint
    assert len(server.asked) == tries


def test_a_refusal_that_passes(server: FakeHub, llmos_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy hub is asked again when it says, and then answers; so is a storage whose address has expired."""
    waited: list[float] = []
    monkeypatch.setattr(hub.Hub.__init__, "__defaults__", (waited.append,))
    server.failing["/api/models/owner/tiny"] = (429, {"Retry-After": "7"}, 1)
    server.failing[f"/storage/{CPU}/model.onnx"] = (503, {}, 1)
    get(server)
    assert waited == [7.0]


def test_an_address_of_the_storage_that_has_expired(server: FakeHub, llmos_home: Path) -> None:
    """The hub is asked for another one: 403 means something else there than at the hub."""
    with FakeHub(server.files).running() as storage:
        server.storage = storage.url
        storage.failing[f"/storage/{CPU}/model.onnx.data"] = (403, {}, 1)
        get(server)
    assert server.ranges(f"{CPU}/model.onnx.data") == [None, None]


def test_a_redirect_out_of_the_web_is_not_followed(server: FakeHub, llmos_home: Path) -> None:
    """Neither to a file of this machine nor to another protocol."""
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.failing[server.place(f"{CPU}/model.onnx")] = (302, {"Location": address}, 99)
        refused(server, Code.UNAVAILABLE, "not followed|not allowed")


def test_offline(server: FakeHub, llmos_home: Path) -> None:
    """HF_HUB_OFFLINE asks nobody; a hub that is not there is said to be not there."""
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE") as caught:
        pull("hf:owner/tiny", nothing, settings=DIRECT, hub=HubSettings(server.url, offline=True))
    assert (caught.value.code, server.asked) == (Code.UNAVAILABLE, [])
    error = refused(FakeHub(url="http://127.0.0.1:1"), Code.UNAVAILABLE, "refused")
    assert "network" in (error.hint or "")


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    """As the hub's own tools take them; a token that cannot be one is refused without being repeated."""
    (tmp_path / "token").write_text("hf_file\n")
    base = {"HF_HOME": str(tmp_path)}
    assert hub.read_hub_settings(base) == HubSettings(hub.ENDPOINT, "hf_file")
    read = hub.read_hub_settings(
        {**base, "HF_TOKEN": "hf_env", "HF_ENDPOINT": "https://m.example/", "HF_HUB_OFFLINE": "1"}
    )
    assert read == HubSettings("https://m.example", "hf_env", offline=True)
    assert hub.read_hub_settings({"HF_HOME": str(tmp_path / "none")}).token is None
    for wrong in ({"HF_ENDPOINT": "file:///x"}, {"HF_TOKEN": "hf_se\ncret"}):
        with pytest.raises(ModelError) as caught:
            hub.read_hub_settings({**base, **wrong})
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert "cret" not in str(caught.value)


# -- hostile files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model__decoder__filename": "../../../etc/model.onnx"}, "names no graph|reaches out"),
        ({"model__decoder__filename": "/etc/model.onnx"}, "reaches out|names no graph"),
        ({"model__decoder__filename": "model.py"}, "names no graph|reaches out"),
        ({"model__decoder__filename": "missing.onnx"}, "not there"),
        ({"model__decoder__session_options__custom_ops_library": "ops.so"}, "custom_ops_library"),
        ({"model__decoder__session_options__custom_ops_library": ""}, "custom_ops_library"),
        ({"model__decoder__session_options__enable_profiling": "/tmp/p"}, "enable_profiling"),
        ({"model__decoder__session_options__ep.context_file_path": "x"}, r"ep\.context_file_path"),
        ({"model__decoder__session_options__session.x": "..\\x"}, "reaches out"),
        (
            {"model__decoder__session_options__provider_options": [{"qnn": {"backend_path": "Q"}}]},
            "backend_path",
        ),
        ({"model__decoder__session_options__provider_options": [{"x": {"lib": "libevil.so.1"}}]}, "reaches out"),
        ({"model__vision": {"filename": "vision.onnx"}}, "more files"),
        ({"model__speech": {"x": 1}}, "more graphs"),
        ({"model__decoder__pipeline": [{"a": {"b": 1}}]}, "more graphs"),
        ({"model__decoder__num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"model__vocab_size": -1}, "vocab_size"),
        ({"model__eos_token_id": "x"}, "eos_token_id"),
        ({"model": []}, "does not describe"),
    ],
)
def test_hostile_configurations(server: FakeHub, llmos_home: Path, changes: dict[str, Any], match: str) -> None:
    """A configuration that names files, libraries or places, or is none, is refused before the graph is fetched."""
    configure(server, **changes)
    refused(server, Code.INVALID_ARGUMENT, match)
    assert server.ranges(f"{CPU}/model.onnx") == []
    assert downloads(llmos_home) == {}


@pytest.mark.parametrize("text", ["{", "[" * 50_000, "null", "\xff", "{}"])
def test_configurations_that_are_none(text: str) -> None:
    """What is no JSON, or no configuration, is refused."""
    with pytest.raises(ModelError) as caught:
        genai_folder.read_configuration(text.encode("latin-1"))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_configuration_that_two_readers_would_read_differently(folder: dict[str, bytes]) -> None:
    """A key that stands there twice is refused: one reader takes the first, another the last."""
    twice = b'"session_options": {"custom_ops_library": "evil.so"}, "session_options": {'
    content = folder["genai_config.json"].replace(b'"session_options": {', twice)
    with pytest.raises(ModelError, match="twice"):
        genai_folder.read_configuration(content)


def test_ordinary_configurations_pass(folder: dict[str, bytes]) -> None:
    """Texts with slashes, settings of threads, and options of providers are nothing to refuse."""
    said = json.loads(folder["genai_config.json"])
    said["model"]["prompt_templates"] = {"assistant": "{Content}</s>/../", "user": "~"}
    said["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": 2, "session.intra_op.allow_spinning": "0"}
    said["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"enable_cuda_graph": "0"}}]
    said["model"]["decoder"]["session_options"]["enable_profiling"] = ""
    assert genai_folder.read_configuration(json.dumps(said).encode()).providers == ("cuda",)


def test_names_that_climb_are_not_seen(server: FakeHub, llmos_home: Path, folder: dict[str, bytes]) -> None:
    """Paths of the list that lead out of the repository are nobody's folder, and nothing is written by them."""
    for root in ("../evil", "/etc/evil", "a/../../evil", "a//b", ".hidden", "a\\..\\b"):
        server.files |= {f"{root}/{name}": content for name, content in folder.items()}
    assert f"/{CPU}@" in get(server).source
    server.files = {path: content for path, content in server.files.items() if not path.startswith(("cpu", "cuda"))}
    with pytest.raises(ModelError) as caught:
        get(server, name="other")
    error = caught.value
    assert error.code is Code.NOT_FOUND
    assert "evil" not in f"{error.detail} {error.hint}"


def test_a_tokenizer_of_any_size_is_not_fetched(server: FakeHub, llmos_home: Path) -> None:
    """Files beside the graph have bounds of their own; without a tokenizer there is no model."""
    server.entries[f"{CPU}/tokenizer_config.json"] = {"size": 5 << 20}
    refused(server, Code.INVALID_ARGUMENT, "are the most")
    server.entries.clear()
    del server.files[f"{CPU}/tokenizer.json"]
    refused(server, Code.INVALID_ARGUMENT, r"no tokenizer\.json")


@pytest.mark.parametrize(
    "reference",
    [
        "hf:owner",
        "hf:",
        "hf:owner/../x",
        "hf:/etc/passwd",
        "hf:owner/repo/../../x",
        "hf:owner/repo@",
        "hf:owner/repo@a..b",
        "hf:owner/repo@-x",
        "hf:owner/repo?x",
        "hf:owner/m-00001-of-00003.gguf",
        "hf:owner/repo/m-00001-of-00003.gguf",
        "hf:ow ner/repo",
    ],
)
def test_references_that_are_none(reference: str, llmos_home: Path) -> None:
    """Are refused without asking anybody."""
    with pytest.raises(ModelError) as caught:
        pull(reference, nothing, settings=DIRECT, hub=HubSettings("http://127.0.0.1:1"))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.hint


# -- the catalogue ------------------------------------------------------------------------------------------------------


def known(monkeypatch: pytest.MonkeyPatch, content: bytes, **changes: Any) -> None:
    source = HubSource("owner/tiny", "T.gguf", len(content), **changes)
    entry = Entry("little", "Little", "for tests", "generator", "MIT", 5, 1000, 1000, hub=source, architecture="llama")
    monkeypatch.setattr(catalog, "entries", lambda: {"little": entry})


def test_an_entry_of_the_catalogue_comes_from_the_hub(
    server: FakeHub, llmos_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under its own name, with what the catalogue knows; a file other than the pinned one is not fetched."""
    content = server.files["T.gguf"] = TinyModel(layers=1).write(tmp_path / "t.gguf").read_bytes()
    known(monkeypatch, content, sha256="0" * 64)
    refused(server, Code.UNAVAILABLE, "catalogue knows", "little")
    assert server.ranges("T.gguf") == []
    known(monkeypatch, content, sha256=hashlib.sha256(content).hexdigest())
    model = get(server, "little")
    assert (model.name, model.license, model.parameters) == ("little", "MIT", 5)
    assert get(server, "little") == model


def test_an_entry_that_cannot_be_imported_is_not_fetched(
    server: FakeHub, llmos_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An architecture the importer does not know is said before a byte comes; so is a hub that cannot be reached."""
    entry = Entry(
        "new", "New", "", "generator", "MIT", 5, 1, 1, hub=HubSource("a/b", "c.gguf", 1), architecture="mamba"
    )
    monkeypatch.setattr(catalog, "entries", lambda: {"new": entry})
    refused(server, Code.UNAVAILABLE, "mamba", "new")
    assert server.asked == []
    known(monkeypatch, b"")
    refused(FakeHub(url="http://127.0.0.1:1"), Code.UNAVAILABLE, "refused", "little")


def test_a_full_disk_is_said_before_gigabytes_come(
    server: FakeHub, llmos_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for the weights they are not fetched."""
    usage = shutil.disk_usage(llmos_home)._replace(free=len(server.files[f"{CPU}/model.onnx.data"]) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "LLMOS_HOME" in (refused(server, Code.UNAVAILABLE, "are needed").hint or "")
    assert server.ranges(f"{CPU}/model.onnx.data") == []
