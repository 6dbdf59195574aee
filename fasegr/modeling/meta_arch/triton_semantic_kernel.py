"""The Triton kernel of the semantic output; `triton_semantic.py` has the maths and launches it."""

import triton
import triton.language as tl


@triton.jit
def _source(i, size, output, ACC: tl.constexpr):
    """Pixels low and high of `size` that pixel i of `output` is made of, and the share of the second.

    Its position, (i + 0.5) size / output - 0.5, is kept as a fraction of integers, hence exact.
    """
    numerator = tl.maximum((2 * i + 1) * size - output, 0)
    low = tl.minimum(numerator // (2 * output), size - 1)
    share = (numerator - low * (2 * output)).to(ACC) / (2 * output).to(ACC)
    return low, tl.minimum(low + 1, size - 1), share


@triton.jit
def _logits(planes, there, y, x, height, width, padded_height, padded_width, ACC: tl.constexpr):
    """(BLOCK_QUERIES, BLOCK_PIXELS) mask logits at pixels (y, x) of the padded input, which `planes` are resized to."""
    top, bottom, fy = _source(y, height, padded_height, ACC)
    left, right, fx = _source(x, width, padded_width, ACC)
    v00 = tl.load(planes + (top * width + left)[None, :], mask=there, other=0.0).to(ACC)
    v01 = tl.load(planes + (top * width + right)[None, :], mask=there, other=0.0).to(ACC)
    v10 = tl.load(planes + (bottom * width + left)[None, :], mask=there, other=0.0).to(ACC)
    v11 = tl.load(planes + (bottom * width + right)[None, :], mask=there, other=0.0).to(ACC)
    upper = v00 + fx[None, :] * (v01 - v00)
    lower = v10 + fx[None, :] * (v11 - v10)
    return upper + fy[None, :] * (lower - upper)


@triton.jit(
    do_not_specialize=[
        *("height", "width", "padded_height", "padded_width"),
        *("image_height", "image_width", "output_height", "output_width"),
    ]
)
def semantic_map(
    masks, probabilities, out,
    height, width, padded_height, padded_width, image_height, image_width, output_height, output_width,
    QUERIES: tl.constexpr, CLASSES: tl.constexpr,
    RESIZED: tl.constexpr, RESIZE_MASKS: tl.constexpr, LABELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores (CLASSES, output_height, output_width), or LABELS, of BLOCK_PIXELS pixels that follow one another.

    masks: (QUERIES, height, width). probabilities: (CLASSES, QUERIES). RESIZED: the image and the output differ in
    size; then four pixels of the image make one of the output, of their logits if RESIZE_MASKS, else of their scores.
    """
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixel < output_height * output_width
    y = tl.where(inside, pixel // output_width, 0)
    x = pixel % output_width
    c = tl.arange(0, BLOCK_CLASSES)
    scores = tl.zeros([BLOCK_CLASSES, BLOCK_PIXELS], ACC)
    for first in range(0, QUERIES, BLOCK_QUERIES):
        q = first + tl.arange(0, BLOCK_QUERIES)
        there = (q < QUERIES)[:, None] & inside[None, :]
        planes = masks + (q.to(tl.int64) * (height * width))[:, None]
        if RESIZED:
            top, bottom, fy = _source(y, image_height, output_height, ACC)
            left, right, fx = _source(x, image_width, output_width, ACC)
            mixed = tl.zeros([BLOCK_QUERIES, BLOCK_PIXELS], ACC)
            for corner in tl.static_range(4):
                row = bottom if corner // 2 else top
                column = right if corner % 2 else left
                share = (fy if corner // 2 else 1 - fy) * (fx if corner % 2 else 1 - fx)
                logits = _logits(planes, there, row, column, height, width, padded_height, padded_width, ACC)
                mixed += share[None, :] * (logits if RESIZE_MASKS else tl.sigmoid(logits))
            membership = tl.sigmoid(mixed) if RESIZE_MASKS else mixed
        else:
            membership = tl.sigmoid(_logits(planes, there, y, x, height, width, padded_height, padded_width, ACC))
        known = (c < CLASSES)[:, None] & (q < QUERIES)[None, :]
        share_of_class = tl.load(probabilities + c[:, None] * QUERIES + q[None, :], mask=known, other=0.0)
        scores = tl.dot(share_of_class, membership, scores, input_precision=PRECISION, out_dtype=ACC)
    if LABELS:
        scores = tl.where((c < CLASSES)[:, None], scores, float("-inf"))
        label = tl.minimum(tl.argmax(scores, 0), CLASSES - 1)  # the bound is for NaN, which no comparison finds
        tl.store(out + pixel, label.to(out.dtype.element_ty), mask=inside)
    else:
        planes_out = c.to(tl.int64)[:, None] * (output_height * output_width) + pixel[None, :]
        tl.store(out + planes_out, scores, mask=(c < CLASSES)[:, None] & inside[None, :])
