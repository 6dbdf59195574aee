"""Mask-piloted training: beside the queries, further ones attend within noised true masks and learn to restore them.

Source: Zhang et al., "MP-Former: Mask-piloted transformer for image segmentation", CVPR 2023. A layer's attention mask
is the prediction of the layer before it, which is poor in the first layers and changes from layer to layer; piloted
queries learn with masks that are neither. They exist in training only and tell the other queries nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fasegr.modeling import ops
from fasegr.modeling.matcher import Match

__all__ = ["MaskPilot", "PilotQueries"]


class PilotQueries(NamedTuple):
    """N piloted queries of each image.

    labels: (B, N) noised classes, C for no-object. groups: (B, N); a query sees those of its own group, each target
    once. attn_masks: for each layer (B, N, n) bool, True where a query attends; None for a layer without masks.
    matches: of each image, which target each query shall restore, (1, N); (1, 0) in an image without targets.
    """

    labels: Tensor
    groups: Tensor
    attn_masks: list[Tensor | None]
    matches: list[Match]


class MaskPilot:
    """Makes piloted queries from targets.

    num_classes: C. num_queries: N, which targets take in turns; of more than N targets, N are drawn. label_noise: share
    of the labels that become a random class. mask_noise: number of cells whose membership is flipped, anywhere in the
    image, as a share of a mask's cells. strides: of each layer's level, None for a layer without masked attention.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int,
        label_noise: float,
        mask_noise: float,
        strides: Sequence[int | None],
    ):
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; it must be >= 1 (100 is usual)")
        if not (0 <= label_noise <= 1 and 0 <= mask_noise <= 1):
            raise ValueError(f"label_noise {label_noise} and mask_noise {mask_noise} must be shares, 0 to 1")
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.mask_noise = mask_noise
        self.strides = strides

    @torch.no_grad()
    def __call__(self, targets: Sequence[dict[str, Tensor]]) -> PilotQueries:
        """targets: B of `labels` (K,) and `masks` (K, H, W) of one size, whose sides the strides divide; K may be 0."""
        device, count = targets[0]["masks"].device, self.num_queries
        order = [_in_turns(len(target["labels"]), count) for target in targets]
        groups = torch.stack([torch.arange(count) // max(len(target["labels"]), 1) for target in targets])
        matches = [
            Match(torch.arange(len(target["labels"]) and count)[None], turns[None, : len(target["labels"]) and count])
            for target, turns in zip(targets, order, strict=True)
        ]
        # On the device, one more target behind those of each image: no-object, whose mask is empty.
        turns = ops.to_device(torch.stack(order), device)
        labels = torch.stack(
            [
                torch.cat((target["labels"], target["labels"].new_full((1,), self.num_classes)))[chosen]
                for target, chosen in zip(targets, turns, strict=True)
            ]
        )
        noise = torch.rand(labels.shape, device=device) < self.label_noise
        others = torch.randint(self.num_classes, labels.shape, device=device)
        labels = torch.where(noise & (labels < self.num_classes), others, labels)

        inside = {stride: [_cells(target["masks"], stride) for target in targets] for stride in set(self.strides)}
        attn_masks = [
            None
            if stride is None
            else torch.stack([self._noised(*pair) for pair in zip(inside[stride], turns, strict=True)])
            for stride in self.strides
        ]
        return PilotQueries(labels, ops.to_device(groups, device), attn_masks, matches)

    def _noised(self, cells: Tensor, turns: Tensor) -> Tensor:
        """cells: (K + 1, n) bool. turns: (N,) indices into them. Returns (N, n)."""
        chosen = cells[turns]
        share = self.mask_noise * chosen.float().mean(1, keepdim=True)
        return chosen ^ (torch.rand(chosen.shape, device=chosen.device) < share)


def _in_turns(targets: int, count: int) -> Tensor:
    """(count,) indices of targets, each in turn; without targets, 0, where no-object is."""
    if targets > count:
        return torch.randperm(targets)[:count]
    return torch.arange(count) % max(targets, 1)


def _cells(masks: Tensor, stride: int | None) -> Tensor | None:
    """(K, H, W) to (K + 1, n) bool: the cells of a level in which a mask has a pixel; none in the last row."""
    if stride is None:
        return None
    height, width = masks.shape[1:]
    if height % stride or width % stride:
        raise ValueError(f"masks of {height} x {width} are not made of cells of {stride} x {stride}; pad the images")
    blocks = (masks != 0).view(-1, height // stride, stride, width // stride, stride)
    cells = blocks.any(4).any(2).flatten(1)
    return torch.cat((cells, cells.new_zeros(1, cells.shape[1])))
