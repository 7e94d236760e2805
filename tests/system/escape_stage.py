"""The stage of the escape battery: what is to be reached, set up for real, and an attempt run on it in and out of jails."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from llmos.kernel.jail import ALL_LAYERS, Layer, Limits, Policy, Tier, spawn
from tests.system.jail_escapes import ATTEMPTS, ESCAPED, LIMITS, SCRATCH, Stage

ROOT = os.geteuid() == 0
_PROGRAM = Path(__file__).with_name("jail_escapes")
_END_S = 60.0
"""Seconds that an attempt may take on a slow machine; the longest computes for two."""
_IPC_CREAT, _IPC_RMID = 0o1000, 0
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.shmat.restype = ctypes.c_void_p


@contextmanager
def staged(top: Path, *, setuid: Path | None = None) -> Iterator[Stage]:
    """Everything that the attempts are after, below the directory `top`. `setuid`: a program that becomes root."""
    token = secrets.token_hex(16)
    for name in ("granted", "granted/empty", "state", "outside", "program"):
        (top / name).mkdir()
    (top / "granted" / "note").write_text("a note")
    (top / "secret").write_text(token)
    shutil.copytree(_PROGRAM, top / "program" / "jail_escapes", ignore=shutil.ignore_patterns("__pycache__"))
    os.environ["TOKEN"] = token  # what a kernel process may have in its environment
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={top / 'socket'}"
    with ExitStack() as left:
        left.callback(os.environ.pop, "TOKEN")
        left.callback(os.environ.pop, "DBUS_SESSION_BUS_ADDRESS")
        for path, flags in ((top / "secret", os.O_RDONLY), (top, os.O_RDONLY | os.O_DIRECTORY)):
            left_open = os.open(path, flags)
            left.callback(os.close, left_open)
            os.set_inheritable(left_open, True)
        abstract, datagram = f"llmos-{token}", f"llmos-{token}-datagram"
        tcp = left.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = left.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        left.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind("\0" + datagram)
        left.enter_context(_served("\0" + abstract, top / "secret"))
        left.enter_context(_served(str(top / "socket"), None))
        yield Stage(
            token=token,
            secret=str(top / "secret"),
            granted=str(top / "granted"),
            state=str(top / "state"),
            victim=left.enter_context(_victim()),
            tcp=tcp.getsockname()[1],
            udp=udp.getsockname()[1],
            abstract=abstract,
            datagram=datagram,
            socket=str(top / "socket"),
            memory=left.enter_context(_shared_memory(token)),
            setuid=_setuid_program(top / "granted" / "shows", setuid),
            hostname=os.uname().nodename,
        )


@contextmanager
def _victim() -> Iterator[int]:
    code = "import time; time.sleep(3600)"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, "victim"], stdin=subprocess.DEVNULL, cwd="/")
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def _served(address: str, gift: Path | None) -> Iterator[None]:
    """A unix socket that hands every peer `gift`, open; without one it answers as D-Bus does to a login."""

    def serve(server: socket.socket) -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                peer.settimeout(10)
                if gift is None:
                    peer.recv(64)
                    peer.sendall(b"OK 1234deadbeef\r\n")
                    continue
                descriptor = os.open(gift, os.O_RDONLY)
                try:
                    socket.send_fds(peer, [b"x"], [descriptor])
                    peer.recv(1)  # what it hands out in turn
                finally:
                    os.close(descriptor)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(64)
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def _shared_memory(token: str) -> Iterator[int]:
    """The key of a segment with the token; 0 on a machine without System V shared memory."""
    key = secrets.randbelow(0x7FFFFFFE) + 1
    segment = _LIBC.shmget(key, 4096, _IPC_CREAT | 0o600)
    if segment < 0:
        yield 0
        return
    try:
        address = _LIBC.shmat(segment, None, 0)
        ctypes.memmove(address, token.encode(), len(token))
        _LIBC.shmdt(ctypes.c_void_p(address))
        yield key
    finally:
        _LIBC.shmctl(segment, _IPC_RMID, None)


def _setuid_program(at: Path, made: Path | None) -> str:
    """A copy of cat(1) that becomes root, made here if we are; empty otherwise."""
    if made is not None:
        return str(made)
    if not ROOT:
        return ""
    shutil.copyfile("/bin/cat", at)
    at.chmod(0o4755)
    return str(at)


def escapes_outside(name: str, stage: Stage) -> bool:
    """The positive control: the same program without a jail."""
    top = Path(stage.granted).parent
    free = replace(stage, state=tempfile.mkdtemp(dir=top / "outside"))
    program = [sys.executable, "-m", "jail_escapes", name, json.dumps(asdict(free))]
    ended = subprocess.run(
        # a shell in between is a parent with the environment of this process
        ["/bin/sh", "-c", '"$@"; exit $?', "sh", *program],
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=top / "program",
        timeout=_END_S,
    )
    return ended.returncode == ESCAPED


def escapes(name: str, stage: Stage, layers: frozenset[Layer] = ALL_LAYERS, *, share_pid: bool = False) -> bool:
    """Whether it gets out of a jail that has these layers."""
    top = Path(stage.granted).parent
    state = tempfile.mkdtemp(dir=top / "state")
    programs = ATTEMPTS[name].programs
    policy = Policy(
        read=(Path(stage.granted),),
        write=(Path(state),),
        path=(top / "program",),
        limits=Limits(**LIMITS),
        scratch=SCRATCH,
        share_pid=share_pid,
        allow_fork=programs,
        allow_exec=programs,
        tier=Tier.A if layers == ALL_LAYERS else Tier.C,
    )
    told = json.dumps(asdict(replace(stage, state=state)))
    jailed = spawn(policy, "jail_escapes", [name, told], layers=layers, stderr=subprocess.DEVNULL)
    try:
        jailed.started(_END_S)
        return jailed.wait(_END_S) == ESCAPED
    finally:
        jailed.kill()
        jailed.wait()
        shutil.rmtree(state, ignore_errors=True)


def gets_out(name: str, stage: Stage, layers: frozenset[Layer] = ALL_LAYERS) -> bool:
    """Whether it gets out of such a jail, or of one that keeps the host's process ids, as a gate's does."""
    return any(escapes(name, stage, layers, share_pid=share_pid) for share_pid in (False, True))
