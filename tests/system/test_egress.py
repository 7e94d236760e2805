"""The egress broker: who gets out, where to, and what is left of it afterwards; real drivers, real servers on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmos.drivers.network import Network
from llmos.ipc import paths
from llmos.ipc.errors import Code, OpError
from llmos.kernel import params
from tests.system.authority_world import World
from tests.system.conftest import System
from tests.system.egress_stage import Echo, Page, package


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    """The port of a web server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A system with two such drivers that nothing is granted to, and an agent that runs code."""
    made = World(System(tmp_path_factory.mktemp("s")))
    for name in ("fetcher", "other"):
        package(made.packages, name)
    made.boot()
    yield made
    made.system.stop()


@pytest.fixture(autouse=True)
def nothing_granted(world: World) -> Iterator[None]:
    """Every test leaves the drivers as it found them."""
    yield
    for row in world.user.call("perm.list")["caps"]:
        if row["cap"].startswith("net.") and row["holder"] != "user":
            world.user.call("perm.revoke", {"id": row["id"]})
    world.user.call("fetcher.do", {"code": ""})


def grant(world: World, cap: str, holder: str = "fetcher") -> str:
    return str(world.user.call("perm.grant", {"holder": holder, "cap": cap})["id"])


def do(world: World, code: str, driver: str = "fetcher") -> dict[str, Any]:
    done: dict[str, Any] = world.user.call(f"{driver}.do", {"code": textwrap.dedent(code)}, timeout=60)
    return done


def rows(world: World, holder: str = "fetcher") -> list[tuple[str, str, str]]:
    """(kind, decision, detail) of what the audit log says of connections."""
    found = world.user.call("audit.list", {"holder": holder, "last": 200})["rows"]
    return [(row["kind"], row["decision"], row["detail"]) for row in found if row["op"] == "net.connect"]


def test_without_a_grant_nobody_connects(world: World, web: int) -> None:
    """The caller is told which capability is missing and how to give it; there is no broker, and no socket of one."""
    with pytest.raises(OpError) as caught:
        world.user.call("fetcher.get", {"port": web})
    assert caught.value.code is Code.DENIED
    assert f"llmosctl perm grant fetcher 'net.connect(host=localhost, port={web})'" in str(caught.value.hint)


def test_what_a_manifest_names_is_asked_for(world: World) -> None:
    """Each host is a request that the user can grant, and nothing more."""
    asked = world.user.call("perm.list", {"holder": "fetcher"})["requests"]
    assert {(row["cap"], row["granted"]) for row in asked} == {
        ("net.connect(host=localhost)", False),
        ("net.connect(host=imap.example.com, port=993)", False),
    }


def test_an_address_inside_takes_a_grant_of_its_own(world: World, web: int) -> None:
    """`localhost` alone does not reach this machine, nor does every host; with `private=yes` the same code does."""
    for cap in ("net.connect(host=localhost)", "net.connect(host=*)", "net.connect"):
        grant(world, cap)
        for host in ("localhost", "127.0.0.1") if "*" in cap else ("localhost",):
            with pytest.raises(OpError, match="not out in the world") as caught:
                world.user.call("fetcher.get", {"port": web, "host": host})
            assert caught.value.code is Code.DENIED
            assert "private=yes" in str(caught.value.hint)
    grant(world, f"net.connect(host=localhost, port={web}, private=yes)")
    assert world.user.call("fetcher.get", {"port": web}) == {"status": 200, "text": "hello"}


def test_only_the_granted_host_and_port(world: World, web: int) -> None:
    """Another host, another port and a host within the granted one are told apart; no name is looked up for them."""
    grant(world, f"net.connect(host=localhost, port={web}, private=yes)")
    for host, port in (("localhost", web + 1), ("example.com", web), ("x.localhost", web), ("127.0.0.1", web)):
        with pytest.raises(OpError, match=r"missing the capability net\.connect") as caught:
            world.user.call("fetcher.get", {"port": port, "host": host})
        assert caught.value.code is Code.DENIED
    assert world.user.call("fetcher.get", {"port": web})["text"] == "hello"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for `localhost`, signed by itself, in one file."""
    place = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -keyout key -out cert"
    subprocess.run(
        ["openssl", *words.split(), "-addext", "subjectAltName=DNS:localhost"],
        cwd=place,
        check=True,
        capture_output=True,
    )
    (place / "pem").write_text((place / "key").read_text() + (place / "cert").read_text())
    return place


TLS = """
    import ssl
    known = ssl.create_default_context(cadata={certificate!r})
    for name, host, tls in (("known", "localhost", known), ("unknown", "localhost", True), ("other", "127.0.0.1", known)):
        try:
            with env.connect(host, {port}, tls=tls) as sock:
                sock.sendall(b"ping")
                out[name] = sock.recv(4).decode() + sock.version()
        except ssl.SSLError as error:
            out[name] = error.verify_message
    with env.connect("localhost", {port}) as sock:
        out["peer"] = sock.getpeername()
"""


def test_tls_is_between_the_driver_and_the_host(world: World, certificate: Path) -> None:
    """The host's certificate is checked by its name in the driver; one that is signed by nobody known is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "pem")
    grant(world, "net.connect(host=localhost, private=yes)")
    grant(world, "net.connect(host=127.0.0.1, private=yes)")
    with Echo(tls=context) as echo:
        told = do(world, TLS.format(certificate=(certificate / "cert").read_text(), port=echo.port))
    assert told["known"] == "pingTLSv1.3"
    assert "self-signed" in told["unknown"]
    assert "IP address mismatch" in told["other"]
    assert told["peer"] == ["127.0.0.1", echo.port]


HOLD = """
    for port in {ports}:
        sock = env.connect("localhost", port)
        sock.sendall(b"ping")
        assert sock.recv(4) == b"ping"
        self.kept.append(sock)
"""


def test_both_ends_may_finish_in_their_own_time(world: World) -> None:
    """A driver that has said all it has to say still hears the rest; more than all buffers hold arrives whole."""
    grant(world, "net.connect(host=localhost, private=yes)")
    with Echo() as echo:
        told = do(
            world,
            f"""
            import socket, threading
            sock = env.connect("localhost", {echo.port})
            block, got = bytes(range(256)) * 4096, []
            def send():
                for _ in range(20):
                    sock.sendall(block)
                sock.shutdown(socket.SHUT_WR)
            thread = threading.Thread(target=send)
            thread.start()
            while data := sock.recv(1 << 20):
                got.append(data)
            thread.join()
            out["whole"] = b"".join(got) == block * 20 + b"over"
            """,
        )
    assert told == {"whole": True}


def test_taking_a_capability_back_cuts_its_connections_alone(world: World) -> None:
    """At once, in the middle of them, while one that another capability allows goes on; the driver is not restarted for it."""
    with Echo() as first, Echo() as second:
        grant(world, f"net.connect(host=localhost, port={second.port}, private=yes)")
        taken = grant(world, f"net.connect(host=localhost, port={first.port}, private=yes)")
        do(world, HOLD.format(ports=[first.port, second.port]))
        pid = world.system.process_named("fetcher")["os_pid"]
        world.user.call("perm.revoke", {"id": taken})
        world.system.until(lambda: first.open == 0)
        assert second.open == 1
        told = do(
            world,
            """
            first, second = self.kept
            out["first"] = first.recv(1).decode()
            second.sendall(b"pong")
            out["second"] = second.recv(4).decode()
            """,
        )
        assert told == {"first": "", "second": "pong"}
        assert world.system.process_named("fetcher")["os_pid"] == pid
        assert "taken back" in world.system.until(lambda: rows(world)[-1:])[0][2]


def test_a_driver_that_ends_takes_its_connections_along(world: World) -> None:
    """Whatever it held, and the next one of its name has none of them."""
    grant(world, "net.connect(host=localhost, private=yes)")
    with Echo() as echo:
        do(world, HOLD.format(ports=[echo.port, echo.port]))
        assert echo.open == 2
        world.user.call("proc.kill", {"pid": world.system.process_named("fetcher")["pid"], "force": True})
        world.system.until(lambda: echo.open == 0)
        assert do(world, "out['kept'] = len(self.kept)") == {"kept": 0}


def test_a_broker_that_is_killed_comes_back(world: World, web: int) -> None:
    """Its connections end; drivers stay as they are, and what they ask for next is carried by the next one."""
    grant(world, "net.connect(host=localhost, private=yes)")
    with Echo() as echo:
        do(world, HOLD.format(ports=[echo.port]))
        broker, driver = (world.system.process_named(name) for name in ("egress", "fetcher"))
        os.kill(broker["os_pid"], signal.SIGKILL)
        assert world.user.call("fetcher.get", {"port": web})["text"] == "hello"
        world.system.until(lambda: echo.open == 0)
    assert world.system.process_named("fetcher")["os_pid"] == driver["os_pid"]
    assert world.system.process_named("egress")["restarts"] == broker["restarts"] + 1


def test_others_neither_see_the_broker_nor_are_heard(world: World) -> None:
    """Without a grant there is no such directory inside; a driver with a grant for elsewhere, and programs of the user, are refused."""
    place = paths.egress_socket(world.home("run"))
    grant(world, "net.connect(host=localhost, private=yes)")
    look = f"import os; out['seen'] = os.path.exists({str(place.parent)!r})"
    assert do(world, look) == {"seen": True}
    assert do(world, look, "other") == {"seen": False}
    assert world.run(look.replace("out", "told")).get("seen", False) is False
    grant(world, "net.connect(host=example.com)", "other")
    with Echo() as echo:
        ask = f"env.connect('localhost', {echo.port})"
        with pytest.raises(OpError, match="other may not"):
            do(world, ask, "other")
        with pytest.raises(OpError, match="connections are for drivers"):
            Network("fetcher", place).connect("localhost", echo.port)
        assert echo.open == 0


@pytest.mark.parametrize("cap", ["net.connect(host=localhost, private=yes)", "net.connect", "net.*"])
def test_connections_are_for_drivers(world: World, cap: str) -> None:
    """Neither an agent nor an app is given any, by a grant, at its birth or when it is let in."""
    attempts = (
        ("perm.grant", {"holder": "evil", "cap": cap}),
        ("proc.spawn", {"program": "evil", "args": {"code": ""}, "allow": [cap]}),
        ("apps.add", {"name": "notes", "key": "k" * 40, "allow": [cap]}),
    )
    for op, args in attempts:
        with pytest.raises(OpError, match="for drivers") as caught:
            world.user.call(op, args)
        assert caught.value.code is Code.DENIED
        assert "through a driver" in str(caught.value.hint)


@pytest.mark.parametrize(
    "scope",
    [
        "port=0",
        "port=65536",
        "port=https",
        "private=maybe",
        "approval=each",
        "clearance=mail",
        "path=/x",
        "host=bücher.example",
        "host=0:0::1",
    ],
)
def test_a_bound_that_means_nothing_is_not_granted(world: World, scope: str) -> None:
    """A restriction that would not be kept is an error, not a grant."""
    with pytest.raises(OpError) as caught:
        grant(world, f"net.connect(host=example.com, {scope})")
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_every_connection_and_every_refusal_is_in_the_audit_log(world: World, web: int) -> None:
    """Before it is made, at its end with what was carried, and when it was not made."""
    before = len(rows(world))
    grant(world, "net.connect(host=localhost)")
    with pytest.raises(OpError):
        world.user.call("fetcher.get", {"port": web})
    with pytest.raises(OpError):
        world.user.call("fetcher.get", {"port": 25, "host": "example.com"})
    grant(world, "net.connect(host=localhost, private=yes)")
    world.user.call("fetcher.get", {"port": web})
    told = world.system.until(lambda: len(rows(world)) >= before + 5 and rows(world)[before:])
    where = f"localhost:{web}"
    assert [(kind, decision) for kind, decision, _ in told] == [
        ("effect", "allowed"),
        ("denial", "DENIED"),
        ("denial", "DENIED"),
        ("effect", "allowed"),
        ("effect", "ended"),
    ]
    details = [detail for _, _, detail in told]
    assert details[0] == details[3] == where
    assert details[1].startswith(f"{where}: localhost is ")
    assert details[2] == "example.com:25"
    assert re.match(rf"{where} 127\.0\.0\.1: done; sent=\d\d+ received=\d\d+ seconds=", details[4])
    assert world.user.call("audit.verify", timeout=30)["fault"] is None


def test_a_driver_that_may_connect_is_one_that_can_tell_the_world(world: World) -> None:
    """Its manifest names no host, but it was granted one: what a stranger's words make an agent ask it needs the user's word."""
    code = """
        call("post.inbox")
        told["error"] = call("hostile.do", {"code": ""}, timeout=3).get("error", "")
    """
    allow = ["post.read", "hostile.read"]
    assert world.run(code, allow)["error"] == ""
    grant(world, "net.connect(host=example.com)", "hostile")
    assert world.run(code, allow)["error"] == "NEEDS_APPROVAL"


def test_quotas_hold(world: World) -> None:
    """So many connections, and so many bytes, after which the connection that goes beyond ends."""
    with Echo() as echo:
        few = grant(world, "net.connect(host=localhost, private=yes, calls=2/d)")
        do(world, HOLD.format(ports=[echo.port, echo.port]))
        with pytest.raises(OpError) as caught:
            do(world, HOLD.format(ports=[echo.port]))
        assert caught.value.code is Code.BUDGET
        world.user.call("perm.revoke", {"id": few})
        grant(world, "net.connect(host=localhost, private=yes, bytes=1M)")
        told = do(
            world,
            f"""
            sock = env.connect("localhost", {echo.port})
            out["blocks"] = 0
            try:
                while sock.send(bytes(65536)) and sock.recv(1 << 20):
                    out["blocks"] += 1
            except OSError:
                pass
            """,
        )
        assert 4 <= told["blocks"] < 200


def test_a_thousand_connections_at_once_are_one_drivers_own_trouble(world: World, web: int) -> None:
    """It gets its share and hears that it has it; the next driver is served meanwhile."""
    grant(world, "net.connect(host=localhost, private=yes)")
    grant(world, "net.connect(host=localhost, private=yes)", "other")
    told = do(
        world,
        f"""
        from llmos.drivers.network import ConnectError
        out["said"] = []
        for _ in range(200):
            try:
                self.kept.append(env.connect("localhost", {web}))
            except ConnectError as error:
                out["said"].append(error.code)
        """,
    )
    assert len(told["said"]) == 200 - params.EGRESS_PER_PROCESS
    assert set(told["said"]) == {"BUSY"}
    told = do(
        world,
        f"""
        import contextlib, socket
        for _ in range(150):
            with contextlib.suppress(OSError):
                sock = socket.socket(socket.AF_UNIX)
                self.kept.append(sock)
                sock.connect({str(paths.egress_socket(world.home("run")))!r})
                sock.send(b"\\xff\\xff" + bytes(100))
        """,
    )
    assert world.user.call("other.get", {"port": web})["text"] == "hello"
    assert world.system.process_named("egress")["rss_mb"] < 100
    assert world.is_well()


REACH = """
import socket
{found} = []
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET, socket.AF_NETLINK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            socket.socket(family, kind).close()
        except OSError:
            continue
        {found}.append([int(family), int(kind)])
"""


def test_nobody_but_the_broker_opens_an_internet_socket(world: World) -> None:
    """Not a driver with a grant, not an agent; and what the kernel started has a network of its own, with nothing in it."""
    grant(world, "net.connect(host=localhost, private=yes)")
    assert do(world, REACH.format(found="out['found']")) == {"found": []}
    assert world.run(REACH.format(found="told['found']"))["found"] == []
    ours = Path("/proc/self/ns/net").readlink()
    shared = []
    for row in world.processes():
        try:
            if row["os_pid"] and Path(f"/proc/{row['os_pid']}/ns/net").readlink() == ours:
                shared.append(row["name"])
        except FileNotFoundError:  # a spare that has ended since
            continue
        except PermissionError:  # a jailed process shows this to root alone
            pytest.skip("only root sees which network a process has")
    assert shared == ["kernel", "egress"]


@pytest.mark.parametrize("tier", ["A", "B"])
def test_a_kernel_that_is_killed_takes_the_broker_along(system: System, tier: str) -> None:
    """kill -9, with mounts and without: nobody is left who has the network. What was granted is there at the next start."""
    package(system.root / "packages", "fetcher")
    system.environment["PYTHONPATH"] = str(system.root / "packages")
    if tier == "B":  # nothing to make mounts with
        system.environment["PATH"] = str(system.root)
    assert system.start("--tier", tier)["ready"], system.log()
    with Echo() as echo:
        hold = {"code": textwrap.dedent(HOLD.format(ports=[echo.port]))}
        user = system.connect()
        user.call("perm.grant", {"holder": "fetcher", "cap": "net.connect(host=localhost, private=yes)"})
        user.call("fetcher.do", hold, timeout=60)
        broker = system.process_named("egress")["os_pid"]
        system.stop(kill=True)
        system.until(lambda: echo.open == 0)
        system.until(lambda: not Path(f"/proc/{broker}").exists())
        if tier == "A":
            assert system.start()["ready"], system.log()
            system.connect().call("fetcher.do", hold, timeout=60)
