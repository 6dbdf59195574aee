"""Triton kernels of cross-attention without stored weights; `triton_cross_attention.py` has the maths and the launches.

q is (images, queries, HEADS, DIM), k and v are (images, keys, HEADS, DIM), hidden is (images, queries, keys), nonzero
where a key is not seen, or None. A program takes BLOCK_QUERIES queries and goes through keys by BLOCK_KEYS, or the
other way round; BLOCK_DIM is DIM, the channels of a head, rounded up to a power of two. Offsets within an image fit 32
bits, those of images take 64. The number of keys is not compiled for: images have any size.
"""

import triton
import triton.language as tl


@triton.jit
def _rows(base, i, count, head, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_DIM: tl.constexpr):
    """(N, BLOCK_DIM): one head of rows i, (N,), of an image (count, HEADS, DIM); 0 outside."""
    d = tl.arange(0, BLOCK_DIM)
    at = (i * (HEADS * DIM) + head * DIM)[:, None] + d[None, :]
    return tl.load(base + at, mask=(i < count)[:, None] & (d < DIM)[None, :], other=0.0)


@triton.jit
def _seen(hidden, image, i, j, queries, keys, end):
    """(BLOCK_QUERIES, BLOCK_KEYS): whether query i sees key j, which lies before `end`."""
    seen = (i < queries)[:, None] & (j < end)[None, :]
    if hidden is not None:
        at = hidden + image * queries * keys + (i[:, None] * keys + j[None, :])
        seen = seen & (tl.load(at, mask=seen, other=1) == 0)
    return seen


@triton.jit(do_not_specialize=["images", "queries", "keys"])
def attend(
    q, k, v, hidden, out, log_sums, images, queries, keys,
    PART: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs (parts, images, queries, HEADS, DIM) and the log of sums (parts, images, queries, HEADS) of each part.

    A part is PART keys, the last one fewer. A query that sees none of them has the output 0 and the log -inf.
    """
    i = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    image = (tl.program_id(2) // HEADS).to(tl.int64)
    head = tl.program_id(2) % HEADS
    begin = tl.program_id(1) * PART
    end = tl.minimum(begin + PART, keys)
    query = _rows(q + image * queries * (HEADS * DIM), i, queries, head, HEADS, DIM, BLOCK_DIM)
    k += image * keys * (HEADS * DIM)
    v += image * keys * (HEADS * DIM)
    top = tl.full([BLOCK_QUERIES], float("-inf"), ACC)
    total = tl.zeros([BLOCK_QUERIES], ACC)
    mixed = tl.zeros([BLOCK_QUERIES, BLOCK_DIM], ACC)
    for first in range(0, PART, BLOCK_KEYS):
        j = begin + first + tl.arange(0, BLOCK_KEYS)
        key = _rows(k, j, end, head, HEADS, DIM, BLOCK_DIM)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC) * SCALE
        scores = tl.where(_seen(hidden, image, i, j, queries, keys, end), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        reference = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf less -inf is no number
        weights = tl.exp(scores - reference[:, None])
        shrink = tl.exp(top - reference)
        total = total * shrink + tl.sum(weights, 1)
        value = _rows(v, j, end, head, HEADS, DIM, BLOCK_DIM)
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(weights.to(value.dtype), value, mixed, input_precision=PRECISION, out_dtype=ACC)
        top = higher
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    row = ((tl.program_id(1) * images + image) * queries + i) * HEADS + head
    d = tl.arange(0, BLOCK_DIM)
    tl.store(out + row[:, None] * DIM + d[None, :], mixed, mask=(i < queries)[:, None] & (d < DIM)[None, :])
    tl.store(log_sums + row, top + tl.log(total), mask=i < queries)


@triton.jit
def _head_mean(
    q, k, hidden, log_sums, image, i, j, queries, keys, end,
    HEADS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BLOCK_QUERIES, BLOCK_KEYS) weights of queries i and keys j averaged over heads; 0 where a key is not seen."""
    total = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], ACC)
    for head in range(HEADS):
        query = _rows(q + image * queries * (HEADS * DIM), i, queries, head, HEADS, DIM, BLOCK_DIM)
        key = _rows(k + image * keys * (HEADS * DIM), j, end, head, HEADS, DIM, BLOCK_DIM)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC) * SCALE
        row = (image * queries + i) * HEADS + head
        log_sum = tl.load(log_sums + row, mask=i < queries, other=0.0)
        total += tl.exp(scores - log_sum[:, None])
    # chosen, not multiplied: what is not seen may be infinite
    return tl.where(_seen(hidden, image, i, j, queries, keys, end), total / HEADS, 0.0)


@triton.jit(do_not_specialize=["images", "queries", "keys"])
def pool(
    q, k, hidden, log_sums, key_pos, out, images, queries, keys, image_stride, key_stride, channel_stride,
    PART: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    HEADS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Each part's share of A K_p: (parts, images, queries, CHANNELS), from key_pos (images, keys, CHANNELS)."""
    i = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    image = (tl.program_id(2) % images).to(tl.int64)
    c = tl.program_id(2) // images * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    begin = tl.program_id(1) * PART
    end = tl.minimum(begin + PART, keys)
    pooled = tl.zeros([BLOCK_QUERIES, BLOCK_CHANNELS], ACC)
    for first in range(0, PART, BLOCK_KEYS):
        j = begin + first + tl.arange(0, BLOCK_KEYS)
        weights = _head_mean(q, k, hidden, log_sums, image, i, j, queries, keys, end, HEADS, DIM, SCALE,
                             BLOCK_QUERIES, BLOCK_KEYS, BLOCK_DIM, ACC, PRECISION)  # fmt: skip
        at = key_pos + image * image_stride + (j[:, None] * key_stride + c[None, :] * channel_stride)
        position = tl.load(at, mask=(j < end)[:, None] & (c < CHANNELS)[None, :], other=0.0)
        pooled = tl.dot(weights.to(position.dtype), position, pooled, input_precision=PRECISION, out_dtype=ACC)
    row = (tl.program_id(1) * images + image) * queries + i
    mask = (i < queries)[:, None] & (c < CHANNELS)[None, :]
    tl.store(out + row[:, None] * CHANNELS + c[None, :], pooled, mask=mask)


@triton.jit(do_not_specialize=["keys"])
def sum_over_queries(
    q, k, hidden, log_sums, out, keys,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_DIM: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (images, keys): what all queries together give to a key."""
    j = tl.program_id(0) * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    image = tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK_KEYS], ACC)
    for first in range(0, QUERIES, BLOCK_QUERIES):
        i = first + tl.arange(0, BLOCK_QUERIES)
        weights = _head_mean(q, k, hidden, log_sums, image, i, j, QUERIES, keys, keys, HEADS, DIM, SCALE,
                             BLOCK_QUERIES, BLOCK_KEYS, BLOCK_DIM, ACC, PRECISION)  # fmt: skip
        total += tl.sum(weights, 0)
    tl.store(out + image * keys + j, total, mask=j < keys)
