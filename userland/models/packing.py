"""Turns GGUF matrices into the block-quantised layout of onnxruntime's MatMulNBits.

A packed matrix is two arrays. For `rows` x `columns` weights in blocks of `block` along a row:

    codes   uint8 [rows, columns / block, block * bits / 8], low bits first
    scales  float32 [rows, columns / block]

and weight = (code - 2 ** (bits - 1)) * scale. Two layouts are used, chosen by measurement (perplexity and tokens/s of the
three evaluation models):

- Q4_0 is this layout already and is copied, bit for bit, as 4 bits in blocks of 32;
- everything else becomes 8 bits in blocks of 128 (64 or 32 where 128 does not divide a row). Types with a minimum per block
  (Q4_1, Q4_K, …) have no exact 4-bit form: rounding their minimum to an integer zero point raised the perplexity of a 135M
  model by 20 %, a floating-point zero point is 200 times slower, and the exact correction by a second product was slower
  than 8 bits, in decoding as well as in prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from numpy.typing import NDArray

from llmos.userland.models.errors import ImportRejected
from llmos.userland.models.gguf_file import GgufFile, Tensor

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

SUPPORTED = frozenset(
    {
        *(Kind.F32, Kind.F16, Kind.BF16),
        *(Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0),
        *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
    }
)
"""Tensor types that can be imported."""

_TINIEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one matrix is stored: `bits` per weight (4 or 8), `block` weights to a scale."""

    bits: int
    block: int

    def codes_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        return rows, columns // self.block, self.block * self.bits // 8

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        return rows, columns // self.block


EXACT_Q4_0 = Layout(bits=4, block=32)


def layout_for(tensors: Sequence[Tensor], *, wide: bool = False) -> Layout:
    """The one layout for matrices that are stacked into one product; `wide` leaves no choice but 8 bits.

    Raises `ImportRejected` naming a tensor whose rows do not divide into blocks.
    """
    for tensor in tensors:
        if tensor.columns % 32:
            raise ImportRejected(f"tensor {tensor.name}: rows of {tensor.columns} elements are not a multiple of 32")
    if not wide and all(tensor.type is Kind.Q4_0 for tensor in tensors):
        return EXACT_Q4_0
    return Layout(bits=8, block=next(block for block in (128, 64, 32) if tensors[0].columns % block == 0))


def read_values(file: GgufFile, tensor: Tensor, first_row: int, rows: int) -> Floats:
    """`rows` rows as float32 [rows, columns]. Raises `ImportRejected` when one is not a finite number."""
    data = np.frombuffer(file.read(tensor, first_row, rows), np.uint8).reshape(rows, tensor.row_bytes)
    with np.errstate(all="ignore"):
        values: Floats = np.ascontiguousarray(dequantize(data, tensor.type), np.float32)
    if not np.isfinite(values).all():
        raise ImportRejected(
            f"tensor {tensor.name}: it holds infinities or NaN between rows {first_row} and {first_row + rows - 1}",
            hint="the file is corrupt; fetch it again",
        )
    return values


def pack(file: GgufFile, tensor: Tensor, first_row: int, rows: int, layout: Layout) -> tuple[Codes, Floats]:
    """Codes and scales of `rows` rows. Raises `ImportRejected` when the tensor holds something that is not a number."""
    if layout == EXACT_Q4_0:
        return _copy_q4_0(file, tensor, first_row, rows)
    blocks = read_values(file, tensor, first_row, rows).reshape(rows, -1, layout.block)
    scales = np.abs(blocks).max(axis=-1) / 127
    steps = np.divide(1, scales, out=np.zeros_like(scales), where=scales > _TINIEST)
    codes = np.rint(blocks * steps[..., np.newaxis]).astype(np.int8).view(np.uint8) ^ 0x80
    return codes, scales


def _copy_q4_0(file: GgufFile, tensor: Tensor, first_row: int, rows: int) -> tuple[Codes, Floats]:
    """A Q4_0 block is a float16 scale and 16 bytes, with element i in the low and element i + 16 in the high half."""
    data = np.frombuffer(file.read(tensor, first_row, rows), np.uint8).reshape(rows, -1, 18)
    scales = data[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    if not np.isfinite(scales).all():
        raise ImportRejected(
            f"tensor {tensor.name}: a scale is not a number", hint="the file is corrupt; fetch it again"
        )
    low, high = data[..., 2:] & 0x0F, data[..., 2:] >> 4
    pairs = np.concatenate([low, high], axis=-1).reshape(rows, -1, 16, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, scales
