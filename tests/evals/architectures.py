"""What the unit tests take for the definition of each architecture, and imports of it, against llama.cpp on the same tiny files.

`python -m tests.evals.architectures`. For every model of `tests/unit/test_models_architectures.py`, random weights in float32:
the largest difference between logits at 40 positions, in units of the logits' spread, of llama.cpp to the definition and of
the imported graph to llama.cpp, without the rounding of activations; and how many of some 2,000 texts a vocabulary made like
Gemma's cuts otherwise than llama.cpp does. Needs the development-only reference (`make reference`). Ends with status 1 when
something is further apart than it should be.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from llmos.userland.models.metadata import Metadata
from llmos.userland.models.tokenizer import build_tokenizer
from tests.bench.figures import report
from tests.evals.perplexity import DATA, llama_scorer
from tests.unit.test_models_architectures import MODELS, TOKENS, tiny
from tests.unit.test_models_import import Session, differ, imported
from tests.unit.tiny_gguf import TinyModel

TOLERANCE = 0.005
"""3e-6 was seen, for Gemma, whose GELU llama.cpp looks up in a table of float16, 0.002; one wrong setting gives 0.1 to 4."""
_F32 = 0
"""ggml's number of the type, for a cache without rounding."""
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<unused0>")
_SPELLED = (
    "\n\n",
    "  ",
    " ",
    "\t",
    "<table>",
    "é",
    "日本",
    "🙂",
    "a",
    "the ",
    "<",
    "▁",
    " " * 40,
    "\n" * 35,
    *_SPECIAL,
)


def main() -> int:
    try:
        from llama_cpp import Llama
    except ImportError:
        print("llama-cpp-python is not installed: run `make reference` (it compiles for some minutes)", file=sys.stderr)
        return 1
    figures: dict[str, float | int | str] = {}
    failed = False
    for name in MODELS:
        to_definition, to_import = distances(tiny(name), Llama)
        figures |= {f"{name}_definition": to_definition, f"{name}_import": to_import}
        failed |= max(to_definition, to_import) > TOLERANCE
    figures["texts"], figures["texts_differ"] = cut_otherwise(Llama)
    report("architectures", figures, model="random")
    return int(failed or figures["texts_differ"] != 0)


def distances(model: TinyModel, reference: Callable[..., Any]) -> tuple[float, float]:
    """Of llama.cpp's logits to the definition's, and of the imported model's to llama.cpp's."""
    with tempfile.TemporaryDirectory() as place:
        file = model.write(Path(place) / "tiny.gguf")
        llama = reference(
            str(file), n_ctx=64, n_batch=64, logits_all=True, verbose=False, type_k=_F32, type_v=_F32, flash_attn=False
        )
        theirs = llama_scorer(llama)(TOKENS).copy()
        llama.close()
        session = Session(imported(model, Path(place)), exact=True)
        ours = [session.logits(TOKENS[: length + 1]) for length in range(len(TOKENS))]
    defined = model.logits(TOKENS)
    return (
        max(differ(one, other) for one, other in zip(theirs, defined, strict=True)),
        max(differ(one, other) for one, other in zip(ours, theirs, strict=True)),
    )


def cut_otherwise(reference: Callable[..., Any]) -> tuple[int, int]:
    """How many texts were cut, and how many not as llama.cpp cuts them."""
    corpus = [(DATA / "engineers_thumb.txt").read_text(encoding="utf-8")]
    corpus += json.loads((DATA / "multilingual.json").read_text(encoding="utf-8"))
    model = TinyModel(kind="gemma3", layers=1, changes=like_gemma(corpus))
    made = tokenizers.Tokenizer.from_str(json.dumps(build_tokenizer(Metadata(model.metadata())).json))
    chance = random.Random(5)
    texts = [*corpus, *("".join(chance.choices(_SPELLED, k=chance.randint(1, 12))) for _ in range(1000))]
    for _ in range(1000):
        text = chance.choice(corpus)
        start = chance.randrange(len(text))
        texts.append(text[start : start + chance.randint(1, 80)])
    with tempfile.TemporaryDirectory() as place:
        llama = reference(str(model.write(Path(place) / "tiny.gguf")), vocab_only=True, verbose=False)
        differing = sum(
            made.encode(text, add_special_tokens=False).ids
            != llama.tokenize(text.encode(), add_bos=False, special=True)
            for text in texts
        )
        llama.close()
    return len(texts), differing


def like_gemma(corpus: list[str]) -> dict[str, Any]:
    """Metadata of a vocabulary as Gemma's files have it: scored pieces learnt from a text, bytes, and runs of spaces, line
    ends and tags as user-defined tokens.
    """
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=4000, limit_alphabet=300, show_progress=False)
    learner.train_from_iterator(corpus, trainer)
    runs = [character * length for character in "\n \t" for length in range(2, 32)]
    user = [*runs, "<table>", "</table>", "<td>", "<b>"]
    plain = [*_SPECIAL, *user, *(f"<0x{byte:02X}>" for byte in range(256))]
    # A NUL inside a token ends it for llama.cpp.
    ranks = learner.get_vocab()
    learnt = sorted((word for word in ranks if "\0" not in word and word not in plain), key=ranks.__getitem__)
    control, unknown, user_defined, byte, ordinary = 3, 2, 4, 6, 1
    special = [unknown if word == "<unk>" else control for word in _SPECIAL]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": [*plain, *learnt],
        "tokenizer.ggml.token_type": [*special, *[user_defined] * len(user), *[byte] * 256, *[ordinary] * len(learnt)],
        "tokenizer.ggml.scores": [*[0.0] * len(plain), *(-float(rank) for rank in range(len(learnt)))],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


if __name__ == "__main__":
    sys.exit(main())
