"""The package index is found where pip would find it, in all the forms it has."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from llmos.ipc.errors import Code
from llmos.userland.models.errors import ModelError
from llmos.userland.models.index import PYPI, Network, Settings, Wheel, find_wheel, read_settings
from tests.unit.wheel_server import WheelServer

NAME = "tiny_model-1.0-py3-none-any.whl"
DIRECT = Settings(indexes=(), find_links=(), cert=None, trusted_hosts=frozenset(), proxy=None, timeout=5.0)
PAGE = (
    f'<html><a href="../../files/other-1.0.whl">x</a><a href="../../files/{NAME}#sha256=00">{NAME}</a></html>'.encode()
)


def find(**settings: object) -> Wheel:
    chosen = dataclasses.replace(DIRECT, **settings)  # type: ignore[arg-type]
    return find_wheel("Tiny.Model", NAME, chosen, Network(chosen))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without any pip configuration but the file that is returned."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    config = tmp_path / "pip.conf"
    config.touch()
    return config


def test_html_index(tmp_path: Path) -> None:
    """A PEP 503 page is asked for under the normalised project name, and its links are relative to it."""
    with WheelServer(files={"/simple/tiny-model/": PAGE}).running() as server:
        assert find(indexes=(f"{server.url}/simple",)) == Wheel(f"{server.url}/files/{NAME}")
        assert [path for path, _ in server.asked] == ["/simple/tiny-model/"]


def test_json_index() -> None:
    """A PEP 691 answer is read by its content type."""
    page = json.dumps({"files": [{"filename": NAME, "url": f"/files/{NAME}"}]}).encode()
    server = WheelServer(
        files={"/simple/tiny-model/": page},
        content_types={"/simple/tiny-model/": "application/vnd.pypi.simple.v1+json"},
    )
    with server.running():
        assert find(indexes=(f"{server.url}/simple/",)).url == f"{server.url}/files/{NAME}"


def test_local_index_and_folders(tmp_path: Path) -> None:
    """A file index and a find-links folder, as a path or as a file address, give the file on this machine."""
    folder = tmp_path / "simple" / "tiny-model"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(b"wheel")
    for settings in (
        {"indexes": ((tmp_path / "simple").as_uri(),)},
        {"find_links": (str(folder),)},
        {"find_links": (folder.as_uri(),)},
    ):
        assert find(**settings).path == folder / NAME
    (folder / "index.html").write_text(f'<a href="{NAME}">{NAME}</a>')
    assert find(indexes=((tmp_path / "simple").as_uri(),)).path == folder / NAME


def test_first_source_that_has_it_wins(tmp_path: Path) -> None:
    """find-links come before indexes, and a source without the file or out of reach does not stop the next."""
    (tmp_path / NAME).write_bytes(b"wheel")
    with WheelServer(files={"/simple/tiny-model/": PAGE}).running() as server:
        dead, empty, good = "http://127.0.0.1:1/simple", f"{server.url}/empty", f"{server.url}/simple"
        assert find(indexes=(dead, empty, good)).url.startswith(server.url)
        assert find(indexes=(good,), find_links=(str(tmp_path),)).path == tmp_path / NAME


def test_missing_everywhere_is_not_found() -> None:
    """When every source answers and none has the file, the error is NOT_FOUND and names the sources."""
    with (
        WheelServer().running() as server,
        pytest.raises(ModelError, match=f"{server.url}/simple/tiny-model/") as caught,
    ):
        find(indexes=(f"{server.url}/simple",))
    assert caught.value.code is Code.NOT_FOUND
    with pytest.raises(ModelError, match="no index is configured"):
        find()


def test_offline_is_unavailable() -> None:
    """When a source cannot be asked, the error is UNAVAILABLE, says why, and shows no password."""
    with pytest.raises(ModelError, match="refused") as caught:
        find(indexes=("http://me:hidden@127.0.0.1:1/simple",))
    assert caught.value.code is Code.UNAVAILABLE
    assert "hidden" not in str(caught.value)
    with WheelServer(failing={"/simple/tiny-model/": 503}).running() as server, pytest.raises(ModelError, match="503"):
        find(indexes=(f"{server.url}/simple",))


@pytest.mark.parametrize("page", [b"{", b'{"files": 5}', b'{"files": [{}]}', b"[]"])
def test_broken_index_is_an_error(page: bytes) -> None:
    """An index that sends nonsense is reported, not believed and not crashed on."""
    server = WheelServer(
        files={"/simple/tiny-model/": page},
        content_types={"/simple/tiny-model/": "application/vnd.pypi.simple.v1+json"},
    )
    with server.running(), pytest.raises(ModelError):
        find(indexes=(f"{server.url}/simple",))


def test_credentials_go_to_their_host_only() -> None:
    """A name and password in an address are sent as authorisation to that host, to no other, and appear in no address."""
    with WheelServer(files={"/elsewhere/": PAGE}).running() as other, WheelServer().running() as server:
        server.moved["/simple/tiny-model/"] = f"{other.url}/elsewhere/"
        found = find(indexes=(f"{server.url.replace('://', '://me:p%40ss@')}/simple",))
        assert server.authorizations == ["Basic " + base64.b64encode(b"me:p@ss").decode()]
        assert other.authorizations == [None]
    assert "me" not in found.url


def test_other_schemes_are_refused() -> None:
    """An address that is neither http, https nor file is refused."""
    with pytest.raises(ModelError, match="only http, https and file"):
        find(indexes=("ftp://127.0.0.1/simple",))


def test_pips_own_settings_are_read(only: Path) -> None:
    """Files and variables count as for pip: sections for all commands and for download, variables over files."""
    only.write_text(
        "[global]\nindex-url = https://one.example/simple\nextra_index_url =\n  https://two.example/simple\n  file:///three\n"
        "timeout = 7\n[download]\nfind-links = /wheels https://four.example/links\n"
    )
    environ = {"PIP_CONFIG_FILE": str(only)}
    settings = read_settings(environ)
    assert settings.indexes[-2:] == ("https://two.example/simple", "file:///three")
    assert settings.indexes[0] == "https://one.example/simple"
    assert settings.find_links == ("/wheels", "https://four.example/links")
    assert settings.timeout == 7
    stronger = read_settings({**environ, "PIP_INDEX_URL": "https://five.example/simple", "PIP_FIND_LINKS": "/other"})
    assert stronger.indexes[0] == "https://five.example/simple"
    assert stronger.find_links == ("/other",)
    assert read_settings({**environ, "PIP_NO_INDEX": "1"}).indexes == ()


def test_without_settings_it_is_pypi() -> None:
    """With pip's files switched off and no variables, the index is PyPI, by https."""
    settings = read_settings({"PIP_CONFIG_FILE": "/dev/null"})
    assert settings.indexes == (PYPI,)
    assert settings.find_links == ()


def test_unreadable_settings_are_named(only: Path) -> None:
    """A broken configuration file or value is an error that names it."""
    only.write_text("no section\n")
    with pytest.raises(ModelError, match=str(only)):
        read_settings({"PIP_CONFIG_FILE": str(only)})
    with pytest.raises(ModelError, match="timeout"):
        read_settings({"PIP_CONFIG_FILE": "/dev/null", "PIP_TIMEOUT": "soon"})
