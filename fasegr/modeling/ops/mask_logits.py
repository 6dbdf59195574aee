"""Mask logits: mask embeddings times mask features, for several layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fasegr.modeling.ops import switches


def mask_logits(mask_embeds: Sequence[Tensor], mask_features: Tensor) -> list[Tensor]:
    """L of (B, Q, D) by (B, D, H, W) to L of (B, Q, H, W)."""
    features = mask_features.flatten(2)
    if _uses_sparse_gradient(mask_embeds[-1], features):
        logits = _SparseGradient.apply(features, *mask_embeds)
    else:
        logits = [mask_embed @ features for mask_embed in mask_embeds]
    return [of_layer.unflatten(2, mask_features.shape[-2:]) for of_layer in logits]


class _SparseGradient(torch.autograd.Function):
    """`mask_embed @ features` for each of L embeddings: (B, D, n), L of (B, Q, D) to L of (B, Q, n).

    The losses read the masks of the queries that were matched to a target, about a tenth of them; the gradient of the
    others is zero. The backward pass multiplies only the rows that are not, those of all layers together: one product
    makes the gradient of the mask features, instead of a sum over layers.
    """

    @staticmethod
    def forward(ctx, features, *mask_embeds):
        ctx.save_for_backward(features, *mask_embeds)
        return tuple(mask_embed @ features for mask_embed in mask_embeds)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        features, *mask_embeds = ctx.saved_tensors
        grad_features = torch.empty_like(features)
        grad_embeds = [torch.zeros_like(mask_embed) for mask_embed in mask_embeds]
        for image, feature in enumerate(features):
            # rows with a gradient, of each layer; NaN is not zero, and is kept
            rows = [grad[image].ne(0).any(1).nonzero().flatten() for grad in grads]
            grad = torch.cat([g[image, r] for g, r in zip(grads, rows, strict=True)])
            embed = torch.cat([e[image, r] for e, r in zip(mask_embeds, rows, strict=True)])
            torch.mm(embed.t(), grad, out=grad_features[image])
            parts = (grad @ feature.t()).split([len(r) for r in rows])
            for grad_embed, r, part in zip(grad_embeds, rows, parts, strict=True):
                grad_embed[image, r] = part
        return grad_features, *grad_embeds


def _uses_sparse_gradient(mask_embed: Tensor, features: Tensor) -> bool:
    """On a CPU, where the host can look at the gradient without waiting, if both have one."""
    return (
        torch.is_grad_enabled()
        and mask_embed.requires_grad
        and features.requires_grad
        and switches.eager_on_cpu(mask_embed, features)
        and switches.enabled("sparse_mask_gradient")
    )
