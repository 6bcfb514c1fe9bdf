"""W0 + scale * left @ right in one pass over the weight: a Triton kernel for GPUs.

A product of its own would be written and read again in float32, which moves three times as many bytes; and cuBLAS, asked
to add a bfloat16 base itself, rounds the product before the sum. Here it stays in registers: each weight is read
once and written once.

Shape suffixes as in `models.deltas`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, INNER, WARPS = 32, 256, 32, 4  # of one block; the quickest of four tried on an H200


@triton.jit
def _merge_block(
    target, base, left, right, scale, rows, columns,
    target_row, target_column, base_row, base_column, left_row, left_column, right_row, right_column,
    inner: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """One block of the target. `x_row`, `x_column`: x's strides, in elements."""
    o = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    i = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    product = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        left_at, right_at = (
            left + o * left_row + k[None, :] * left_column,
            right + k[:, None] * right_row + i * right_column,
        )
        left_OK = tl.load(left_at, mask=(o < rows) & (k[None, :] < inner), other=0.0).to(tl.float32)
        right_KI = tl.load(right_at, mask=(k[:, None] < inner) & (i < columns), other=0.0).to(tl.float32)
        product = tl.dot(left_OK, right_KI, product, input_precision=PRECISION)
    inside = (o < rows) & (i < columns)
    base_OI = tl.load(base + o * base_row + i * base_column, mask=inside, other=0.0).to(tl.float32)
    merged_OI = (base_OI + scale * product).to(target.dtype.element_ty)
    tl.store(target + o * target_row + i * target_column, merged_OI, mask=inside)


def write_fused(target_OI: Tensor, base_OI: Tensor, left_OK: Tensor, right_KI: Tensor, scale: float) -> None:
    """Overwrite `target` with base + scale * left @ right, of any strides, float dtypes up to 32 bits, all on one GPU.

    Product and sum are in float32: tensor cores in three TF32 passes, plain arithmetic on GPUs that have none.
    """
    rows, columns = target_OI.shape
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))
    strides = [stride for x in (target_OI, base_OI, left_OK, right_KI) for stride in x.stride()]
    precision = "tf32x3" if torch.cuda.get_device_capability(target_OI.device) >= (8, 0) else "ieee"
    with torch.cuda.device(target_OI.device):
        _merge_block[grid](
            target_OI, base_OI, left_OK, right_KI, scale, rows, columns, *strides,
            right_KI.shape[0], precision, ROWS, COLUMNS, INNER, num_warps=WARPS,
        )  # fmt: skip
