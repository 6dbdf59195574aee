"""Triton kernels of multi-scale deformable attention; `triton_deformable_attention.py` has the maths and launches them.

Rows are (image, query, head), in the order of memory, and a program takes BLOCK_ROWS of them; BLOCK_DIM is DIM, the
channels of a head, rounded up to a power of two. Offsets within an image fit 32 bits, those of images and rows take 64.
Height and width of each level are arguments of their own, for up to four levels: a tuple needs Triton 3.3, and in its
interpreter 3.4.
"""

import triton
import triton.language as tl

# Triton recompiles for arguments that are 1 or a multiple of 16. Not for these: one compilation serves all image sizes.
_SIZES = ["h0", "w0", "h1", "w1", "h2", "w2", "h3", "w3", "tokens", "queries", "rows"]


@triton.jit
def _of(level: tl.constexpr, s0, s1, s2, s3):
    """The side of a level. `level` is known to the compiler, so nothing is left of this."""
    return s0 if level == 0 else (s1 if level == 1 else (s2 if level == 2 else s3))


@triton.jit
def _place(x, y, height, width):
    """The four pixels around points. x, y: (N,) positions in pixels, 0.5 being the centre of the first.

    Returns the column and row of the first pixel, the fractions beyond its centre, and which pixels exist: left, right
    column and upper, lower row. No pixel exists for points a pixel or more outside, nor for NaN.
    """
    x = x - 0.5
    y = y - 0.5
    near = (x > -1) & (x < width) & (y > -1) & (y < height)
    x = tl.where(near, x, 0.0)
    y = tl.where(near, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    column = left.to(tl.int32)
    row = top.to(tl.int32)
    return (
        column,
        row,
        x - left,
        y - top,
        near & (column >= 0),
        near & (column + 1 < width),
        row >= 0,
        row + 1 < height,
    )


@triton.jit(do_not_specialize=_SIZES)
def sample(
    value, x, y, weight, out, h0, w0, h1, w1, h2, w2, h3, w3, tokens, queries, rows,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out[row] = sum over levels, points and corners of weight * bilinear share * value[corner]."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    d = tl.arange(0, BLOCK_DIM)
    live = r < rows
    channel = (d < DIM)[None, :]
    image = value + (r // HEADS // queries * tokens * HEADS + r % HEADS) * DIM
    total = tl.zeros([BLOCK_ROWS, BLOCK_DIM], ACC)
    start = 0
    for level in tl.static_range(LEVELS):
        height = _of(level, h0, h1, h2, h3)
        width = _of(level, w0, w1, w2, w3)
        for point in range(POINTS):
            at = r * (LEVELS * POINTS) + level * POINTS + point
            w = tl.load(weight + at, mask=live, other=0.0).to(ACC)
            px = tl.load(x + at, mask=live, other=-1.0).to(ACC)  # -1 is outside
            py = tl.load(y + at, mask=live, other=-1.0).to(ACC)
            column, row, fx, fy, left, right, upper, lower = _place(px, py, height, width)
            step = HEADS * DIM
            first = (image + (start + row * width + column) * step)[:, None] + d[None, :]
            v00 = tl.load(first, mask=(left & upper)[:, None] & channel, other=0.0).to(ACC)
            v10 = tl.load(first + step, mask=(right & upper)[:, None] & channel, other=0.0).to(ACC)
            v01 = tl.load(first + width * step, mask=(left & lower)[:, None] & channel, other=0.0).to(ACC)
            v11 = tl.load(first + (width + 1) * step, mask=(right & lower)[:, None] & channel, other=0.0).to(ACC)
            total += (w * (1 - fx) * (1 - fy))[:, None] * v00 + (w * fx * (1 - fy))[:, None] * v10
            total += (w * (1 - fx) * fy)[:, None] * v01 + (w * fx * fy)[:, None] * v11
        start += height * width
    tl.store(out + (r * DIM)[:, None] + d[None, :], total, mask=live[:, None] & channel)


@triton.jit
def _emit(grad_value, keys, shares, offset, cell, at, nowhere, share, g, exists, channel, live, ATOMIC: tl.constexpr):
    """The gradient of one corner: added to its pixel, or stored (pixel and share) to be summed in order later."""
    if ATOMIC:
        tl.atomic_add(grad_value + offset, share[:, None] * g, mask=exists[:, None] & channel, sem="relaxed")
    else:
        tl.store(keys + at, tl.where(exists, cell, nowhere), mask=live)
        tl.store(shares + at, share, mask=live)


@triton.jit(do_not_specialize=_SIZES)
def sample_backward(
    grad, value, x, y, weight, grad_value, keys, shares, grad_x, grad_y, grad_weight,
    h0, w0, h1, w1, h2, w2, h3, w3, tokens, queries, rows,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr, ACC: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Gradients of x, y and weight; of the values if ATOMIC, else `keys` and `shares` (rows, LEVELS, POINTS, 4).

    A key is token * HEADS + head of its image, or tokens * HEADS for a corner that does not exist.
    """
    r = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    d = tl.arange(0, BLOCK_DIM)
    live = r < rows
    channel = (d < DIM)[None, :]
    head = (r % HEADS).to(tl.int32)
    image = r // HEADS // queries * tokens * (HEADS * DIM)
    g = tl.load(grad + (r * DIM)[:, None] + d[None, :], mask=live[:, None] & channel, other=0.0).to(ACC)
    start = 0
    for level in tl.static_range(LEVELS):
        height = _of(level, h0, h1, h2, h3)
        width = _of(level, w0, w1, w2, w3)
        for point in range(POINTS):
            at = r * (LEVELS * POINTS) + level * POINTS + point
            w = tl.load(weight + at, mask=live, other=0.0).to(ACC)
            px = tl.load(x + at, mask=live, other=-1.0).to(ACC)
            py = tl.load(y + at, mask=live, other=-1.0).to(ACC)
            column, row, fx, fy, left, right, upper, lower = _place(px, py, height, width)
            cell = (start + row * width + column) * HEADS + head
            first = (image + cell * DIM)[:, None] + d[None, :]
            step = HEADS * DIM
            m00 = left & upper
            m10 = right & upper
            m01 = left & lower
            m11 = right & lower
            v00 = tl.load(value + first, mask=m00[:, None] & channel, other=0.0).to(ACC)
            v10 = tl.load(value + first + step, mask=m10[:, None] & channel, other=0.0).to(ACC)
            v01 = tl.load(value + first + width * step, mask=m01[:, None] & channel, other=0.0).to(ACC)
            v11 = tl.load(value + first + (width + 1) * step, mask=m11[:, None] & channel, other=0.0).to(ACC)

            g00 = tl.sum(g * v00, 1)
            g10 = tl.sum(g * v10, 1)
            g01 = tl.sum(g * v01, 1)
            g11 = tl.sum(g * v11, 1)
            top = g00 + fx * (g10 - g00)
            bottom = g01 + fx * (g11 - g01)
            tl.store(grad_weight + at, top + fy * (bottom - top), mask=live)
            tl.store(grad_x + at, w * ((g10 - g00) + fy * ((g11 - g01) - (g10 - g00))), mask=live)
            tl.store(grad_y + at, w * (bottom - top), mask=live)

            nowhere = tokens * HEADS
            _emit(grad_value, keys, shares, first, cell, 4 * at, nowhere,
                  w * (1 - fx) * (1 - fy), g, m00, channel, live, ATOMIC)  # fmt: skip
            _emit(grad_value, keys, shares, first + step, cell + HEADS, 4 * at + 1, nowhere,
                  w * fx * (1 - fy), g, m10, channel, live, ATOMIC)  # fmt: skip
            _emit(grad_value, keys, shares, first + width * step, cell + width * HEADS, 4 * at + 2, nowhere,
                  w * (1 - fx) * fy, g, m01, channel, live, ATOMIC)  # fmt: skip
            _emit(grad_value, keys, shares, first + (width + 1) * step, cell + (width + 1) * HEADS, 4 * at + 3, nowhere,
                  w * fx * fy, g, m11, channel, live, ATOMIC)  # fmt: skip
        start += height * width


@triton.jit(do_not_specialize=["cells"])
def sum_by_cell(
    grad, shares, order, starts, grad_value, cells,
    CORNERS: tl.constexpr, DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_DIM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """grad_value[cell] = sum of shares[i] * grad[i // CORNERS] over i in order[starts[cell] : starts[cell + 1]].

    For one image. CORNERS: per row. A cell is a head of a token; its terms are added one by one, always in the same
    order.
    """
    c = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    d = tl.arange(0, BLOCK_DIM)
    live = c < cells
    channel = (d < DIM)[None, :]
    begin = tl.load(starts + c, mask=live, other=0)
    end = tl.load(starts + c + 1, mask=live, other=0)
    total = tl.zeros([BLOCK_ROWS, BLOCK_DIM], ACC)
    while tl.max(end - begin, 0) > 0:
        more = begin < end
        i = tl.load(order + begin, mask=more, other=0)
        share = tl.load(shares + i, mask=more, other=0.0)
        g = tl.load(grad + (i // CORNERS * DIM)[:, None] + d[None, :], mask=more[:, None] & channel, other=0.0)
        total += share[:, None] * g.to(ACC)
        begin += 1
    tl.store(grad_value + (c * DIM)[:, None] + d[None, :], total, mask=live[:, None] & channel)
