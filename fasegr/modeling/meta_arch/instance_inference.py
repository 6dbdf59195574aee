"""From masks and their classes to scored instances, which may overlap."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fasegr.modeling.meta_arch.image_prediction import ImagePrediction


@dataclass(frozen=True)
class Instances:
    """The N instances found in an image, with all that COCO's evaluation of masks and boxes needs.

    scores: (N,). pred_classes: (N,) int64, contiguous. pred_masks: (N, H, W) bool. The fields are named as in
    detectron2's class, which the built-in runtime does not have.
    """

    scores: Tensor
    pred_classes: Tensor
    pred_masks: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.pred_masks.shape[1:]
        return height, width

    @property
    def pred_boxes(self) -> Tensor:
        """(N, 4) float32: x and y of the left top and right bottom corners of the masks, zeros for an empty mask."""
        corners = []
        for occupied in (self.pred_masks.any(1), self.pred_masks.any(2)):  # columns, then rows
            first = occupied.byte().argmax(1)
            last = occupied.shape[1] - occupied.flip(1).byte().argmax(1)
            corners.append(torch.stack([first, last * occupied.any(1)]))
        return torch.stack([corners[0][0], corners[1][0], corners[0][1], corners[1][1]], 1).float()

    def to(self, device: torch.device | str) -> Instances:
        return Instances(self.scores.to(device), self.pred_classes.to(device), self.pred_masks.to(device))


def instances(prediction: ImagePrediction, *, limit: int, classes: Collection[int] | None = None) -> Instances:
    """Instances of one image, as Mask2Former makes them.

    Takes the `limit` most probable pairs of query and class, so a query can occur more than once, and keeps those whose
    class is in `classes` (None: all). A mask is where its logit is above zero; a score is the class probability times
    the mean mask probability inside the mask. Each query's mask is computed once, tile by tile.
    """
    prediction = prediction.in_float32()
    probabilities = prediction.class_logits.softmax(-1)[:, :-1]
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(limit, probabilities.numel()))
    if classes is not None:
        wanted = torch.tensor([c in classes for c in range(num_classes)], device=pairs.device)
        keep = wanted[pairs % num_classes]
        scores, pairs = scores[keep], pairs[keep]
    queries, index = torch.unique(pairs // num_classes, return_inverse=True)

    masks = torch.empty(len(pairs), *prediction.output_size, dtype=torch.bool, device=scores.device)
    area = torch.zeros(len(queries), dtype=torch.int64, device=masks.device)
    mass = torch.zeros(len(queries), dtype=scores.dtype, device=masks.device)
    chosen = prediction._replace(mask_logits=prediction.mask_logits[queries])
    for rows in chosen.tiles(planes=2 * len(queries)) if len(queries) else ():
        logits = chosen.output_rows(rows)
        inside = logits > 0
        masks[:, rows] = inside[index]
        area += inside.sum((1, 2))
        mass += (logits.sigmoid_() * inside).sum((1, 2))
    return Instances(scores * (mass / (area + 1e-6))[index], pairs % num_classes, masks)
