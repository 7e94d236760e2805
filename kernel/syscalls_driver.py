"""The syscall table, third part: what the user decides about drivers beside what they may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos.ipc import protocol
from llmos.ipc.errors import Code, OpError
from llmos.ipc.manifest import DriverManifest
from llmos.kernel import params
from llmos.kernel.syscalls import Request, Result, syscall

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel


@syscall(protocol.DisableDriver)
def _disable(kernel: Kernel, request: Request, args: protocol.DisableDriver) -> Result:  # noqa: ARG001
    _known(kernel, args.name)
    kernel.choices.switch(args.name, off=True)
    kernel.drivers.end(args.name, "it is disabled")
    return {"name": args.name, "state": "disabled"}


@syscall(protocol.EnableDriver)
def _enable(kernel: Kernel, request: Request, args: protocol.EnableDriver) -> Result:  # noqa: ARG001
    _known(kernel, args.name)
    kernel.choices.switch(args.name, off=False)
    kernel.drivers.start(args.name)
    process = kernel.processes.named(args.name)
    return {"name": args.name, "state": process.state.value if process is not None else "waiting"}


@syscall(protocol.SetDriver)
def _set(kernel: Kernel, request: Request, args: protocol.SetDriver) -> Result:  # noqa: ARG001
    manifest = _known(kernel, args.name)
    kernel.choices.set(manifest, args.key, args.value)
    process = kernel.processes.named(args.name)
    if process is not None:
        kernel.supervisor.restart(process, soon=params.REJAIL_S)
    defaults = {key: setting.get("default") for key, setting in manifest.settings.items()}
    return {"name": args.name, "settings": {**defaults, **kernel.choices.settings(args.name)}}


@syscall(protocol.ForgetDriver)
def _forget(kernel: Kernel, request: Request, args: protocol.ForgetDriver) -> Result:  # noqa: ARG001
    if args.name in kernel.programs.drivers:
        raise OpError(Code.CONFLICT, f"{args.name} is installed", f"llmosctl driver uninstall {args.name}")
    kernel.choices.forget(args.name)
    return {}


def _known(kernel: Kernel, name: str) -> DriverManifest:
    manifest = kernel.programs.drivers.get(name)
    if manifest is None:
        raise OpError(
            Code.NOT_FOUND, f"no driver is called {name!r}", f"installed: {', '.join(kernel.programs.drivers)}"
        )
    return manifest
