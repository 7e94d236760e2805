"""Hooks around a driver's life, called by the driver host inside the driver's own jail (pluggy).

A driver needs none of them: `Driver.setup` and `Driver.close` are called through the first and the last. They are for
what lies beside the ops: a second module of the package that warms a cache, counts calls, tidies up. Implement one as
a method of the driver class or as a function of its module, marked `@hookimpl`; `Driver.plugins` names further objects.

    @hookimpl
    def llmos_driver_call_finished(op, ms): ...

An implementation takes the arguments it wants, by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from llmos.drivers.sdk import Call, DriverEnv
    from llmos.ipc.errors import Code

PROJECT = "llmos_driver"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The specifications. Since: 1.0."""

    @hookspec
    def llmos_driver_setup(self, env: DriverEnv) -> None:
        """Once, before the driver is ready; the driver's own `setup` goes first. An exception ends the driver."""

    @hookspec
    def llmos_driver_call_started(self, op: str, call: Call, args: dict[str, Any]) -> None:
        """Before an op runs, in its thread, with checked arguments. An `OpError` from here answers the call."""

    @hookspec
    def llmos_driver_call_finished(self, op: str, call: Call, ms: float, error: Code | None) -> None:
        """After an op was answered, in its thread; `ms` is how long it took, `error` None when it went well."""

    @hookspec
    def llmos_driver_close(self) -> None:
        """Once, at an orderly end, within two seconds; the driver's own `close` goes last. A kill skips it."""
