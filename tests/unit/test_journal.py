"""The journal: what was acknowledged is there after a restart."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.kernel.capability import USER, Right, Spending, Table
from llmos.kernel.journal import Grant, Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


def test_grants_come_back_in_the_order_they_were_given(path: Path) -> None:
    """With who gave them and why; those taken back do not."""
    journal = Journal(path)
    journal.add_grant("c3", "b", "mail.read", "granted by user", "to answer questions")
    journal.add_grant("c10", "a", "llm.embed", "granted by user")
    journal.add_grant("c12", "a", "fs.read", "granted by user")
    journal.remove_grants(["c10"])
    journal.close()
    journal = Journal(path)
    assert list(journal.grants()) == [
        Grant("c3", "b", "mail.read", "granted by user", "to answer questions"),
        Grant("c12", "a", "fs.read", "granted by user", ""),
    ]
    journal.close()


def test_what_was_spent_ends_with_its_grant(path: Path) -> None:
    """And nothing is remembered of what is no grant."""
    journal = Journal(path)
    journal.add_grant("c2", "a", "mail.send(calls=5/d)", "granted by user")
    journal.set_spending([("c2", "calls", Spending(7, 2, 1)), ("c9", "calls", Spending(7, 2, 1))])
    journal.set_spending([("c2", "calls", Spending(7, 3, 1))])
    assert journal.spending("c2") == {"calls": Spending(7, 3, 1)}
    assert journal.spending("c9") == {}
    journal.remove_grants(["c2"])
    journal.add_grant("c2", "a", "mail.send(calls=5/d)", "granted by user")
    assert journal.spending("c2") == {}
    journal.close()


def test_a_quota_is_not_given_twice_by_restarting(path: Path) -> None:
    """Through the real file: what is left after a restart is at most what was left before."""
    clock = 1_800_000_000.0
    journal = Journal(path)
    table = Table(lambda: clock)
    table.mint(USER, Right("*", "*", grantable=True), "boot")
    cap = table.derive(USER, Right.parse("mail.send(calls=100/d)"), "a", "granted by user")
    journal.add_grant(cap.id, "a", str(cap.right), cap.origin)
    table.keep(cap)
    for _ in range(40):
        table.check("a", "mail", "send", {})
        if table.unsaved:
            journal.set_spending(table.take_unsaved())
    journal.close()

    journal = Journal(path)
    table = Table(lambda: clock)
    (grant,) = journal.grants()
    cap = table.mint("a", Right.parse(grant.cap), grant.origin, id=grant.id, spent=journal.spending(grant.id))
    left = table.left(cap, "calls")
    assert left is not None
    assert 57 <= left <= 60
    journal.close()


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    """One inside another is part of it."""
    journal = Journal(path)

    def fail() -> None:
        with journal.transaction():
            journal.set("a", "1")
            with journal.transaction():
                journal.set("b", "2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert journal.get("a") is None
    assert journal.get("b") is None
    with journal.transaction():
        journal.set("a", "1")
    assert journal.get("a") == "1"
    journal.close()


def test_other_parts_keep_tables_of_their_own(path: Path) -> None:
    """Made when they are missing, kept when they are there."""
    schema = ("create table if not exists notes (n integer primary key, text text not null) strict;",)
    journal = Journal(path, schema)
    journal.write("insert into notes values (?, ?)", (1, "x"))
    journal.close()
    journal = Journal(path, schema)
    assert journal.read("select n, text from notes") == [(1, "x")]
    with pytest.raises(OpError) as caught:
        journal.write("insert into notes values (?, ?)", (1, "y"))
    assert caught.value.code is Code.UNAVAILABLE
    journal.close()


def test_a_journal_of_the_first_version_is_taken_over(path: Path) -> None:
    """Grants and settings that it has are kept."""
    path.parent.mkdir()
    old = sqlite3.connect(path)
    old.executescript("""
        create table grants (
            id text primary key, holder text not null, cap text not null, origin text not null, created real not null
        ) strict;
        create table settings (key text primary key, value text not null) strict;
        insert into grants values ('c2', 'a', 'llm.embed', 'granted by user', 1.0);
        insert into settings values ('model', 'm');
    """)
    old.close()
    journal = Journal(path)
    assert list(journal.grants()) == [Grant("c2", "a", "llm.embed", "granted by user", "")]
    assert journal.get("model") == "m"
    journal.close()


def test_a_journal_of_a_later_version_is_left_alone(path: Path) -> None:
    """It is not understood, so it is not touched, and the error says what to do."""
    Journal(path).close()
    newer = sqlite3.connect(path)
    newer.execute("pragma user_version = 1000")
    newer.close()
    with pytest.raises(OpError) as caught:
        Journal(path)
    assert caught.value.code is Code.UNAVAILABLE
    assert "newer" in caught.value.detail
