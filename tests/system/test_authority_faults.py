"""What a review found to end the kernel, to fill it, or to do its harm while nothing can be written down; none of it does."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from textwrap import dedent

import pytest

from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from tests.system.authority_world import World
from tests.system.bus_attacks.raw import GREETING, RawPeer, pack
from tests.system.conftest import System

PENDING = """
bus = peer()
bus.call("post.inbox")
for number in range({count}):
    bus.start("{op}", {args})
while True:
    bus.pump(1)
"""
"""An agent that asks for something and waits."""


@pytest.fixture
def stopped(system: System) -> World:
    """Not started yet."""
    return World(system)


@pytest.fixture
def world(stopped: World) -> World:
    """Booted, without a model."""
    stopped.boot()
    return stopped


@contextmanager
def locked(world: World) -> Iterator[None]:
    """Nothing can be written to the journal."""
    with closing(sqlite3.connect(world.home("journal.db"), isolation_level=None, timeout=5)) as database:
        database.execute("begin immediate")
        yield


def greeted(world: World) -> RawPeer:
    """The user, saying what a decent client cannot."""
    peer = RawPeer(str(world.system.socket))
    peer.hello(paths.token_file(world.system.socket.parent.parent).read_text())
    return peer


# -- what ended the kernel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [{"kind": [], "id": 1}, {"kind": {}, "id": 1}, {"kind": "call", "id": []}])
def test_a_header_of_any_shape_ends_nobody_but_its_sender(world: World, header: dict[str, object]) -> None:
    """Not even from somebody who never said who they are."""
    with closing(RawPeer(str(world.system.socket))) as stranger:
        stranger.send([GREETING, pack(header), pack({})])
        stranger.pump(0.5)
    assert world.is_well()


def test_emits_that_are_cancelled_do_not_pile_up(world: World) -> None:
    """Behind a slow reader a child has one emit at a time, so that ending them all is no recursion."""
    code = """
    bus = peer()
    for number in range(3000):
        bus.post({"kind": "cancel", "id": bus.start("proc.emit", {"data": {}})})
        if number % 200 == 0:
            bus.pump(0.05)
    os._exit(3)
    """
    with closing(greeted(world)) as reader:
        birth = {"program": "evil", "args": {"code": dedent(code)}, "allow": [], "wait": True}
        number = reader.start("proc.spawn", birth, credit=0)
        ok, error = reader.wait(number, 30)
    assert (ok, error["code"]) == (False, "PEER_DIED")
    assert len(reader.chunks.get(number, [])) <= 1
    assert world.is_well()


def test_calls_within_calls_end(world: World) -> None:
    """A function that calls itself is told so before ending its calls, one within another, is too deep."""
    code = """
    bus = peer()
    bus.call("fn.register", {"name": "echo", "summary": "Calls itself", "effect": "read"})
    numbers = [bus.start("app.echo")]
    while len(numbers) < 40 and numbers[-1] not in bus.replies:
        bus.pump(0.2)
        while bus.inbox:
            header, _ = bus.inbox.popleft()
            if header["kind"] == "call":
                numbers.append(bus.start("app.echo", parent=header["id"]))
    told["depth"] = len(numbers) - 1
    told["error"] = bus.wait(numbers[-1])[1]
    """
    told = world.run(code, ["fn.register", "app.call"])
    assert told["depth"] == params.MAX_DEPTH + 1
    assert told["error"]["code"] == "BUSY"
    assert "within one another" in told["error"]["detail"]
    assert world.is_well()


# -- what cannot be written down ---------------------------------------------------------------------------------------


def test_a_grant_expires_while_the_journal_is_locked(world: World) -> None:
    """In time, and the kernel lives."""
    world.user.call("perm.grant", {"holder": "scripted", "cap": "post.read(for=2s)"})
    with locked(world):
        world.system.until(lambda: not world.user.call("perm.list", {"holder": "scripted"}, timeout=9)["caps"], 20)
    assert world.is_well()


def test_a_task_ends_while_the_journal_is_locked(world: World) -> None:
    """So does what it asked the user for."""
    pid = world.start(PENDING.format(count=1, op="post.send", args={"to": "eve@evil.example"}), ["post.*"])
    world.system.until(lambda: world.approvals("post.send"))
    with locked(world):
        world.user.call("proc.kill", {"pid": pid, "force": True})
        world.system.until(lambda: not world.approvals("post.send"), 20)
    assert world.is_well()


def test_a_revocation_holds_while_the_journal_is_locked(world: World) -> None:
    """What it allowed ends at once; and whoever revoked is told that it will be there after a restart."""
    granted = world.user.call("perm.grant", {"holder": "evil", "cap": "bus.subscribe(topic=post.*)"})
    code = """
    bus = peer()
    bus.call("bus.subscribe", {"topic": "post.*"})
    while True:
        bus.pump(1)
    """
    world.start(code, None)

    def held() -> list[str]:
        return [row["holder"] for row in world.user.call("bus.list")["subscriptions"] if "evil" in row["holder"]]

    world.system.until(held)
    with locked(world), pytest.raises(OpError) as caught:
        world.user.call("perm.revoke", {"id": granted["id"]}, timeout=20)
    assert not held()
    assert not world.user.call("perm.list", {"holder": "evil"})["caps"]
    assert caught.value.code is Code.UNAVAILABLE
    assert "taken back" in caught.value.detail


def test_an_app_reads_nothing_while_its_label_cannot_be_kept(world: World) -> None:
    """Or a restart would make it trusted again."""
    with world.app("notes", "post.read") as app:
        app.call("sys.ping")
        with locked(world), pytest.raises(OpError) as caught:
            app.call("post.inbox", timeout=20)
        assert caught.value.code is Code.UNAVAILABLE
        app.call("post.inbox")
    world.system.stop()
    world.boot()
    (row,) = world.user.call("apps.list")["apps"]
    assert "mail" in row["label"]


def test_a_full_disk_ends_no_kernel(world: World) -> None:
    """What could not be brought to it is, once there is room."""
    assert world.system.process is not None
    for _ in range(30):
        world.user.call("post.inbox")
    (world.system.root / "kernel.log").write_text("")
    limits = resource.prlimit(world.system.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    world.system.until(lambda: "audit.unanchored" in world.system.log(), 20)
    resource.prlimit(world.system.process.pid, resource.RLIMIT_FSIZE, limits)
    assert world.is_well()
    assert world.user.call("audit.verify")["fault"] is None


def test_a_row_of_the_audit_log_that_cannot_be_read_is_named(world: World) -> None:
    """Text that is none is a fault like any other."""
    world.system.stop()
    with closing(sqlite3.connect(world.home("audit.db"))) as database:
        database.executescript(
            "drop trigger only_append_update; update log set holder = cast(x'ff' as text) where seq = 2"
        )
    world.boot()
    fault = world.user.call("audit.verify")["fault"]
    assert fault["seq"] == 2
    assert "cannot be read" in fault["what"]


# -- what filled it ----------------------------------------------------------------------------------------------------


def test_no_program_fills_the_inbox(world: World) -> None:
    """However many runs of it there are, others can still ask."""
    code = PENDING.format(count=16, op="post.send", args='{"to": f"eve{number}@evil.example"}')
    for _ in range(5):
        world.start(code)
    world.system.until(lambda: len(world.approvals("post.send")) >= 64, 20)
    told = world.run("""call("post.inbox"); told["sent"] = call("post.send", {"to": "eve@evil.example"}, timeout=1)""")
    assert told["sent"]["error"] == "BUSY"
    script = [{"op": "post.inbox"}, {"op": "post.send", "args": {"to": "eve@evil.example"}, "timeout": 1}]
    spawn = {"program": "scripted", "args": {"script": script}, "allow": ["post.read", "post.send"], "wait": True}
    done = world.user.stream("proc.spawn", spawn, timeout=60).finish()["result"]["done"]
    assert done[1]["error"] == "NEEDS_APPROVAL"
    assert len(world.approvals("post.send")) == 64 + 1


def test_what_is_kept_of_a_request_is_bounded(world: World) -> None:
    """Where each of many elements came from is counted, not told; what would be far too much is not asked."""
    code = PENDING.format(count=1, op="hostile.put", args='{"to": "a", "many": [7] * 200}')
    world.start(code, ["post.read", "hostile.write"])
    asked = world.system.until(lambda: world.approvals("hostile.put"), 20)[0]
    shown = world.user.call("approval.show", {"id": asked["id"]})
    assert shown["args"]["many"] == [7] * 200
    assert shown["provenance_of"] == 201
    assert len(shown["provenance"]) == 64
    code = """
    call("post.inbox")
    told["put"] = call("hostile.put", {"to": "a" * 14_000, "many": [300] * 16_000}, timeout=1)
    """
    assert world.run(code, ["post.read", "hostile.write"])["put"]["error"] == "TOO_LARGE"


def test_a_long_list_of_capabilities_is_cut_and_says_so(world: World) -> None:
    """Whoever holds many hides nobody's."""
    rights = [f"post.send(to={'x' * 280}{number}@example.com)" for number in range(200)]
    world.start("time.sleep(60)", rights)
    listed = world.user.call("perm.list")
    assert 0 < listed["more"] < 220
    assert listed["caps"]
    assert [cap["cap"] for cap in world.user.call("perm.list", {"holder": "post"})["caps"]]


@pytest.mark.model
def test_contexts_end_with_an_apps_connection_and_leave_some_for_others(stopped: World) -> None:
    """A holder gets half of what the others leave, and keeps none beyond its end."""
    stopped.system.use_models()
    stopped.boot()
    stopped.system.until(lambda: stopped.user.call("sys.status")["model"]["state"] == "ready", 60)
    for _ in range(2):
        with stopped.app("hog", "llm.generate") as app:
            for _ in range(params.MAX_CONTEXTS // 2):
                app.call("llm.open")
            with pytest.raises(OpError) as caught:
                app.call("llm.open")
            assert caught.value.code is Code.BUSY
            stopped.user.call("llm.close", {"context": stopped.user.call("llm.open")["context"]})


# -- what is installed -------------------------------------------------------------------------------------------------


def test_a_broken_package_stops_neither_boot_nor_a_scan(stopped: World) -> None:
    """Entry points that are no text are nobody's."""
    info = stopped.pretend("bad", "drivers", b"[llmos.drivers]\nbad = b\xff\n")
    stopped.boot()
    assert stopped.user.call("post.inbox")["items"]
    shutil.rmtree(info)
    stopped.user.call("driver.scan")
    stopped.pretend("worse", "drivers", b"[llmos.drivers\nworse\xff")
    stopped.user.call("driver.scan")
    assert stopped.user.call("post.inbox")["items"]


@pytest.mark.parametrize("asked", ["post.send(to=nonsense)", "x" * 100_000])
def test_a_package_that_asks_for_nonsense_hides_nobodys_requests(stopped: World, asked: str) -> None:
    """What one manifest says makes no list of the system's fail."""
    shutil.copytree(stopped.packages / "outward", stopped.packages / "greedy")
    manifest = stopped.packages / "greedy" / "manifest.toml"
    manifest.write_text(f'{manifest.read_text().replace("outward", "greedy")}calls = ["{asked}"]\n')
    stopped.pretend("greedy", "drivers")
    stopped.boot()
    for op in ("driver.list", "perm.list", "sys.status"):
        assert stopped.user.call(op)


def test_no_driver_takes_a_gates_name(stopped: World) -> None:
    """Programs from outside get in past one that is called `apps_gate`."""
    shutil.copytree(stopped.packages / "outward", stopped.packages / "apps_gate")
    manifest = stopped.packages / "apps_gate" / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("outward", "apps_gate"))
    stopped.pretend("apps_gate", "drivers")
    stopped.boot()
    assert "apps_gate" in stopped.user.call("sys.status")["broken"]
    with stopped.app("notes", "post.read") as app:
        assert app.call("post.inbox", timeout=5)["items"]
