"""Turns GGUF matrices into the block-quantised layout of onnxruntime's MatMulNBits.

A packed matrix is two arrays. For `rows` x `columns` weights in blocks of `block` along a row:

    codes   uint8 [rows, columns / block, block * bits / 8], low bits first
    scales  float32 [rows, columns / block]

and weight = (code - 2 ** (bits - 1)) * scale. Three layouts are used, chosen by measurement (perplexity and tokens/s of the
three evaluation models):

- Q4_0 is this layout already and is copied, bit for bit, as 4 bits in blocks of 32;
- large matrices of Q4_1 or Q4_K keep their 4-bit codes and scales, in blocks of 32. Their weight is scale * code + minimum, so
  what is missing is an offset per block, minimum + 8 * scale, times the sum of the 32 inputs. Offsets are columns of the same
  matrix, behind the weights: once as 4-bit codes, and once more what those leave. The product's input is the inputs, then
  their sums, then the sums again. 5.3 bits per weight;
- everything else becomes 8 bits in blocks of 64 (32 where 64 does not divide a row). Blocks of 128 would be read 1 to 3 % faster, but
  their kernel rounds a row without a partner differently, so that a row could not be decoded alone (`kernel/core/batched.py`).
  Rounding minimums to integer zero points raised the perplexity of a 135M model by 20 %; a floating-point zero point is 200 times slower.
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

SMALLEST_OFFSET = 1 << 21
"""Weights in a product from which on offsets pay: below, the four nodes that make the sums cost what the smaller codes save."""

_OFFSET_KINDS = frozenset({Kind.Q4_1, Kind.Q4_K})
_TINIEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one matrix is stored: `bits` per weight (4 or 8), `block` weights to a scale, offsets behind the weights or not.

    The shapes are of the whole array; `columns` there are stored columns.
    """

    bits: int
    block: int
    offsets: bool = False

    def sums(self, columns: int) -> int:
        """Columns that hold one plane of offsets: one for each block, and zeros up to whole blocks."""
        return -(-columns // self.block // self.block) * self.block if self.offsets else 0

    def stored_columns(self, columns: int) -> int:
        """Columns of the stored matrix, when the tensor has `columns`."""
        return columns + 2 * self.sums(columns)

    def codes_shape(self, rows: int, columns: int) -> tuple[int, int, int]:
        return rows, columns // self.block, self.block * self.bits // 8

    def scales_shape(self, rows: int, columns: int) -> tuple[int, int]:
        return rows, columns // self.block


EXACT_Q4_0 = Layout(bits=4, block=32)
WITH_OFFSETS = Layout(bits=4, block=32, offsets=True)


def layout_for(tensors: Sequence[Tensor], *, wide: bool = False) -> Layout:
    """The one layout for matrices that are stacked into one product; `wide` leaves no choice but 8 bits.

    Raises `ImportRejected` naming a tensor whose rows do not divide into blocks.
    """
    for tensor in tensors:
        if tensor.columns % 32:
            raise ImportRejected(f"tensor {tensor.name}: rows of {tensor.columns} elements are not a multiple of 32")
    if not wide and all(tensor.type is Kind.Q4_0 for tensor in tensors):
        return EXACT_Q4_0
    weights = sum(tensor.elements for tensor in tensors)
    if not wide and weights >= SMALLEST_OFFSET and all(tensor.type in _OFFSET_KINDS for tensor in tensors):
        return WITH_OFFSETS
    return Layout(bits=8, block=64 if tensors[0].columns % 64 == 0 else 32)


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
    if layout.offsets:
        return _copy_with_offsets(file, tensor, first_row, rows, layout)
    blocks = read_values(file, tensor, first_row, rows).reshape(rows, -1, layout.block)
    scales = np.abs(blocks).max(axis=-1) / 127
    steps = np.divide(1, scales, out=np.zeros_like(scales), where=scales > _TINIEST)
    codes = np.rint(blocks * steps[..., np.newaxis]).astype(np.int8).view(np.uint8) ^ 0x80
    return codes, scales


def _copy_q4_0(file: GgufFile, tensor: Tensor, first_row: int, rows: int) -> tuple[Codes, Floats]:
    """A Q4_0 block is a float16 scale and 16 bytes, with element i in the low and element i + 16 in the high half."""
    data = np.frombuffer(file.read(tensor, first_row, rows), np.uint8).reshape(rows, -1, 18)
    scales = data[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    _check_finite(tensor, scales)
    return _nibbles(np.concatenate([data[..., 2:] & 0x0F, data[..., 2:] >> 4], axis=-1)), scales


def _copy_with_offsets(
    file: GgufFile, tensor: Tensor, first_row: int, rows: int, layout: Layout
) -> tuple[Codes, Floats]:
    """The file's own codes and scales, then two planes of offsets.

    A weight is off by at most 1 / 196 of the largest offset among 32 blocks in a row, beside the rounding of float32.
    """
    data = np.frombuffer(file.read(tensor, first_row, rows), np.uint8).reshape(rows, tensor.row_bytes)
    codes, scales, minimums = (_read_q4_1 if tensor.type is Kind.Q4_1 else _read_q4_k)(data)
    _check_finite(tensor, scales, minimums)
    filled = np.zeros((rows, layout.sums(tensor.columns)), np.float32)
    filled[:, : scales.shape[1]] = minimums + 8 * scales
    rest = filled.reshape(rows, -1, layout.block)
    planes, plane_scales = [_nibbles(codes)], [scales]
    for _ in range(2):
        steps = np.abs(rest).max(axis=-1) / 7
        inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps > _TINIEST)
        rounded = np.rint(rest * inverse[..., np.newaxis])
        rest = rest - rounded * steps[..., np.newaxis]
        planes.append(_nibbles((rounded + 8).astype(np.uint8)))
        plane_scales.append(steps)
    return np.concatenate(planes, axis=1), np.concatenate(plane_scales, axis=1)


def _read_q4_1(data: Codes) -> tuple[Codes, Floats, Floats]:
    """Codes [rows, blocks, 32], scales and minimums [rows, blocks].

    A block is a float16 scale, a float16 minimum and 16 bytes, with element i in the low and element i + 16 in the high half.
    """
    blocks = data.reshape(len(data), -1, 20)
    numbers = blocks[..., :4].copy().view(np.float16).astype(np.float32)
    return np.concatenate([blocks[..., 4:] & 0x0F, blocks[..., 4:] >> 4], axis=-1), numbers[..., 0], numbers[..., 1]


def _read_q4_k(data: Codes) -> tuple[Codes, Floats, Floats]:
    """Codes [rows, blocks, 32], scales and minimums [rows, blocks]; eight blocks of 32 are one of the file's.

    Source: `block_q4_K` and `get_scale_min_k4` in llama.cpp, https://github.com/ggml-org/llama.cpp/tree/master/ggml/src.
    """
    rows, blocks = len(data), data.reshape(len(data), -1, 144)
    numbers = blocks[..., :4].copy().view(np.float16).astype(np.float32)
    first, second, high = (blocks[..., start : start + 4] for start in (4, 8, 12))
    factors = np.concatenate([first & 0x3F, high & 0x0F | first >> 6 << 4], axis=-1)
    negated = np.concatenate([second & 0x3F, high >> 4 | second >> 6 << 4], axis=-1)
    halves = blocks[..., 16:].reshape(rows, -1, 4, 1, 32)
    codes = np.concatenate([halves & 0x0F, halves >> 4], axis=-2).reshape(rows, -1, 32)
    return codes, (numbers[..., :1] * factors).reshape(rows, -1), (-numbers[..., 1:] * negated).reshape(rows, -1)


def _nibbles(codes: Codes) -> Codes:
    """Codes 0 to 15 [rows, blocks, block] two to a byte, the earlier in the low half."""
    pairs = codes.reshape(*codes.shape[:2], -1, 2)
    packed: Codes = pairs[..., 0] | pairs[..., 1] << np.uint8(4)
    return packed


def _check_finite(tensor: Tensor, *numbers: Floats) -> None:
    if not all(np.isfinite(each).all() for each in numbers):
        raise ImportRejected(
            f"tensor {tensor.name}: a scale is not a number", hint="the file is corrupt; fetch it again"
        )
