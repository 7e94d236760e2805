"""Which addresses the egress broker takes for the world, and which spellings of hosts it takes at all."""

from __future__ import annotations

import socket
from itertools import product

import pytest

from llmos.ipc import egress
from llmos.ipc.errors import OpError
from llmos.kernel.egress_address import look_up, why_refused

INSIDE = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255
    192.0.0.1 192.0.0.170 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.9 224.0.0.1
    239.255.255.250 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::10.0.0.1 ::ffff:127.0.0.1 ::ffff:10.1.2.3 ::ffff:169.254.169.254 ::ffff:0:10.0.0.1
    64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 64:ff9b:1:fffe::10.0.0.1 100::1 100:0:0:1::1
    2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1
    2002:7f00:1:: 2002:a00:1::1 2002:c0a8:101:: 2002:a9fe:a9fe:: 3fff::1 5f00::1 fc00::1 fd12:3456::1 fe80::1 fe80::5efe:10.0.0.1
    2a00:1450:4001::5efe:10.0.0.1 2a00:1450:4001:0:200:5efe:192.168.0.1
    fec0::1 ff02::1 ff0e::1 4000::1 8000::1 2620:4f:8000::1
    fe80::1%eth0 not-an-address 1.2.3 1.2.3.4.5
""".split()
OUTSIDE = """
    1.1.1.1 8.8.8.8 93.184.216.34 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 172.15.255.255 172.32.0.1 192.0.1.1
    192.167.255.255 192.169.0.1 198.17.255.255 198.20.0.1 223.255.255.255
    2606:4700:4700::1111 2a00:1450:4001::5eff:1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1
""".split()


def far(address: str) -> str:
    """This machine as somebody who has nothing to do with any of the addresses."""
    return "2a0e:ffff::1" if ":" in address else "9.9.9.9"


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_refused(address: str) -> None:
    """This machine, its networks, what nobody owns, what carries one of these inside, and what is no address."""
    assert why_refused(address, far, private=False)


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_outside_is_not(address: str) -> None:
    """Up to the edges of the ranges."""
    assert why_refused(address, far, private=False) == ""


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("93.184.216.34", "93.184.216.34"),
        ("2a00:1450:4001::99", "2a00:1450:4001::99"),
        ("2a00:1450:4001::9", "2a00:1450:4001::1"),
    ],
)
def test_a_global_address_of_this_machine_or_its_link_is_inside(address: str, own: str) -> None:
    """IPv6 gives every machine at home a global address: that makes a neighbour no stranger."""
    assert why_refused(address, lambda _: own, private=False)
    assert why_refused(address, lambda _: own, private=True) == ""
    assert why_refused(address, lambda _: None, private=False) == ""


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1", "::ffff:127.0.0.1"])
def test_what_is_inside_can_be_granted(address: str) -> None:
    """`private=yes` reaches it."""
    assert why_refused(address, far, private=True) == ""


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:0.0.0.0"])
def test_what_belongs_to_no_one_machine_cannot(address: str) -> None:
    """No grant makes a multicast or an unspecified address one to connect to."""
    assert why_refused(address, far, private=True)


@pytest.mark.parametrize(
    "spelling", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "0x7f000001", "127.0.0.1.", "LOCALHOST", "0"]
)
def test_odd_spellings_are_judged_by_where_they_lead(spelling: str) -> None:
    """The resolver makes this machine of all of them, if anything, and that is what is judged."""
    try:
        found = look_up(egress.normal_host(spelling), 80)
    except OSError:
        return
    assert found
    assert all(why_refused(address, far, private=False) for address in found)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a" * 254,
        "exa mple.com",
        "example.com/",
        "user@example.com",
        "example.com:80",
        "[::1]",
        "fe80::1%eth0",
        "a..b",
        ".a",
        "-a.com",
        "a-.com",
        "evil.com\0.example.com",
        "evil.com\n",
        "evil.com#.example.com",
        "evil.com\\.example.com",
        "*.example.com",
        "*",
        "a\u2024b\ud800",
        "ex\u2100mple.com",
        None,
        7,
        b"example.com",
        ["example.com"],
    ],
)
def test_what_another_parser_could_read_otherwise_is_no_host(host: object) -> None:
    """A host is a plain name or an address; nothing stands around it."""
    with pytest.raises(OpError, match="host"):
        egress.normal_host(host)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("Example.COM.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("0:0::0:1", "::1"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("example\u3002com", "example.com"),
        ("ｅxample.com", "example.com"),
    ],
)
def test_a_host_has_one_normal_form(written: str, normal: str) -> None:
    """What is checked is what is resolved."""
    assert egress.normal_host(written) == normal
    assert egress.normal_host(normal) == normal


@pytest.mark.parametrize("port", [0, -1, 65536, True, 80.0, "80", None])
def test_a_port_is_a_number(port: object) -> None:
    """From 1 to 65535."""
    with pytest.raises(OpError, match="port"):
        egress.normal_port(port)


def test_nothing_of_ipv4_is_inside_by_one_way_of_writing_and_outside_by_another() -> None:
    """An address that is refused is refused inside of every form that carries it."""
    for first, second in product(
        (0, 10, 100, 127, 169, 172, 192, 198, 203, 224, 240, 255), (0, 64, 16, 18, 51, 88, 168, 254)
    ):
        plain = f"{first}.{second}.0.1"
        if why_refused(plain, far, private=False):
            packed = socket.inet_aton(plain).hex()
            for wrapped in (f"::ffff:{plain}", f"64:ff9b::{plain}", f"2002:{packed[:4]}:{packed[4:]}::1", f"::{plain}"):
                assert why_refused(wrapped, far, private=False), wrapped
