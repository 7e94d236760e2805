"""Reading what browsers leave on disk: every family, while they run, and when the files are broken."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from unittest import mock

import pytest

from llmos.drivers.browser_history import sources
from llmos.drivers.browser_history.driver import BrowserHistory
from llmos.drivers.browser_history.profiles import BROWSERS
from llmos.drivers.browser_history.snapshot import UnreadableError, copy_database, open_copy
from llmos.drivers.sdk import Call
from llmos.ipc.manifest import load_driver
from llmos.userland.demo.histories import write_chromium, write_firefox
from tests.unit._browser_fixtures import Env, running, titles, visit, write_safari

LLAMA = visit("Llamas of the Andes", "https://example.org/llamas-of-the-andes", days=3)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def driver(home: Path, tmp_path: Path) -> Iterator[BrowserHistory]:
    with running(home, tmp_path / "state") as made:
        yield made


def states(driver: BrowserHistory) -> dict[str, str]:
    return {item["source"]: item["state"] for item in driver.sources(Call())["items"]}


def test_history_reads_every_family_with_its_own_clock(home: Path, driver: BrowserHistory) -> None:
    """Firefox counts from 1970, Chromium from 1601, Safari from 2001: the same moment comes out of each."""
    write_firefox(home, [LLAMA])
    write_chromium(home, [LLAMA], "google-chrome")
    write_safari(home, [LLAMA])
    found = driver.visits(Call())["items"]
    assert {item["source"] for item in found} == {"firefox:default-release", "chrome:Default", "safari"}
    assert {item["ts"] for item in found} == {"2026-11-20T14:30:00Z"}
    assert {item["title"] for item in found} == {LLAMA.title}
    assert {item["tz"] for item in found} == {"Europe/Berlin"}


def test_history_tells_profiles_apart(home: Path, tmp_path: Path) -> None:
    """Two profiles of one browser are two sources; one label in two folders is told apart; a setting picks some."""
    write_firefox(home, [LLAMA], "aaaa.work")
    write_firefox(home, [LLAMA], "bbbb.play")
    shutil.copytree(home / ".mozilla/firefox/aaaa.work", home / "snap/firefox/common/.mozilla/firefox/cccc.work")
    with running(home, tmp_path / "all") as driver:
        assert set(states(driver)) == {
            "firefox:.mozilla/firefox/aaaa.work",
            "firefox:play",
            "firefox:snap/firefox/common/.mozilla/firefox/cccc.work",
        }
    with running(home, tmp_path / "one", profiles=["firefox:play"]) as driver:
        assert states(driver) == {"firefox:play": "ok"}


def test_history_reads_only_granted_folders(home: Path, tmp_path: Path) -> None:
    """A browser whose folder was not granted is not even looked for."""
    write_firefox(home, [LLAMA])
    write_chromium(home, [LLAMA])
    made = BrowserHistory()
    made.setup(Env(state=tmp_path, home=home, roots=(home / ".config" / "chromium",)))
    try:
        assert set(states(made)) == {"chromium:Default"}
    finally:
        made.close()


def test_history_reads_what_a_running_firefox_has_not_written_back(home: Path, driver: BrowserHistory) -> None:
    """A database held under an exclusive lock, with its newest visit in the write-ahead log alone."""
    path = write_firefox(home, [LLAMA])
    with closing(sqlite3.connect(path, isolation_level=None)) as browser:
        browser.execute("PRAGMA locking_mode = EXCLUSIVE")
        browser.execute("PRAGMA journal_mode = WAL")
        browser.execute("PRAGMA wal_autocheckpoint = 0")
        browser.execute("UPDATE moz_places SET title = 'Alpacas, rather'")
        assert titles(driver.visits(Call())) == ["Alpacas, rather"]


def test_history_reads_beside_a_chromium_in_the_middle_of_a_write(home: Path, driver: BrowserHistory) -> None:
    """With half a transaction spilled into the file, the rollback journal gives the state before it."""
    path = write_chromium(home, [LLAMA])
    with closing(sqlite3.connect(path, isolation_level=None)) as browser:
        browser.execute("PRAGMA locking_mode = EXCLUSIVE")
        browser.execute("PRAGMA cache_size = 1")
        browser.execute("PRAGMA cache_spill = 1")
        browser.execute("BEGIN IMMEDIATE")
        browser.execute("UPDATE urls SET title = 'not committed'")
        for _ in range(200):
            browser.execute("INSERT INTO segments (name, url_id) VALUES (?, 1)", ("x" * 4000,))
        assert path.with_name("History-journal").stat().st_size > 0
        assert titles(driver.visits(Call())) == [LLAMA.title]
        browser.execute("ROLLBACK")


def test_history_copies_are_consistent_under_constant_writing(tmp_path: Path) -> None:
    """A copy either shows whole transactions or is refused as busy; never half of one."""
    path, folder = tmp_path / "places.sqlite", tmp_path / "copy"
    folder.mkdir()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE a (n)")
        database.execute("CREATE TABLE b (n)")
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            number = 0
            while not stop.wait(0.02):
                number += 1
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT INTO a VALUES (?)", [("x" * 3000 + str(number),)] * 3)
                database.executemany("INSERT INTO b VALUES (?)", [(number,)] * 3)
                database.execute("COMMIT")

    writer = threading.Thread(target=write)
    writer.start()
    good = 0
    try:
        for _ in range(20):
            with suppress(UnreadableError), closing(open_copy(copy_database(path, folder))) as copy:
                counts = [copy.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in "ab"]
                assert counts[0] == counts[1]
                assert copy.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
                good += 1
    finally:
        stop.set()
        writer.join()
    assert good


def test_history_copies_again_what_changed_during_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write between the first byte copied and the last makes the copy worthless: it is made again."""
    path, folder = tmp_path / "History", tmp_path / "copy"
    folder.mkdir()
    path.write_bytes(b"before")
    copyfile = shutil.copyfile

    def meddle(source: Path, target: Path) -> None:
        copyfile(source, target)
        if source.read_bytes() == b"before":
            source.write_bytes(b"after, longer")

    monkeypatch.setattr("llmos.drivers.browser_history.snapshot.shutil.copyfile", meddle)
    assert copy_database(path, folder).read_bytes() == b"after, longer"


def cut(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + os.urandom(20_000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def strange(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE something_else (id)")
        database.commit()


@pytest.mark.parametrize(
    ("harm", "state"),
    [(cut, "damaged"), (overwrite, "damaged"), (empty, "unknown_format"), (strange, "unknown_format")],
)
def test_history_goes_on_when_one_source_is_broken(
    home: Path, driver: BrowserHistory, harm: object, state: str
) -> None:
    """A broken database says what is wrong in one line with a hint; the other browser's pages are found."""
    harm(write_firefox(home, [visit(f"Page {i}", f"https://example.com/{i}") for i in range(300)]))  # type: ignore[operator]
    write_chromium(home, [LLAMA])
    assert titles(driver.search(Call(), query="llamas")) == [LLAMA.title]
    items = {item["source"]: item for item in driver.sources(Call())["items"]}
    assert items["chromium:Default"]["state"] == "ok"
    assert items["firefox:default-release"]["state"] == state
    assert items["firefox:default-release"]["hint"]
    assert "\n" not in items["firefox:default-release"]["text"]
    assert driver.search(Call(), query="llamas")["problems"]


def test_history_says_when_it_may_not_read(home: Path, driver: BrowserHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose permissions forbid reading is `denied`, with what to do about it."""
    write_firefox(home, [LLAMA])

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("llmos.drivers.browser_history.snapshot.shutil.copyfile", forbid)
    assert states(driver) == {"firefox:default-release": "denied"}


def test_history_survives_a_full_disk(home: Path, driver: BrowserHistory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the copy: that source failed, the op answers."""
    write_firefox(home, [LLAMA])
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("llmos.drivers.browser_history.snapshot.shutil.copyfile", full)
    assert states(driver) == {"firefox:default-release": "failed"}


def test_history_recovers_when_a_source_does(home: Path, driver: BrowserHistory) -> None:
    """After the browser mended its database the same driver reads it."""
    path = write_firefox(home, [LLAMA])
    whole = path.read_bytes()
    cut(path)
    assert states(driver) == {"firefox:default-release": "damaged"}
    path.write_bytes(whole)
    rest_over(driver)
    assert states(driver) == {"firefox:default-release": "ok"}


def rest_over(driver: BrowserHistory) -> None:
    for source in driver._sources.known():
        source.rests_until = 0.0


def test_history_reads_an_unchanged_database_once(
    home: Path, driver: BrowserHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second question copies nothing; nor does a new driver on the same state."""
    write_firefox(home, [LLAMA])
    copy = mock.Mock(wraps=copy_database)
    monkeypatch.setattr(sources, "copy_database", copy)
    for _ in range(3):
        rest_over(driver)
        assert titles(driver.visits(Call())) == [LLAMA.title]
    assert copy.call_count == 1


def test_history_takes_what_comes_and_tells_it(home: Path, driver: BrowserHistory) -> None:
    """New visits are found and published once; those of the first reading are no news. A late title replaces the address."""
    path = write_chromium(home, [LLAMA])
    driver._tell(driver._refresh())
    assert driver.env.events == []  # type: ignore[attr-defined]
    shutil.rmtree(path.parent)
    write_chromium(home, [visit("", LLAMA.url, 3), visit("A Goat", "https://example.org/a-goat", 0.1)])
    rest_over(driver)
    driver._tell(driver._refresh())
    ((topic, told),) = driver.env.events  # type: ignore[attr-defined]
    assert (topic, told["title"]) == ("history.visited", "A Goat")
    assert titles(driver.visits(Call())) == ["A Goat", LLAMA.title]
    json.dumps(told)


def test_history_forgets_what_the_user_deletes_and_keeps_what_the_browser_forgets(
    home: Path, driver: BrowserHistory
) -> None:
    """A recent page deleted in the browser goes; an old one that the browser expired stays; clearing all takes all."""
    old, secret = visit("Old", "https://example.org/old", 85), visit("Secret", "https://example.org/secret", 2)
    path = write_chromium(home, [old, secret, LLAMA])
    assert set(titles(driver.visits(Call()))) == {"Old", "Secret", LLAMA.title}
    change(
        path,
        "DELETE FROM visits WHERE id IN (SELECT v.id FROM visits v JOIN urls u ON u.id = v.url WHERE title <> :keep)",
    )
    rest_over(driver)
    assert set(titles(driver.visits(Call()))) == {"Old", LLAMA.title}
    assert driver.search(Call(), query="secret")["items"] == []
    change(path, "DELETE FROM visits")
    rest_over(driver)
    assert driver.visits(Call())["items"] == []


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as browser, browser:
        browser.execute(statement, {"keep": LLAMA.title} if ":keep" in statement else {})


def test_history_skips_frames_redirects_and_what_is_no_page(home: Path, driver: BrowserHistory) -> None:
    """Embedded frames, hidden pages, links of a redirect chain, downloads and the browser's own pages are no visits."""
    firefox = write_firefox(
        home, [LLAMA, visit("Ad frame", "https://ads.example/1"), visit("Hidden", "https://t.example/2")]
    )
    change(
        firefox, "UPDATE moz_historyvisits SET visit_type = 4 WHERE id = (SELECT max(id) - 1 FROM moz_historyvisits)"
    )
    change(firefox, "UPDATE moz_places SET hidden = 1 WHERE title = 'Hidden'")
    chromium = write_chromium(home, [visit("Hop", "https://hop.example/"), visit("Settings", "chrome://settings/")])
    change(chromium, "UPDATE visits SET transition = 268435456 WHERE id = 1")  # the start of a chain, not its end
    assert titles(driver.visits(Call())) == [LLAMA.title]


def test_history_keeps_to_the_users_settings(home: Path, tmp_path: Path) -> None:
    """Sites ruled out are not indexed, and go when they are ruled out later; days beyond `keep_days` expire."""
    write_firefox(
        home,
        [
            LLAMA,
            visit("Bank", "https://www.bank.example/x"),
            visit("Sub", "https://a.bank.example/y"),
            visit("Old", "https://o.example/", 400),
        ],
    )
    state = tmp_path / "state"
    with running(home, state) as driver:
        assert len(driver.visits(Call())["items"]) == 4
    with running(home, state, exclude_hosts=["*.bank.example"], keep_days=365) as driver:
        assert titles(driver.visits(Call())) == [LLAMA.title]


def test_history_watches_in_the_background_and_stops(home: Path, tmp_path: Path) -> None:
    """The first reading begins without a question, and `close` ends the thread."""
    write_firefox(home, [LLAMA])
    driver = BrowserHistory()
    env = Env(state=tmp_path, home=home, roots=(home,))
    driver.setup(env)
    assert "firefox:default-release" in driver.status()
    assert titles(driver.visits(Call())) == [LLAMA.title]
    driver.close()
    assert not driver._watcher.is_alive()


def test_history_manifest_asks_for_every_folder_it_looks_into() -> None:
    """The permissions shown to the user and the browsers the code knows are the same folders."""
    manifest = load_driver(Path(sources.__file__).with_name("manifest.toml"))
    assert set(manifest.permissions.read) == {f"~/{folder}" for browser in BROWSERS for folder in browser.folders}


def test_history_visits_of_the_future_are_left_out(home: Path, driver: BrowserHistory) -> None:
    """A wrong clock of long ago does not put pages before everything else."""
    write_firefox(home, [LLAMA, visit("Tomorrow's", "https://example.org/t", -30)])
    assert titles(driver.visits(Call())) == [LLAMA.title]
