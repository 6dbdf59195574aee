"""The set loss: classes for all queries, masks for the matched ones (MaskFormer), at sampled points (Mask2Former)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fasegr.modeling import ops
from fasegr.modeling.matcher import HungarianMatcher, Match
from fasegr.modeling.point_sampling import (
    PointDraw,
    at_least_float32,
    random_points,
    uncertain_points,
)


def point_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy (mean over points) and dice loss of each mask, (N,) both.

    logits: (N, P). targets: (N, P), 0 to 1. Dice is 1 - (2 s.t + 1) / (|s| + |t| + 1), s = sigmoid(logits).
    """
    entropy = (F.softplus(logits) - logits * targets).mean(1)
    inside = logits.sigmoid()
    dice = 1 - (2 * (inside * targets).sum(1) + 1) / (inside.sum(1) + targets.sum(1) + 1)
    return entropy, dice


class SetCriterion(nn.Module):
    """Losses of all predictions of a step against its targets.

    Each prediction is matched to the targets separately. Then

    - loss_ce: cross-entropy of all queries, each times the weight of the class that it should have, divided by the sum
      of these weights. Unmatched queries should have no-object (class C), whose weight is smaller;
    - loss_mask, loss_dice: of the matched queries at P points, summed and divided by the number of targets. A share of
      the points are the most uncertain of random candidates, the rest are random (PointRend).

    All masks of an image and all predictions share the candidates, and the matching takes its points from them. For
    each mask, the points are distributed as if they were drawn for it separately.

    **Over ranks.** Both divisors are sums over the whole batch, on all ranks. With W ranks, each holding some of the
    terms l_i of a loss, and N the sum of the divisors of all ranks, rank r computes

        loss_r = W / N * sum of l_i over the images of r.

    DistributedDataParallel averages gradients: 1/W * sum_r grad loss_r = grad (1/N * sum of all l_i), the gradient of
    one process with the whole batch; the same holds for the mean of the losses over ranks. For the masks, N is at least
    1, over all ranks together. This takes one all-reduce of L + 1 numbers.
    """

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        class_weights: Sequence[float] = (),
        draw: PointDraw = random_points,
    ):
        """num_classes: C. no_object_weight: of the no-object class in loss_ce. class_weights: C, of the others, 1 if
        none are given. num_points: P. oversample_ratio: candidates per point. importance_sample_ratio: the share of the
        points that is chosen from the candidates. draw: the source of random points.
        """
        super().__init__()
        if no_object_weight <= 0:
            raise ValueError(f"the no-object weight is {no_object_weight}; it must be > 0 (0.1 in the paper)")
        if num_points < 1:
            raise ValueError(f"the mask losses have {num_points} points; they need at least 1 (12544 in the paper)")
        if oversample_ratio < 1:
            raise ValueError(f"the oversample ratio is {oversample_ratio}; it must be >= 1 (3 in the paper)")
        if not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                f"the importance sample ratio is {importance_sample_ratio}; it must be a share of the points, 0 to 1"
            )
        if len(class_weights) not in (0, num_classes) or not all(0 < weight < math.inf for weight in class_weights):
            raise ValueError(
                f"the class weights are {list(class_weights)!r:.200}; expected none, or {num_classes} numbers > 0, one "
                "for each class"
            )
        self.num_classes = num_classes
        self.matcher = matcher
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)
        self.num_random = num_points - self.num_uncertain
        self.draw = draw
        # The name is that of released checkpoints. Ours leave it out, since it follows from the config.
        empty_weight = torch.ones(num_classes + 1)
        if class_weights:
            empty_weight[:num_classes] = torch.tensor(class_weights, dtype=empty_weight.dtype)
        empty_weight[num_classes] = no_object_weight
        self.register_buffer("empty_weight", empty_weight, persistent=False)

    @torch.compiler.disable  # SciPy makes the assignment on the host; only the network is compiled
    def forward(
        self, outputs: dict, targets: Sequence[dict[str, Tensor]], matches: Sequence[Match] | None = None
    ) -> dict[str, Tensor]:
        """The losses loss_ce, loss_mask and loss_dice of the last prediction and, with the suffixes _0, _1, ..., of the
        earlier ones in order. Scalars, not multiplied by the weights of the three losses.

        outputs: `pred_logits` (B, Q, C + 1), `pred_masks` (B, Q, h, w) and, to train earlier predictions too,
        `aux_outputs`, a list of such dicts. targets: B of `labels` (K,) int64 in [0, C) and `masks` (K, H, W), bool or
        floating point, padded as the images were; K may be 0. matches: of each image, (1, M), for all predictions alike
        and in place of those of the matcher; the masks' divisor is then the number of pairs. Half precision is promoted
        to float32, float64 stays. Raises FloatingPointError if a matching cost is NaN or Inf.
        """
        predictions = [*outputs.get("aux_outputs", ()), outputs]
        pred_logits = [prediction["pred_logits"] for prediction in predictions]
        pred_masks = [prediction["pred_masks"] for prediction in predictions]
        self._check(pred_logits[-1], pred_masks[-1], targets)

        images, device = len(targets), pred_masks[-1].device
        dtype = torch.promote_types(pred_masks[-1].dtype, torch.float32)
        drawn = self.draw(images, max(self.num_candidates, self.matcher.num_points), device, dtype)
        count = sum(len(target["labels"]) for target in targets)
        if matches is None:
            matches = self.matcher(pred_logits, pred_masks, targets, drawn[:, : self.matcher.num_points])
        else:
            count = sum(match.queries.shape[1] for match in matches)
            matches = [Match(*(indices.expand(len(predictions), -1) for indices in match)) for match in matches]
        points = torch.cat((drawn[:, : self.num_candidates], self.draw(images, self.num_random, device, dtype)), dim=1)

        pairs = _all_pairs(matches, targets, queries=pred_masks[-1].shape[1], device=device)
        entropy, class_weight = self._class_losses(pred_logits, targets, pairs)
        mask, dice = self._mask_losses(pred_masks, targets, pairs, points)
        class_weight, count = _mean_over_ranks(class_weight, count)
        losses = {"loss_ce": entropy / class_weight, "loss_mask": mask / count, "loss_dice": dice / count}
        suffixes = [*(f"_{i}" for i in range(len(predictions) - 1)), ""]
        return {
            name + suffix: value
            for name, values in losses.items()
            for suffix, value in zip(suffixes, values.unbind(), strict=True)
        }

    def _check(self, pred_logits: Tensor, pred_masks: Tensor, targets: Sequence[dict[str, Tensor]]) -> None:
        """Shapes only: checking values would mean waiting for the accelerator."""
        if pred_logits.shape != (*pred_masks.shape[:2], self.num_classes + 1) or len(targets) != len(pred_masks):
            raise ValueError(
                f"pred_logits {tuple(pred_logits.shape)}, pred_masks {tuple(pred_masks.shape)} and {len(targets)} "
                f"targets do not match; expected (B, Q, {self.num_classes + 1}), (B, Q, h, w) and B targets"
            )
        for image, target in enumerate(targets):
            if len(target["labels"]) != len(target["masks"]):
                raise ValueError(
                    f"image {image} of the batch has {len(target['labels'])} labels and {len(target['masks'])} masks; "
                    "each target needs one of each"
                )
            if target["masks"].shape[1:] != targets[0]["masks"].shape[1:]:
                raise ValueError(
                    f"masks of the batch have the sizes {[tuple(target['masks'].shape[1:]) for target in targets]}; "
                    "pad them to one size, that of the padded images"
                )

    def _class_losses(
        self, pred_logits: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], pairs: _Pairs
    ) -> tuple[Tensor, Tensor]:
        """For each prediction, the sum of the weighted cross-entropies and the sum of their weights, both (L,)."""
        logits = at_least_float32(torch.stack(list(pred_logits)))  # (L, B, Q, C + 1)
        labels = torch.cat([target["labels"] for target in targets])
        classes = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        classes.flatten(1).scatter_(1, pairs.queries, labels[pairs.targets])
        weight = self.empty_weight.to(logits.dtype)
        entropy = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight, reduction="none")
        return entropy.view_as(classes).sum((1, 2)), weight[classes].sum((1, 2))

    def _mask_losses(
        self, pred_masks: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], pairs: _Pairs, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For each prediction, the sums of `point_losses` over its matched queries, both (L,).

        points: (B, num_candidates + num_random, 2), the candidates first.
        """
        # From all images at once: the gradient of a selection is as large as the tensor it was selected from.
        matched = [
            masks.flatten(0, 1).index_select(0, chosen).split(pairs.counts)
            for masks, chosen in zip(pred_masks, pairs.queries, strict=True)
        ]
        samplers = ops.point_samplers(points, *pred_masks[0].shape[-2:])
        target_samplers = ops.point_samplers(points, *targets[0]["masks"].shape[-2:])
        layers, num_points = len(matched), points.shape[1]
        sums, first_pair, first_target = [], 0, 0
        for images in _tiles(pairs.counts, ops.items_per_tile(layers * num_points, points.device)):
            target = torch.cat([target_samplers[i](targets[i]["masks"]) for i in images])
            count = sum(pairs.counts[i] for i in images)
            chosen = pairs.targets[:, first_pair : first_pair + count] - first_target
            step = ops.items_per_tile(count * num_points, points.device)  # layers at a time
            of_tile = []
            for layer in range(0, layers, step):
                maps = matched[layer : layer + step]
                logits = [
                    samplers[i](torch.cat([of_layer[i] for of_layer in maps])).unflatten(
                        0, (len(maps), pairs.counts[i])
                    )
                    for i in images
                ]
                of_tile.append(self._pair_losses(torch.cat(logits, 1), target, chosen[layer : layer + step]))
            sums.append(torch.cat(of_tile, 1))
            first_pair, first_target = first_pair + count, first_target + len(target)
        mask, dice = torch.stack(sums).sum(0)
        return mask, dice

    def _pair_losses(self, logits: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
        """(2, L): the summed mask and dice losses of each of some predictions.

        logits: (L, M, P), of the matched masks at all points. target: (K, P). chosen: (L, M), the target of each mask.
        """
        layers, pairs, num_points = logits.shape
        logits, rows = logits.flatten(0, 1), chosen.flatten()[:, None]
        random = torch.arange(self.num_candidates, num_points, device=logits.device)
        uncertain = uncertain_points(logits[:, : self.num_candidates], self.num_uncertain)
        points = torch.cat((uncertain, random.expand(len(rows), -1)), 1)
        losses = point_losses(logits.gather(1, points), target.take(torch.add(points, rows, alpha=num_points)))
        return torch.stack([loss.view(layers, pairs).sum(1) for loss in losses])


class _Pairs(NamedTuple):
    """The matches of all images, separate for each of L predictions, on the device of the predictions.

    queries: (L, M) indices into the B * Q queries of the batch. targets: (L, M) indices into its targets. counts: how
    many of the M pairs each image has.
    """

    queries: Tensor
    targets: Tensor
    counts: list[int]


def _all_pairs(
    matches: Sequence[Match], targets: Sequence[dict[str, Tensor]], queries: int, device: torch.device
) -> _Pairs:
    """The matches on `device`, in one transfer. queries: Q."""
    first_target = [0, *accumulate(len(target["labels"]) for target in targets)]
    numbered = [
        torch.stack((match.queries + i * queries, match.targets + first_target[i])) for i, match in enumerate(matches)
    ]
    packed = ops.to_device(torch.cat(numbered, dim=2), device)  # (2, L, M)
    return _Pairs(*packed, [match.queries.shape[1] for match in matches])


def _tiles(counts: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Consecutive images whose `counts` sum to at most `limit`, or single ones that have more."""
    tile, total = [], 0
    for image, count in enumerate(counts):
        if tile and total + count > limit:
            yield tile
            tile, total = [], 0
        tile.append(image)
        total += count
    yield tile


def _mean_over_ranks(class_weight: Tensor, target_count: int) -> tuple[Tensor, Tensor]:
    """The divisors of the losses: sums over all ranks, divided by the number of ranks; see `SetCriterion`.

    class_weight: (L,) sums on this rank. Returns (L,) and a scalar.
    """
    # Filled on the device: the host would wait for the copy of a tensor made from a number.
    sums = torch.cat((class_weight, class_weight.new_full((1,), target_count)))
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        ranks = dist.get_world_size()
        dist.all_reduce(sums)
    return sums[:-1] / ranks, sums[-1].clamp(min=1) / ranks
