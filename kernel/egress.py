"""The egress broker: the one process with a network. `python -m llmos.kernel.egress FD SOCKET`.

A driver asks on a unix socket for a host and a port. The kernel says whether it may: the broker tells it the pid that the operating
system vouches for, and what is asked. Then the broker resolves the name, judges the addresses (`egress_address.py`), connects to the very
one it judged, and carries bytes both ways until either end is done, the kernel says so, or nothing has moved for long. It reads
nothing of them: TLS is between the driver and the host.

It holds no more than one block of bytes for each direction of a connection, so whoever does not read holds up its own sender and nothing
else. What a process may have at once is bounded, and so is how long anything may take. Frames to and from the kernel stand in
`egress_frames.py`, those of drivers in `llmos.ipc.egress`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos.ipc import egress as asking
from llmos.ipc.errors import Code, OpError
from llmos.ipc.pipe import FrameStream, PeerGone
from llmos.kernel import egress_frames as frames
from llmos.kernel import params
from llmos.kernel.egress_address import look_up, source_of, why_refused

Resolver = Callable[[str, int], list[str]]
"""Addresses of a host, in the order to try them; blocks. Raises OSError."""

_UCRED = struct.Struct("@iII")


class _NotAllowed(OpError):
    """The broker's own no, which the audit log hears of."""


@dataclass(eq=False)
class _Owner:
    """A process, and what it has at once."""

    names: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(params.EGRESS_NAMES_PER_PROCESS))
    connections: int = 0
    tokens: float = params.EGRESS_BURST
    refilled: float = 0.0

    def may(self, now: float) -> bool:
        """Whether one more attempt is within the rate."""
        self.tokens = min(params.EGRESS_BURST, self.tokens + (now - self.refilled) * params.EGRESS_RATE)
        self.refilled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def looked_up(self, looking: asyncio.Future[list[str]]) -> None:
        """A name, whether or not somebody still wants to know."""
        self.names.release()
        if not looking.cancelled():
            looking.exception()


@dataclass(eq=False)
class _Connection:
    n: int
    pid: int
    sock: socket.socket
    host: str = ""
    port: int = 0
    allowed: bool = False
    metered: bool = False
    address: str = ""
    sent: int = 0
    received: int = 0
    told: int = 0
    """Bytes the kernel has been told of."""
    began: float = 0.0
    active: float = 0.0
    reason: str = ""
    """Why it is ended, when somebody ends it."""
    answer: asyncio.Future[frames.Yes] | None = None
    task: asyncio.Task[None] | None = None

    def end(self, reason: str) -> None:
        self.reason = self.reason or reason
        if self.task is not None:
            self.task.cancel()


class Broker:
    """All connections. `resolve` and `source` are the operating system's; tests have their own."""

    def __init__(
        self,
        pipe: FrameStream,
        path: Path,
        resolve: Resolver | None = None,
        source: Callable[[str], str | None] | None = None,
    ) -> None:
        self._pipe = pipe
        self._path = path
        self._resolve = resolve or look_up
        self._source = source or source_of
        self._connections: dict[int, _Connection] = {}
        self._owners: dict[int, _Owner] = {}
        self._count = 0
        self._ended = asyncio.Event()
        self._threads = ThreadPoolExecutor(params.EGRESS_NAMES, "name")
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Until the kernel closes the pipe."""
        with socket.socket(socket.AF_UNIX) as listener:
            with suppress(FileNotFoundError):
                self._path.unlink()
            listener.bind(str(self._path))
            listener.listen(512)
            listener.setblocking(False)
            self._loop.add_reader(listener.fileno(), self._accept, listener)
            self._loop.add_reader(self._pipe.fileno(), self._from_kernel)
            self._tell(frames.Up())
            sweeper = self._loop.create_task(self._sweep())
            await self._ended.wait()
            self._loop.remove_reader(listener.fileno())
            self._loop.remove_reader(self._pipe.fileno())
        sweeper.cancel()
        tasks = [one.task for one in self._connections.values() if one.task is not None]
        for connection in list(self._connections.values()):
            connection.end("the kernel has gone")
        await asyncio.gather(sweeper, *tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- the kernel ------------------------------------------------------------------------------------------------

    def _tell(self, message: frames.Up | frames.Ask | frames.Moved | frames.Over) -> None:
        try:
            self._pipe.post(frames.encode(message))
            if self._pipe.pending:
                self._loop.add_writer(self._pipe.fileno(), self._flush)
        except PeerGone:
            self._ended.set()

    def _flush(self) -> None:
        try:
            if self._pipe.flush():
                self._loop.remove_writer(self._pipe.fileno())
        except PeerGone:
            self._loop.remove_writer(self._pipe.fileno())
            self._ended.set()

    def _from_kernel(self) -> None:
        try:
            for frame in self._pipe.drain():
                self._told(frames.to_broker.decode(frame))
        except PeerGone:
            self._ended.set()

    def _told(self, message: frames.Yes | frames.No | frames.Cut) -> None:
        if isinstance(message, frames.Cut):
            for n in message.ns:
                if n in self._connections:
                    self._connections[n].end(message.reason)
            return
        connection = self._connections.get(message.n)
        answer = connection.answer if connection is not None else None
        if connection is None or answer is None or answer.done():
            if isinstance(message, frames.Yes):  # its driver did not wait
                self._tell(frames.Over(message.n, "the driver did not wait"))
        elif isinstance(message, frames.Yes):
            connection.allowed, connection.metered = True, message.metered
            answer.set_result(message)
        else:
            answer.set_exception(OpError(message.code, message.detail, message.hint or None))

    # -- drivers ---------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(16):  # then look at the others again
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors, or its other end has gone already: its own affair
                return
            sock.setblocking(False)
            pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            owner = self._owners.setdefault(pid, _Owner(refilled=self._loop.time()))
            others = len(self._connections) - owner.connections
            if owner.connections >= params.EGRESS_PER_PROCESS or not params.share(
                params.EGRESS_CONNECTIONS, owner.connections, others
            ):
                detail = f"{owner.connections} connections are open already"
                _refuse(sock, OpError(Code.BUSY, detail, "close some, or keep and reuse them"))
            elif not owner.may(self._loop.time()):
                _refuse(sock, OpError(Code.BUSY, "too many connections in a short time", "keep and reuse them"))
            else:
                owner.connections += 1
                self._count += 1
                connection = _Connection(self._count, pid, sock, began=self._loop.time())
                self._connections[connection.n] = connection
                connection.task = self._loop.create_task(self._serve(connection, owner))

    async def _serve(self, connection: _Connection, owner: _Owner) -> None:
        """From the request to the end; whatever happens, all that belongs to it is gone afterwards."""
        refused = False
        try:
            await self._connect_and_carry(connection, owner)
        except OpError as error:
            connection.reason = connection.reason or error.detail
            refused = isinstance(error, _NotAllowed)
            _refuse(connection.sock, error)
        except OSError as error:
            connection.reason = connection.reason or _said(error)
        except asyncio.CancelledError:
            if not connection.address:
                _refuse(connection.sock, OpError(Code.REVOKED, connection.reason))
        finally:
            connection.sock.close()
            owner.connections -= 1
            del self._connections[connection.n]
            if connection.allowed:
                self._meter(connection, 1)
                self._tell(
                    frames.Over(
                        connection.n,
                        connection.reason or "done",
                        connection.address,
                        connection.sent,
                        connection.received,
                        round(self._loop.time() - connection.began, 3),
                        refused,
                    )
                )

    async def _connect_and_carry(self, connection: _Connection, owner: _Owner) -> None:
        async with _at_most(params.EGRESS_REQUEST_S, "the request did not come"):
            size = int.from_bytes(await self._exactly(connection.sock, asking.LENGTH), "big")
            if size > asking.MAX_REQUEST:
                raise OpError(Code.TOO_LARGE, f"a request has at most {asking.MAX_REQUEST} bytes")
            connection.host, connection.port = asking.parse_request(await self._exactly(connection.sock, size))
        connection.answer = self._loop.create_future()
        self._tell(frames.Ask(connection.n, connection.pid, connection.host, connection.port, connection.began))
        async with _at_most(params.EGRESS_REQUEST_S, "the kernel did not answer"):
            grant = await connection.answer
        async with _at_most(params.EGRESS_CONNECT_S, f"{connection.host} did not answer"):
            addresses = await self._judged(connection, owner, grant)
            upstream = await self._connected(connection, addresses)
        with upstream:
            await self._loop.sock_sendall(connection.sock, asking.frame({"address": connection.address}))
            connection.active = self._loop.time()
            await self._carry(connection, upstream)

    async def _exactly(self, sock: socket.socket, size: int) -> bytes:
        """Not a byte more: what follows is the connection's. Raises `ConnectionError` when the other end has closed."""
        data = b""
        while len(data) < size:
            block = await self._loop.sock_recv(sock, size - len(data))
            if not block:
                raise ConnectionResetError("it closed before it had asked")
            data += block
        return data

    # -- out -------------------------------------------------------------------------------------------------------

    async def _judged(self, connection: _Connection, owner: _Owner, grant: frames.Yes) -> list[str]:
        """The addresses that may be connected to; the name is resolved this once. Raises `OpError`."""
        host, port = connection.host, connection.port
        await owner.names.acquire()
        looking = self._loop.run_in_executor(self._threads, self._resolve, host, port)
        looking.add_done_callback(owner.looked_up)
        try:
            found = await asyncio.shield(looking)
        except (OSError, UnicodeError) as error:
            raise OpError(Code.NOT_FOUND, f"{host} has no address: {_said(error)}", "is the name right?") from None
        reasons = {one: why_refused(one, self._source, private=grant.private) for one in dict.fromkeys(found)}
        passed = [one for one, reason in reasons.items() if not reason]
        if not passed:
            address, reason = next(iter(reasons.items()), ("", ""))
            detail = f"{host} is {address}: {reason}" if address else f"{host} has no address"
            raise _NotAllowed(Code.DENIED, detail, grant.hint or None)
        return passed[: params.EGRESS_ADDRESSES]

    async def _connected(self, connection: _Connection, addresses: list[str]) -> socket.socket:
        """To the first that answers. Raises `OpError(UNAVAILABLE)`."""
        trouble = ""
        for address in addresses:
            try:
                async with asyncio.timeout(params.EGRESS_CONNECT_S / 2):
                    sock = await self._dial(address, connection.port)
            except OSError as error:  # a TimeoutError is one
                trouble = _said(error)
            else:
                connection.address = address
                return sock
        detail = f"{connection.host}:{connection.port} ({addresses[-1]}): {trouble}"
        raise OpError(Code.UNAVAILABLE, detail, "try again later")

    async def _dial(self, address: str, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, (address, port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _carry(self, connection: _Connection, upstream: socket.socket) -> None:
        """Both ways, each until its sender is done; what breaks one ends both."""

        async def pump(source: socket.socket, sink: socket.socket, *, out: bool) -> None:
            block = memoryview(bytearray(params.EGRESS_BLOCK))
            while size := await self._loop.sock_recv_into(source, block):
                await self._loop.sock_sendall(sink, block[:size])
                self._moved(connection, size, out=out)
                await asyncio.sleep(0)  # both calls may have returned at once: the others have their turn
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

        ways: list[Coroutine[Any, Any, None]] = [
            pump(connection.sock, upstream, out=True),
            pump(upstream, connection.sock, out=False),
        ]
        tasks = [self._loop.create_task(way) for way in ways]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _moved(self, connection: _Connection, size: int, *, out: bool) -> None:
        connection.active = self._loop.time()
        connection.sent += size if out else 0
        connection.received += 0 if out else size
        self._meter(connection, params.EGRESS_METER)

    def _meter(self, connection: _Connection, least: int) -> None:
        untold = connection.sent + connection.received - connection.told
        if connection.metered and untold >= least:
            connection.told += untold
            self._tell(frames.Moved(connection.n, untold))

    async def _sweep(self) -> None:
        """Ends what has been silent for long, and forgets processes that have nothing any more."""
        while True:
            await asyncio.sleep(params.EGRESS_SWEEP_S)
            now = self._loop.time()
            for connection in list(self._connections.values()):
                if connection.active and now - connection.active > params.EGRESS_IDLE_S:
                    connection.end(f"nothing moved for {params.EGRESS_IDLE_S:.0f} s")
            for pid, owner in list(self._owners.items()):
                if not owner.connections and now - owner.refilled > params.EGRESS_IDLE_S:
                    del self._owners[pid]


@asynccontextmanager
async def _at_most(seconds: float, what: str) -> AsyncIterator[None]:
    """`asyncio.timeout` that says what was waited for. Raises `OpError(TIMEOUT)`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise OpError(Code.TIMEOUT, f"{what} within {seconds:g} s") from None


def _refuse(sock: socket.socket, error: OpError) -> None:
    """Say so if it listens, and close."""
    with suppress(OSError):
        sock.send(asking.frame(error.to_wire()), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    sock.close()


def _said(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:200]


async def _main(fd: int, path: Path) -> None:
    await Broker(FrameStream(socket.socket(fileno=fd)), path).run()


def main() -> None:
    """Serve on the inherited descriptor until the kernel goes."""
    threading.stack_size(params.EGRESS_STACK)
    asyncio.run(_main(int(sys.argv[1]), Path(sys.argv[2])))
    os._exit(0)  # a thread may still be asking for a name


if __name__ == "__main__":
    main()
