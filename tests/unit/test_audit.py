"""The audit log: what happened is in it first, and a change to it shows."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.kernel.audit import SLICE, Audit, Kind, Row, _row_hash
from llmos.kernel.journal import Journal

ROWS = 10


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.db")
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


def fill(audit: Audit, rows: int = ROWS) -> None:
    for number in range(rows):
        audit.append(Kind.EFFECT, "assistant#7", "mail.send", "allow", cap="c3", label="trusted", args=b"%d" % number)


def tamper(path: Path, *statements: str) -> None:
    """As somebody does who has the user's account and SQLite."""
    db = sqlite3.connect(path, isolation_level=None)
    for name in ("only_append_update", "only_append_delete"):
        db.execute(f"drop trigger {name}")
    for statement in statements:
        db.execute(statement)
    db.close()


def forge(path: Path, first: int) -> None:
    """Change a row, and give it and all that follow the hashes that fit."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("drop trigger only_append_update")
    db.execute("update log set op = 'mail.read' where seq = ?", (first,))
    prev = db.execute("select prev from log where seq = ?", (first,)).fetchone()[0]
    for values in db.execute("select * from log where seq >= ? order by seq", (first,)).fetchall():
        made = _row_hash(Row(*values)[:11], prev)
        db.execute("update log set prev = ?, hash = ? where seq = ?", (prev, made, values[0]))
        prev = made
    db.close()


def test_an_untouched_log_verifies(path: Path, journal: Journal) -> None:
    """While it is written, and across restarts, in one chain."""
    for _ in range(3):
        audit = Audit(path, journal)
        fill(audit)
        assert audit.verify() is None
        audit.close()
    audit = Audit(path, journal)
    assert [row.seq for row in audit.rows(last=1000)] == list(range(1, 3 * ROWS + 1))
    audit.close()


COPY = "insert into log select {}, ts, kind, holder, op, cap, label, args_hash, bytes, decision, detail, prev, hash from log"
COLUMNS = {
    "ts": "1.0", "kind": "'grant'", "holder": "'user'", "op": "'mail.read'", "cap": "'c4'", "label": "'untrusted'", "args_hash": "x'00'",
    "bytes": "0", "decision": "'deny'", "detail": "'x'", "prev": "x'00'", "hash": "x'00'",
}  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [1, 5, ROWS])
def test_a_changed_row_is_named(path: Path, journal: Journal, column: str, row: int) -> None:
    """Whichever field it is, the first, the last or one between."""
    audit = Audit(path, journal)
    fill(audit)
    audit.close()
    tamper(path, f"update log set {column} = {COLUMNS[column]} where seq = {row}")
    audit = Audit(path, journal)
    fault = audit.verify()
    assert fault is not None
    assert fault.seq == row
    audit.close()


@pytest.mark.parametrize(
    ("statements", "row", "what"),
    [
        (["delete from log where seq = 1"], 1, "missing"),
        (["delete from log where seq = 5"], 5, "missing"),
        (["delete from log where seq between 4 and 6"], 4, "up to row 6"),
        (["delete from log where seq = 10"], 10, "missing"),
        (["delete from log where seq > 7"], 8, "up to row 10"),
        (["delete from log"], 1, "up to row 10"),
        (
            ["update log set seq = -4 where seq = 4", "update log set seq = 4 where seq = 5", "update log set seq = 5 where seq = -4"],
            4,
            "moved",
        ),
        ([f"{COPY.format(-1)} where seq = 1"], -1, "put in"),
        ([f"{COPY.format(11)} where seq = 10"], 11, "changed"),
        (["delete from log where seq = 4", "update log set seq = seq - 1 where seq > 4"], 4, "moved"),
        (["update origin set secret = x'0011'"], 1, "another log"),
    ],
)  # fmt: skip
def test_rows_removed_moved_or_put_in_are_named(
    path: Path, journal: Journal, statements: list[str], row: int, what: str
) -> None:
    """At the beginning, between, and at the end, and still after more was written and restarts."""
    audit = Audit(path, journal)
    fill(audit)
    audit.close()
    tamper(path, *statements)
    for _ in range(3):
        audit = Audit(path, journal)
        fault = audit.verify()
        assert fault is not None
        assert fault.seq == row
        assert what in fault.what
        fill(audit)
        audit.close()


@pytest.mark.parametrize("first", [1, 5, ROWS])
def test_a_forged_chain_does_not_meet_the_head_in_the_journal(path: Path, journal: Journal, first: int) -> None:
    """A row rewritten with everything after it; named is the row where the two part, for good."""
    audit = Audit(path, journal)
    fill(audit)
    audit.close()
    forge(path, first)
    for _ in range(3):
        audit = Audit(path, journal)
        fault = audit.verify()
        assert fault is not None
        assert fault.seq == ROWS
        assert "rewritten" in fault.what
        fill(audit)
        audit.close()


def test_a_forged_chain_shows_although_rows_followed_the_head(path: Path, journal: Journal) -> None:
    """After a crash the journal remembers an older row; it must still be there."""
    audit = Audit(path, journal)
    fill(audit)
    audit.anchor()
    fill(audit, 3)
    audit._db.close()  # no anchor, as when killed
    forge(path, 5)
    audit = Audit(path, journal)
    fault = audit.verify()
    assert fault is not None
    assert fault.seq == ROWS
    fill(audit)
    audit.close()
    audit = Audit(path, journal)
    assert audit.verify() is not None
    audit.close()


def test_a_row_rewritten_in_the_running_log_is_named(path: Path, journal: Journal) -> None:
    """With its own hash made to fit: its successor does not continue it."""
    audit = Audit(path, journal)
    fill(audit)
    audit._db.execute("drop trigger only_append_update")
    row = audit.rows(last=1000)[4]
    changed = (*row[:4], "mail.read", *row[5:11])
    audit._db.execute("update log set op = 'mail.read', hash = ? where seq = 5", (_row_hash(changed, row.prev),))
    fault = audit.verify()
    assert fault is not None
    assert fault.seq == 5
    assert "rewritten" in fault.what
    audit.close()


def test_nothing_changes_or_removes_a_row_by_mistake(path: Path, journal: Journal) -> None:
    """The database itself refuses."""
    audit = Audit(path, journal)
    fill(audit)
    for statement in ("update log set op = 'x'", "delete from log"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            audit._db.execute(statement)
    assert audit.verify() is None
    audit.close()


def test_what_was_sent_cannot_be_read_from_it(path: Path, journal: Journal) -> None:
    """Of arguments only the size and a hash that needs the file's secret; equal ones still look equal."""
    secret = b"the body of a letter"
    audit = Audit(path, journal)
    for _ in range(2):
        audit.append(Kind.EFFECT, "a", "mail.send", "allow", args=secret)
    audit.append(Kind.BOOT, "kernel", "", "")
    one, two, boot = audit.rows()
    assert one.bytes == len(secret)
    assert one.args_hash == two.args_hash == audit.digest(secret)
    assert (boot.args_hash, boot.bytes) == (b"", 0)
    audit.close()
    assert secret not in path.read_bytes()
    other = Audit(path.with_name("other.db"), Journal(path.with_name("other-journal.db")))
    assert other.digest(secret) != one.args_hash
    other.close()


def test_rows_are_found_by_holder_kind_and_time(path: Path, journal: Journal) -> None:
    """The last ones that fit, oldest first."""
    now = [100.0]
    audit = Audit(path, journal, lambda: now[0])
    for kind, holder in ((Kind.GRANT, "a"), (Kind.EFFECT, "a"), (Kind.EFFECT, "b"), (Kind.EFFECT, "a")):
        audit.append(kind, holder, "mail.read", "allow")
        now[0] += 1
    assert [row.seq for row in audit.rows(holder="a", kind="effect")] == [2, 4]
    assert [row.seq for row in audit.rows(since=102)] == [3, 4]
    assert [row.seq for row in audit.rows(last=2)] == [3, 4]
    audit.close()


def test_pages_have_every_row_once(path: Path, journal: Journal) -> None:
    """From them the chain can be checked elsewhere."""
    audit = Audit(path, journal)
    fill(audit, 7)
    rows = [*audit.page(0, 3), *audit.page(3, 3), *audit.page(6, 3)]
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row.prev for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert audit.page(7, 3) == []
    audit.close()


def test_verifying_leaves_time_for_others(path: Path, journal: Journal) -> None:
    """In slices, between which rows may be appended; however many those are, it comes to its end."""
    audit = Audit(path, journal)
    fill(audit, 2 * SLICE + 1)
    steps = audit.verifying()
    assert next(steps) == SLICE
    fill(audit, 2 * SLICE)
    assert next(steps) == 2 * SLICE
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value is None
    audit.close()


def test_a_log_that_cannot_be_written_stops_what_it_would_tell_of(path: Path, journal: Journal) -> None:
    """An error for the caller, and the chain goes on where it was."""
    audit = Audit(path, journal)
    fill(audit)
    audit._db.execute("pragma query_only = on")
    with pytest.raises(OpError) as caught:
        audit.append(Kind.EFFECT, "a", "mail.send", "allow")
    assert caught.value.code is Code.UNAVAILABLE
    audit._db.execute("pragma query_only = off")
    fill(audit)
    assert audit.verify() is None
    audit.close()


KILLED = """
import sys
from pathlib import Path
from llmos.kernel.audit import Audit, Kind
from llmos.kernel.journal import Journal
audit = Audit(Path(sys.argv[1]), Journal(Path(sys.argv[2])))
while True:
    sys.stdout.write(f"{audit.append(Kind.EFFECT, 'a', 'mail.send', 'allow')}\\n")
    sys.stdout.flush()
"""


def test_a_kill_loses_no_row_that_was_acknowledged(path: Path, journal: Journal, tmp_path: Path) -> None:
    """What a process was told had been written is there after SIGKILL, in an unbroken chain."""
    command = [sys.executable, "-c", KILLED, os.fspath(path), os.fspath(tmp_path / "journal.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = 0
        while told < 200:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout if line.endswith("\n"))])
    audit = Audit(path, journal)
    assert audit.head.seq >= told
    assert audit.verify() is None
    audit.close()


def test_what_must_survive_a_power_cut_waits_for_the_disk(path: Path, journal: Journal) -> None:
    """A synchronous row brings the head to the journal with it; others wait for the anchor."""
    audit = Audit(path, journal)
    fill(audit, 1)
    assert journal.audit_head() is None
    audit.append(Kind.GRANT, "user", "perm.grant", "granted", sync=True)
    assert journal.audit_head() == audit.head
    assert audit._db.execute("pragma synchronous").fetchone() == (1,)
    fill(audit, 1)
    assert journal.audit_head() != audit.head
    audit.anchor()
    assert journal.audit_head() == audit.head
    audit.close()
