"""Multi-scale deformable attention on a GPU, by kernels written in Triton.

**Forward.** A row is (image, query, head). Its result is a sum over levels, points and the four pixels around a point,

    out[row] = sum_k w_k * (s00 v00 + s10 v10 + s01 v01 + s11 v11),   s00 = (1 - fx) (1 - fy), s10 = fx (1 - fy), ...

with fx, fy the fractions of the point's position and v = 0 outside the level. It is summed in registers, so nothing
but the result is written; values may be half precision, sums are float32 (float64 for float64).

**Backward.** With g the gradient of a row and gij = <g, vij>, computed while the pixels are read again,

    d/dw  = s00 g00 + s10 g10 + s01 g01 + s11 g11
    d/dx  = w ((1 - fy) (g10 - g00) + fy (g11 - g01)),   d/dy in the same way
    d/dvij += w sij g

The last is a sum over all rows that read a pixel. By default it is accumulated with atomics, in any order, so that its
last bits differ from run to run. With `torch.use_deterministic_algorithms` (config key SPEED.DETERMINISTIC), rows store
the pixel and share of each corner; after a stable sort by pixel, each pixel's list is summed in order. That is slower,
and the lists take about 20 bytes per corner, for one image at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fasegr.modeling.ops.triton_support import element_type, has_triton, launching_on

Shapes = Sequence[tuple[int, int]]

# Elements of a program's tile of rows x channels, for 4 warps: 8 for each thread.
TILE = 1024


# Of the kernels' arguments; the file with the kernels imports Triton.
MAX_LEVELS = 4


def supports(value: Tensor, levels: int) -> bool:
    """Whether the kernels apply: value (B, S, M, D) on a GPU that Triton compiles for, D from 16 to 128."""
    return (
        value.device.type == "cuda"
        and levels <= MAX_LEVELS
        and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        and 16 <= value.shape[3] <= 128
        and value.shape[1:].numel() < 2**31  # offsets within an image have 32 bits
        and has_triton(value.device.index, value.dtype)
    )


def sample_by_triton(value: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """`deformable_attention` by Triton kernels, with the same arguments and result."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    x, y, weight = (t.to(dtype).contiguous() for t in (x, y, weight))
    return _sample(value.contiguous(), x, y, weight, [side for shape in shapes for side in shape])


@torch.library.custom_op("fasegr::deformable_triton", mutates_args=())
def _sample(value: Tensor, x: Tensor, y: Tensor, weight: Tensor, sides: list[int]) -> Tensor:
    from fasegr.modeling.ops import triton_deformable_attention_kernels as kernels

    out = value.new_empty(*x.shape[:2], value.shape[2] * value.shape[3])
    rows, counts, sizes = _launch_arguments(value, x, sides)
    if rows:
        with launching_on(value.device):
            kernels.sample[_grid(rows, sizes)](value, x, y, weight, out, *counts, **sizes, ACC=element_type(x.dtype))
    return out


@_sample.register_fake
def _(value, x, y, weight, sides):
    return value.new_empty(*x.shape[:2], value.shape[2] * value.shape[3])


@torch.library.custom_op("fasegr::deformable_triton_backward", mutates_args=())
def _sample_backward(
    grad: Tensor, value: Tensor, x: Tensor, y: Tensor, weight: Tensor, sides: list[int], deterministic: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from fasegr.modeling.ops import triton_deformable_attention_kernels as kernels

    grad_value = torch.zeros_like(value, dtype=x.dtype)
    grad_x, grad_y, grad_weight = torch.empty_like(x), torch.empty_like(y), torch.empty_like(weight)
    if deterministic:
        # an image at a time, to bound the lists
        for image in range(len(value)):
            one = slice(image, image + 1)
            keys = torch.empty(*x[one].shape, 4, dtype=torch.int32, device=x.device)
            shares = torch.empty(*x[one].shape, 4, dtype=x.dtype, device=x.device)
            arguments = (grad[one], value[one], x[one], y[one], weight[one])
            grads = (grad_x[one], grad_y[one], grad_weight[one])
            _launch_backward(kernels, *arguments, None, keys, shares, *grads, sides)
            _sum_by_cell(kernels, grad[one], keys, shares, grad_value[one])
    else:
        _launch_backward(kernels, grad, value, x, y, weight, grad_value, None, None, grad_x, grad_y, grad_weight, sides)
    return grad_value.to(value.dtype), grad_x, grad_y, grad_weight


@_sample_backward.register_fake
def _(grad, value, x, y, weight, sides, deterministic):
    return torch.empty_like(value), torch.empty_like(x), torch.empty_like(y), torch.empty_like(weight)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.sides = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    deterministic = torch.are_deterministic_algorithms_enabled()
    return (*_sample_backward(grad.contiguous(), *ctx.saved_tensors, ctx.sides, deterministic), None)


_sample.register_autograd(_backward, setup_context=_setup_context)


def _launch_backward(kernels, grad, value, x, y, weight, grad_value, keys, shares, *grads_and_sides):
    *grads, sides = grads_and_sides
    rows, counts, sizes = _launch_arguments(value, x, sides)
    if rows:
        with launching_on(value.device):
            kernels.sample_backward[_grid(rows, sizes)](
                *(grad, value, x, y, weight, grad_value, keys, shares, *grads, *counts),
                **sizes,
                ACC=element_type(x.dtype),
                ATOMIC=keys is None,
            )


def _sum_by_cell(kernels, grad: Tensor, keys: Tensor, shares: Tensor, grad_value: Tensor) -> None:
    """The gradient of one image's values, from the rows `grad` and the pixels and shares of their corners."""
    cells, dim = grad_value.shape[1] * grad_value.shape[2], grad_value.shape[3]
    sorted_keys, order = keys.view(-1).sort(stable=True)
    starts = torch.searchsorted(sorted_keys, torch.arange(cells + 1, dtype=keys.dtype, device=keys.device))
    sizes = _tile(dim)
    with launching_on(grad.device):
        kernels.sum_by_cell[_grid(cells, sizes)](
            *(grad, shares, order, starts, grad_value, cells),
            CORNERS=keys.shape[3:].numel(),
            DIM=dim,
            **sizes,
            ACC=element_type(shares.dtype),
        )


def _launch_arguments(value: Tensor, x: Tensor, sides: list[int]) -> tuple[int, tuple, dict]:
    """Number of rows; the run-time arguments that end with it; the compile-time sizes."""
    (_, tokens, heads, dim), (_, queries, _, levels, points) = value.shape, x.shape
    rows = x.shape[:3].numel()
    sides = [*sides, *[1] * (2 * MAX_LEVELS - len(sides))]  # of levels that are not there
    constants = {"HEADS": heads, "LEVELS": levels, "POINTS": points, "DIM": dim, **_tile(dim)}
    return rows, (*sides, tokens, queries, rows), constants


def _tile(dim: int) -> dict[str, int]:
    block_dim = max(16, 1 << (dim - 1).bit_length())
    return {"BLOCK_ROWS": max(1, TILE // block_dim), "BLOCK_DIM": block_dim}


def _grid(rows: int, sizes: dict[str, int]) -> tuple[int]:
    return (-(-rows // sizes["BLOCK_ROWS"]),)
