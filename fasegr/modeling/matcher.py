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


class Overlap(NamedTuple):
    """What the cost of masks is made of: sums over the P points of N predicted masks, with logits x and s = sigmoid(x),
    and of K targets t.

    softplus, inside: (N,), of softplus(x) and of s. target: (K,), of t. logits_in_target, inside_target: (K, N), of
    x t and of s t.
    """

    softplus: Tensor
    inside: Tensor
    target: Tensor
    logits_in_target: Tensor
    inside_target: Tensor

    @classmethod
    def of(cls, mask_logits: Tensor, masks: Tensor) -> Overlap:
        """mask_logits: (N, P). masks: (K, P), 0 to 1."""
        inside = mask_logits.sigmoid()
        return cls(
            F.softplus(mask_logits).sum(1), inside.sum(1), masks.sum(1), masks @ mask_logits.t(), masks @ inside.t()
        )


def matching_cost(
    class_logits: Tensor,
    overlaps: Sequence[Overlap],
    labels: Tensor,
    image: Tensor,
    num_points: int,
    weights: tuple[float, float, float],
) -> Tensor:
    """Cost of matching each target with each query of its image, (K, L, Q) with the K targets of all images.

    class_logits: (L, B, Q, C + 1). overlaps: B, each of the L * Q masks of one image with its targets. labels: (K,)
    classes. image: (K,) indices into B. num_points: P. weights: of the three terms, which are

    - class: minus the probability of the target's class;
    - mask: binary cross-entropy, mean over the points. A point costs softplus(x) = -log sigmoid(-x) outside the target
      and -log sigmoid(x) = softplus(x) - x inside, hence softplus(x) - x t, where only the product with t depends on
      the target;
    - dice: 1 - (2 s.t + 1) / (|s| + |t| + 1), s = sigmoid(x).
    """
    class_weight, mask_weight, dice_weight = weights
    softplus, inside = (torch.stack(sums)[image] for sums in list(zip(*overlaps, strict=True))[:2])
    target, logits_in_target, inside_target = (torch.cat(sums) for sums in list(zip(*overlaps, strict=True))[2:])
    entropy = (softplus - logits_in_target) / num_points
    dice = 1 - (2 * inside_target + 1) / (inside + target.unsqueeze(1) + 1)
    mask_cost = mask_weight * entropy + dice_weight * dice
    probability = at_least_float32(class_logits).softmax(-1)[:, image, :, labels]  # (K, L, Q)
    return mask_cost.view_as(probability) - class_weight * probability


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
        counts = [len(target["labels"]) for target in targets]
        # Under autocast the products, sums over thousands of points, would be in half precision.
        with torch.autocast(points.device.type, enabled=False):
            image = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
            costs = matching_cost(
                torch.stack(list(pred_logits)),
                self._overlaps(pred_masks, targets, points),
                torch.cat([target["labels"] for target in targets]),
                ops.to_device(image, points.device),
                points.shape[1],
                self.weights,
            )
        try:
            return assign(costs.cpu(), counts)
        except FloatingPointError:
            raise FloatingPointError(_not_finite(costs.split(counts), pred_logits, pred_masks)) from None

    def _overlaps(
        self, pred_masks: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], points: Tensor
    ) -> list[Overlap]:
        """Of each image, all L * Q predicted masks with the targets."""
        queries, height, width = pred_masks[0].shape[1:]
        samplers = ops.point_samplers(points, height, width)
        target_samplers = ops.point_samplers(points, *targets[0]["masks"].shape[-2:])
        step = ops.items_per_tile(queries * points.shape[1], points.device)  # layers at a time
        overlaps = []
        for i, (target, sampler, target_sampler) in enumerate(zip(targets, samplers, target_samplers, strict=True)):
            masks = target_sampler(target["masks"])
            tiles = [
                Overlap.of(sampler(torch.cat([layer[i] for layer in pred_masks[first : first + step]])), masks)
                for first in range(0, len(pred_masks), step)
            ]
            overlaps.append(tiles[0] if len(tiles) == 1 else _joined(tiles))
        return overlaps


def _joined(tiles: Sequence[Overlap]) -> Overlap:
    """The overlap of all predicted masks of `tiles` with their common targets."""
    softplus, inside, (target, *_), logits_in_target, inside_target = zip(*tiles, strict=True)
    return Overlap(
        torch.cat(softplus), torch.cat(inside), target, torch.cat(logits_in_target, 1), torch.cat(inside_target, 1)
    )


def assign(costs: Tensor, counts: Sequence[int]) -> list[Match]:
    """The cheapest assignments, a `Match` for each image. Raises FloatingPointError if a cost is not finite.

    costs: (K, L, Q) on the host, with the K targets of all images. counts: how many of them each image has.
    """
    costs = costs.numpy()
    if not np.isfinite(costs).all():
        raise FloatingPointError("a matching cost is not finite")
    matches = []
    for of_image in np.split(costs, np.cumsum(counts)[:-1]):
        pairs = np.array([linear_sum_assignment(of_image[:, layer].T) for layer in range(costs.shape[1])], np.int64)
        matches.append(Match(torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1])))  # pairs: (L, 2, M)
    return matches


def _not_finite(costs: Sequence[Tensor], pred_logits: Sequence[Tensor], pred_masks: Sequence[Tensor]) -> str:
    """Error message about the first cost that is not finite, and its inputs. costs: (K, L, Q) of each image."""
    image = next(i for i, cost in enumerate(costs) if not cost.isfinite().all())
    layer = next(i for i, cost in enumerate(costs[image].unbind(1)) if not cost.isfinite().all())
    inputs = "; ".join(
        f"{name}: {int((~tensor.isfinite()).sum())} of {tensor.numel()} values are NaN or Inf"
        for name, tensor in (("pred_logits", pred_logits[layer][image]), ("pred_masks", pred_masks[layer][image]))
    )
    return (
        f"the matching cost of prediction {layer} (of 0 to {len(pred_masks) - 1}) for image {image} of the batch is "
        f"not finite ({inputs}). The model has diverged or its input is broken: look at this image, lower the "
        "learning rate, or train in bfloat16 or float32 if float16 overflows"
    )
