"""Vectors of short texts: a BERT-like encoder, mean pooling, length 1."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers
from numpy.typing import NDArray

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits, runtime

Vectors = NDArray[np.float32]
"""Shape `(texts, dim)`; every row has length 1, so that a dot product is the cosine."""


class Embedder:
    """An embedding model in memory.

    Args:
        folder: `model.onnx` and `tokenizer.json`.

    Raises:
        OpError: NOT_FOUND when a file is missing, INVALID_ARGUMENT when one cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("model.onnx", "tokenizer.json"):
            if not (folder / name).is_file():
                raise OpError(
                    Code.NOT_FOUND, f"the embedding model has no {folder / name}", "llmosctl model pull minilm"
                )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = runtime.threads()
        for entry in runtime.SPINNING:
            options.add_session_config_entry(*entry)
        try:
            self._session = onnxruntime.InferenceSession(
                folder / "model.onnx", options, providers=["CPUExecutionProvider"]
            )
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.dim = int(self._session.get_outputs()[0].shape[-1])
        except Exception as error:  # both libraries raise bare exceptions of their own
            raise OpError(Code.INVALID_ARGUMENT, f"the embedding model in {folder} does not load: {error}") from error
        self._tokenizer.enable_truncation(limits.EMBED_TOKENS)
        self._tokenizer.no_padding()
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._cache: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        """By label and text."""

    def embed(self, texts: Sequence[str], label: str = "") -> Generator[int, None, Vectors]:
        """Yields after every run of the model the tokens it took, so that the caller may look up; returns the vectors. Raises `OpError`.

        Equal texts of one label are computed once, and of another label again: how long it takes tells nobody what others have embedded.
        Runs take texts of like length, since padding costs as much as text.
        """
        found = {text: self._cache[label, text] for text in set(texts) if (label, text) in self._cache}
        for batch in self._batches(sorted(set(texts) - found.keys())):
            found.update(zip((text for text, _ in batch), self._run([ids for _, ids in batch]), strict=True))
            yield sum(len(ids) for _, ids in batch)
        self._remember(label, found)
        return np.stack([found[text] for text in texts])

    def _batches(self, texts: Sequence[str]) -> Iterator[list[tuple[str, list[int]]]]:
        encoded = zip(texts, (encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))), strict=True)
        batch: list[tuple[str, list[int]]] = []
        for text, ids in sorted(encoded, key=lambda pair: len(pair[1])):
            if batch and (len(batch) + 1) * len(ids) > limits.EMBED_BATCH_TOKENS:
                yield batch
                batch = []
            batch.append((text, ids))
        if batch:
            yield batch

    def _run(self, rows: Sequence[list[int]]) -> Vectors:
        """Raises `OpError(INTERNAL)`.

        Source: Reimers and Gurevych 2019, Sentence-BERT, section 3 (mean over the tokens that are not padding).
        """
        width = max(map(len, rows))
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        try:
            hidden = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        except Exception as error:  # the runtime's own are bare, and a file may want inputs that nobody has
            raise OpError(
                Code.INTERNAL, f"the embedding model failed: {type(error).__name__} {str(error)[:300]}"
            ) from error
        weights = mask[..., None].astype(np.float32)
        means = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        vectors: Vectors = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return vectors

    def _remember(self, label: str, vectors: dict[str, NDArray[np.float32]]) -> None:
        for text, vector in vectors.items():
            self._cache[label, text] = vector
            self._cache.move_to_end((label, text))
        while len(self._cache) > limits.EMBED_CACHE:
            self._cache.popitem(last=False)
