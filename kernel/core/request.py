"""What one job asks for: the kernel's `job` message, checked once and frozen."""

from __future__ import annotations

from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from llmos.ipc.errors import Code, OpError


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is picked; the defaults are greedy and change nothing.

    Attributes:
        temperature: 0 is greedy; above it, logits are divided by it.
        top_k: only the k likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that together reach this probability; always at least one.
        min_p: only tokens at least this times as likely as the likeliest.
        repetition_penalty: what is already there has positive logits divided and negative ones multiplied by this.
        seed: same seed, same model and same prompt give the same text; None draws one.
    """

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    seed: Annotated[int, Meta(ge=0)] | None = None


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation, rendered by the model's own chat template."""

    role: str
    content: str


class Request(Sampling, frozen=True, kw_only=True):
    """One inference, as asked for.

    Attributes:
        job: the kernel's number for it.
        label: jobs of equal labels may share what was read.
        context: the conversation that goes on, to which `prompt` or `messages` and the answer are appended; None for none.
        prompt: text given to the model as it is; exactly one of it and `messages` is set, in a context at most one.
        max_tokens: tokens that may be produced; fewer where the context window ends sooner. 0, in a context: only read.
        stop: strings that end the text and are not part of it.
        schema: a JSON Schema that the text must match; at most one of it, `regex` and `choices` is set.
        regex: a regular expression for the whole text, in the syntax of Rust's `regex`.
        choices: the texts allowed.
        speculate: whether to draft what may come from what came before.
        skip_forced: whether tokens that the constraint leaves no choice about are appended without a step each.
    """

    job: int
    label: str = ""
    context: int | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    max_tokens: Annotated[int, Meta(ge=0)] = 256
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=16)] = []
    schema: dict[str, Any] | None = None
    regex: str | None = None
    choices: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=256)] | None = None
    speculate: bool = False
    skip_forced: bool = True

    @classmethod
    def parse(cls, message: dict[str, Any]) -> Self:
        """From a `job` message. Raises `OpError` INVALID_ARGUMENT, naming the field, for a value out of its range."""
        try:
            request = msgspec.convert(message, cls)
        except msgspec.ValidationError as error:
            raise OpError(Code.INVALID_ARGUMENT, str(error)) from error
        if request.prompt is not None and request.messages is not None:
            raise OpError(Code.INVALID_ARGUMENT, "give either prompt or messages, and not both")
        if request.context is None and (request.max_tokens < 1 or (request.prompt, request.messages) == (None, None)):
            raise OpError(
                Code.INVALID_ARGUMENT, "without a context, give prompt or messages, and at least one of max_tokens"
            )
        given = [name for name in ("schema", "regex", "choices") if getattr(request, name) is not None]
        if len(given) > 1:
            raise OpError(Code.INVALID_ARGUMENT, f"one constraint per job: both {given[0]} and {given[1]} are set")
        return request
