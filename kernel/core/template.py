"""Chat templates: a model file's own Jinja program, run as the untrusted code that it is.

The sandbox withholds attributes and mutation; `bounded` withholds time and memory, which a sandboxed template could
still take without end (`{{ 'a' * 10**10 }}`, nested loops). The jail around the core stands behind both.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What a model without a template of its own gets.

Source: https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
"""


class TooCostly(Exception):
    """A template took more time or wrote more than it may."""


class ChatTemplate:
    """Renders a conversation to the text the model was trained on.

    Args:
        source: the Jinja program.
        variables: what the template may use besides the conversation: `bos_token`, `eos_token`.

    Raises:
        OpError: INVALID_ARGUMENT when the program does not compile.
    """

    def __init__(self, source: str, **variables: str) -> None:
        self._variables = variables
        with _refusals("does not compile"):
            self._template = _environment().from_string(source)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation as text, ending where the assistant's turn begins.

        Raises:
            OpError: INVALID_ARGUMENT when the template refuses the conversation, fails, or takes too much.
        """
        parts, size = [], 0
        with _refusals("refused the messages"):
            for part in self._template.generate(messages=messages, add_generation_prompt=True, **self._variables):
                size += len(part)
                if size > limits.TEMPLATE_CHARACTERS:
                    raise TooCostly(f"wrote more than {limits.TEMPLATE_CHARACTERS:,} characters")
                parts.append(part)
        return "".join(parts)


def find_template(folder: Path) -> str | None:
    """The template a model folder carries: `chat_template.jinja`, or the one inside `tokenizer_config.json`."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {item.get("name"): item.get("template") for item in template}.get("default")
    return template if isinstance(template, str) else None


@contextlib.contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Run the block with at most `seconds` of user-mode CPU time and `memory` more bytes of address space.

    Main thread only. Raises `TooCostly` or MemoryError inside the block. Where the address space of a process cannot be
    read (no /proc), only time is bounded.
    """

    def expire(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise TooCostly(f"ran longer than {seconds:g} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, expire)
    try:
        with contextlib.suppress(OSError):
            ceiling = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
            if soft == resource.RLIM_INFINITY or ceiling < soft:
                resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
        # Again and again, because a library in between may swallow the first.
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.05)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _refusals(failed: str) -> Iterator[None]:
    """Run template code within its bounds; whatever it raises is the template's fault, and INVALID_ARGUMENT."""
    try:
        with bounded(limits.TEMPLATE_SECONDS, limits.TEMPLATE_MEMORY):
            yield
    except MemoryError as error:
        raise OpError(Code.INVALID_ARGUMENT, "the model's chat template took too much memory") from error
    except TooCostly as error:
        raise OpError(Code.INVALID_ARGUMENT, f"the model's chat template {error}") from error
    except Exception as error:  # a template can provoke any
        raise OpError(Code.INVALID_ARGUMENT, f"the model's chat template {failed}: {error}") from error


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller: Any) -> Any:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates written for Hugging Face's `apply_chat_template` expect to find, and nothing more."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
