"""The engine straight on the ONNX graph: many rows decode in one step, each at a length of its own.

`GroupQueryAttention` takes every row's past length from the attention mask, and writes keys and values into the buffer it
reads them from. So a row is a place in one reservation of address space, as long as the longest text may become; the operating
system gives it memory page by page (16 tokens at 64 dimensions) as tokens are written, and takes it back when the job leaves.
A run works on neighbouring rows; which rows are neighbours is arranged by moving them, seldom.

CPU kernels multiply rows in pairs, and some of them round a row without a partner differently. Where they do, which is tried out
when a model is loaded, an odd number of rows has a ghost beside it, whose result nobody reads: alone or in company, a row's logits
are the same bit for bit.

Source: Yu et al. 2022, Orca (iteration-level scheduling); the operator,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits, runtime
from llmos.kernel.core.engine import KV
from llmos.kernel.core.sampler import Logits

_PADDING = 64
"""Columns by which the attention mask grows, so that a step seldom needs a new one."""
_TOLD = "told_positions"
"""The graph's overridable input: which positions' logits to compute; the last one where nothing is given."""
_LAST = np.array([-1], np.int64)
_PRIVATE = (
    mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
)
"""A reservation costs nothing until it is written to."""


class Unfit(Exception):
    """The graph is not one that this engine knows; the text says what it lacks."""


class BatchedRow:
    """A place in the reservation, and the tokens whose keys and values lie there."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.tokens: list[int] = []


class BatchedEngine:
    """A model folder in memory.

    Args:
        folder: with the graph.
        filename: of the graph as `genai_config.json` has it; one made for this engine, `batched.onnx`, goes before it.
        provider: `cpu`, or another of plain ONNX Runtime's in its own spelling (`CoreMLExecutionProvider`).
        window: tokens of the model's context window.

    Raises:
        Unfit: another engine must run this graph.
    """

    name = "batched"
    portable = True

    def __init__(self, folder: Path, filename: str, provider: str, window: int) -> None:
        self.rows = limits.ROWS
        self._window = window
        made = folder / "batched.onnx"
        self._session = _session(made if made.is_file() else folder / filename, provider)
        self._layers, self._heads, self._head_size, self.vocab = _shape_of(self._session)
        self.looks_back = _TOLD in {node.name for node in self._session.get_overridable_initializers()}
        self._every = not self.looks_back and self._session.get_outputs()[0].shape[1] != 1
        self._taken: list[BatchedRow | None] = [None] * (self.rows + 1)  # the last is for a ghost alone
        self._bindings: dict[tuple[int, int], Any] = {}
        self._room = 0
        self._kv: KV = np.empty((0,), np.float32)
        self._reserve(min(limits.ROOM, window))
        self._ids = np.zeros((self.rows + 1, 1), np.int64)
        self._logits = np.empty((self.rows + 1, 1, self.vocab), np.float32)
        self._ghosts = True
        self._check()
        self._ghosts = not self._alone_as_in_pairs()
        self.why = "the graph takes rows of different lengths in one step"

    # -- rows

    def seat(self, room: int) -> BatchedRow | None:
        if room >= self._room:  # a ghost writes one token beyond
            self._reserve(min(max(room, 2 * self._room), max(room, self._window)) + 1)
        place = next((place for place in range(self.rows) if self._taken[place] is None), None)
        if place is None:
            return None
        row = self._taken[place] = BatchedRow(place)
        return row

    def leave(self, row: BatchedRow) -> None:
        self._taken[row.place] = None
        self._give_back(row.place)
        row.tokens = []

    def cut(self, row: BatchedRow, length: int) -> None:
        del row.tokens[length:]

    def take(self, row: BatchedRow, start: int, stop: int) -> KV:
        return self._kv[:, row.place, :, start:stop]

    def put(self, row: BatchedRow, tokens: Sequence[int], kv: KV) -> None:
        start = len(row.tokens)
        self._kv[:, row.place, :, start : start + len(tokens)] = kv
        row.tokens += tokens

    # -- running

    def extend(self, row: BatchedRow, tokens: Sequence[int], told: int = 1) -> Logits:
        past, count = len(row.tokens), len(tokens)
        ids = np.array([tokens], np.int64)
        mask = np.ones((1, past + count), np.int64)
        logits = np.empty((1, count if self._every else told, self.vocab), np.float32)
        positions = np.arange(-told, 0, dtype=np.int64)
        binding = self._binding(row.place, 1)
        with _faults():
            _bind(binding.bind_input, "input_ids", ids)
            _bind(binding.bind_input, "attention_mask", mask)
            _bind(binding.bind_output, "logits", logits)
            if self.looks_back:
                _bind(binding.bind_input, _TOLD, positions)
            self._session.run_with_iobinding(binding)
        row.tokens += tokens
        scores: Logits = logits[0, -told:]
        return scores

    def step(self, rows: Sequence[BatchedRow], tokens: Sequence[int]) -> Logits:
        first, count = self._gather(rows)
        ids = self._ids[first : first + count]
        lengths = [len(row.tokens) if row is not None else 0 for row in self._taken[first : first + count]]
        longest = max(lengths) + 1
        mask = np.zeros((count, max(longest, min(_padded(longest), self._window))), np.int64)
        for index, length in enumerate(lengths):
            mask[index, : length + 1] = 1
        for row, token in zip(rows, tokens, strict=True):
            self._ids[row.place, 0] = token
        binding = self._binding(first, count)
        logits = self._logits[first : first + count]
        with _faults():
            _bind(binding.bind_input, "input_ids", ids)
            _bind(binding.bind_input, "attention_mask", mask)
            _bind(binding.bind_output, "logits", logits)
            if self.looks_back:
                _bind(binding.bind_input, _TOLD, _LAST)
            self._session.run_with_iobinding(binding)
        for row, token in zip(rows, tokens, strict=True):
            row.tokens.append(token)
        places = [row.place - first for row in rows]
        scores: Logits = logits[: len(rows), 0] if places == sorted(places) else logits[places, 0]
        return scores

    def _gather(self, rows: Sequence[BatchedRow]) -> tuple[int, int]:
        """Make rows neighbours, by as few moves as there are gaps; where they begin, and how many with a ghost."""
        wanted = {row.place for row in rows}
        count = len(rows)
        start = max(
            range(self.rows - count + 1), key=lambda first: (len(wanted & set(range(first, first + count))), -first)
        )
        places = range(start, start + count)
        gaps = [place for place in places if place not in wanted]
        for gap, stray in zip(gaps, sorted(wanted - set(places)), strict=True):
            self._swap(gap, stray)
        return start, count + (count % 2 if self._ghosts else 0)

    def _swap(self, one: int, other: int) -> None:
        """Exchange two places; either may be free."""
        lengths = [len(row.tokens) if row is not None else 0 for row in (self._taken[one], self._taken[other])]
        kept = self._kv[:, one, :, : lengths[0]].copy()
        self._kv[:, one, :, : lengths[1]] = self._kv[:, other, :, : lengths[1]]
        self._kv[:, other, :, : lengths[0]] = kept
        self._taken[one], self._taken[other] = self._taken[other], self._taken[one]
        for place in (one, other):
            row = self._taken[place]
            if row is None:
                self._give_back(place)
            else:
                row.place = place

    # -- memory

    def _reserve(self, room: int) -> None:
        """Address space for `room` tokens in every row, with what the rows hold now. Raises `OpError(BUSY)`."""
        room = _padded(room)
        shape = (2 * self._layers, self.rows + 1, self._heads, room, self._head_size)
        try:
            space = mmap.mmap(-1, 4 * int(np.prod(shape)), flags=_PRIVATE)
        except OSError as error:
            raise OpError(Code.BUSY, f"no address space for {self.rows} texts of {room} tokens") from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                space.madvise(mmap.MADV_NOHUGEPAGE)
        kv = np.frombuffer(space, np.float32).reshape(shape)
        for row in self._taken:
            if row is not None:
                kv[:, row.place, :, : len(row.tokens)] = self._kv[:, row.place, :, : len(row.tokens)]
        self._bindings.clear()
        self._space, self._kv, self._room = space, kv, room

    def _give_back(self, place: int) -> None:
        """Return a place's memory to the operating system."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        size = self._heads * self._room * self._head_size * 4
        for layer in range(2 * self._layers):
            self._space.madvise(mmap.MADV_DONTNEED, (layer * (self.rows + 1) + place) * size, size)

    def _binding(self, first: int, count: int) -> Any:
        """Inputs and outputs of a run on `count` rows from `first` on, but for the tokens: made once."""
        binding = self._bindings.get((first, count))
        if binding is None:
            binding = self._bindings[first, count] = self._session.io_binding()
            shape = (count, self._heads, self._room, self._head_size)
            for layer in range(self._layers):
                for part, name in enumerate(("key", "value")):
                    address = self._kv[2 * layer + part, first].ctypes.data
                    what = ("cpu", 0, np.float32, shape, address)
                    binding.bind_input(f"past_key_values.{layer}.{name}", *what)
                    binding.bind_output(f"present.{layer}.{name}", *what)
        return binding

    def _check(self) -> None:
        """Whether the graph does what this engine builds on: two rows of different lengths, each as if it were alone.

        Raises `Unfit`.
        """
        one, two = self.seat(8), self.seat(8)
        assert one is not None and two is not None  # noqa: PT018, S101 -- nobody sits yet
        try:
            self.extend(one, [1, 2, 3, 4])
            self.extend(two, [1, 2])
            alone = self.step([two], [3]).copy()
            self.cut(two, 2)
            together = self.step([one, two], [5, 3])
        except OpError as error:
            raise Unfit(f"the graph does not run in shared buffers: {error.detail}") from error
        finally:
            self.leave(one)
            self.leave(two)
        if not np.allclose(alone[0], together[1], rtol=0.05, atol=0.05 * float(np.abs(alone).max())):
            raise Unfit("rows of different lengths disturb one another")

    def _alone_as_in_pairs(self) -> bool:
        """Whether a row without a partner has the logits, bit for bit, that it has beside a ghost."""
        row = self.seat(2 * limits.PROBES)
        assert row is not None  # noqa: S101 -- nobody sits yet
        tokens = np.random.Generator(np.random.PCG64(1)).integers(self.vocab, size=limits.PROBES).tolist()
        same = True
        try:
            for token in tokens:
                scores = self.step([row], [token]).copy()
                self.cut(row, len(row.tokens) - 1)
                self._ghosts = False
                same = same and bool((self.step([row], [token]) == scores).all())
                self._ghosts = True
        finally:
            self.leave(row)
        return same


def _session(graph: Path, provider: str) -> Any:
    """Raises `OpError`: UNAVAILABLE when the provider is not here, INVALID_ARGUMENT when the graph does not load."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime.threads()
    options.log_severity_level = 3  # the overridable input is meant
    for entry in runtime.SPINNING:
        options.add_session_config_entry(*entry)
    known = onnxruntime.get_available_providers()
    chosen = "CPUExecutionProvider" if provider == "cpu" else provider
    if chosen not in known:
        raise OpError(
            Code.UNAVAILABLE, f"provider {provider} does not work here", f"this machine has {', '.join(known)}"
        )
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[chosen])
    except Exception as error:  # the runtime raises bare exceptions of its own
        raise OpError(
            Code.INVALID_ARGUMENT, f"the model in {graph.parent} does not load: {error}", "pull or import it again"
        ) from error


def _shape_of(session: Any) -> tuple[int, int, int, int]:
    """Layers, key and value heads, head size and vocabulary of a graph. Raises `Unfit`."""
    inputs = {node.name: node for node in session.get_inputs()}
    past = {name: node for name, node in inputs.items() if name.startswith("past_key_values.")}
    layers = len(past) // 2
    expected = {f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")}
    if not layers or set(inputs) != expected | {"input_ids", "attention_mask"}:
        odd = sorted(set(inputs) ^ (expected | {"input_ids", "attention_mask"}))
        raise Unfit(f"its inputs are not input_ids, attention_mask and a cache for each layer: {', '.join(odd[:3])}")
    shapes = {tuple(node.shape[axis] for axis in (1, 3)) for node in past.values() if len(node.shape) == 4}
    types = {node.type for node in past.values()}
    logits = {node.name: node for node in session.get_outputs()}.get("logits")
    if len(shapes) != 1 or types != {"tensor(float)"}:
        raise Unfit(f"its cache is not float32 of one shape: {', '.join(sorted(types))}")
    if logits is None or logits.type != "tensor(float)" or not isinstance(logits.shape[-1], int):
        raise Unfit("its logits are not float32 of a known width")
    heads, head_size = shapes.pop()
    if not isinstance(heads, int) or not isinstance(head_size, int) or head_size % 16:
        raise Unfit(f"its heads are {heads} of {head_size}")
    return layers, heads, head_size, logits.shape[-1]


def _padded(length: int) -> int:
    return -(-length // _PADDING) * _PADDING


def _bind(bind: Callable[..., None], name: str, array: NDArray[Any]) -> None:
    """Bind an array's own memory; the array must outlive the run."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """The runtime's failures as ours."""
    try:
        yield
    except MemoryError as error:
        raise OpError(Code.BUSY, "no memory for another text") from error
    except Exception as error:  # it raises exceptions of its own, all bare
        raise OpError(Code.INTERNAL, f"the model runtime failed: {str(error)[:300]}") from error
