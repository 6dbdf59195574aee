"""Mask logits of several layers, whose gradient is asked of few queries.

The losses look at the queries that were matched to a target, a tenth of them; the gradient of the other masks is zero.
Where the host can look at it without waiting, the backward pass takes its products over the remaining rows alone, and
those of all layers together: one product makes the gradient of the mask features, instead of a sum over layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasegr.modeling.ops import switches as fast_paths


def mask_products(embeddings: Sequence[Tensor], mask_features: Tensor) -> list[Tensor]:
    """L of (B, Q, D) by (B, D, H, W) to L of (B, Q, H, W)."""
    features = mask_features.flatten(2)
    if _skips_zero_rows(embeddings[-1], features):
        masks = _MaskProducts.apply(features, *embeddings)
    else:
        masks = [embedding @ features for embedding in embeddings]
    return [of_layer.unflatten(2, mask_features.shape[-2:]) for of_layer in masks]


def _skips_zero_rows(embedding: Tensor, features: Tensor) -> bool:
    """Eagerly on the CPU, in full precision, where both have a gradient."""
    return (
        torch.is_grad_enabled()
        and embedding.requires_grad
        and features.requires_grad
        and fast_paths.at_work_on_cpu(embedding)
        and fast_paths.in_full_precision(embedding, features)
        and fast_paths.enabled("zero_rows")
    )


class _MaskProducts(torch.autograd.Function):
    """`embedding @ features` for each embedding: (B, D, n), L of (B, Q, D) to L of (B, Q, n)."""

    @staticmethod
    def forward(ctx, features, *embeddings):
        ctx.save_for_backward(features, *embeddings)
        return tuple(embedding @ features for embedding in embeddings)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        features, *embeddings = ctx.saved_tensors
        of_features = torch.empty_like(features)
        of_embeddings = [torch.zeros_like(embedding) for embedding in embeddings]
        for image, f in enumerate(features):
            asked = [grad[image].ne(0).any(1).nonzero().flatten() for grad in grads]  # NaN is not zero, and stays
            rows = torch.cat([grad[image, of_layer] for grad, of_layer in zip(grads, asked, strict=True)])
            seen = torch.cat([e[image, of_layer] for e, of_layer in zip(embeddings, asked, strict=True)])
            torch.mm(seen.t(), rows, out=of_features[image])
            parts = (rows @ f.t()).split([len(of_layer) for of_layer in asked])
            for of_embedding, of_layer, part in zip(of_embeddings, asked, parts, strict=True):
                of_embedding[image, of_layer] = part
        return of_features, *of_embeddings
