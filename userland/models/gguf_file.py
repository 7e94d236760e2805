"""Reads GGUF files as hostile input: every count, length, shape and offset is checked before anything is allocated.

Only the header is parsed here; tensor bytes are read piecewise with `GgufFile.read`, so that an import never holds more of
the file than one piece. Nothing in the file is ever taken for a path.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from llmos.userland.models.errors import ImportRejected

MAX_TENSORS = 16_384
MAX_KEYS = 4_096
MAX_KEY_BYTES = 512
MAX_NAME_BYTES = 128
MAX_STRING_BYTES = 1 << 20
"""One metadata string; the longest real ones are chat templates of some 20 KB."""
MAX_ARRAY_ITEMS = 1 << 20
"""Elements of one metadata array; the longest real ones are vocabularies of some 256 k tokens."""
MAX_HEADER_BYTES = 256 << 20
MAX_DIMENSIONS = 4
MAX_DIMENSION = 1 << 31

MetadataValue = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where one tensor lies in the file.

    `rows` x `columns` is the matrix as PyTorch would shape it ([out, in]); GGUF itself lists the fastest axis first.
    `offset` and `nbytes` are bytes in the file; `row_bytes` is the size of one quantised row.
    """

    name: str
    rows: int
    columns: int
    type: GGMLQuantizationType
    offset: int
    nbytes: int

    @property
    def row_bytes(self) -> int:
        return self.nbytes // self.rows

    @property
    def elements(self) -> int:
        return self.rows * self.columns


class GgufFile:
    """One GGUF file, opened for reading.

    `metadata` holds the plain values by key, `tensors` the tensors by name, in the file's order.
    Raises `ImportRejected` naming the key or the tensor when anything does not fit the file; `OSError` when it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._stream: BinaryIO = open(path, "rb")  # noqa: PTH123, SIM115 -- closed by close()
        try:
            self.size = os.fstat(self._stream.fileno()).st_size
            header = _Header(self._stream, min(self.size, MAX_HEADER_BYTES))
            self.metadata, self.tensors = header.parse(self.size)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()

    def read(self, tensor: Tensor, first_row: int, rows: int) -> bytes:
        """The quantised bytes of `rows` rows from `first_row`. Raises `ImportRejected` when the file has shrunk."""
        length = rows * tensor.row_bytes
        data = os.pread(self._stream.fileno(), length, tensor.offset + first_row * tensor.row_bytes)
        if len(data) != length:
            raise ImportRejected(f"tensor {tensor.name}: the file ended while it was being read")
        return data


class _Header:
    """A forward reader over the file's header that never reads past `limit`."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._position = 0
        self._reading = "the header"

    def parse(self, file_size: int) -> tuple[dict[str, MetadataValue], dict[str, Tensor]]:
        if self._take(4) != _MAGIC:
            raise ImportRejected("not a GGUF file: it does not begin with 'GGUF'")
        version = self._integer("I")
        if version not in (2, 3):
            raise ImportRejected(f"GGUF version {version} is not supported; versions 2 and 3 are")
        tensor_count, key_count = self._integer("Q"), self._integer("Q")
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise ImportRejected(
                f"the header claims {tensor_count} tensors and {key_count} keys; the limits are {MAX_TENSORS} and {MAX_KEYS}"
            )
        metadata = self._metadata(key_count)
        return metadata, self._tensors(tensor_count, metadata, file_size)

    def _metadata(self, count: int) -> dict[str, MetadataValue]:
        metadata: dict[str, MetadataValue] = {}
        for index in range(count):
            self._reading = f"metadata key number {index + 1}"
            key = self._string(MAX_KEY_BYTES)
            self._reading = f"metadata key {key!r}"
            if key in metadata:
                raise ImportRejected(f"{self._reading} stands twice")
            metadata[key] = self._value(self._integer("I"))
        return metadata

    def _value(self, kind: int) -> MetadataValue:
        if kind == _STRING:
            return self._string(MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self._array()
        return self._scalars(kind, 1)[0]

    def _array(self) -> MetadataValue:
        kind, count = self._integer("I"), self._integer("Q")
        if count > MAX_ARRAY_ITEMS:
            raise ImportRejected(f"{self._reading}: an array of {count} elements; the limit is {MAX_ARRAY_ITEMS}")
        if kind == _STRING:
            return [self._string(MAX_STRING_BYTES) for _ in range(count)]
        return list(self._scalars(kind, count))

    def _scalars(self, kind: int, count: int) -> tuple[int | float | bool, ...]:
        if kind not in _SCALARS:
            raise ImportRejected(f"{self._reading}: value type {kind} is unknown or a nested array")
        layout = f"<{count}{_SCALARS[kind]}"
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _tensors(self, count: int, metadata: dict[str, MetadataValue], file_size: int) -> dict[str, Tensor]:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 8 <= alignment <= 65_536 or alignment & (alignment - 1):
            raise ImportRejected(
                f"metadata key 'general.alignment': {alignment!r} is not a power of two from 8 to 65536"
            )
        listed = [self._tensor(index) for index in range(count)]
        start = -(-self._position // alignment) * alignment
        tensors: dict[str, Tensor] = {}
        for name, rows, columns, kind, offset in listed:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if columns % block:
                raise ImportRejected(
                    f"tensor {name}: rows of {columns} elements do not divide into {kind.name} blocks of {block}"
                )
            nbytes = rows * columns // block * block_bytes
            if offset % alignment:
                raise ImportRejected(f"tensor {name}: offset {offset} is not aligned to {alignment} bytes")
            if start + offset + nbytes > file_size:
                raise ImportRejected(
                    f"tensor {name}: its data ends at byte {start + offset + nbytes}, but the file has only {file_size} bytes",
                    hint="the file is truncated or corrupt; fetch it again",
                )
            if name in tensors:
                raise ImportRejected(f"tensor {name} is listed twice")
            tensors[name] = Tensor(name, rows, columns, kind, start + offset, nbytes)
        _refuse_overlaps(tensors)
        return tensors

    def _tensor(self, index: int) -> tuple[str, int, int, GGMLQuantizationType, int]:
        self._reading = f"tensor number {index + 1}"
        name = self._string(MAX_NAME_BYTES)
        self._reading = f"tensor {name}"
        dimensions = self._integer("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ImportRejected(f"tensor {name}: {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible")
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        if not all(1 <= size < MAX_DIMENSION for size in shape):
            raise ImportRejected(f"tensor {name}: impossible shape {list(shape)}")
        number = self._integer("I")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise ImportRejected(f"tensor {name}: unknown tensor type {number}") from None
        return name, math.prod(shape[1:]), shape[0], kind, self._integer("Q")

    def _string(self, limit: int) -> str:
        length = self._integer("Q")
        if length > limit:
            raise ImportRejected(f"{self._reading}: a string of {length} bytes; the limit is {limit}")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise ImportRejected(f"{self._reading}: a string is not UTF-8") from None

    def _integer(self, code: str) -> int:
        layout = f"<{code}"
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _take(self, length: int) -> bytes:
        if length > self._limit - self._position:
            raise ImportRejected(
                f"{self._reading}: needs {length} more bytes, the header has at most {self._limit - self._position} left",
                hint="the file is truncated or corrupt; fetch it again",
            )
        data = self._stream.read(length)
        if len(data) != length:
            raise ImportRejected(f"{self._reading}: the file ended while it was being read")
        self._position += length
        return data


def _refuse_overlaps(tensors: dict[str, Tensor]) -> None:
    """Overlapping tensors would let a small file unfold into a huge model."""
    end, previous = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise ImportRejected(f"tensor {tensor.name}: its data overlaps that of tensor {previous}")
        end, previous = tensor.offset + tensor.nbytes, tensor.name
