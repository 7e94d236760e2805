"""The external data file of an ONNX model, written as it comes, so that no tensor is ever held whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray

_PAGE = 4096
"""Large tensors begin on a page, so that onnxruntime can map them instead of reading them."""


@dataclass(frozen=True, slots=True)
class Region:
    """Space in the data file that belongs to one array."""

    offset: int
    nbytes: int


class WeightsFile:
    """Writes arrays into `path` and keeps the initialisers that refer to them.

    Use as a context manager. Raises `OSError` (a full disk) from every write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("wb")
        self._end = 0
        self.initializers: list[onnx.TensorProto] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def reserve(self, nbytes: int) -> Region:
        """Space for an array that is written later, piece by piece, and referred to by at least one initialiser."""
        alignment = _PAGE if nbytes >= _PAGE else 64
        region = Region(-(-self._end // alignment) * alignment, nbytes)
        self._end = region.offset + nbytes
        return region

    def refer(self, name: str, dtype: DTypeLike, shape: Sequence[int], region: Region) -> None:
        """An initialiser over a region; one region may have several, in different shapes."""
        proto = onnx.TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            dims=list(shape),
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._path.name), ("offset", region.offset), ("length", region.nbytes)):
            proto.external_data.add(key=key, value=str(value))
        self.initializers.append(proto)

    def write(self, region: Region, position: int, values: NDArray[Any]) -> None:
        """Put the bytes of `values` at byte `position` of the region."""
        self._stream.seek(region.offset + position)
        self._stream.write(np.ascontiguousarray(values).data)

    def add(self, name: str, values: NDArray[Any]) -> None:
        """A whole array at once."""
        region = self.reserve(values.nbytes)
        self.refer(name, values.dtype, values.shape, region)
        self.write(region, 0, values)

    def constant(self, name: str, values: NDArray[Any]) -> None:
        """A small array inside the graph itself, where onnxruntime can fold it."""
        self.initializers.append(onnx.numpy_helper.from_array(values, name))
