"""What programs talk to llmos with: thin, typed, synchronous.

    with Client() as client:
        for text in client.generate("Once upon a time", max_tokens=40):
            print(text, end="")
        found = client.call("browser_history.search", query="sourdough", period="last week")

Every method raises `OpError`; switch on its `code`. A client is thread-safe.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from llmos.ipc.connection import AppKey, Connection, Event, Incoming, Stream, Unreachable
from llmos.ipc.errors import Code, OpError
from llmos.ipc.protocol import Effect
from llmos.userland import functions

if TYPE_CHECKING:
    from datetime import datetime
    from types import TracebackType

    from llmos.ipc import embedding

__all__ = ["AppKey", "Client", "Code", "Context", "Effect", "Event", "Generation", "OpError", "Stream", "Unreachable"]

_F = TypeVar("_F", bound=Callable[..., Any])

_serving: contextvars.ContextVar[int] = contextvars.ContextVar("serving", default=0)
"""Id of the call that a function of ours is serving: calls made for it name it as their parent."""


class Generation(Iterator[str]):
    """Text as the model makes it: iterate for the pieces, or read `text`, which waits for the end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __next__(self) -> str:
        try:
            return str(next(self._stream).get("text", ""))
        except KeyboardInterrupt:
            self.cancel()
            raise

    @property
    def result(self) -> dict[str, Any]:
        """`{text, finish, usage, timings}`, once it has ended; waits for that."""
        for _ in self:
            pass
        return self._stream.result

    @property
    def text(self) -> str:
        """All of it."""
        return str(self.result["text"])

    @property
    def finish(self) -> str:
        """Why it ended: `stop`, `eos` or `length`."""
        return str(self.result["finish"])

    @property
    def usage(self) -> dict[str, int]:
        """Tokens: `{prompt, cached, completion, forced}`."""
        return dict(self.result["usage"])

    def cancel(self) -> None:
        """Stop the model; the generation then ends with `CANCELLED`."""
        self._stream.cancel()


class Context:
    """A conversation that the model keeps: what it has read is not read again. Open one with `Client.context`.

        with client.context() as chat:
            chat.append(messages=[{"role": "system", "content": rules}])
            for text in chat.generate(messages=[{"role": "user", "content": "Hello!"}]):
                print(text, end="")

    One call at a time: a second one raises `OpError(CONFLICT)`. A context of a core that crashed raises `PEER_DIED`.
    """

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self.number = number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OpError):  # it is over either way, and ends with the program at the latest
            self.close()

    def append(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> dict[str, int]:
        """Put it at the end and read it now: `{tokens, cached}`, of the whole context. `options`: `job_class`."""
        args = _given(context=self.number, prompt=prompt, messages=_plain(messages), **options)
        return dict(self._client.call("llm.append", args, timeout=timeout))

    def generate(self, prompt: str | None = None, **options: Any) -> Generation:
        """Put it at the end, and the model's answer behind it; with nothing given the model goes on. `options`: `Client.generate`'s."""
        return self._client.generate(prompt, context=self.number, **options)

    def fork(self) -> Context:
        """Another with all that this one has, which goes its own way from here; nothing is computed."""
        return Context(self._client, int(self._client.call("llm.fork", context=self.number)["context"]))

    def close(self) -> None:
        """What still runs in it ends with `CANCELLED`. Raises `OpError(NOT_FOUND)` when it is closed already."""
        self._client.call("llm.close", context=self.number)


class Client:
    """A program's connection to the system. Connects on first use; see `Connection` for where and as whom.

    A program from outside gives its app's `key`, or has the key file's path in `LLMOS_APP_KEY`.
    """

    def __init__(self, connection: Connection | None = None, *, name: str = "", key: AppKey | None = None) -> None:
        self.connection = connection or Connection(client=name, key=key)
        self._functions: dict[str, functions.Function] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every wait with `CANCELLED`, and `serve`. Idempotent."""
        self.connection.close()

    # -- ops -------------------------------------------------------------------------------------------------------

    def call(
        self, op: str, args: Mapping[str, Any] | None = None, /, *, timeout: float | None = None, **named: Any
    ) -> dict[str, Any]:
        """The result of `op`. Arguments by name, or as a map where a name is taken. `timeout` in seconds."""
        return self.connection.call(op, {**(args or {}), **named}, timeout=timeout, parent=_serving.get())

    def stream(
        self, op: str, args: Mapping[str, Any] | None = None, /, *, timeout: float | None = None, **named: Any
    ) -> Stream:
        """The same for an op that answers in chunks."""
        return self.connection.stream(op, {**(args or {}), **named}, timeout=timeout, parent=_serving.get())

    def keep(
        self, op: str, args: Mapping[str, Any] | None = None, /, *, timeout: float | None = None, **named: Any
    ) -> dict[str, Any]:
        """A call whose result stays with the kernel: `{$v, type, bytes, label}`; pass `{"$v": …}` to another op in its place."""
        return self.connection.call(op, {**(args or {}), **named}, timeout=timeout, parent=_serving.get(), keep=True)

    def ops(self) -> list[dict[str, Any]]:
        """The ops this program's capabilities reach: `{op, summary, effect, utterances, control, args, tags}`."""
        return list(self.call("sys.ops")["ops"])

    # -- the model -------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        stop: Sequence[str] = (),
        schema: Mapping[str, Any] | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        timeout: float | None = None,
        **sampling: Any,
    ) -> Generation:
        """Text from the model: of a raw `prompt`, or of `messages` (`{role, content}`) by the model's chat template.

        At most one of `schema` (JSON Schema), `regex` and `choices` constrains it. `sampling` takes what else
        `llm.generate` does: `top_k top_p min_p repetition_penalty seed speculate model context job_class`.
        """
        args = _given(
            prompt=prompt,
            messages=_plain(messages),
            stop=list(stop) or None,
            schema=schema and dict(schema),
            regex=regex,
            choices=choices and list(choices),
            **sampling,
        )
        return Generation(
            self.stream("llm.generate", args, timeout=timeout, max_tokens=max_tokens, temperature=temperature)
        )

    def context(self, model: str | None = None) -> Context:
        """A new, empty context of a model that is loaded, or of the default. Close it, or use it in a `with`."""
        return Context(self, int(self.call("llm.open", _given(model=model))["context"]))

    def embed(self, texts: Sequence[str]) -> embedding.Vectors:
        """One row of length 1 per text, in order: float32 `[len(texts), dim]`."""
        from llmos.ipc import embedding  # NumPy: most programs never need it

        return embedding.embed(self.call, texts)

    # -- topics ----------------------------------------------------------------------------------------------------

    def subscribe(self, topic: str, since: datetime | float | None = None) -> Iterator[Event]:
        """Events from now on, for ever; `*` in the pattern stands for one level, at its end for the rest.

        With `since` (a time, or seconds since 1970) the stored events of durable topics from then on come first.
        """
        return self.connection.subscribe(topic, since)

    def publish(self, topic: str, **data: Any) -> int:
        """How many mailboxes it went to."""
        return int(self.call("bus.publish", {"topic": topic, "data": data})["receivers"])

    # -- programs --------------------------------------------------------------------------------------------------

    @overload
    def spawn(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        allow: Sequence[str] | None = None,
        wait: Literal[False] = False,
        strict: bool = False,
    ) -> int: ...
    @overload
    def spawn(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        allow: Sequence[str] | None = None,
        wait: Literal[True],
        strict: bool = False,
    ) -> Stream: ...
    def spawn(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        allow: Sequence[str] | None = None,
        wait: bool = False,
        strict: bool = False,
    ) -> int | Stream:
        """Starts an agent with the capabilities `allow`; None gives it what its manifest requests.

        `strict`: the user is asked about every effect once anything untrusted is in it, planned or not.
        Without `wait` its pid. With it a stream of what the agent emits, whose `result` is `{pid, result}`.
        """
        request: dict[str, Any] = {"program": program, "args": dict(args or {}), "wait": wait}
        if allow is not None:
            request["allow"] = list(allow)
        if strict:
            request["mode"] = "strict"
        return self.stream("proc.spawn", request) if wait else int(self.call("proc.spawn", request)["pid"])

    # -- functions lent to the model -------------------------------------------------------------------------------

    @overload
    def function(self, run: _F, /) -> _F: ...
    @overload
    def function(
        self, run: None = None, /, *, name: str = "", utterances: Sequence[str] = (), effect: Effect = Effect.EXEC
    ) -> Callable[[_F], _F]: ...
    def function(
        self,
        run: _F | None = None,
        /,
        *,
        name: str = "",
        utterances: Sequence[str] = (),
        effect: Effect = Effect.EXEC,
    ) -> _F | Callable[[_F], _F]:
        """Lends a typed function to the model, as `app.NAME`, while `serve` runs. Its docstring says what it is for.

        `utterances` are what a person would say to want it: with three or more the assistant finds it reliably.
        """

        def lend(lent: _F) -> _F:
            made = functions.describe(lent, name, utterances, effect)
            self._functions[made.name] = made
            return lent

        return lend if run is None else lend(run)

    def register(self, run: Callable[..., Any], **options: Any) -> str:
        """`function` for one that exists already, at once. → its op. Raises `OpError(CONFLICT)` for a name in use."""
        made = functions.describe(run, **options)
        op = str(self.call("fn.register", made.registration())["op"])
        self._functions[made.name] = made
        return op

    def serve(self) -> None:
        """Answers calls of the functions, one at a time in this thread, until the client is closed."""
        self._offer()
        self.connection.on_greeted = self._offer
        while (incoming := self.connection.next_call()) is not None:
            self._answer(incoming)

    def _offer(self) -> None:
        for made in self._functions.values():
            self.call("fn.register", made.registration())

    def _answer(self, incoming: Incoming) -> None:
        name = incoming.header.op.partition(".")[2]
        token = _serving.set(incoming.header.id)
        try:
            if name not in self._functions:
                raise OpError(Code.UNKNOWN_OP, f"this program lends no function {name!r}")
            incoming.reply(self._functions[name](incoming.args))
        except OpError as error:
            incoming.fail(error)
        except Exception as error:  # noqa: BLE001  (the function's own fault: its caller learns the type, the log the rest)
            import structlog  # 0.1 s to import, and most programs lend no function

            structlog.get_logger().exception("function.crashed", name=name)
            incoming.fail(OpError(Code.INTERNAL, f"{incoming.header.op}: {type(error).__name__}"))
        finally:
            _serving.reset(token)


def _given(**args: Any) -> dict[str, Any]:
    """The arguments that were given."""
    return {key: value for key, value in args.items() if value is not None}


def _plain(messages: Sequence[Mapping[str, str]] | None) -> list[dict[str, str]] | None:
    return None if messages is None else [dict(message) for message in messages]
