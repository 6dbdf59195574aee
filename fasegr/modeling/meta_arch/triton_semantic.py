"""The semantic output on a GPU as one Triton kernel: no map of queries at full size, for labels none of classes either.

A pixel's score for class c is sum_q p[c, q] sigmoid(m_q), with m_q the mask logits upsampled to that pixel. A program
takes some pixels of the output. For a block of queries at a time it reads the four logits around each pixel, mixes
them, and adds the product with the class probabilities to scores that stay in registers; these are written, or their
largest class alone. Where the scores of the image are resized to another size of output, resizing and product commute,

    sum_i w_i sum_q p[c, q] sigmoid(m_q(i)) = sum_q p[c, q] (sum_i w_i sigmoid(m_q(i))),

so the four pixels i of the image that make a pixel of the output are mixed before the product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fasegr.modeling.ops.triton_support import has_triton

Size = tuple[int, int]

# Scores that a program keeps, over its 8 warps: 32 registers of each thread.
SCORES = 8192
MAX_CLASSES = 512


def supports(class_logits: Tensor, mask_logits: Tensor, *sizes: Size) -> bool:
    """Whether the kernel applies: to the masks (Q, h, w) of one image on a GPU that Triton compiles for.

    class_logits: (Q, C + 1), C up to 512. sizes: all that the masks are resized to, no side above 16384 (the
    arithmetic of positions has 32 bits). float64 is for comparing programs, and left to the plain form.
    """
    return (
        mask_logits.device.type == "cuda"
        and mask_logits.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and not (torch.is_grad_enabled() and (mask_logits.requires_grad or class_logits.requires_grad))
        and class_logits.shape[1] - 1 <= MAX_CLASSES
        and max(max(size) for size in sizes) <= 2**14
        and has_triton(mask_logits.device.index, torch.bfloat16)  # TF32 came with bfloat16
    )


def semantic_map(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: Size,
    image: Size,
    output: Size,
    *,
    labels: bool,
    resize_masks: bool = False,
) -> Tensor:
    """(C, *output) scores or, if `labels`, (*output) labels; other arguments as `semantic_inference.score_strips`."""
    from fasegr.modeling.meta_arch import triton_semantic_kernel as kernel
    from fasegr.modeling.ops import triton_support

    dtype = torch.promote_types(mask_logits.dtype, torch.float32)
    probabilities = class_logits.to(dtype).softmax(-1)[:, :-1].t().contiguous()
    classes, queries = probabilities.shape
    shape = output if labels else (classes, *output)
    kind = (torch.uint8 if classes <= 256 else torch.int16) if labels else dtype
    out = torch.empty(shape, dtype=kind, device=mask_logits.device)
    block_classes = max(16, 1 << (classes - 1).bit_length())
    block_pixels = min(64, max(16, SCORES // block_classes))
    with triton_support.launching_on(out.device):
        kernel.semantic_map[(-(-output[0] * output[1] // block_pixels),)](
            *(mask_logits.contiguous(), probabilities, out, *mask_logits.shape[1:], *padded, *image, *output),
            QUERIES=queries,
            CLASSES=classes,
            RESIZED=image != output,
            RESIZE_MASKS=resize_masks,
            LABELS=labels,
            BLOCK_QUERIES=16,
            BLOCK_CLASSES=block_classes,
            BLOCK_PIXELS=block_pixels,
            ACC=triton_support.element_type(dtype),
            PRECISION="tf32x3" if dtype == torch.float32 else "ieee",  # three TF32 products are as exact as one float32
            num_warps=8,
            num_stages=1,  # more would keep the logits around many pixels in shared memory, beyond what there is
        )
    return out
