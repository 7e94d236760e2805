"""A download survives what networks do, and ends with exactly the file that was meant or with nothing."""

from __future__ import annotations

import fcntl
import hashlib
import types
import urllib.error
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import ClassVar, Self

import pytest

from llmos.ipc.errors import Code
from llmos.userland.models import download
from llmos.userland.models.download import ATTEMPTS, Checksum, fetch, wanted_wait
from llmos.userland.models.errors import ModelError
from llmos.userland.models.index import Network, Settings
from tests.unit.wheel_server import WheelServer

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIRECT = Settings(indexes=(), find_links=(), cert=None, trusted_hosts=frozenset(), proxy=None, timeout=5.0)


@pytest.fixture
def server() -> Iterator[WheelServer]:
    with WheelServer(files={"/a.whl": CONTENT}, cut=300_000).running() as running:
        yield running


def get(server: WheelServer, folder: Path, content: bytes = CONTENT) -> list[int]:
    """Fetch what should be `content` to `folder / a.whl`; the progress that was reported."""
    seen: list[int] = []
    checksum = Checksum("sha256", hashlib.sha256(content).hexdigest())
    url = f"{server.url}/a.whl?token=secret"
    fetch(url, folder / "a.whl", len(content), checksum, Network(DIRECT), seen.append, sleep=lambda seconds: None)
    return seen


def ranges(server: WheelServer) -> list[str | None]:
    return [asked for _, asked in server.asked]


def test_file_arrives(server: WheelServer, tmp_path: Path) -> None:
    """The whole file arrives under its name, and nothing else is left."""
    seen = get(server, tmp_path)
    assert (tmp_path / "a.whl").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "a.whl"]
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)


def test_cut_connections_are_continued(server: WheelServer, tmp_path: Path) -> None:
    """After each cut only the rest is asked for, within one call."""
    server.cuts = 3
    get(server, tmp_path)
    assert ranges(server) == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


def test_next_call_continues(server: WheelServer, tmp_path: Path) -> None:
    """What an earlier call brought is kept, and the next call asks for the rest only."""
    server.cuts, server.cut = ATTEMPTS + 1, 0
    (tmp_path / "a.whl.part").write_bytes(CONTENT[:500_000])
    with pytest.raises(ModelError, match=r"stopped at 0\.5 of 1\.0 MB") as caught:
        get(server, tmp_path)
    assert caught.value.code is Code.UNAVAILABLE
    assert "continues" in (caught.value.hint or "")
    server.cuts = 0
    server.asked.clear()
    get(server, tmp_path)
    assert ranges(server) == ["bytes=500000-"]
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


def test_server_without_ranges_starts_anew(server: WheelServer, tmp_path: Path) -> None:
    """A server that ignores Range sends the whole, which replaces the piece instead of following it."""
    server.ranges = False
    (tmp_path / "a.whl.part").write_bytes(CONTENT[:500_000])
    get(server, tmp_path)
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


def test_foreign_piece_is_replaced(server: WheelServer, tmp_path: Path) -> None:
    """A kept piece of another file makes the digest wrong once; the file is then fetched from its beginning."""
    (tmp_path / "a.whl.part").write_bytes(b"x" * 500_000)
    get(server, tmp_path)
    assert ranges(server) == ["bytes=500000-", None]
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


def test_too_long_a_piece_is_dropped(server: WheelServer, tmp_path: Path) -> None:
    """A kept piece that is longer than the file ends in an error once, and the next call succeeds."""
    (tmp_path / "a.whl.part").write_bytes(CONTENT + b"x")
    with pytest.raises(ModelError, match="longer"):
        get(server, tmp_path)
    get(server, tmp_path)
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


@pytest.mark.parametrize("served", [CONTENT[:-1] + b"x", CONTENT + b"x"], ids=["changed", "longer"])
def test_wrong_content_is_not_kept(served: bytes, server: WheelServer, tmp_path: Path) -> None:
    """A file with another digest or size is refused, and neither it nor a piece of it stays."""
    server.files["/a.whl"] = served
    with pytest.raises(ModelError, match="nothing was kept") as caught:
        get(server, tmp_path)
    assert caught.value.code is Code.UNAVAILABLE
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == 0


def test_short_file_is_an_error(server: WheelServer, tmp_path: Path) -> None:
    """A server whose file is shorter than it should be is given up on."""
    server.files["/a.whl"] = CONTENT[:1000]
    with pytest.raises(ModelError, match="stopped at"):
        get(server, tmp_path)
    assert not (tmp_path / "a.whl").exists()


@pytest.mark.parametrize(("status", "code"), [(404, Code.NOT_FOUND), (403, Code.UNAVAILABLE), (500, Code.UNAVAILABLE)])
def test_refusals_have_their_codes(status: int, code: Code, server: WheelServer, tmp_path: Path) -> None:
    """A file that is gone, forbidden or failing is told apart, with a hint, and without the address's secrets."""
    server.failing["/a.whl"] = status
    with pytest.raises(ModelError, match=str(status)) as caught:
        get(server, tmp_path)
    assert caught.value.code is code
    assert caught.value.hint
    assert "secret" not in str(caught.value)
    assert len(server.asked) == (ATTEMPTS if status == 500 else 1)


def test_unreachable_server_is_named(tmp_path: Path) -> None:
    """No server at all is an error that says so."""
    with pytest.raises(ModelError, match="refused") as caught:
        get(WheelServer(url="http://127.0.0.1:1"), tmp_path)
    assert caught.value.code is Code.UNAVAILABLE


def test_two_fetches_exclude_each_other(server: WheelServer, tmp_path: Path) -> None:
    """While one process fetches a file another is told to wait, instead of both writing the same piece."""
    with (tmp_path / "a.whl.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ModelError, match="another process") as caught:
            get(server, tmp_path)
    assert caught.value.code is Code.BUSY


def test_full_disk_is_named(server: WheelServer, tmp_path: Path) -> None:
    """A disk that is full while the file arrives is reported as that."""
    (tmp_path / "a.whl.part").symlink_to("/dev/full")
    with pytest.raises(ModelError, match="disk is full") as caught:
        get(server, tmp_path)
    assert caught.value.code is Code.UNAVAILABLE


def test_complete_piece_needs_no_network(tmp_path: Path) -> None:
    """A piece that is complete already is only checked."""
    (tmp_path / "a.whl.part").write_bytes(CONTENT)
    get(WheelServer(url="http://127.0.0.1:1"), tmp_path)
    assert (tmp_path / "a.whl").read_bytes() == CONTENT


class Drip:
    """A response that never ends and brings one byte in ten seconds of a clock of its own."""

    status, now = 200, 0.0
    headers: ClassVar[dict[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read1(self, size: int) -> bytes:
        Drip.now += 10
        return b"x"


def test_a_connection_that_drips_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends next to nothing does not hold a pull for ever."""
    monkeypatch.setattr(download, "time", types.SimpleNamespace(monotonic=lambda: Drip.now))
    network = Network(DIRECT)
    monkeypatch.setattr(network, "open", lambda url, headers: Drip())
    checksum = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(ModelError, match=r"stopped at .* fewer than 64 KiB") as caught:
        fetch("http://drip/", tmp_path / "a", len(CONTENT), checksum, network, lambda done: None, lambda seconds: None)
    assert caught.value.code is Code.UNAVAILABLE
    assert Drip.now == ATTEMPTS * 70


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7), ("999999", 60), ("9" * 5000, 0), ("-1", 0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), ("", 0)],
)
def test_servers_may_ask_for_a_pause_but_not_a_long_one(said: str, seconds: int) -> None:
    """`Retry-After` is heard where it is a number of seconds, up to a minute."""
    headers = Message()
    headers["Retry-After"] = said
    with urllib.error.HTTPError("http://x/", 429, "slow down", headers, None) as error:
        assert wanted_wait(error) == seconds


def test_checksums_are_what_git_and_sha256sum_say(tmp_path: Path) -> None:
    """The id of a git blob, and a SHA-256, of a known text."""
    file = tmp_path / "hello"
    file.write_bytes(b"hello\n")
    assert Checksum("git", "ce013625030ba8dba906f756967f9e9ca394464a").matches(file)
    assert Checksum("sha256", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").matches(file)
    assert not Checksum("git", "0" * 40).matches(file)
