"""A model folder, loaded: its engine, its tokenizer, its chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core.engine import Engine, ModelInfo
from llmos.kernel.core.passage import Pace
from llmos.kernel.core.request import Message, Request
from llmos.kernel.core.seats import Memory, Seats, seats_for
from llmos.kernel.core.template import CHATML, ChatTemplate, find_template
from llmos.kernel.core.tokenizer import Tokenizer

_AGAIN = "pull or import the model again"


@dataclass(frozen=True, slots=True)
class Model:
    """All that a job needs of a model. `warnings` are for the person who installed it."""

    info: ModelInfo
    engine: Engine[Any]
    seats: Seats
    tokenizer: Tokenizer
    template: ChatTemplate
    warnings: tuple[str, ...] = ()
    pace: Pace = field(default_factory=Pace)

    def encode(self, request: Request) -> list[int]:
        """The tokens of a request's prompt or messages; at least one. Raises `OpError` INVALID_ARGUMENT."""
        if request.messages is not None:
            return self.encode_messages(request.messages)
        return self.encode_text(request.prompt or "")

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """A conversation, as the template writes it, up to where the assistant's turn begins."""
        shield = self.tokenizer.shield
        shielded = [{"role": shield(said.role), "content": shield(said.content)} for said in messages]
        return self._some(self.tokenizer.encode_chat(self.template.render(shielded)))

    def encode_text(self, text: str) -> list[int]:
        """A raw prompt."""
        return self._some(self.tokenizer.encode(text))

    def length(self, text: str) -> int:
        """How many tokens a piece of text has."""
        return len(self.tokenizer.encode(text))

    def _some(self, tokens: list[int]) -> list[int]:
        if not tokens and self.info.bos is not None:
            tokens = [self.info.bos]
        if not tokens:
            raise OpError(Code.INVALID_ARGUMENT, "the prompt is empty, and this model has no token to begin with")
        return tokens


def load_model(folder: Path, provider: str, memory: Memory | None = None) -> Model:
    """Load a GenAI folder; takes seconds, most of it reading weights.

    Raises:
        OpError: NOT_FOUND (no such folder, or a file of it is missing), INVALID_ARGUMENT (a file of it cannot be used),
            UNAVAILABLE (the provider does not work here).
    """
    info, filename = _describe(folder, provider)
    tokenizer = _tokenizer(folder, info)
    template, warnings = _template(folder, tokenizer, info)
    engine, used = _engine(folder, filename, provider, info.context)
    info = replace(info, chat=not warnings, provider=used, rows=engine.rows, engine=engine.name, why=engine.why)
    seats = seats_for(engine, info.kv_bytes, memory or Memory())
    return Model(info, engine, seats, tokenizer, template, warnings)


def _engine(folder: Path, filename: str, provider: str, window: int) -> tuple[Engine[Any], str]:
    """The batched engine where it can run the graph; GenAI where it cannot, or where GenAI alone knows the provider.

    With the provider that runs it: GenAI knows none of plain ONNX Runtime's but the CPU's.
    """
    # The runtimes are imported here and not at the top so that a core without a model starts at once.
    why = f"the provider {provider} is GenAI's"
    if provider == "cpu" or provider.endswith("ExecutionProvider"):
        from llmos.kernel.core.batched import BatchedEngine, Unfit

        try:
            return BatchedEngine(folder, filename, provider, window), provider
        except Unfit as reason:
            why = f"the batched engine does not know this graph: {reason}"
            provider = "cpu"
        except OpError:
            raise
        except Exception as error:
            detail = f"the model in {folder} does not load: {type(error).__name__} {str(error)[:300]}"
            raise OpError(Code.INVALID_ARGUMENT, detail, _AGAIN) from error
    from llmos.kernel.core.genai import GenaiEngine

    return GenaiEngine(folder, provider, window, why), provider


def _describe(folder: Path, provider: str) -> tuple[ModelInfo, str]:
    """What the folder's files say: `genai_config.json`, and `llmos.json` where the importer wrote one; and the graph's file."""
    described = _read(folder, "llmos.json") if (folder / "llmos.json").is_file() else {}
    try:
        config = _read(folder, "genai_config.json")["model"]
        decoder, eos = config["decoder"], described.get("eos", config["eos_token_id"])
        filename = str(decoder["filename"])
        if Path(filename).name != filename:
            raise ValueError("its graph lies outside of the folder")
        vocab, context = int(config["vocab_size"]), int(config["context_length"])
        layers, heads, size = (int(decoder[name]) for name in ("num_hidden_layers", "num_key_value_heads", "head_size"))
        if min(vocab, context, layers, heads, size) < 1:
            raise ValueError("one of its sizes is not positive")
        info = ModelInfo(
            name=described.get("name", folder.name),
            architecture=described.get("architecture", config["type"]),
            parameters=described.get("parameters"),
            vocab=vocab,
            context=context,
            provider=provider,
            bos=config.get("bos_token_id"),
            eos=tuple(eos) if isinstance(eos, list) and eos else (int(eos),),
            kv_bytes=2 * 4 * layers * heads * size,
            chat=False,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{folder / 'genai_config.json'} does not describe a text model: {type(error).__name__} {error}"
        raise OpError(Code.INVALID_ARGUMENT, detail, _AGAIN) from error
    return info, filename


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise OpError(
            Code.NOT_FOUND, f"no model in {folder}: {name} cannot be read ({error.strerror})", "llmosctl model ls"
        ) from error
    except ValueError as error:
        raise OpError(Code.INVALID_ARGUMENT, f"{folder / name} is not JSON: {error}", _AGAIN) from error
    return content


def _tokenizer(folder: Path, info: ModelInfo) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise OpError(Code.NOT_FOUND, f"the model has no {path}", _AGAIN)
    try:
        return Tokenizer(path, info.vocab, info.eos)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise OpError(Code.INVALID_ARGUMENT, f"{path} cannot be used: {error}", _AGAIN) from error


def _template(folder: Path, tokenizer: Tokenizer, info: ModelInfo) -> tuple[ChatTemplate, tuple[str, ...]]:
    """The folder's own template, or ChatML with the reason why."""
    variables = {
        "bos_token": "" if info.bos is None else tokenizer.text_of(info.bos),
        "eos_token": tokenizer.text_of(info.eos[0]),
    }
    try:
        source = find_template(folder)
        if source is not None:
            return ChatTemplate(source, **variables), ()
        warning = "the model has no chat template: messages are rendered as ChatML"
    except (OpError, OSError, ValueError) as error:
        warning = f"the model's chat template cannot be used, messages are rendered as ChatML: {error}"
    return ChatTemplate(CHATML, **variables), (warning,)
