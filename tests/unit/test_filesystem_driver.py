"""The filesystem driver's ops on real folders."""

from __future__ import annotations

import os
import unicodedata
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from llmos.drivers.filesystem import walk as walking
from llmos.drivers.filesystem.driver import Filesystem
from llmos.drivers.sdk import Call, Code, DriverEnv, OpError
from llmos.ipc import wire

NOW = datetime(2026, 11, 23, 15, 30, tzinfo=ZoneInfo("Europe/Berlin"))


class Env(DriverEnv):
    """Time stands still."""

    def now(self) -> datetime:
        return NOW


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    documents = home / "Documents"
    write(
        documents / "garden" / "planting-plan.md",
        "# Planting\nTomatoes next to the shed, beans along the fence.",
        days=6,
    )
    write(documents / "garden" / "seeds.csv", "name,amount\nbeans,40\n", days=40)
    write(documents / "waterBill_2026.txt", "Amount due: 41 euro. The meter was read in the cellar.", days=1)
    write(documents / "contract.pdf", "%PDF-1.7 binary", days=2)
    write(documents / ".hidden" / "beans.txt", "beans", days=1)
    write(documents / "app" / "node_modules" / "beans.txt", "beans", days=1)
    write(
        documents / "page.html",
        "<title>Sheds</title><script>beans()</script><p>Build a <b>shed</b></p><p>in a day</p>",
        days=3,
    )
    write(home / "Private" / "beans.txt", "beans", days=1)
    return home


def write(path: Path, text: str, days: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    at = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (at, at))


@pytest.fixture
def driver(home: Path, tmp_path: Path) -> Filesystem:
    return driver_for(home, tmp_path, home / "Documents")


def driver_for(home: Path, tmp_path: Path, *roots: Path, **settings: Any) -> Filesystem:
    made = Filesystem()
    made.setup(Env(state=tmp_path, home=home, roots=roots, settings=settings))
    return made


def titles(answer: dict[str, Any]) -> list[str]:
    return [item["title"] for item in answer["items"]]


def refused(code: Code) -> Any:
    return pytest.raises(OpError, check=lambda error: error.code == code)


def test_filesystem_finds_by_name_and_by_content(driver: Filesystem) -> None:
    """A word counts in the text and, more, in the name, whose words may be run together; hidden and vendored folders do not."""
    assert titles(driver.search(Call(), query="beans")) == ["planting-plan.md", "seeds.csv"]
    assert titles(driver.search(Call(), query="water bill"))[0] == "waterBill_2026.txt"
    assert "meter" in driver.search(Call(), query="which document mentions the meter")["items"][0]["text"]


def test_filesystem_finds_html_by_what_it_shows(driver: Filesystem) -> None:
    """Scripts are no content."""
    assert titles(driver.search(Call(), query="shed", types=["html"])) == ["page.html"]
    assert titles(driver.search(Call(), query="beans", types=["html"])) == []
    assert driver.read(Call(), path="~/Documents/page.html")["items"][0]["text"] == "Sheds\nBuild a shed\nin a day"


def test_filesystem_filters_by_time_type_and_glob(driver: Filesystem) -> None:
    """A period, an ending or kind, and a pattern each narrow the result; newest first without words."""
    assert titles(driver.search(Call(), modified="last Tuesday")) == ["planting-plan.md"]
    assert titles(driver.search(Call(), types=["csv"])) == ["seeds.csv"]
    assert titles(driver.search(Call(), glob="garden/*")) == ["planting-plan.md", "seeds.csv"]
    assert titles(driver.search(Call()))[:2] == ["waterBill_2026.txt", "contract.pdf"]


def test_filesystem_widens_a_period_that_holds_nothing(driver: Filesystem) -> None:
    """`five days ago` finds the file of six days ago when that day has none."""
    assert titles(driver.search(Call(), query="planting", modified="five days ago")) == ["planting-plan.md"]


def test_filesystem_office_files_are_found_and_say_that_they_cannot_be_read(driver: Filesystem) -> None:
    """A PDF is found by its name with kind `unsupported`; reading it is an error that says why."""
    (item,) = driver.search(Call(), query="contract")["items"]
    assert (item["kind"], item["format"]) == ("unsupported", "document")
    with refused(Code.INVALID_ARGUMENT):
        driver.read(Call(), path="~/Documents/contract.pdf")


def test_filesystem_reads_in_pages(driver: Filesystem, home: Path) -> None:
    """Pages put together are the text; an answer fits a reply whatever the letters."""
    text = "".join(f"line {i} äöü 漢字\n" for i in range(4000))
    (home / "Documents" / "long.txt").write_text(text)
    got = ""
    offset: int | None = 0
    while offset is not None:
        answer = driver.read(Call(), path="~/Documents/long.txt", offset=offset)
        assert len(wire.encode(answer)) < 48 * 1024
        got += answer["items"][0]["text"]
        offset = answer["next"]
    assert got == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"caf\xe9", "café"),
        (b"\xef\xbb\xbfwith mark", "with mark"),
        ("wide".encode("utf-16"), "wide"),
        (b"", ""),
    ],
)
def test_filesystem_reads_other_encodings(driver: Filesystem, home: Path, data: bytes, text: str) -> None:
    """UTF-16 and byte order marks are understood; bytes that are no UTF-8 are Western European."""
    (home / "Documents" / "x.txt").write_bytes(data)
    assert driver.read(Call(), path="~/Documents/x.txt")["items"][0]["text"] == text


def test_filesystem_binary_and_huge_files_are_refused(driver: Filesystem, home: Path) -> None:
    """A binary under a text's name and a text over the limit are errors, not garbage."""
    (home / "Documents" / "fake.txt").write_bytes(b"MZ\0\0\0")
    with (home / "Documents" / "huge.txt").open("wb") as stream:
        stream.truncate(65 * 1024 * 1024)
    for name in ("fake.txt", "huge.txt"):
        with refused(Code.INVALID_ARGUMENT):
            driver.read(Call(), path=f"~/Documents/{name}")
    assert titles(driver.search(Call(), query="huge")) == ["huge.txt"]


def test_filesystem_names_in_any_form_are_found_again(driver: Filesystem, home: Path) -> None:
    """A decomposed name opens when typed composed; a name that is no UTF-8 opens by what was shown."""
    (home / "Documents" / unicodedata.normalize("NFD", "résumé.txt")).write_text("cv")
    Path(os.fsdecode(os.fsencode(home / "Documents") + b"/caf\xe9.txt")).write_text("bytes")
    assert driver.read(Call(), path="~/Documents/résumé.txt")["items"][0]["text"] == "cv"
    (item,) = driver.search(Call(), glob="caf*")["items"]
    wire.encode(item)
    assert driver.read(Call(), path=item["path"])["items"][0]["text"] == "bytes"


def test_filesystem_lists_folders_first_in_pages(driver: Filesystem) -> None:
    """Folders before files, by name; without a path the readable places; `next` leads to the rest."""
    first = driver.list(Call(), path="~/Documents", k=3)
    assert titles(first) == [".hidden", "app", "garden"]
    assert titles(driver.list(Call(), path="~/Documents", k=9, cursor=first["next"])) == [
        "contract.pdf",
        "page.html",
        "waterBill_2026.txt",
    ]
    assert titles(driver.list(Call())) == ["Documents"]


def test_filesystem_stat_tells_without_reading(driver: Filesystem) -> None:
    """Size, kind and time of change."""
    (item,) = driver.stat(Call(), path="~/Documents/garden/seeds.csv")["items"]
    assert (item["kind"], item["size"], item["ts"]) == ("data", 21, "2026-10-14T13:30:00Z")


@pytest.mark.parametrize(
    "path", ["~/Private/beans.txt", "/etc/passwd", "~/Documents/../Private/beans.txt", "Private", "~/Documents2"]
)
def test_filesystem_refuses_what_was_not_granted(driver: Filesystem, path: str) -> None:
    """Outside the granted roots nothing is listed, read, searched or even told about."""
    for attempt in (driver.list, driver.read, driver.stat, driver.search):
        with refused(Code.DENIED):
            attempt(Call(), path=path)


def test_filesystem_confines_itself_to_the_scope_of_the_call(driver: Filesystem, home: Path) -> None:
    """A capability for one folder sees that folder alone, though the driver may read more; links do not lead out of it."""
    call = Call(scope={"path": [f"{home}/Documents/garden"]})
    (home / "Documents" / "garden" / "way-out").symlink_to("../waterBill_2026.txt")
    assert titles(driver.search(call, query="beans")) == ["planting-plan.md", "seeds.csv"]
    assert titles(driver.search(call, query="euro")) == []
    for path in ("~/Documents/waterBill_2026.txt", "~/Documents/garden/way-out"):
        with refused(Code.DENIED):
            driver.read(call, path=path)
    assert driver.search(Call(scope={"path": [f"{home}/Private"]}))["items"] == []


def test_filesystem_scope_does_not_end_at_a_link(driver: Filesystem, home: Path) -> None:
    """A link to another granted folder, in the scope or as the scope, shows nothing of that folder to who has no right to it."""
    documents = home / "Documents"
    (documents / "app" / "way-out").symlink_to("../garden")
    (documents / "also").symlink_to("garden")
    narrow, itself = (Call(scope={"path": [f"{documents}/{name}"]}) for name in ("app", "also"))
    assert titles(driver.search(narrow, path="~/Documents/app/way-out")) == []
    assert titles(driver.search(itself)) == []
    for call, path in ((narrow, "~/Documents/app/way-out"), (itself, "~/Documents/also")):
        with refused(Code.DENIED):
            driver.list(call, path=path)
    with refused(Code.DENIED):
        driver.read(itself, path="~/Documents/also/seeds.csv")


def test_filesystem_root_that_became_a_link_is_refused(driver: Filesystem, home: Path) -> None:
    """A grant names a place, not what somebody puts there later: neither in its own place nor on the way to it."""
    for replaced in (home / "Documents", home):
        replaced.rename(replaced.with_name("moved"))
        replaced.symlink_to("moved/Private" if replaced != home else "moved")
        with refused(Code.DENIED):
            driver.list(Call(), path=f"{home}/Documents")
        replaced.unlink()
        replaced.with_name("moved").rename(replaced)


def test_filesystem_one_file_can_be_what_was_granted(home: Path, tmp_path: Path) -> None:
    """A root may be a file: it is found and read, its neighbours are not."""
    driver = driver_for(home, tmp_path, home / "Documents" / "waterBill_2026.txt")
    assert titles(driver.search(Call(), query="euro")) == ["waterBill_2026.txt"]
    assert driver.read(Call(), path="~/Documents/waterBill_2026.txt")["items"]
    with refused(Code.DENIED):
        driver.read(Call(), path="~/Documents/contract.pdf")


def test_filesystem_special_files_are_listed_not_opened(driver: Filesystem, home: Path) -> None:
    """A FIFO and a broken link neither hang nor break a search, a list or a read."""
    os.mkfifo(home / "Documents" / "pipe.txt")
    (home / "Documents" / "broken.txt").symlink_to("nowhere")
    kinds = {item["title"]: item["kind"] for item in driver.list(Call(), path="~/Documents")["items"]}
    assert (kinds["pipe.txt"], kinds["broken.txt"]) == ("special", "link")
    assert "pipe.txt" not in titles(driver.search(Call(), query="pipe"))
    with refused(Code.INVALID_ARGUMENT):
        driver.read(Call(), path="~/Documents/pipe.txt")
    with refused(Code.NOT_FOUND):
        driver.read(Call(), path="~/Documents/broken.txt")


def test_filesystem_says_what_a_search_did_not_look_at(driver: Filesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that reaches its limit says so, and a complete one does not."""
    assert driver.search(Call(), query="beans")["truncated"] is False
    monkeypatch.setattr(walking, "MAX_ENTRIES", 3)
    answer = driver.search(Call(), query="beans")
    assert answer["truncated"] is True
    assert "not looked into" in answer["problems"][0]


def test_filesystem_hidden_folders_are_walked_on_request(home: Path, tmp_path: Path) -> None:
    """The setting `include_hidden` opens hidden and dependency folders."""
    driver = driver_for(home, tmp_path, home / "Documents", include_hidden=True)
    assert titles(driver.search(Call(), query="beans", glob="beans*")) == ["beans.txt", "beans.txt"]


def test_filesystem_says_which_argument_is_wrong(driver: Filesystem) -> None:
    """A period nobody understands and a cursor nobody gave name their argument."""
    with pytest.raises(OpError, match="modified"):
        driver.search(Call(), modified="when pigs fly")
    with pytest.raises(OpError, match="cursor"):
        driver.search(Call(), cursor="x")
    with refused(Code.NOT_FOUND):
        driver.read(Call(), path="~/Documents/nothing.txt")
    with refused(Code.INVALID_ARGUMENT):
        driver.list(Call(), path="~/Documents/waterBill_2026.txt")
