"""A download survives what networks do, and ends with exactly the file that was meant or with nothing."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.ipc.errors import Code
from llmos.userland.models.download import ATTEMPTS, Checksum, fetch
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
