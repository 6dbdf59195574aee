"""Multi-scale deformable attention: the sampling.

Zhu et al., "Deformable DETR", ICLR 2021: each token samples a few points of every level, bilinearly, and sums them with
its attention weights. Four forms with equal results:

- `sample_by_grid`: `F.grid_sample` level by level, on any device; the readable reference.
- `sample_by_bag`: one weighted `embedding_bag` over all levels, points and corners; several times faster on a CPU.
- `triton_deformable_attention.sample_by_triton`: one kernel, on a GPU where it has passed `kernel_check`.
- `sample_by_gather`: table rows by index, for exported graphs; see there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling.ops import kernel_check, switches, triton_deformable_attention
from fasegr.modeling.ops.graph_export import exporting

Shapes = Sequence[tuple[int, int]]


def sample_by_grid(value: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """`deformable_attention` by `F.grid_sample`, one call per level, in float32 at least."""
    dtype = value.dtype
    # Before any arithmetic: in half precision, a position of a wide level moves by half a pixel.
    value, x, y, weight = in_float32_at_least(value, x, y, weight)
    batch, _, heads, dim = value.shape
    queries, points = x.shape[1], x.shape[4]
    out = value.new_zeros(batch * heads, dim, queries)
    for level, (v, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)):
        image = v.permute(0, 2, 3, 1).reshape(batch * heads, dim, h, w)
        grid = torch.stack([x[:, :, :, level] * (2 / w) - 1, y[:, :, :, level] * (2 / h) - 1], dim=-1)
        grid = grid.transpose(1, 2).reshape(batch * heads, queries, points, 2)
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        level_weight = weight[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        out = out + (sampled * level_weight).sum(-1)
    return out.view(batch, heads * dim, queries).transpose(1, 2).to(dtype)


def in_float32_at_least(*tensors: Tensor) -> list[Tensor]:
    """All in one type: float64 if one of them is, else float32."""
    dtype = reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return [t.to(dtype) for t in tensors]


def sample_by_gather(value: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """`deformable_attention` by indexing, level by level, for exported graphs.

    Runtimes differ in ONNX's GridSample, which some lack and some compute wrongly without a word; taking rows of a
    table is the same everywhere. Of a corner outside the level, the weight is zero and the index that of the nearest
    pixel.
    """
    dtype = value.dtype
    batch, tokens, heads, dim = value.shape
    value, x, y, weight = in_float32_at_least(value, x, y, weight)
    table = value.reshape(batch * tokens * heads, dim)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1) * tokens
    head = torch.arange(heads, device=value.device).view(-1, 1)
    out, start = 0, 0
    for level, (height, width) in enumerate(shapes):
        left, top = ((p[:, :, :, level] - 0.5).floor() for p in (x, y))  # (B, T, M, P)
        right_weight, bottom_weight = x[:, :, :, level] - 0.5 - left, y[:, :, :, level] - 0.5 - top
        indices, weights = [], []
        for row, row_weight in ((top, 1 - bottom_weight), (top + 1, bottom_weight)):
            for column, column_weight in ((left, 1 - right_weight), (left + 1, right_weight)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                row_index, column_index = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
                indices.append((image + start + row_index * width + column_index) * heads + head)
                weights.append(weight[:, :, :, level] * row_weight * column_weight * inside)
        index, corner_weight = torch.stack(indices, -1).flatten(-2), torch.stack(weights, -1).flatten(-2)
        out = out + (table[index] * corner_weight.unsqueeze(-1)).sum(-2)  # (B, T, M, D)
        start = start + height * width
    return out.flatten(2).to(dtype)


def sample_by_bag(value: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """`deformable_attention` as a weighted sum of table rows.

    The values of all levels are copied into one table with zeros around each level, so that a clamped corner reads
    zero and no corner needs a validity mask. A row of a level is W + 1 entries long: the column of zeros that ends one
    row also begins the next. There a point has the padded coordinates clamp(x + 0.5, 0, W + 1), and its four corners
    are the entries index + {0, 1, W + 1, W + 2}.
    """
    heights, widths = [h for h, _ in shapes], [w for _, w in shapes]
    # half-precision bags have no CPU backward
    args = (t.contiguous() for t in in_float32_at_least(value, x, y, weight))
    return _bag(*args, heights, widths).to(value.dtype)


@torch.library.custom_op("fasegr::deformable_bag", mutates_args=(), device_types="cpu")
def _bag(value: Tensor, x: Tensor, y: Tensor, weight: Tensor, heights: list[int], widths: list[int]) -> Tensor:
    table = _pad_levels(value, heights, widths)
    index, corner_weights, *_ = _corners(x, y, weight, heights, widths, table.shape[1])
    rows = table.view(-1, table.shape[-1])
    out = F.embedding_bag(index, rows, mode="sum", per_sample_weights=corner_weights)
    return out.view(*x.shape[:2], -1)


@_bag.register_fake
def _(value, x, y, weight, heights, widths):
    return value.new_empty(*x.shape[:2], value.shape[2] * value.shape[3])


@torch.library.custom_op("fasegr::deformable_bag_backward", mutates_args=(), device_types="cpu")
def _bag_backward(
    grad: Tensor, value: Tensor, x: Tensor, y: Tensor, weight: Tensor, heights: list[int], widths: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = _pad_levels(value, heights, widths)
    index, corner_weights, fx, fy = _corners(x, y, weight, heights, widths, table.shape[1])
    rows = table.view(-1, table.shape[-1])
    bags = grad.reshape(-1, rows.shape[1]).contiguous()

    grad_table = _transposed_bag(index, corner_weights, bags, len(rows))
    grad_value = _unpad_levels(grad_table.view(table.shape), value, heights, widths)

    # <grad of the bag, row of the corner>: the gradient of the corner's weight
    g = _bag_dot_rows(bags, rows, index).view(*x.shape, 4)
    g00, g10, g01, g11 = g.unbind(-1)
    top = g00 + fx * (g10 - g00)
    bottom = g01 + fx * (g11 - g01)
    grad_weight = top + fy * (bottom - top)
    grad_x = weight * ((g10 - g00) + fy * ((g11 - g01) - (g10 - g00))) * _inside(x, widths)
    grad_y = weight * (bottom - top) * _inside(y, heights)
    return grad_value, grad_x, grad_y, grad_weight


@_bag_backward.register_fake
def _(grad, value, x, y, weight, heights, widths):
    return torch.empty_like(value), torch.empty_like(x), torch.empty_like(y), torch.empty_like(weight)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.heights, ctx.widths = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    grads = _bag_backward(grad.contiguous(), *ctx.saved_tensors, ctx.heights, ctx.widths)
    return (*grads, None, None)


_bag.register_autograd(_backward, setup_context=_setup_context)


def _level_rows(heights: Sequence[int], widths: Sequence[int]) -> list[int]:
    # One row of zeros above, one below, and one more that only points clamped to H + 1 touch, with weight zero.
    return [(h + 3) * (w + 1) for h, w in zip(heights, widths, strict=True)]


def _pad_levels(value: Tensor, heights: list[int], widths: list[int]) -> Tensor:
    """(B, S, M, D) to (B, rows, M, D) with zeros around each level."""
    batch, _, heads, dim = value.shape
    rows = _level_rows(heights, widths)
    table = value.new_zeros(batch, sum(rows) + 2, heads, dim)
    start = token = 0
    for h, w, n in zip(heights, widths, rows, strict=True):
        level = table[:, start : start + n].view(batch, h + 3, w + 1, heads, dim)
        level[:, 1 : h + 1, 1:] = value[:, token : token + h * w].view(batch, h, w, heads, dim)
        start, token = start + n, token + h * w
    return table


def _unpad_levels(table: Tensor, value: Tensor, heights: list[int], widths: list[int]) -> Tensor:
    """Inverse of `_pad_levels`, into a tensor like `value`."""
    batch, _, heads, dim = value.shape
    out = torch.empty_like(value)
    start = token = 0
    for h, w, n in zip(heights, widths, _level_rows(heights, widths), strict=True):
        level = table[:, start : start + n].view(batch, h + 3, w + 1, heads, dim)
        out[:, token : token + h * w].view(batch, h, w, heads, dim).copy_(level[:, 1 : h + 1, 1:])
        start, token = start + n, token + h * w
    return out


def _inside(position: Tensor, sizes: list[int]) -> Tensor:
    """Where a position (B, T, M, L, P) is not clamped to the zero frame of its level. sizes: of the levels."""
    size = torch.tensor(sizes, dtype=position.dtype).view(-1, 1)
    return (position > -0.5) & (position < size + 0.5)


class _Grid(NamedTuple):
    """Constants of every point of a token, (M * L * P,): the bounds of the padded coordinates, and, as int32, the table
    row where the point's level and head begin and how many table rows there are between two rows of the level."""

    zero: Tensor
    x_limit: Tensor
    y_limit: Tensor
    start: Tensor
    row: Tensor


@lru_cache(maxsize=64)
def _grid(heights: tuple[int, ...], widths: tuple[int, ...], heads: int, points: int, dtype: torch.dtype) -> _Grid:
    def of_levels(values: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(points).repeat(heads)

    starts = [0, *accumulate(_level_rows(heights, widths))][:-1]
    head = torch.arange(heads, dtype=torch.int32).repeat_interleave(len(heights) * points)
    x_limit, y_limit = of_levels(widths, dtype) + 1, of_levels(heights, dtype) + 1
    row = (of_levels(widths, torch.int32) + 1) * heads
    return _Grid(torch.zeros_like(x_limit), x_limit, y_limit, of_levels(starts, torch.int32) * heads + head, row)


def _corners(x: Tensor, y: Tensor, weight: Tensor, heights: list[int], widths: list[int], rows: int):
    """Table rows and weights of the four corners of every point.

    Returns index and corner weights, both (B * T * M, L * P * 4), and the fractions fx, fy, both (B, T, M, L, P).
    """
    batch, _, heads, _, points = x.shape
    shape = (-1, x[0, 0].numel())  # a row for each token, so that constants of the levels are vectors as long as a row
    grid = _grid(tuple(heights), tuple(widths), heads, points, x.dtype)

    def split(position: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Whole part (int32) and fraction of the padded coordinate."""
        position = (position + 0.5).view(shape)
        # A NaN position would become an index out of the table, so it is moved to the border. NaN is not hidden: in
        # the attention weights or in the values it still reaches the loss.
        torch.clamp(position, grid.zero, limit, out=position).nan_to_num_(0.0)
        return position.to(torch.int32), position.frac_()

    x0, fx = split(x, grid.x_limit)
    y0, fy = split(y, grid.y_limit)
    base = torch.addcmul(grid.start, y0, grid.row).add_(x0, alpha=heads)
    if batch > 1:
        base.view(batch, -1).add_(torch.arange(batch, dtype=torch.int32).unsqueeze(1), alpha=rows * heads)

    weight = weight.reshape(shape)
    right = weight * fx
    left = weight - right
    index = torch.empty(*base.shape, 4, dtype=torch.int32)
    corner_weights = torch.empty(*base.shape, 4, dtype=x.dtype)
    for corner, step in enumerate((0, heads, grid.row, grid.row + heads)):
        torch.add(base, step, out=index[..., corner])
    torch.mul(left, fy, out=corner_weights[..., 2])
    torch.mul(right, fy, out=corner_weights[..., 3])
    torch.sub(left, corner_weights[..., 2], out=corner_weights[..., 0])
    torch.sub(right, corner_weights[..., 3], out=corner_weights[..., 1])

    bag = 4 * shape[1] // heads
    return index.view(-1, bag), corner_weights.view(-1, bag), fx.view(x.shape), fy.view(x.shape)


def _bag_dot_rows(bags: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """out[n, k] = <bags[n], rows[index[n, k]]>: (N, D), (R, D), (N, K) to (N, K)."""
    # What autograd calls for the gradient of per_sample_weights; inside a custom op there is no autograd.
    bag_of = torch.arange(len(index), dtype=index.dtype).repeat_interleave(index.shape[1])
    starts = torch.arange(0, index.numel(), index.shape[1], dtype=index.dtype)
    mode_sum = 0
    out = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        bags, rows, index.view(-1), starts, bag_of, mode_sum
    )
    return out.view(index.shape)


def _transposed_bag(index: Tensor, weights: Tensor, bags: Tensor, rows: int) -> Tensor:
    """out[r] = sum of weights[n, k] * bags[n] over index[n, k] == r: (N, K), (N, K), (N, D) to (rows, D).

    A transposed sparse product, several times faster than autograd's backward of embedding_bag.
    """
    count, size = index.shape
    starts = np.arange(0, count * size + 1, size, dtype=np.int32)
    entries = (weights.view(-1).numpy(), index.view(-1).numpy(), starts)
    sparse = scipy.sparse.csr_matrix(entries, shape=(count, rows), copy=False)
    return torch.from_numpy(sparse.T @ bags.numpy())


def _uses_triton(value: Tensor, x: Tensor) -> bool:
    sizes = (*value.shape[2:], *x.shape[3:])
    if not switches.enabled("triton_deformable_attention"):
        return False
    if not triton_deformable_attention.supports(value, levels=x.shape[3]):
        return False
    return _triton_passes(value.device, value.dtype, *sizes, torch.are_deterministic_algorithms_enabled())


@torch.compiler.assume_constant_result
def _triton_passes(
    device: torch.device, dtype: torch.dtype, heads: int, dim: int, levels: int, points: int, deterministic: bool
) -> bool:
    """Whether the kernels have passed their check on `device`; the first time, check them."""
    settings = {"dtype": dtype, "heads": heads, "dim": dim, "levels": levels, "points": points}
    folder = Path(__file__).parent
    return kernel_check.passes(
        "triton_deformable_attention",
        device,
        settings | {"deterministic": deterministic},
        [folder / "triton_deformable_attention.py", folder / "triton_deformable_attention_kernels.py"],
        lambda: compare_with_grid(triton_deformable_attention.sample_by_triton, device, **settings),
    )


def compare_with_grid(
    form: Callable[..., Tensor],
    device: torch.device,
    *,
    dtype: torch.dtype,
    heads: int,
    dim: int,
    levels: int,
    points: int,
) -> list[kernel_check.Deviation]:
    """How far `form`, another form of `deformable_attention`, is from `sample_by_grid` on small inputs on `device`.

    Some points lie outside of their level. dtype: of the values; positions and weights are in float32 at least.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [((9, 14), (5, 7), (3, 4), (1, 2))[level % 4] for level in range(levels)]
    batch, queries = 2, 13
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, generator=generator)
    y_x = torch.rand(2, batch, queries, heads, levels, points, generator=generator)
    sizes = torch.tensor(shapes, dtype=torch.float32).t()[:, None, None, None, :, None]
    y, x = y_x * (sizes + 4) - 2
    weight = torch.rand(x.shape, generator=generator)
    inputs = [value.to(dtype), *(t.to(torch.promote_types(dtype, torch.float32)) for t in (x, y, weight))]

    def at_shapes(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda value, *points: sample(value, shapes, *points)

    inputs = [t.to(device) for t in inputs]
    return kernel_check.deviations(at_shapes(form), at_shapes(sample_by_grid), inputs, ("value", "x", "y", "weight"))


def deformable_attention(value: Tensor, shapes: Shapes, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Sum of sampled values.

    value: (B, S, M, D), the concatenated tokens of all levels, split into M heads; S is the sum of H * W.
    shapes: (H, W) of each of the L levels.
    x, y: (B, T, M, L, P) positions in pixels of their level; the centre of the first pixel is at 0.5, and everything
    outside the level is zero. At least float32: half a pixel of a wide level is lost in half precision.
    weight: (B, T, M, L, P) attention weights.

    Returns (B, T, M * D) in the dtype of `value`.
    """
    tokens = sum(h * w for h, w in shapes)
    if value.shape[1] != tokens:
        raise ValueError(f"value has {value.shape[1]} tokens; the levels {list(shapes)} have {tokens}")
    if exporting():
        return sample_by_gather(value, shapes, x, y, weight)
    if value.device.type == "cpu" and switches.enabled("embedding_bag"):
        return sample_by_bag(value, shapes, x, y, weight)
    if _uses_triton(value, x):
        return triton_deformable_attention.sample_by_triton(value, shapes, x, y, weight)
    return sample_by_grid(value, shapes, x, y, weight)
