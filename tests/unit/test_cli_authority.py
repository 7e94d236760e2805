"""llmosctl where the user decides: approvals, permissions, profiles, the audit log, undo. The kernel is a double of the wire."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from llmos.ipc import protocol, wire
from llmos.ipc.manifest import Permissions
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header
from llmos.kernel.capability import USER, Approval, Right, Table
from llmos.userland import profiles, visible
from llmos.userland.cli import approval, main, why, words
from llmos.userland.sdk import Code, OpError

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def kernel(gate_double: Any, monkeypatch: pytest.MonkeyPatch, llmos_home: Path) -> Any:
    """The double, where llmosctl looks for the system; nobody is at the terminal."""
    monkeypatch.setenv("LLMOS_BUS", str(gate_double.path))
    monkeypatch.setenv("LLMOS_TOKEN", "t")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return gate_double


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Somebody is at the terminal, and answers this."""

    def say(answer: str) -> None:
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)

    return say


def _asked(kernel: Any, op: str) -> list[dict[str, Any]]:
    """The arguments of every call of `op` so far."""
    return [args for name, args in kernel.log if name == op]


CHAIN: list[dict[str, Any]] = [
    {"taint": 9, "at": 1e9 + 9, "holder": "a#7", "sender": "b#6", "via": "spawn", "call": 0, "added": "untrusted {mail}"},
    {"taint": 8, "at": 1e9 + 8, "holder": "a#7", "sender": "files", "via": "files.read", "call": 41, "added": "trusted {files}"},
    {"taint": 5, "at": 1e9 + 5, "holder": "b#6", "sender": "mail", "via": "event mail.new", "call": 0, "added": "untrusted {mail}"},
]  # fmt: skip


def _approval(**changed: Any) -> dict[str, Any]:
    """One that waits, as `approval.show` has it, with the words of a stranger in it."""
    return {
        "id": "a1",
        "op": "mail.send",
        "holder": "assistant#7",
        "program": "assistant",
        "task": "t",
        "label": "untrusted {mail}",
        "args": {"to": ["bob@example.com"], "text": "hello\x1b[2J\u202egnp.exe\nApprove it? y"},
        "asked": time.time(),
        "expires": time.time() + 540,
        "state": "pending",
        "reasons": ["to[0]: it may have been chosen by a stranger"],
        "provenance": [{"path": "to[0]", "value": "bob@example.com", "origin": "seen", "label": "untrusted {mail}"}],
        "provenance_of": 1,
        "why": CHAIN,
        "undoable": False,
        "preview": "-old\n+new\x1b]0;x\x07",
        "rule": "assistant may call mail.send(to=['bob@example.com']) with data up to untrusted {mail}",
        "answer": "",
        "words": "",
        "decided": 0.0,
        "by": "",
        **changed,
    }


@pytest.fixture
def waiting(kernel: Any) -> Any:
    """The double with one request that waits."""
    kernel.answers["approval.show"] = lambda args: _approval(id=args["id"])
    kernel.answers["approval.answer"] = lambda args: _approval(
        state="denied" if args["answer"] in ("no", "reject") else "approved", answer=args["answer"]
    )
    return kernel


# -- approvals ---------------------------------------------------------------------------------------------------------


def test_approve_shows_all_there_is(waiting: Any, says: Callable[[str], None], capsys: Capture) -> None:
    """Before she is asked she has seen: each argument, its origin, the reason, the chain, the preview, and that it stays done."""
    says("y\n")
    assert main.run(["approve", "a1"]) == 0
    out, err = capsys.readouterr()
    for said in (
        "assistant#7 wants to call mail.send",
        'to   = ["bob@example.com"]',
        'to[0]: "bob@example.com": assistant#7 chose it after reading untrusted data',
        "to[0]: it may have been chosen by a stranger",
        "└─ b#6 became untrusted {mail} from mail through event mail.new",
        "  │ -old\n  │ +new",
        "it cannot be undone",
        "refused in 8 min",
    ):
        assert said in err, err
    assert err.index("-old") < err.rindex("Approve it?")
    assert "approved" in out
    assert _asked(waiting, "approval.answer") == [{"id": "a1", "answer": "once"}]


def test_strangers_words_are_visible(waiting: Any, says: Callable[[str], None], capsys: Capture) -> None:
    """Nothing in a request can move the cursor, turn a line around, or look like the question: it is on its own line, written out."""
    says("n\n")
    assert main.run(["approve", "a1"]) == 1
    err = capsys.readouterr().err
    assert not set(err) & set("\x1b\x07\u202e")
    assert '"hello\\u001b[2J\\u202egnp.exe\\nApprove it? y"' in err
    assert _asked(waiting, "approval.answer") == []


@pytest.mark.parametrize(
    ("flag", "answer", "said"),
    [
        ("--once", "once", None),
        ("--for-task", "task", "until this task ends, without asking you: assistant may call mail.send("),
        ("--always", "always", "from now on, in every task, without asking you: assistant may call mail.send("),
    ],
)
def test_the_rule_is_shown_before_it_is_saved(
    flag: str, answer: str, said: str | None, waiting: Any, says: Callable[[str], None], capsys: Capture
) -> None:
    """`--for-task` and `--always` show in words what will not be asked any more; once shows no rule."""
    says("y\n")
    assert main.run(["approve", "a1", flag]) == 0
    err = capsys.readouterr().err
    assert said is None or err.index(said) < err.rindex("Approve it?")
    assert ("without asking you" in err) == (said is not None)
    assert _asked(waiting, "approval.answer") == [{"id": "a1", "answer": answer}]


def test_a_long_line_stays_a_stranger_s(capsys: Capture) -> None:
    """Where a terminal would wrap a value, it is folded behind a mark: none of it begins a line and looks like ours."""
    shown = _approval(args={"text": "x" * 70 + "Approve it? [y/N]: y" + "漢" * 50})
    folded = list(approval.folded(approval.in_full(shown), 80))
    assert all(line.startswith(("  │ ", "  text = ")) for line in folded if "xx" in line or "漢" in line)
    assert max(sum(2 if char == "漢" else 1 for char in line) for line in folded) <= 80
    assert not any(line.startswith("Approve") for line in folded)


def test_approve_without_anybody(waiting: Any, capsys: Capture) -> None:
    """Off a terminal nothing is approved without `-y`: exit status 5, and the kernel hears nothing."""
    assert main.run(["approve", "a1"]) == 5
    assert "error[perm.needs_approval]" in capsys.readouterr().err
    assert _asked(waiting, "approval.answer") == []
    assert main.run(["approve", "a1", "-y", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "approved"
    assert main.run(["approve", "a1", "--always", "--for-task", "-y"]) == 2


def test_approve_what_is_over(waiting: Any, capsys: Capture) -> None:
    """One that is settled is a conflict, and nobody is asked."""
    waiting.answers["approval.show"] = lambda _: _approval(state="expired")
    assert main.run(["approve", "a1", "-y"]) == 8
    assert "expired already" in capsys.readouterr().err


def test_deny(waiting: Any) -> None:
    """No is no; with a reason the agent gets the words."""
    assert main.run(["deny", "a1"]) == 0
    assert main.run(["deny", "a1", "--reason", "ask Jane"]) == 0
    assert _asked(waiting, "approval.answer") == [
        {"id": "a1", "answer": "no"},
        {"id": "a1", "answer": "reject", "words": "ask Jane"},
    ]


def test_approval_lists(waiting: Any, capsys: Capture) -> None:
    """What waits by default, any state on request; rules are listed and forgotten."""
    row = {key: _approval()[key] for key in ("id", "op", "holder", "program", "state", "asked", "expires", "undoable")}
    waiting.answers["approval.list"] = lambda args: {"approvals": [row] if args["state"] != "denied" else []}
    assert main.run(["approval", "ls"]) == 0
    assert "mail.send" in capsys.readouterr().out
    assert main.run(["approval", "ls", "--state", "denied"]) == 0
    assert main.run(["approval", "ls", "--state", "any"]) == 0
    assert [args["state"] for args in _asked(waiting, "approval.list")] == ["pending", "denied", ""]
    rule = {
        "id": "r1",
        "program": "assistant",
        "task": "",
        "op": "mail.send",
        "text": "it may",
        "created": 1e9,
        "by": "user",
    }
    waiting.answers["approval.rules"] = lambda _: {"rules": [rule]}
    waiting.answers["approval.forget"] = lambda _: {}
    assert main.run(["approval", "rules"]) == 0
    assert "it may" in capsys.readouterr().out
    assert main.run(["approval", "forget", "r1"]) == 0
    assert _asked(waiting, "approval.forget") == [{"id": "r1"}]


def test_watch_tells_each_once(waiting: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits already comes first, and is not told again by its own event; then what comes, and what becomes of it."""
    waiting.answers["bus.subscribe"] = lambda _: {"subscription": 1}
    waiting.answers["bus.unsubscribe"] = lambda _: {}

    def listed(_: dict[str, Any]) -> dict[str, Any]:
        for seq, (topic, number) in enumerate(
            [("approval.requested", "a1"), ("approval.requested", "a2"), ("approval.settled", "a1")], 1
        ):
            data = {"id": number, "op": "mail.send", "holder": "h", "expires": 2e9, "state": "denied"}
            header = Header(kind=Kind.EVENT, topic=topic, seq=seq, ts=1e9)
            waiting._out.put([waiting._peer, GREETING, pack_header(header), wire.encode(data)])
        return {"approvals": [_approval()]}

    waiting.answers["approval.list"] = listed
    told: list[tuple[str, str]] = []

    def tell(row: Any) -> None:
        told.append((row["topic"], row["id"]))
        if len(told) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("llmos.userland.cli.approval.line_json", tell)
    assert main.run(["approval", "watch", "-o", "jsonl"]) == 130
    assert told == [("approval.requested", "a1"), ("approval.requested", "a2"), ("approval.settled", "a1")]


def test_what_is_left_out_is_counted() -> None:
    """A long request says how many elements it tells no origin of; one that is whole says nothing of it."""
    row = _approval()["provenance"][0]
    told = "\n".join(approval.in_full(_approval(provenance=[row] * 20, provenance_of=20)))
    assert "of which no origin is told" not in told
    assert "…and 7 more, of which no origin" in "\n".join(approval.in_full(_approval(provenance_of=8)))


# -- why, audit, undo --------------------------------------------------------------------------------------------------


def test_why_is_a_tree(kernel: Any, capsys: Capture) -> None:
    """Who was tainted by which datum through which call; below it what had tainted its sender."""
    kernel.answers["label.why"] = lambda args: {"id": args["id"], "label": ["u", "files", "mail"], "chain": CHAIN}
    assert main.run(["why", "a#7"]) == 0
    first, *tree = capsys.readouterr().out.splitlines()
    assert first == "a#7  untrusted {files, mail}"
    assert [line.rpartition(",")[0] for line in tree] == [
        "├─ a#7 became untrusted {mail} from b#6 through spawn",
        "│  └─ b#6 became untrusted {mail} from mail through event mail.new",
        "└─ a#7 took on {files} from files through files.read (call 41)",
    ]
    kernel.answers["label.why"] = lambda _: {"id": "9", "label": [], "chain": []}
    assert main.run(["why", "9"]) == 0
    assert "nothing untrusted" in capsys.readouterr().out


def test_why_goes_back_in_time() -> None:
    """A taint stands under the first datum that it can have reached, never under one that was read before it."""
    steps = [(5, "a", "b"), (8, "a", "c"), (3, "b", "mail"), (7, "c", "b"), (6, "b", "web")]
    chain: list[dict[str, Any]] = [
        {**CHAIN[0], "taint": taint, "holder": holder, "sender": sender} for taint, holder, sender in steps
    ]
    assert [line.split(" became")[0] + " ← " + line.split(" from ")[1].split()[0] for line in why.tree(chain)] == [
        "├─ a ← b",
        "│  └─ b ← mail",
        "└─ a ← c",
        "   └─ c ← b",
        "      └─ b ← web",
    ]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=8))
def test_why_shows_each_taint_once(pairs: list[tuple[str, str]]) -> None:
    """Whatever the chain, with loops: as many lines as rows, and it ends."""
    chain: list[dict[str, Any]] = [
        {**CHAIN[0], "taint": len(pairs) - number, "holder": holder, "sender": sender}
        for number, (holder, sender) in enumerate(pairs)
    ]
    assert len(why.tree(chain)) == len(chain)


ROW = {"seq": 1, "ts": 1e9, "kind": "denial", "holder": "a#7", "op": "mail.send", "cap": "", "label": "trusted", "args_hash": "",
       "bytes": 3, "decision": "denied", "detail": "no\x1b", "prev": "", "hash": "ab"}  # fmt: skip


def test_audit_ls(kernel: Any, capsys: Capture) -> None:
    """Dates are given as people say them; what is no date says what could be said."""
    kernel.answers["audit.list"] = lambda _: {"rows": [ROW]}
    assert (
        main.run(["audit", "ls", "--since", "2 hours ago", "--kind", "denial", "--holder", "a#7", "--last", "5"]) == 0
    )
    out = capsys.readouterr().out
    assert "mail.send" in out
    assert "\x1b" not in out
    args = kernel.wait_for("audit.list")
    assert (args["last"], args["holder"], args["kind"]) == (5, "a#7", "denial")
    assert 2 * 3600 - 60 < time.time() - args["since"] < 4 * 3600
    assert main.run(["audit", "ls", "--since", "when pigs fly"]) == 2
    assert main.run(["audit", "ls", "--kind", "nonsense"]) == 2


@pytest.mark.parametrize(
    ("kind", "detail", "call", "rest"),
    [
        ("effect", "call 15, a1b2", "15", "a1b2"),
        ("effect", "call 15", "15", ""),
        ("label", "from mail, call 12", "12", "from mail"),
        ("label", "from mail", "", "from mail"),
        ("denial", "call 15, it says", "", "call 15, it says"),
    ],
)
def test_audit_names_the_call(kind: str, detail: str, call: str, rest: str, kernel: Any, capsys: Capture) -> None:
    """Its number, which `why` takes, has a column of its own; words of strangers give none."""
    kernel.answers["audit.list"] = lambda _: {"rows": [{**ROW, "kind": kind, "detail": detail}]}
    assert main.run(["audit", "ls"]) == 0
    titles, row = capsys.readouterr().out.splitlines()
    at = titles.index("DETAIL")
    assert row[titles.index("LABEL") + len("trusted") : at].strip() == call
    assert row[at:] == rest


def test_why_of_a_call_that_nothing_is_kept_about(kernel: Any, capsys: Capture) -> None:
    """It is said in plain words why not, and what to ask instead; another that is not found keeps the kernel's words."""

    def missing(_: dict[str, Any]) -> dict[str, Any]:
        raise OpError(Code.NOT_FOUND, "the kernel's words")

    kernel.answers["label.why"] = missing
    assert main.run(["why", "15"]) == 3
    err = capsys.readouterr().err
    assert "it changed and sent nothing, or it is too long ago" in err
    assert "llmosctl why HOLDER" in err
    assert main.run(["why", "a#7"]) == 3
    assert "the kernel's words" in capsys.readouterr().err


def test_audit_verify(kernel: Any, capsys: Capture) -> None:
    """A whole log: rows and head, status 0. A broken one: the row is named, status 1."""
    kernel.answers["audit.verify"] = lambda _: {"rows": 9, "head": {"seq": 9, "hash": "ab"}, "fault": None}
    assert main.run(["audit", "verify"]) == 0
    assert capsys.readouterr().out.split() == ["rows", "9", "head", "ab"]
    kernel.answers["audit.verify"] = lambda _: {
        "rows": 9,
        "head": {"seq": 9, "hash": "ab"},
        "fault": {"seq": 4, "what": "is missing"},
    }
    assert main.run(["audit", "verify"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "error[audit.broken]: row 4 is missing")
    assert main.run(["audit", "verify", "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["fault"]["seq"] == 4


def _pages(args: dict[str, Any]) -> dict[str, Any]:
    after = args["after"]
    rows: list[dict[str, Any]] = [{**ROW, "seq": seq} for seq in range(after + 1, min(after + 3, 6))]
    return {"rows": rows, "next": rows[-1]["seq"] if rows[-1]["seq"] < 5 else 0, "head": {"seq": 5, "hash": "ef"}}


def test_audit_export(kernel: Any, tmp_path: Path, capsys: Capture) -> None:
    """Every row once, in order, then the head; the file is the user's alone; `-` is standard output."""
    kernel.answers["audit.export"] = _pages
    file = tmp_path / "audit.jsonl"
    assert main.run(["audit", "export", str(file)]) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["seq"] for line in lines[:-1]] == [1, 2, 3, 4, 5]
    assert lines[-1] == {"head": 5, "hash": "ef"}
    assert file.stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert main.run(["audit", "export", "-"]) == 0
    assert capsys.readouterr().out == file.read_text()


def test_audit_export_is_whole_or_not_there(kernel: Any, tmp_path: Path) -> None:
    """When it breaks off, what was there before stays, and nothing half-written is left beside it."""
    file = tmp_path / "audit.jsonl"
    file.write_text("before")

    def breaks(args: dict[str, Any]) -> dict[str, Any]:
        if args["after"]:
            raise OpError(Code.INTERNAL, "it broke")
        return _pages(args)

    kernel.answers["audit.export"] = breaks
    assert main.run(["audit", "export", str(file)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]
    assert file.read_text() == "before"
    kernel.answers["audit.export"] = lambda _: {"rows": [], "next": 1, "head": {"seq": 5, "hash": "ef"}}
    assert main.run(["audit", "export", str(file)]) == 1


def test_undo(kernel: Any, says: Callable[[str], None], capsys: Capture) -> None:
    """Without an id it lists; with one it says what it would undo, and asks."""
    effect = {"id": "u1", "holder": "assistant#7", "op": "files.write", "at": 1e9, "expires": 2e9}
    kernel.answers["undo.list"] = lambda _: {"effects": [effect]}
    kernel.answers["undo.run"] = lambda _: {"restored": "plan.txt"}
    assert main.run(["undo"]) == 0
    assert "files.write" in capsys.readouterr().out
    assert main.run(["undo", "u1"]) == 5
    says("n\n")
    assert main.run(["undo", "u1"]) == 1
    assert "Undo files.write by assistant#7 of " in capsys.readouterr().err
    assert _asked(kernel, "undo.run") == []
    says("y\n")
    assert main.run(["undo", "u1"]) == 0
    assert "plan.txt" in capsys.readouterr().out


# -- permissions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verdict", "status"), [("allow", 0), ("ask", 5), ("deny", 4)])
def test_perm_check(verdict: str, status: int, kernel: Any, capsys: Capture) -> None:
    """The verdict is the exit status; the arguments have the op's types."""
    link = {"id": "c2", "holder": "a#7", "cap": "mail.send", "origin": "spawned by user", "reason": ""}
    kernel.answers["sys.ops"] = lambda _: {"ops": [{"op": "mail.send", "args": {"to": {"type": "string"}}}]}
    kernel.answers["perm.check"] = lambda _: {
        "verdict": verdict,
        "cap": "c2",
        "chain": [link],
        "reasons": ["so"],
        "hint": "do",
    }
    assert main.run(["perm", "check", "a#7", "mail.send", "to=7", "--args", '{"k": 1}']) == status
    assert kernel.wait_for("perm.check") == {"holder": "a#7", "op": "mail.send", "args": {"to": "7", "k": 1}}
    assert "c2  a#7: mail.send  (spawned by user)" in capsys.readouterr().out


def test_perm_why_and_show(kernel: Any, capsys: Capture) -> None:
    """The way a capability came, and what is left of it; all that one program may do, in words, and what it asks for."""
    chain = [
        {"id": "c9", "holder": "a#7", "cap": "mail.send(calls=5/d)", "origin": "spawned by user", "reason": ""},
        {"id": "c1", "holder": "user", "cap": "*.*", "origin": "boot", "reason": ""},
    ]
    kernel.answers["perm.why"] = lambda _: {"chain": chain, "left": {"calls": 3}}
    assert main.run(["perm", "why", "c9"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "c9  a#7: mail.send(calls=5/d)  (spawned by user)",
        "└─ from c1  user: *.*  (boot)",
        "left now: 3 calls",
    ]
    caps = [{**chain[0], "parent": "c1", "reason": "the weekly letter"}]
    kernel.answers["perm.list"] = lambda args: {
        "caps": caps if args["holder"] == "a#7" else [],
        "requests": [{"holder": "a", "cap": "llm.embed", "granted": False, "present": True}]
        if args["holder"] == "a#7"
        else [],
    }
    assert main.run(["perm", "show", "a#7"]) == 0
    out = capsys.readouterr().out
    assert "send things with mail, at most 5 times a day" in out
    assert "for: the weekly letter" in out
    assert "compare texts by meaning" in out.partition("it asks to")[2]
    assert main.run(["perm", "show", "nobody"]) == 3


@pytest.mark.parametrize(("more", "said"), [(0, False), (7, True)])
def test_a_list_that_was_cut_says_so(more: int, said: bool, kernel: Any, capsys: Capture) -> None:
    """Permissions that did not fit into the answer are counted."""
    cap = {"id": "c9", "parent": "c1", "holder": "a#7", "cap": "llm.embed", "origin": "boot", "reason": ""}
    kernel.answers["perm.list"] = lambda _: {"caps": [cap], "requests": [], "more": more}
    for argv in (["perm", "ls"], ["perm", "show", "a#7"]):
        assert main.run(argv) == 0
        assert ("7 more are not shown" in capsys.readouterr().err) == said


@pytest.fixture
def apps(kernel: Any) -> Any:
    """The double with one app, `notes`, that may embed."""
    listed = {"name": "notes", "created": 1e9, "connections": 0, "caps": ["llm.embed"]}
    gate = {"address": "ipc:///run/apps", "server_key": "s" * 40}
    kernel.answers["apps.list"] = lambda _: {"apps": [listed], **gate}
    kernel.answers["apps.add"] = lambda args: {"name": args["name"], "caps": args["allow"], **gate}
    kernel.answers["apps.remove"] = lambda _: {"revoked": 1}
    return kernel


def test_app_add_shows_what_it_will_be_able_to_do(apps: Any, says: Callable[[str], None], capsys: Capture) -> None:
    """What an app was granted before stays with it under its new key, and is shown with what is new; no is status 1."""
    assert main.run(["app", "add", "notes", "--yes"]) == 0
    err = capsys.readouterr().err
    assert "nothing yet" not in err
    assert "compare texts by meaning    llm.embed, as before" in err
    assert main.run(["app", "add", "notes", "--allow", "mail.read", "--allow", "llm.embed", "--yes"]) == 0
    err = capsys.readouterr().err
    assert "look things up with mail    mail.read\n" in err
    assert err.count("compare texts by meaning") == 1
    assert main.run(["app", "add", "fresh", "--yes"]) == 0
    assert "nothing yet" in capsys.readouterr().err
    before = len(_asked(apps, "apps.add"))
    says("n\n")
    assert main.run(["app", "add", "notes"]) == 1
    assert "no key was made for notes" in capsys.readouterr().err
    assert len(_asked(apps, "apps.add")) == before


def test_app_key_files(apps: Any, tmp_path: Path, capsys: Capture) -> None:
    """A place that cannot be written is told before the app is changed; a key that lies elsewhere is not passed over."""
    for place in ("/proc/k.toml", str(tmp_path)):
        assert main.run(["app", "add", "notes", "--yes", "--out", place]) == 2
        err = capsys.readouterr().err
        assert place in err
        assert "hint: " in err
    assert _asked(apps, "apps.add") == []
    assert main.run(["app", "add", "notes", "--yes", "--out", str(tmp_path / "k.toml")]) == 0
    capsys.readouterr()
    assert main.run(["app", "rm", "notes"]) == 0
    assert "--out is left, and opens nothing" in capsys.readouterr().err
    assert main.run(["app", "add", "notes", "--yes"]) == 0
    capsys.readouterr()
    assert main.run(["app", "rm", "notes"]) == 0
    assert "--out" not in capsys.readouterr().err


def test_perm_grant_profile_and_reason(kernel: Any, capsys: Capture) -> None:
    """All of a profile, each shown; the reason travels along. One way of saying what at a time."""
    kernel.answers["perm.grant"] = lambda args: {"id": "c9", "cap": args["cap"]}
    assert main.run(["perm", "grant", "app:notes", "--profile", "writer", "--reason", "for letters"]) == 5
    assert main.run(["perm", "grant", "app:notes", "--profile", "writer", "--reason", "for letters", "-y"]) == 0
    assert "use the language model" in capsys.readouterr().err
    assert [(args["cap"], args["reason"]) for args in _asked(kernel, "perm.grant")] == [
        (cap, "for letters") for cap in profiles.get("writer").allow
    ]
    assert main.run(["perm", "grant", "app:notes", "--profile", "writer", "--requested"]) == 2
    assert main.run(["perm", "grant", "app:notes", "--profile", "nope"]) == 3


REQUESTS = [
    {"holder": "my_week", "cap": "browser_history.read", "granted": False, "present": True},
    {"holder": "my_week", "cap": "llm.embed", "granted": True, "present": True},
]


def test_what_an_agent_emits_is_visible(spawning: Any, capsys: Capture) -> None:
    """Progress on the terminal is an agent's words: none of it moves the cursor."""
    spawning.chunks["proc.spawn"] = [{"stage": "x\x1b[2J"}]
    spawning.answers["proc.spawn"] = lambda _: {"pid": 5, "result": {}}
    assert main.run(["spawn", "my_week", "-y", "--wait"]) == 0
    assert "stage=x\\x1b[2J" in capsys.readouterr().err


def test_spawn_says_who_it_is(spawning: Any, capsys: Capture) -> None:
    """Scripts get the pid alone on stdout; people, and JSON, the badge that the other commands take as well."""
    assert main.run(["spawn", "my_week", "-y"]) == 0
    out, err = capsys.readouterr()
    assert out == "5\n"
    assert "my_week#5" in err
    assert main.run(["spawn", "my_week", "-y", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pid": 5, "badge": "my_week#5"}


READER = list(profiles.get("reader").allow)


@pytest.fixture
def spawning(kernel: Any) -> Any:
    kernel.answers["perm.list"] = lambda args: {"caps": [], "requests": REQUESTS if args["holder"] == "my_week" else []}
    kernel.answers["proc.spawn"] = lambda _: {"pid": 5}
    return kernel


def test_spawn_asks_for_what_is_not_granted(spawning: Any, says: Callable[[str], None], capsys: Capture) -> None:
    """A person reads what the agent asks for and does not have, and nothing starts without her yes."""
    assert main.run(["spawn", "my_week"]) == 5
    says("\n")
    assert main.run(["spawn", "my_week"]) == 1
    err = capsys.readouterr().err
    assert "look things up with browser_history" in err
    assert "compare texts" not in err
    assert _asked(spawning, "proc.spawn") == []
    says("y\n")
    assert main.run(["spawn", "my_week"]) == 0
    assert "allow" not in spawning.wait_for("proc.spawn")


@pytest.mark.parametrize(
    ("argv", "allow"),
    [
        (["my_week", "-y"], None),
        (["other"], None),
        (["my_week", "--allow", "llm.embed"], ["llm.embed"]),
        (["my_week", "--profile", "reader"], READER),
        (["my_week", "--profile", "reader", "--allow", "x.read"], [*READER, "x.read"]),
    ],
)
def test_spawn_without_asking(argv: list[str], allow: list[str] | None, spawning: Any) -> None:
    """`-y`, `--allow` and `--profile` say enough, and an agent that asks for nothing more needs no word."""
    assert main.run(["spawn", *argv]) == 0
    assert spawning.wait_for("proc.spawn").get("allow") == allow


# -- profiles ----------------------------------------------------------------------------------------------------------


def test_shipped_profiles_can_be_handed_on() -> None:
    """Each is a set the kernel understands, of objects that exist; what changes something asks every time."""
    found = profiles.every()
    assert {one.name for one in found} >= {"assistant", "reader", "writer", "automation"}
    drivers = {path.parent.name for path in (ROOT / "drivers").glob("*/manifest.toml")}
    for one in found:
        assert one.profile is not None, one.problem
        for text in one.profile.allow:
            right = Right.parse(text)
            assert str(right) == text
            assert right.object in drivers | {"llm", "bus", "app"}, text
            harmless = {"read", "generate", "embed", "subscribe", "publish"}
            assert right.verbs <= harmless or right.approval is not Approval.NEVER, text
            table = Table(lambda: 1e9)
            table.mint(USER, Right.parse("*.*(grantable=yes)"), "boot")
            table.derive(USER, right, "agent#1", "test")


def test_own_profiles_go_before(kernel: Any, capsys: Capture) -> None:
    """The user's file stands in place of the system's; one that is broken is named, and never used."""
    own = profiles.user_dir()
    own.mkdir(parents=True)
    (own / "reader.toml").write_text('[profile]\nname = "reader"\nsummary = "mine"\nallow = ["llm.embed"]\n')
    (own / "bad.toml").write_text('[profile]\nname = "bad"\nsummary = "x"\nallow = "llm.embed"\n')
    (own / "alias.toml").write_text('[profile]\nname = "reader"\nsummary = "x"\nallow = []\n')
    assert profiles.get("reader").allow == ["llm.embed"]
    assert main.run(["perm", "profiles"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "yours" in listed["reader"]
    assert "broken: " in listed["bad"]
    assert "broken: " in listed["alias"]
    assert main.run(["perm", "profiles", "reader"]) == 0
    assert "compare texts by meaning" in capsys.readouterr().out
    assert main.run(["spawn", "my_week", "--profile", "bad"]) == 2
    assert main.run(["perm", "profiles", "nope"]) == 3


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "said"),
    [
        ("fs.read+write(path=~/a/**, path=~/b)", "see the files in ~/a or ~/b and change the files in ~/a or ~/b"),
        ('fs.read(path="~/Library/My Files")', 'see the files in "~/Library/My Files"'),
        ("mail.send(to=*@example.com)", "send things with mail (only to anyone at example.com)"),
        ("web.read(host=*.example.com)", "look things up with web (only at any site under example.com)"),
        ("bus.subscribe(topic=mail.*)", "hear of everything under mail"),
        ("llm.generate(class<=interactive, tokens=20k/h)", "use the language model, at most 20,000 tokens an hour"),
        ("llm.generate(class<=background)", "use the language model (only in the background)"),
        ("pay.actuate(amount<=100)", "operate things with pay (only amount up to 100)"),
        ("mail.read(calls=1)", "look things up with mail, at most once in all"),
        ("mail.read(calls=20/d, bytes=5M/w)", "look things up with mail, at most 20 times a day, at most 5,000,000 bytes a week"),
        ("mail.send(approval=each)", "send things with mail, asking you every time"),
        ("mail.read(expires=2026-12-01)", "look things up with mail, until 1 December 2026"),
        ("mail.read(expires=2026-12-01T18:30:00Z)", "look things up with mail, until 1 December 2026 at 18:30 UTC"),
        ("mail.read(for=2h)", "look things up with mail, for 2 hours"),
        ("mail.read(grantable=yes)", "look things up with mail, and may hand it on"),
        ("app.call(name=*)", "call any function of running programs"),
        ("*.*", "do anything at all"),
        ("mail.read(to=\"\u202e\x1b\")", "look things up with mail (only to \\u202e\\x1b)"),
        ("mail.read(to=", "mail.read(to="),
    ],
)  # fmt: skip
def test_words(cap: str, said: str) -> None:
    """Every kind of bound and term is said as people say it; what is no capability stays as it is."""
    assert words.of_capability(cap) == said


def test_every_right_of_the_kernel_has_its_words() -> None:
    """No syscall's right is told as a formula, none that the kernel looks for besides, and no shipped manifest's request either."""
    wanted = {call.RIGHT for call in protocol.SYSCALLS.values() if call.RIGHT is not None}
    wanted |= {"label.trust", "app.call", "fs.read", "fs.write", "net.connect", "*.*"}
    assert wanted == set(words._SAID)
    assert len(set(words._SAID.values())) == len(words._SAID)
    asked = Permissions(read=["~/a"], write=["~/b"], calls=["llm.embed"]).capabilities()
    assert [words.of_capability(text) for text in asked] == [
        "see the files in ~/a",
        "change the files in ~/b",
        "compare texts by meaning",
    ]


@given(st.text())
def test_words_of_anything(text: str) -> None:
    """Whatever a manifest says: no exception, one line, nothing unseen."""
    said = words.of_capability(f'x.read(to="{text}")')
    assert said.isprintable() or all(char.isprintable() or char == " " for char in said)


@given(st.one_of(st.text(), st.recursive(st.text() | st.integers(), st.lists, max_leaves=5)))
def test_exact_is_exact(value: Any) -> None:
    """What is shown is one line of printable characters, and reads back as the very value."""
    shown = visible.exact(value)
    assert shown.isprintable()
    assert json.loads(shown) == value
    assert len(visible.visible(str(value)).splitlines()) <= 1


@pytest.mark.parametrize("hidden", "\u200b\u202e\u2066\ufeff\u00ad\u00a0\ufe0f\u115f\u2800\u2028\x7f\x9b\t\U000e0041")
def test_hidden_characters(hidden: str) -> None:
    """What has no width, turns a line around, or is another space than it seems is written out."""
    for shown in (visible.visible(f"a{hidden}b"), visible.exact(f"a{hidden}b")):
        assert hidden not in shown
        assert "\\" in shown


# -- the page ----------------------------------------------------------------------------------------------------------


def test_every_command_is_on_the_page() -> None:
    """userland/README.md names each verb, and each noun with its verbs."""
    page = (ROOT / "userland/README.md").read_text()
    for name, command in typer.main.get_command(main.app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        line = next((line for line in page.splitlines() if re.match(rf"\|.*`{name}[ `]", line)), "")
        assert line, name
        for verb in inner or ():
            assert f"`{verb}" in line or f"`{name} {verb}" in page, f"{name} {verb}"
