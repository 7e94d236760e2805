"""The driver host: what the kernel starts in a driver's jail, as `python -m llmos.drivers.host` with `LLMOS_CONFIG`.

It says hello before it imports the driver, so that a slow start is told apart from none, and `sys.ready` after `setup`.
The main thread runs the socket, so that a cancel is heard while every worker is busy; ops run in worker threads.
"""

from __future__ import annotations

import contextvars
import importlib
import inspect
import os
import queue
import socket
import sys
import threading
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from llmos.drivers import hooks, network
from llmos.drivers.sdk import MARK, MAX_UNDO, PREVIEW_MARK, Call, Driver, DriverEnv, zone_named
from llmos.ipc import log as logs
from llmos.ipc import manifest as manifests
from llmos.ipc import orders
from llmos.ipc.connection import Connection, Incoming
from llmos.ipc.errors import Code, OpError
from llmos.ipc.signals import on_terminate

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE_S = 1.0
"""Seconds that running ops have at an orderly end, after which the driver is closed; the kernel kills after two."""
REGREET_S = 30.0
"""Seconds to look for a gate that went away before giving up."""
REGREET_PAUSE_S = 0.05
"""Seconds between two looks."""
MAX_PREVIEW = 20_000
"""Characters of a preview."""

_UNSHOWN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Categories of characters that change how others are shown, or show nothing."""

log = logs.get_logger()

_serving: contextvars.ContextVar[int] = contextvars.ContextVar("serving", default=0)
"""Id of the call that this thread serves: calls made for it name it as their parent."""


class Config(msgspec.Struct, frozen=True):
    """`LLMOS_CONFIG`, as JSON."""

    kind: str
    name: str
    manifest: Path
    state: Path
    home: Path
    roots: list[Path] = []
    writable: list[Path] = []
    settings: dict[str, Any] = {}
    tz: str = ""
    net: Path | None = None
    """The egress broker's socket; None for a driver that may connect nowhere."""


class DriverHost:
    """One driver, its manifest, and its hooks: answers calls, knows nothing of sockets."""

    def __init__(self, manifest: manifests.DriverManifest) -> None:
        """Imports the driver. Raises `OpError` when the package does not hold what its manifest says."""
        self.manifest = manifest
        module, driver = _construct(manifest)
        self.driver = driver
        self.methods = _methods(manifest, driver)
        self._plugins = pluggy.PluginManager(hooks.PROJECT)
        self._plugins.add_hookspecs(hooks.Hooks)
        for plugin in (driver, module, *driver.plugins()):
            self._plugins.register(plugin)
        self.hook = self._plugins.hook

    def setup(self, env: DriverEnv) -> None:
        """The driver's own setup, then its plugins'."""
        self.hook.llmos_driver_setup(env=env)

    def close(self) -> None:
        """The plugins' close, then the driver's own. Never raises."""
        try:
            self.hook.llmos_driver_close()
        except Exception:  # somebody else's code at the very end: it is logged, and the end goes on
            log.exception("driver.close_failed")

    def serve(self, incoming: Incoming) -> None:
        """Answer one call, whatever happens in the driver."""
        started = time.perf_counter()
        name = incoming.header.op.partition(".")[2]
        call = _call_of(incoming)
        _serving.set(incoming.header.id)
        failure: Code | None = None
        items: int | None = None
        try:
            result = self.run(name, call, incoming.args)
            items = _count(result)
            incoming.reply(result, label=call.label or None)
        except OpError as error:
            failure = error.code
            incoming.fail(error)
        except Exception as error:  # a driver's bug: its caller learns the type, its log the rest
            failure = Code.INTERNAL
            log.exception("op.crashed", op=name)
            incoming.fail(OpError(failure, f"{incoming.header.op}: {type(error).__name__}", self._log_hint()))
        ms = (time.perf_counter() - started) * 1000
        log.info("op.done", op=name, ms=round(ms, 1), items=items, code=failure)
        try:
            self.hook.llmos_driver_call_finished(op=name, call=call, ms=ms, error=failure)
        except Exception:  # the call is answered already
            log.exception("hook.crashed", op=name)

    def run(self, name: str, call: Call, args: dict[str, Any]) -> dict[str, Any]:
        """An op's result. Raises `OpError`, `TypeError` for a result that is none, and whatever the driver raises."""
        op = self.manifest.ops.get(name)
        if op is None:
            known = ", ".join(self.manifest.ops)
            raise OpError(Code.UNKNOWN_OP, f"{self.manifest.name} has no op {name!r}", f"its ops: {known}")
        op.check(args)
        call.check()
        given = {key: value for key, value in args.items() if value is not None}
        self.hook.llmos_driver_call_started(op=name, call=call, args=given)
        result = self.methods[name](call, **given)
        if not isinstance(result, dict):
            raise TypeError(f"{name} returned {type(result).__name__}, not a dict")
        if op.undo and not _is_undo(result.get("undo")):
            raise TypeError(f"{name} returned no undo, a text of at most {MAX_UNDO} characters")
        return result

    def _log_hint(self) -> str:
        return f"the driver's log says more: llmosctl logs {self.manifest.name}"


def _construct(manifest: manifests.DriverManifest) -> tuple[object, Driver]:
    module_name, _, class_name = manifest.entry.partition(":")
    module = importlib.import_module(module_name)
    made = getattr(module, class_name, None)
    if not (isinstance(made, type) and issubclass(made, Driver)):
        raise OpError(Code.INVALID_ARGUMENT, f"{manifest.entry} is not a subclass of llmos.drivers.sdk.Driver")
    return module, made()


def _methods(manifest: manifests.DriverManifest, driver: Driver) -> dict[str, Callable[..., Any]]:
    """The method of every op. Raises `OpError` that lists all that does not fit between manifest and class."""
    found = _marked(driver, MARK)
    previewers = _marked(driver, PREVIEW_MARK)
    wrong = _misfits_of_previews(manifest, previewers, found)
    if previewers:
        found["preview"] = _preview_op(manifest, previewers)
    wrong += [
        f"{name}: undo is true, and there is no op undo"
        for name, op in manifest.ops.items()
        if op.undo and "undo" not in found
    ]
    wrong += [f"no @op method for {name}" for name in manifest.ops if name not in found]
    wrong += [f"{name} is not in the manifest" for name in found if name not in manifest.ops]
    for name in manifest.ops.keys() & found.keys():
        wrong += _misfits(name, manifest.ops[name], found[name])
    if wrong:
        raise OpError(Code.INVALID_ARGUMENT, f"{manifest.entry} does not fit its manifest: " + "; ".join(sorted(wrong)))
    return found


def _marked(driver: Driver, mark: str) -> dict[str, Callable[..., Any]]:
    members = inspect.getmembers(type(driver), lambda member: hasattr(member, mark))  # the class's: no property runs
    return {getattr(member, mark): getattr(driver, name) for name, member in members}


def _misfits_of_previews(
    manifest: manifests.DriverManifest,
    previewers: dict[str, Callable[..., Any]],
    methods: dict[str, Callable[..., Any]],
) -> list[str]:
    wrong = ["preview: made by the host of the methods marked with @previews"] if "preview" in methods else []
    wrong += [
        f"no @previews method for {name}" for name, op in manifest.ops.items() if op.preview and name not in previewers
    ]
    for name, method in previewers.items():
        op = manifest.ops.get(name)
        if op is None or not op.preview:
            wrong.append(f"{name} has a preview that is not in the manifest")
        else:
            wrong += [f"preview of {misfit}" for misfit in _misfits(name, op, method)]
    return wrong


def _preview_op(manifest: manifests.DriverManifest, previewers: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The op `preview`, from the previews of single ops."""

    def preview(call: Call, *, op: str, args: dict[str, Any]) -> dict[str, Any]:
        if op not in previewers:
            raise OpError(
                Code.UNKNOWN_OP, f"argument op: {op[:80]!r} has no preview", f"known: {', '.join(previewers)}"
            )
        manifest.ops[op].check(args)
        text = previewers[op](call, **{key: value for key, value in args.items() if value is not None})
        return {"preview": _readable(text)}

    return preview


def _readable(text: str) -> str:
    """At most `MAX_PREVIEW` characters that a terminal shows as they are: control and direction characters become escapes."""
    plain = "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _UNSHOWN else char.encode("unicode-escape").decode()
        for char in text[: MAX_PREVIEW + 1]
    )
    if len(plain) <= MAX_PREVIEW:
        return plain
    return f"{plain[: MAX_PREVIEW - 80]}\n… cut here, about {max(len(text), len(plain)) - MAX_PREVIEW + 80:,} characters more"


def _is_undo(token: object) -> bool:
    return isinstance(token, str) and 0 < len(token) <= MAX_UNDO


def _misfits(name: str, op: manifests.Op, method: Callable[..., Any]) -> list[str]:
    _call, *parameters = inspect.signature(method).parameters.values()
    wrong = []
    for parameter in parameters:
        arg = op.args.get(parameter.name)
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            wrong.append(f"{name}: {parameter.name} must be keyword-only")
        elif arg is None:
            wrong.append(f"{name}: {parameter.name} is not in the manifest")
        elif parameter.default is parameter.empty and not arg.required:
            wrong.append(f"{name}: {parameter.name} is optional in the manifest and needs a default")
        if parameter.annotation is parameter.empty:
            wrong.append(f"{name}: {parameter.name} has no type")
    missing = op.args.keys() - {parameter.name for parameter in parameters}
    return wrong + [f"{name}: the method takes no {arg}" for arg in missing]


def _call_of(incoming: Incoming) -> Call:
    header = incoming.header
    deadline = time.monotonic() + header.deadline_ms / 1000 if header.deadline_ms else None
    return Call(header.scope, header.sender, deadline, incoming.cancelled)


def _count(result: dict[str, Any]) -> int | None:
    items = result.get("items")
    return len(items) if isinstance(items, list) else None


class Workers:
    """Threads that serve calls; with a count of 0, whichever calls `work` does."""

    def __init__(self, count: int, serve: Callable[[Incoming], None]) -> None:
        self._serve = serve
        self._queue: queue.SimpleQueue[Incoming | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self.work, name=f"op-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def take(self, incoming: Incoming) -> None:
        """Serve it as soon as a thread is free."""
        self._queue.put(incoming)

    def end(self, seconds: float) -> bool:
        """Wait for what runs; False when something is still running after that."""
        limit = time.monotonic() + seconds
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def finish(self) -> None:
        """Let `work` return once it has served what came."""
        self._queue.put(None)

    def work(self) -> None:
        """Serve what comes, until the end."""
        while (incoming := self._queue.get()) is not None:
            self._serve(incoming)


def serve(connection: Connection, workers: Workers) -> None:
    """Hand calls to the workers until the connection is closed. A gate that restarts is sought for `REGREET_S`."""
    give_up = float("inf")
    while True:
        try:
            incoming = connection.next_call()
        except OpError as error:
            if error.code is Code.CANCELLED:
                return
            now = time.monotonic()
            give_up = min(give_up, now + REGREET_S)
            if error.code not in (Code.UNAVAILABLE, Code.PEER_DIED) or now >= give_up:
                raise
            time.sleep(REGREET_PAUSE_S)
            continue
        if incoming is None:
            return
        give_up = float("inf")
        workers.take(incoming)


def serve_here(connection: Connection, workers: Workers) -> None:
    """The same with the ops in this thread and the socket in another, so that the kernel's pings are answered while an op runs."""
    failures: list[OpError] = []

    def listen() -> None:
        try:
            serve(connection, workers)
        except OpError as error:
            failures.append(error)
        finally:
            workers.finish()

    threading.Thread(target=listen, name="socket", daemon=True).start()
    workers.work()
    if failures:
        raise failures[0]


def _environment(config: Config, manifest: manifests.DriverManifest, connection: Connection) -> DriverEnv:
    defaults = {name: setting.get("default") for name, setting in manifest.settings.items()}

    def call(op: str, args: dict[str, Any]) -> dict[str, Any]:
        return connection.call(op, args, parent=_serving.get())

    return DriverEnv(
        state=config.state,
        home=config.home,
        roots=tuple(config.roots),
        writable=tuple(config.writable),
        settings={**defaults, **config.settings},
        zone=zone_named(config.tz),
        call=call,
        network=network.Network(config.name, config.net),
    )


def main() -> int:
    """Runs until SIGTERM; 1 when the driver cannot be started, with the reason as the last line of stderr."""
    orders.follow()
    try:
        config = msgspec.json.decode(os.environ["LLMOS_CONFIG"], type=Config, dec_hook=lambda kind, value: kind(value))
    except (KeyError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"LLMOS_CONFIG: {error}; this program is started by the kernel\n")
        return 2
    logs.configure(driver=config.name)
    with Connection(client=f"driver {config.name}") as connection:
        on_terminate(connection.close)
        try:
            connection.call("sys.ping")
            manifest = manifests.load_driver(config.manifest)
            env = _environment(config, manifest, connection)
            socket.create_connection = env.network.create_connection
            host = DriverHost(manifest)
            host.setup(env)
        except OpError as error:
            log.error("driver.failed", detail=error.detail, hint=error.hint)
            return 1
        except Exception as error:  # the driver's own code
            log.exception("driver.failed", detail=f"{type(error).__name__} in setup: {str(error)[:200]}")
            return 1
        return _run(connection, host)


def _run(connection: Connection, host: DriverHost) -> int:
    def say_ready() -> None:
        connection.call("sys.ready", {"status": host.driver.status()[:500]})

    workers = Workers(host.driver.threads, host.serve)
    try:
        say_ready()
        connection.on_greeted = say_ready
        (serve if host.driver.threads else serve_here)(connection, workers)
    except OpError as error:
        log.error("driver.lost", detail=error.detail)
        return 1
    finally:
        connection.close()  # which cancels what runs
        all_ended = workers.end(CLOSE_S)
        host.close()
        if not all_ended:
            os._exit(0)  # a thread in the middle of somebody's C code must not meet the interpreter's end
    return 0


if __name__ == "__main__":
    sys.exit(main())
