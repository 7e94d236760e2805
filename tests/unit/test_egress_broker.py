"""The egress broker between a kernel and a resolver that do as the test says: hostile drivers, hostile names, slow everything."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from llmos.ipc import egress as asking
from llmos.ipc import wire
from llmos.ipc.pipe import FrameStream, PeerGone
from llmos.kernel import egress_frames as frames
from llmos.kernel import params
from llmos.kernel.egress import Broker

OUTSIDE = "93.184.216.34"
PATIENCE_S = 20.0


class Dialling(Broker):
    """A broker whose dialling ends at this machine, wherever it was to: `dialled` says where."""

    def __init__(self, port: int, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.port = port
        self.dialled: list[tuple[str, int]] = []

    async def _dial(self, address: str, port: int) -> socket.socket:
        self.dialled.append((address, port))
        return await super()._dial("127.0.0.1", self.port)


class World:
    """A broker, the kernel's end of its pipe, a server that it reaches, and a resolver."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "egress"
        self.asked: list[frames.Ask] = []
        self.over: list[frames.Over] = []
        self.moved = 0
        self.answer: Callable[[frames.Ask], frames.Yes | frames.No | None] = lambda ask: frames.Yes(
            ask.n, False, True, ""
        )
        self.names: Callable[[str], list[str]] = lambda _: [OUTSIDE]
        self.looked_up: list[str] = []
        self.served: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = echo
        self.broker: Dialling
        self._up = asyncio.Event()
        self._news = asyncio.Condition()

    def resolve(self, host: str, _port: int) -> list[str]:
        self.looked_up.append(host)
        return self.names(host)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        ours, theirs = socket.socketpair()
        self._pipe = FrameStream(ours)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._hear)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.broker = Dialling(
            server.sockets[0].getsockname()[1], FrameStream(theirs), self.path, self.resolve, lambda _: "9.9.9.9"
        )
        task = asyncio.create_task(self.broker.run())
        await asyncio.wait_for(self._up.wait(), PATIENCE_S)
        try:
            yield self
        finally:
            loop.remove_reader(ours.fileno())
            self._pipe.close()
            await asyncio.wait_for(task, PATIENCE_S)
            theirs.close()
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await self.served(reader, writer)
        writer.close()

    def _hear(self) -> None:
        with suppress(PeerGone):
            for frame in self._pipe.drain():
                message = frames.to_kernel.decode(frame)
                if isinstance(message, frames.Up):
                    self._up.set()
                elif isinstance(message, frames.Ask):
                    self.asked.append(message)
                    said = self.answer(message)
                    if said is not None:
                        self.say(said)
                elif isinstance(message, frames.Over):
                    self.over.append(message)
                else:
                    self.moved += message.bytes

    def say(self, message: frames.Yes | frames.No | frames.Cut) -> None:
        self._pipe.post(frames.encode(message))

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A driver's connection that has not asked for anything."""
        return await asyncio.open_unix_connection(self.path)

    async def ask(self, host: str = "example.com", port: int = 443) -> tuple[dict[str, Any], Any, Any]:
        """What a driver is told, and its connection."""
        reader, writer = await self.open()
        writer.write(asking.request(host, port))
        return await answered(reader), reader, writer

    async def ended(self, count: int = 1) -> list[frames.Over]:
        """What the kernel hears of the end of connections."""
        await until(lambda: len(self.over) >= count)
        return self.over


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.01)


async def answered(reader: asyncio.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        size = int.from_bytes(await reader.readexactly(asking.LENGTH), "big")
        return wire.decode_map(await reader.readexactly(size))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(65536):
        writer.write(block)
        await writer.drain()


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    """Runs a scene with a world of its own."""

    def run(scene: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with World(tmp_path).running() as world:
                await scene(world)

        asyncio.run(whole())

    return run


Play = Callable[[Callable[[World], Awaitable[None]]], None]


def test_bytes_go_both_ways_and_are_counted(play: Play) -> None:
    """The kernel is asked first, by the pid that the operating system vouches for, and told at the end."""

    async def scene(world: World) -> None:
        told, reader, writer = await world.ask("Example.COM.", 443)
        assert told == {"address": OUTSIDE}
        assert world.broker.dialled == [(OUTSIDE, 443)]
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        (ask,), (over,) = world.asked, await world.ended()
        assert (ask.pid, ask.host, ask.port) == (os.getpid(), "example.com", 443)
        assert (over.address, over.sent, over.received, over.reason, over.refused) == (OUTSIDE, 4, 4, "done", False)
        assert world.moved == 8

    play(scene)


def test_a_name_that_changes_its_address_gains_nothing(play: Play) -> None:
    """It is resolved once: what was judged is what is connected to, and the next connection is judged by what it finds."""

    async def scene(world: World) -> None:
        addresses = iter([OUTSIDE, "127.0.0.1"])
        world.names = lambda _: [next(addresses)]
        told, _, first = await world.ask("rebinding.example")
        assert told == {"address": OUTSIDE}
        assert world.looked_up == ["rebinding.example"]
        told, _, second = await world.ask("rebinding.example")
        assert told["code"] == "DENIED"
        assert "127.0.0.1" in told["detail"]
        assert world.broker.dialled == [(OUTSIDE, 443)]
        assert (await world.ended())[0].refused
        first.close()
        second.close()

    play(scene)


def test_of_several_addresses_those_inside_are_never_dialled(play: Play) -> None:
    """Wherever they stand in the answer; with the user's leave they are."""

    async def scene(world: World) -> None:
        world.names = lambda _: ["10.0.0.1", "::ffff:127.0.0.1", OUTSIDE, "fd00::1"]
        _, _, writer = await world.ask()
        assert world.broker.dialled == [(OUTSIDE, 443)]
        world.answer = lambda ask: frames.Yes(ask.n, True, False, "")
        _, _, other = await world.ask()
        assert world.broker.dialled[1] == ("10.0.0.1", 443)
        writer.close()
        other.close()

    play(scene)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff" + b"x" * 100,
        b"\x02\x01",
        b"\x00\x00",
        b"\x00\x01\xc1",
        b"\x00\x03abc",
        asking.frame({}),
        asking.frame({"host": "example.com"}),
        asking.frame({"host": "example.com", "port": 0}),
        asking.frame({"host": "example.com", "port": "443"}),
        asking.frame({"host": "example.com", "port": True}),
        asking.frame({"host": ["example.com"], "port": 443}),
        asking.frame({"host": b"example.com", "port": 443}),
        asking.frame({"host": "evil.com\0.example.com", "port": 443}),
        asking.frame({"host": "a" * 254, "port": 443}),
        b"\x00\x0a\x82\xa1a\x01\xa1a\x01\xa1b\x01",
        b"\x00\x40" + b"\x91" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_goes_no_further(play: Play, sent: bytes) -> None:
    """With an error; neither the kernel nor the resolver hears of it, and the next driver is served."""

    async def scene(world: World) -> None:
        reader, writer = await world.open()
        writer.write(sent)
        told = await answered(reader)
        assert told["code"] in ("INVALID_ARGUMENT", "TOO_LARGE")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        assert (world.asked, world.looked_up, world.over) == ([], [], [])
        told, _, writer = await world.ask()
        assert told == {"address": OUTSIDE}
        writer.close()

    play(scene)


def test_a_request_that_comes_in_drops_is_given_up(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is drawn out; others are served meanwhile."""
    monkeypatch.setattr(params, "EGRESS_REQUEST_S", 1.5)

    async def scene(world: World) -> None:
        slow = [await world.open() for _ in range(20)]
        for _, writer in slow:
            writer.write(b"\x00")
        told, _, writer = await world.ask()
        assert told == {"address": OUTSIDE}
        writer.close()
        for reader, writer in slow:
            assert (await answered(reader))["code"] == "TIMEOUT"
            writer.close()
        assert len(world.asked) == 1

    play(scene)


def test_a_process_has_no_more_than_its_share(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of connections, and of attempts in a time."""
    monkeypatch.setattr(params, "EGRESS_PER_PROCESS", 3)

    async def scene(world: World) -> None:
        held = [await world.ask() for _ in range(3)]
        assert [told for told, _, _ in held] == [{"address": OUTSIDE}] * 3
        reader, writer = await world.open()
        assert (await answered(reader))["code"] == "BUSY"
        writer.close()
        for _, _, one in held:
            one.close()
        await world.ended(3)
        monkeypatch.setattr(params, "EGRESS_RATE", 0.0)
        monkeypatch.setattr(params, "EGRESS_BURST", 0.0)
        reader, writer = await world.open()
        assert "short time" in (await answered(reader))["detail"]
        writer.close()

    play(scene)


def test_a_name_that_takes_long_holds_up_nobody_else(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after a while, though its thread may wait on; other names are found meanwhile."""
    monkeypatch.setattr(params, "EGRESS_CONNECT_S", 1.5)
    go = threading.Event()

    async def scene(world: World) -> None:
        world.names = lambda host: [OUTSIDE] if host == "quick.example" or go.wait(PATIENCE_S) else []
        slow = [asyncio.create_task(world.ask("slow.example")) for _ in range(params.EGRESS_NAMES_PER_PROCESS - 1)]
        await until(lambda: len(world.looked_up) == len(slow))
        told, _, writer = await world.ask("quick.example")
        assert told == {"address": OUTSIDE}
        writer.close()
        for task in slow:
            told, _, writer = await task
            assert told["code"] == "TIMEOUT"
            writer.close()
        go.set()

    play(scene)


def test_who_does_not_read_fills_no_memory(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends without end is held up by the driver that does not read; the broker keeps one block."""
    monkeypatch.setattr(params, "EGRESS_METER", params.EGRESS_BLOCK)

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def scene(world: World) -> None:
        world.served = flood
        with socket.socket(socket.AF_UNIX) as driver:  # a stream's own reader would read ahead
            driver.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(driver, str(world.path))
            await loop.sock_sendall(driver, asking.request("example.com", 443))
            await until(lambda: world.moved)
            moved = -1
            while moved != world.moved:
                moved = world.moved
                await asyncio.sleep(0.3)
            world.say(frames.Cut([world.asked[0].n], "taken back"))
            (over,) = await world.ended()
        assert over.received < 1 << 20
        assert over.reason == "taken back"

    play(scene)


def test_the_kernel_cuts_a_connection_at_any_point(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its name is looked up, and while it carries."""
    go = threading.Event()

    async def scene(world: World) -> None:
        _, reader, writer = await world.ask()
        world.say(frames.Cut([world.asked[0].n], "taken back"))
        assert await reader.read() == b""
        writer.close()
        world.names = lambda _: [OUTSIDE] if go.wait(PATIENCE_S) else []
        waiting = asyncio.create_task(world.ask())
        await until(lambda: len(world.looked_up) == 2)
        world.say(frames.Cut([world.asked[1].n], "taken back"))
        told, _, writer = await waiting
        writer.close()
        assert (told["code"], told["detail"]) == ("REVOKED", "taken back")
        go.set()
        assert [(over.n, over.reason) for over in await world.ended(2)] == [
            (ask.n, "taken back") for ask in world.asked
        ]
        assert len(world.broker.dialled) == 1

    play(scene)


def test_what_the_kernel_refuses_is_not_looked_up(play: Play) -> None:
    """Its words reach the driver, hint and all."""

    async def scene(world: World) -> None:
        world.answer = lambda ask: frames.No(ask.n, "DENIED", "missing", "grant it")
        told, _, writer = await world.ask()
        writer.close()
        assert told == {"code": "DENIED", "detail": "missing", "hint": "grant it"}
        assert (world.looked_up, world.over) == ([], [])

    play(scene)


def test_a_yes_that_comes_too_late_is_given_back(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel hears that nothing came of it, and keeps nothing."""
    monkeypatch.setattr(params, "EGRESS_REQUEST_S", 0.3)

    async def scene(world: World) -> None:
        world.answer = lambda _: None
        told, _, writer = await world.ask()
        writer.close()
        assert told["code"] == "TIMEOUT"
        world.say(frames.Yes(world.asked[0].n, False, False, ""))
        assert (await world.ended())[0].n == world.asked[0].n
        assert world.broker.dialled == []

    play(scene)


def test_silence_ends_a_connection(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-open ones do not stay for ever."""
    monkeypatch.setattr(params, "EGRESS_IDLE_S", 0.3)
    monkeypatch.setattr(params, "EGRESS_SWEEP_S", 0.05)

    async def scene(world: World) -> None:
        _, reader, writer = await world.ask()
        assert await reader.read() == b""
        writer.close()
        assert "nothing moved" in (await world.ended())[0].reason

    play(scene)


@pytest.mark.parametrize(
    ("names", "code"),
    [(OSError("no such name"), "NOT_FOUND"), (UnicodeError("label too long"), "NOT_FOUND"), ([], "DENIED")],
)
def test_a_name_without_an_address_is_an_error(play: Play, names: Any, code: str) -> None:
    """Whatever way the resolver puts it."""

    def resolve(_: str) -> list[str]:
        if isinstance(names, Exception):
            raise names
        return list(names)

    async def scene(world: World) -> None:
        world.names = resolve
        told, _, writer = await world.ask()
        writer.close()
        assert told["code"] == code
        assert len(await world.ended()) == 1

    play(scene)
