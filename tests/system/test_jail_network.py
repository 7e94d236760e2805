"""A jail that is given the network: what it reaches with it, and what it still does not."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.kernel.jail import ALL_LAYERS, Layer, Policy, Tier, probe, spawn

WHOLE = ALL_LAYERS
UNMOUNTED = ALL_LAYERS - {Layer.MOUNTS}
TIMEOUT_S = 20

pytestmark = pytest.mark.skipif(probe().tier is not Tier.A, reason="this machine cannot build a whole jail")

PROGRAM = """
import json, os, socket, sys

def works(what):
    try:
        what().close()
    except OSError:
        return False
    return True

port, udp, abstract = sys.argv[1:]
found = {
    "tcp": works(lambda: socket.create_connection(("localhost", int(port)), timeout=5)),
    "ipv6": works(lambda: socket.socket(socket.AF_INET6)),
    "listen": works(lambda: socket.create_server(("127.0.0.1", 0))),
    "raw": works(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)),
    "ping": works(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)),
    "mptcp": works(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)),
    "packet": works(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)),
    "netlink": works(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "vsock": works(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)),
}
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(5)
    found["abstract"] = client.connect_ex("\\0" + abstract) == 0

def datagram():
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b"x", ("127.0.0.1", int(udp)))
    return sender

found["udp"] = works(datagram)
found["secrets"] = works(lambda: open("/etc/shadow"))
found["names"] = works(lambda: open("/etc/hosts"))
found["certificates"] = os.path.isdir("/etc/ssl/certs") and bool(os.listdir("/etc/ssl/certs"))
print(json.dumps(found))
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """The program's directory, and its arguments: a TCP listener, a UDP socket, an abstract socket."""
    code = tmp_path.resolve() / "code"
    code.mkdir()
    (code / "program.py").write_text(PROGRAM)
    name = f"llmos-{secrets.token_hex(8)}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        abstract.bind("\0" + name)
        abstract.listen()
        yield code, [str(tcp.getsockname()[1]), str(udp.getsockname()[1]), name]


def tried(policy: Policy, args: list[str], layers: frozenset[Layer]) -> dict[str, object]:
    """What of the attempts worked inside."""
    jailed = spawn(policy, "program", args, layers=layers, stdout=subprocess.PIPE)
    assert jailed.stdout is not None
    with jailed.stdout as out:
        text = out.read()
    assert jailed.wait(TIMEOUT_S) == 0
    found: dict[str, object] = json.loads(text)
    return found


@pytest.mark.parametrize("share_pid", [False, True])
@pytest.mark.parametrize("layers", [WHOLE, UNMOUNTED])
def test_with_the_network_a_jail_resolves_names_and_connects(
    world: tuple[Path, list[str]], layers: frozenset[Layer], share_pid: bool
) -> None:
    """TCP and UDP go out, by name too; listening, raw, packet, netlink and abstract sockets stay denied."""
    code, args = world
    tier = Tier.A if layers is WHOLE else Tier.B
    found = tried(Policy(path=(code,), network=True, share_pid=share_pid, tier=tier), args, layers)
    assert {name for name, worked in found.items() if worked is True} - {"certificates"} == {
        "tcp",
        "ipv6",
        "udp",
        "names",
    }
    assert found["certificates"] == _has_certificates()


@pytest.mark.parametrize("layers", [WHOLE, UNMOUNTED])
def test_without_it_a_jail_reaches_nothing(world: tuple[Path, list[str]], layers: frozenset[Layer]) -> None:
    """The same program in the same jail without `network` opens no socket of the internet at all."""
    code, args = world
    tier = Tier.A if layers is WHOLE else Tier.B
    found = tried(Policy(path=(code,), certificates=True, tier=tier), args, layers)
    assert {name for name, worked in found.items() if worked is True} - {"certificates"} == set()
    assert found["certificates"] == _has_certificates()


def _has_certificates() -> bool:
    directory = Path("/etc/ssl/certs")
    return directory.is_dir() and any(directory.iterdir())
