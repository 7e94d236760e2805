"""Sockets: to the network, to other processes, to Linux."""

from __future__ import annotations

import os
import socket

from .stage import Stage, attempt


@attempt()
def connect_tcp(stage: Stage) -> bool:
    """Reach a server on this machine."""
    with socket.create_connection(("127.0.0.1", stage.tcp), timeout=1):
        return True


@attempt()
def listen_tcp(stage: Stage) -> bool:
    """Be a server on this machine."""
    with socket.create_server(("127.0.0.1", 0)):
        return True


@attempt()
def send_udp(stage: Stage) -> bool:
    """Send a datagram, as a DNS tunnel would."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"x", ("127.0.0.1", stage.udp)) == 1


@attempt(root=True, depends=True)
def open_raw_socket(stage: Stage) -> bool:
    """Open a raw socket."""
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return True


@attempt(root=True, depends=True)
def open_packet_socket(stage: Stage) -> bool:
    """Open a socket that sees every packet."""
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return True


@attempt()
def open_netlink_socket(stage: Stage) -> bool:
    """Open a socket that configures the network."""
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
    return True


@attempt()
def connect_abstract_socket(stage: Stage) -> bool:
    """Reach a server by an abstract name, as desktop sessions have them."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + stage.abstract)
        return True


@attempt()
def connect_hidden_socket(stage: Stage) -> bool:
    """Reach a server by a path that was not granted, as D-Bus and docker have them."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(stage.socket)
        return True


@attempt(depends=True)
def connect_tcp_by_ipv6(stage: Stage) -> bool:
    """Reach a server on this machine by the other protocol."""
    with socket.socket(socket.AF_INET6) as client:
        client.settimeout(10)
        client.connect(("::ffff:127.0.0.1", stage.tcp))
        return True


@attempt(depends=True)
def connect_by_multipath_tcp(stage: Stage) -> bool:
    """Reach a server by the kind of TCP that Landlock does not judge."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as client:
        client.settimeout(10)
        client.connect(("127.0.0.1", stage.tcp))
        return True


@attempt(depends=True)
def open_vsock_socket(stage: Stage) -> bool:
    """Open a socket to the machine that this one runs in."""
    socket.socket(40, socket.SOCK_STREAM).close()
    return True


@attempt(depends=True)
def open_bluetooth_socket(stage: Stage) -> bool:
    """Open a socket to the radio."""
    socket.socket(31, socket.SOCK_RAW, 1).close()
    return True


@attempt(depends=True)
def open_crypto_socket(stage: Stage) -> bool:
    """Open a socket to the cryptography of Linux, where exploits like to begin."""
    socket.socket(38, socket.SOCK_SEQPACKET).close()
    return True


@attempt()
def send_abstract_datagram(stage: Stage) -> bool:
    """Reach a server by an abstract name without connecting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        return sender.sendto(b"x", "\0" + stage.datagram) == 1


@attempt()
def be_handed_the_secret(stage: Stage) -> bool:
    """Take an open file from an accomplice outside."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect("\0" + stage.abstract)
        _, descriptors, _, _ = socket.recv_fds(client, 1, 1)
        return stage.token.encode() in os.pread(descriptors[0], 4096, 0)


@attempt()
def hand_out_a_descriptor(stage: Stage) -> bool:
    """Give an accomplice outside an open directory of the jail."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect("\0" + stage.abstract)
        return socket.send_fds(client, [b"x"], [os.open(stage.state, os.O_RDONLY)]) == 1


@attempt()
def call_the_session_bus(stage: Stage) -> bool:
    """Log in at D-Bus, which starts programs on demand."""
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={stage.socket}")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(address.partition("=")[2])
        client.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        return client.recv(64).startswith(b"OK")
