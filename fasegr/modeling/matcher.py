"""Hungarian matching of queries and targets (DETR), with mask costs at sampled points (Mask2Former)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.point_sampling import at_least_float32


class Match(NamedTuple):
    """The assignments of one image, separate for each of L predictions, with M = min(Q, K) pairs each.

    queries: (L, M) indices into the Q queries, ascending. targets: (L, M) indices into the K targets, one for
    each of these queries. int64, on the host.
    """

    queries: Tensor
    targets: Tensor


def matching_cost(
    class_logits: Tensor, mask_logits: Tensor, labels: Tensor, masks: Tensor, weights: tuple[float, float, float]
) -> Tensor:
    """Cost of matching each query with each target, (L, Q, K).

    class_logits: (L, Q, C + 1). mask_logits: (L * Q, P), at the sampled points. labels: (K,) classes. masks: (K, P),
    the targets at the same points, 0 to 1. weights: of the three terms, which are

    - class: minus the probability of the target's class;
    - mask: binary cross-entropy, mean over the points. A point costs softplus(x) = -log sigmoid(-x) outside the target
      and -log sigmoid(x) = softplus(x) - x inside, hence softplus(x) - x t, where only the product with t depends on
      the target;
    - dice: 1 - (2 s.t + 1) / (|s| + |t| + 1), s = sigmoid(x).
    """
    class_weight, mask_weight, dice_weight = weights
    probability = at_least_float32(class_logits).softmax(-1).index_select(-1, labels)
    inside = mask_logits.sigmoid()
    entropy = (F.softplus(mask_logits).sum(1) - masks @ mask_logits.t()) / mask_logits.shape[1]
    dice = 1 - (2 * (masks @ inside.t()) + 1) / (inside.sum(1) + masks.sum(1, keepdim=True) + 1)
    mask_cost = mask_weight * entropy + dice_weight * dice
    return mask_cost.t().reshape(probability.shape) - class_weight * probability


class HungarianMatcher:
    """Assigns the targets of each image to queries, at the lowest total cost, for all predictions of a step at once.

    class_weight, mask_weight, dice_weight: of the terms of `matching_cost`. num_points: P, per image.
    """

    def __init__(self, *, class_weight: float, mask_weight: float, dice_weight: float, num_points: int):
        weights = (class_weight, mask_weight, dice_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"weights of the matching cost are {weights}; they must be >= 0, at least one > 0")
        if num_points < 1:
            raise ValueError(f"the matching has {num_points} points per image; it needs >= 1 (12544 in the paper)")
        self.weights = weights
        self.num_points = num_points

    @torch.no_grad()
    def __call__(
        self,
        pred_logits: Sequence[Tensor],
        pred_masks: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        points: Tensor,
    ) -> list[Match]:
        """One `Match` for each image.

        pred_logits: L of (B, Q, C + 1). pred_masks: L of (B, Q, h, w). targets: B of `labels` (K,) and `masks`
        (K, H, W), bool or floating point, over the same area as the predictions. points: (B, P, 2) in [0, 1]^2; all
        predictions of an image share them. Raises FloatingPointError if a cost is not finite.

        The costs go to the host in one transfer, the only time it waits for an accelerator.
        """
        # Under autocast the products, sums over thousands of points, would be in half precision.
        with torch.autocast(points.device.type, enabled=False):
            costs = [
                self._costs(
                    [logits[image] for logits in pred_logits],
                    [masks[image] for masks in pred_masks],
                    target,
                    points[image],
                )
                for image, target in enumerate(targets)
            ]
        shapes = [cost.shape for cost in costs]
        on_host = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        if not np.isfinite(on_host).all():
            raise FloatingPointError(_not_finite(costs, pred_logits, pred_masks))
        ends = np.cumsum([shape.numel() for shape in shapes])
        return [_assign(cost.reshape(shape)) for cost, shape in zip(np.split(on_host, ends[:-1]), shapes, strict=True)]

    def _costs(
        self, class_logits: Sequence[Tensor], mask_logits: Sequence[Tensor], target: dict[str, Tensor], points: Tensor
    ) -> Tensor:
        """(L, Q, K) for one image, a few layers at a time."""
        labels = target["labels"]
        masks = ops.point_sampler(points, *target["masks"].shape[-2:])(target["masks"])
        queries, height, width = mask_logits[0].shape
        sampler = ops.point_sampler(points, height, width)
        step = ops.items_per_tile(queries * len(points), points.device)  # layers at a time
        return torch.cat(
            [
                matching_cost(
                    torch.stack(class_logits[i : i + step]),
                    sampler(torch.cat(mask_logits[i : i + step])),
                    labels,
                    masks,
                    self.weights,
                )
                for i in range(0, len(mask_logits), step)
            ]
        )


def _assign(costs: np.ndarray) -> Match:
    """costs: (L, Q, K)."""
    pairs = np.array([linear_sum_assignment(cost) for cost in costs], dtype=np.int64)  # (L, 2, M)
    return Match(torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1]))


def _not_finite(costs: Sequence[Tensor], pred_logits: Sequence[Tensor], pred_masks: Sequence[Tensor]) -> str:
    """Error message about the first cost that is not finite, and its inputs."""
    image = next(i for i, cost in enumerate(costs) if not cost.isfinite().all())
    layer = next(i for i, cost in enumerate(costs[image]) if not cost.isfinite().all())
    inputs = "; ".join(
        f"{name}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} values are NaN or Inf"
        for name, tensor in (("pred_logits", pred_logits[layer][image]), ("pred_masks", pred_masks[layer][image]))
    )
    return (
        f"the matching cost of prediction {layer} (of 0 to {len(pred_masks) - 1}) for image {image} of the batch is "
        f"not finite ({inputs}). The model has diverged or its input is broken: look at this image, lower the "
        "learning rate, or train in bfloat16 or float32 if float16 overflows"
    )
