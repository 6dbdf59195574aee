"""Mask logits of all queries, whose gradient is asked of few.

The losses look at the queries that were matched to a target, a tenth of them; the gradient of the other masks is zero.
Where the host can look at it without waiting, the backward pass takes its two products over the other rows alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasegr.modeling import fast_paths


def mask_product(embedding: Tensor, mask_features: Tensor) -> Tensor:
    """(B, Q, D), (B, D, H, W) to (B, Q, H, W)."""
    features = mask_features.flatten(2)
    if _skips_zero_rows(embedding, features):
        masks = _MaskProduct.apply(embedding, features)
    else:
        masks = embedding @ features
    return masks.unflatten(2, mask_features.shape[-2:])


def _skips_zero_rows(embedding: Tensor, features: Tensor) -> bool:
    """Eagerly on the CPU, in one precision, where both have a gradient."""
    return (
        torch.is_grad_enabled()
        and embedding.requires_grad
        and features.requires_grad
        and embedding.dtype == features.dtype
        and fast_paths.at_work_on_cpu(embedding)
        and not torch.is_autocast_enabled("cpu")
        and fast_paths.enabled("zero_rows")
    )


class _MaskProduct(torch.autograd.Function):
    """`embedding @ features`: (B, Q, D), (B, D, n) to (B, Q, n)."""

    @staticmethod
    def forward(ctx, embedding, features):
        ctx.save_for_backward(embedding, features)
        return embedding @ features

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        embedding, features = ctx.saved_tensors
        of_embedding, of_features = torch.zeros_like(embedding), torch.empty_like(features)
        for image, of_image in enumerate(grad):
            asked = of_image.ne(0).any(1).nonzero().flatten()  # NaN is not zero, and stays
            of_asked = of_image[asked]
            of_embedding[image, asked] = of_asked @ features[image].t()
            torch.mm(embedding[image, asked].t(), of_asked, out=of_features[image])
        return of_embedding, of_features
