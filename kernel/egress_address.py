"""Which addresses are out in the world. Judged is the address that a name led to, whatever the name looked like.

Only what is surely global passes: of IPv6 the range that is given out (2000::/3), of IPv4 what no registry keeps for itself. An address
that carries another inside it is judged by that one too, for a translator on the way may unwrap it. An address that is global is still
refused when it is this machine's own, or on the link it stands on: at home, IPv6 gives every printer a global address.

Source: IANA, IPv4 and IPv6 Special-Purpose Address Registries; RFC 4291 (mapped), 3056 (6to4), 6052 and 8215 (NAT64), 5214 (ISATAP).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_KEPT_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GIVEN_OUT_6 = ipaddress.IPv6Network("2000::/3")
_KEPT_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_6TO4 = ipaddress.IPv6Network("2002::/16")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_ISATAP = (0x00005EFE, 0x02005EFE)
_LINK_BITS = 64


def why_refused(address: str, source: Callable[[str], str | None], *, private: bool) -> str:
    """Why it may not be connected to; empty when it may.

    Args:
        address: as the resolver gave it.
        source: the address that this machine would send from to reach another; None when it cannot.
        private: whether the user has granted addresses inside. Those that belong to no one machine are refused all the same.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "it is no address"
    if any(one.is_multicast or one.is_unspecified or one == _BROADCAST for one in _meant(parsed)):
        return "it belongs to no one machine"
    if private:
        return ""
    if not all(_is_global(one) for one in _meant(parsed)):
        return "it is not out in the world, but on this machine or in a network of its own"
    here = source(address)
    if here is not None and _is_near(parsed, here):
        return "it is this machine's own, or on the network it stands on"
    return ""


def look_up(host: str, port: int) -> list[str]:
    """A host's addresses, in the order to try them; blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for *_, address in found]


def source_of(address: str) -> str | None:
    """The address that this machine would send from, by a datagram socket that sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _meant(address: _Address) -> Iterator[_Address]:
    """It, or what it stands for, and what it carries."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    low = int(address) & 0xFFFFFFFF
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    if address in _NAT64:
        yield ipaddress.IPv4Address(low)
        return
    yield address
    if address in _6TO4:
        yield ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF)
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        yield ipaddress.IPv4Address(low)


def _is_global(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in kept for kept in _KEPT_4)
    return address in _GIVEN_OUT_6 and address.is_global and not any(address in kept for kept in _KEPT_6)


def _is_near(address: _Address, source: str) -> bool:
    try:
        here = ipaddress.ip_address(source)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and isinstance(here, ipaddress.IPv6Address):
        return int(address) >> _LINK_BITS == int(here) >> _LINK_BITS
    return address == here
