"""Syscalls about the models: jobs, contexts, and what is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from llmos.ipc import protocol, wire
from llmos.ipc.errors import Code, OpError
from llmos.kernel.labels import Label, join
from llmos.kernel.syscalls import Request, Result, syscall
from llmos.kernel.values import bits, revealed

if TYPE_CHECKING:
    from llmos.kernel.kernel import Kernel


@syscall(protocol.Generate)
def _generate(kernel: Kernel, request: Request, args: protocol.Generate) -> Result:
    kernel.inference.generate(request.call, args, request.peer.holder)
    return None


@syscall(protocol.Append)
def _append(kernel: Kernel, request: Request, args: protocol.Append) -> Result:
    kernel.inference.append(request.call, args, request.peer.holder)
    return None


@syscall(protocol.OpenContext)
def _open(kernel: Kernel, request: Request, args: protocol.OpenContext) -> Result:
    return {"context": kernel.inference.open(request.peer.holder, _ends_with(request), args.model)}


@syscall(protocol.ForkContext)
def _fork(kernel: Kernel, request: Request, args: protocol.ForkContext) -> Result:
    return {"context": kernel.inference.fork(args.context, request.peer.holder, _ends_with(request))}


@syscall(protocol.CloseContext)
def _close(kernel: Kernel, request: Request, args: protocol.CloseContext) -> Result:
    kernel.inference.close(args.context, request.peer.holder)
    return {}


def _ends_with(request: Request) -> int:
    """The connection that a context ends with; 0 for a process, whose end is noticed otherwise."""
    return 0 if request.peer.process is not None else request.peer.conn


@syscall(protocol.Embed)
def _embed(kernel: Kernel, request: Request, args: protocol.Embed) -> Result:
    kernel.inference.embed(request.call, args, request.peer.holder)
    return None


@syscall(protocol.Extract)
def _extract(kernel: Kernel, request: Request, args: protocol.Extract) -> Result:
    """The bits are spent before the model runs, whatever it answers."""
    holder = request.peer.holder
    values = [kernel.authority.values.get(holder, handle) for handle in args.values]
    label = join((request.call.label, *(value.label for value in values)))
    kernel.authority.task(holder).budget.spend(bits(args.schema))
    texts = [_text(wire.decode(value.body)) for value in values]

    def reveal(text: str) -> tuple[dict[str, Any], Label]:
        try:
            answer = msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise OpError(Code.UNAVAILABLE, "llm.extract: the model gave no answer", "ask a simpler question") from None
        return {"answer": answer}, request.call.label | revealed(args.schema, answer, label)

    kernel.inference.extract(request.call, args, holder, texts, label, reveal)
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@syscall(protocol.LoadModel)
def _load(kernel: Kernel, request: Request, args: protocol.LoadModel) -> Result:
    kernel.engine.load(args.model, request.call)
    return None


@syscall(protocol.UnloadModel)
def _unload(kernel: Kernel, request: Request, args: protocol.UnloadModel) -> Result:
    kernel.engine.unload(args.model, request.call)
    return None


@syscall(protocol.DefaultModel)
def _default(kernel: Kernel, request: Request, args: protocol.DefaultModel) -> Result:  # noqa: ARG001
    return {"model": kernel.engine.default(args.model) or ""}


@syscall(protocol.ModelStatistics)
def _stats(kernel: Kernel, request: Request, args: protocol.ModelStatistics) -> Result:  # noqa: ARG001
    return kernel.inference.describe()
