"""Desktop notifications: what they say, what a click does, and when they go. A real message bus, a service of the test's own on it."""

from __future__ import annotations

import html
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jeepney import HeaderFields, MessageType, message_bus, new_signal
from jeepney.io.threading import open_dbus_connection

from llmos.ipc import wire
from llmos.ipc.protocol import GREETING, Header, Kind, pack_header
from llmos.userland import notifier
from llmos.userland.notifier.text import MAX_ARGUMENTS, of_command, of_request
from llmos.userland.sdk import Code, OpError
from tests.unit.desktop_doubles import OBJECT, Screen, session_bus


@pytest.fixture
def bus() -> Iterator[str]:
    """The address of a session bus of the test's own."""
    with session_bus() as address:
        yield address


@pytest.fixture
def screen(bus: str) -> Iterator[Screen]:
    made = Screen(bus)
    yield made
    made.end()


def _request(number: str = "a1", **changed: Any) -> dict[str, Any]:
    return {
        "id": number,
        "op": "mail.send",
        "holder": "assistant#7",
        "state": "pending",
        "args": {"to": ["bob@example.com"], "text": "a secret <b>letter</b>"},
        "provenance": [{"path": "to[0]", "value": "bob@example.com", "origin": "own", "label": "trusted"}],
        "provenance_of": 1,
        **changed,
    }


class Kernel:
    """The double of the wire, with requests that wait."""

    def __init__(self, gate: Any) -> None:
        self.gate = gate
        self.requests = {"a1": _request()}
        gate.answers |= {
            "bus.subscribe": lambda _: {"subscription": 1},
            "bus.unsubscribe": lambda _: {},
            "approval.list": lambda _: {"approvals": [r for r in self.requests.values() if r["state"] == "pending"]},
            "approval.show": lambda args: self.requests[args["id"]],
            "approval.answer": lambda _: {},
        }
        self._seq = 0

    def publish(self, topic: str, **data: Any) -> None:
        self._seq += 1
        header = Header(kind=Kind.EVENT, topic=topic, seq=self._seq, ts=1e9)
        self.gate._out.put([self.gate._peer, GREETING, pack_header(header), wire.encode(data)])

    def answers(self) -> list[dict[str, Any]]:
        return [args for op, args in self.gate.log if op == "approval.answer"]


@pytest.fixture
def kernel(gate_double: Any) -> Kernel:
    return Kernel(gate_double)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(kernel: Kernel, bus: str, tmp_path: Path) -> Iterator[Start]:
    """The notifier as a process, as the system starts it; `PATH` has no terminal."""
    started: list[subprocess.Popen[str]] = []

    def run(**environment: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "llmos.userland.notifier"],
                env={
                    **os.environ,
                    "LLMOS_BUS": str(kernel.gate.path),
                    "LLMOS_TOKEN": "t",
                    "DBUS_SESSION_BUS_ADDRESS": bus,
                    "PATH": str(tmp_path),
                    **environment,
                },
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.terminate()
        process.communicate(timeout=10)


def test_what_waits_is_shown_and_approved_by_a_click(kernel: Kernel, screen: Screen, start: Start) -> None:
    """It says who, which op and where it lands, and nothing of the letter; the button approves once; settled, it goes."""
    start()
    number, (app, _, _, summary, body, buttons, _, timeout) = screen.next()
    assert (app, timeout) == ("llmos", 0)
    assert summary == "assistant#7 asks: mail.send"
    assert body == "to[0] = &quot;bob@example.com&quot;\n1 more argument: see Show"
    assert buttons == ["once", "Approve once", "no", "Deny", "default", "Show"]
    screen.signal("ActionInvoked", "us", number, "once")
    assert kernel.gate.wait_for("approval.answer") == {"id": "a1", "answer": "once"}
    kernel.publish("approval.settled", id="a1", op="mail.send", holder="h", state="approved")
    assert screen.closed.get(timeout=10) == number


def test_a_new_request_is_shown_and_denied(kernel: Kernel, screen: Screen, start: Start) -> None:
    """One that comes while it runs; Deny is no. Settled elsewhere, a notification goes without a click."""
    start()
    first, _ = screen.next()
    kernel.requests["a2"] = _request("a2", op="files.delete")
    kernel.publish("approval.requested", id="a2", op="files.delete", holder="h", expires=2e9)
    second, shown = screen.next()
    assert shown[3] == "assistant#7 asks: files.delete"
    kernel.publish("approval.settled", id="a1", op="mail.send", holder="h", state="expired")
    assert screen.closed.get(timeout=10) == first
    screen.signal("ActionInvoked", "us", second, "no")
    assert kernel.gate.wait_for("approval.answer") == {"id": "a2", "answer": "no"}


def test_only_the_service_that_shows_it_can_click(kernel: Kernel, screen: Screen, start: Start, bus: str) -> None:
    """Another program on the session bus that says a button was pressed is not believed, whether it tells all or the notifier."""
    start()
    number, _ = screen.next()
    with open_dbus_connection(bus) as forger:
        forger.send(new_signal(OBJECT, "ActionInvoked", "us", (number, "once")))
        for name in (f":1.{n}" for n in range(10)):  # the notifier's is among them
            direct = new_signal(OBJECT, "ActionInvoked", "us", (number, "once"))
            direct.header.fields[HeaderFields.destination] = name
            forger.send(direct)
        forger.send(message_bus.GetId())
        while forger.receive(timeout=5).header.message_type is not MessageType.method_return:
            pass  # until the bus has passed them all on
    screen.signal("ActionInvoked", "us", number, "no")
    assert kernel.gate.wait_for("approval.answer") == {"id": "a1", "answer": "no"}
    assert kernel.answers() == [{"id": "a1", "answer": "no"}]


def test_a_click_too_late(kernel: Kernel, screen: Screen, start: Start) -> None:
    """An answer that the kernel refuses is said on stderr, and the notifier goes on."""

    def refused(_: dict[str, Any]) -> dict[str, Any]:
        raise OpError(Code.CONFLICT, "a1 is expired already")

    kernel.gate.answers["approval.answer"] = refused
    process = start()
    number, _ = screen.next()
    screen.signal("ActionInvoked", "us", number, "once")
    kernel.gate.wait_for("approval.answer")
    kernel.requests["a2"] = _request("a2")
    kernel.publish("approval.requested", id="a2", op="mail.send", holder="h", expires=2e9)
    assert screen.next()[1][3] == "assistant#7 asks: mail.send"
    process.terminate()
    assert "a1 is expired already" in process.communicate(timeout=10)[1]


def test_show_opens_a_terminal(kernel: Kernel, screen: Screen, start: Start, tmp_path: Path) -> None:
    """Show opens `llmosctl approve ID` in a terminal; where there is none, it says what to type."""
    start()
    number, _ = screen.next()
    screen.signal("ActionInvoked", "us", number, "default")
    assert screen.next()[1][4] == "llmosctl approve a1"
    fifo = tmp_path / "told"
    os.mkfifo(fifo)
    terminal = tmp_path / "x-terminal-emulator"
    terminal.write_text(f'#!/bin/sh\necho "$@" > {fifo}\n')
    terminal.chmod(0o755)
    screen.signal("ActionInvoked", "us", number, "default")
    assert fifo.read_text().split()[-4:] == ["-m", "llmos.userland.cli", "approve", "a1"]
    assert kernel.answers() == []


def test_a_flood_stays_behind(kernel: Kernel, screen: Screen, start: Start) -> None:
    """At most eight are on the screen; when one goes, the next comes."""
    kernel.requests = {f"a{n}": _request(f"a{n}", op=f"x.op{n}") for n in range(12)}
    start()
    numbers = [screen.next()[0] for _ in range(8)]
    with pytest.raises(queue.Empty):
        screen.shown.get(timeout=0.3)
    screen.signal("NotificationClosed", "uu", numbers[0], 2)
    assert screen.next()[0] == 9


def test_it_ends_with_the_system(kernel: Kernel, screen: Screen, start: Start) -> None:
    """When the kernel has gone its notifications go too, and it ends with status 0."""
    process = start()
    number, _ = screen.next()
    kernel.gate.close()
    os.unlink(kernel.gate.path)  # noqa: PTH108
    assert screen.closed.get(timeout=20) == number
    assert process.wait(20) == 0


@pytest.mark.parametrize("address", ["", "unix:path=/nowhere/at/all", "nonsense"])
def test_without_a_desktop(address: str, start: Start) -> None:
    """No session bus, or none that answers: one clear line, and status 0."""
    process = start(DBUS_SESSION_BUS_ADDRESS=address, XDG_RUNTIME_DIR="")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err.startswith(notifier.NO_DESKTOP)
    assert err.count("\n") == 1
    assert notifier.start_beside({"PATH": ""}) is None


def test_without_a_notification_service(kernel: Kernel, bus: str, start: Start) -> None:
    """A bus on which nobody shows notifications: it says so once, and goes on listening."""
    process = start()
    assert process.stderr is not None
    assert "shows no notifications" in process.stderr.readline()
    assert process.poll() is None


def test_what_does_not_fit_cannot_be_clicked() -> None:
    """Arguments that were cut, or of which nothing is known, leave Deny and Show."""
    long = _request(provenance=[{"path": "to", "value": "x" * 300, "origin": "own", "label": "trusted"}])
    assert [key for key, _ in of_request(long).buttons] == ["no", "default"]
    shown = html.unescape(of_request(long).body).splitlines()[0]
    assert (len(shown), shown[-1]) == (MAX_ARGUMENTS, "…")
    many = _request(provenance=[{"path": "n", "value": 1, "origin": "own", "label": "trusted"}] * 20, provenance_of=21)
    assert [key for key, _ in of_request(many).buttons] == ["no", "default"]
    assert [key for key, _ in of_request(_request(provenance=[], provenance_of=0)).buttons] == ["no", "default"]
    assert [key for key, _ in of_request(_request(provenance=[], provenance_of=0, args={})).buttons] == [
        "once",
        "no",
        "default",
    ]


@given(st.text(), st.text(max_size=300))
def test_no_markup_and_no_hidden_characters(holder: str, value: str) -> None:
    """Whatever a stranger writes, the desktop gets no tag, no entity of theirs, and nothing unseen; and not more than fits."""
    provenance = [{"path": "to", "value": value, "origin": "seen", "label": "untrusted"}]
    for text in (of_request(_request(holder=holder, provenance=provenance)), of_command(_request(holder=holder))):
        for part in (text.summary, text.body):
            assert not set(part) & set("<>\"'\x1b\u202e\0")
            assert all(char.isprintable() or char == "\n" for char in part)
        assert len(text.body) <= 6 * MAX_ARGUMENTS + 40
