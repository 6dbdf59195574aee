"""From masks and their classes to non-overlapping segments that cover the image."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from fasegr.modeling.meta_arch.image_prediction import ImagePrediction


class PanopticSegmentation(NamedTuple):
    """segment_ids: (H, W) int32, 0 where there is no segment. segments: for each id from 1, a dict of `id`,
    `category_id` (contiguous class) and `isthing`. Unpacks like detectron2's pair."""

    segment_ids: Tensor
    segments: list[dict]


def panoptic_segments(
    prediction: ImagePrediction, *, things: Collection[int], score_threshold: float, overlap_threshold: float
) -> PanopticSegmentation:
    """Segments of one image, as Mask2Former makes them.

    Queries are kept if their best class is not no-object and scores above `score_threshold`. A pixel goes to the kept
    query with the highest class probability times mask probability, if the pixel is in its mask (one half or more). A
    query that wins less than `overlap_threshold` of its mask's pixels is dropped, and they stay empty. Segments of
    the same stuff class (not in `things`) are merged.

    Only the masks of kept queries are computed, tile by tile; at full size there is one index per pixel.
    """
    prediction = prediction.in_float32()
    scores, classes = prediction.class_logits.softmax(-1).max(-1)
    kept = torch.nonzero((classes != prediction.class_logits.shape[-1] - 1) & (scores > score_threshold))[:, 0]
    count, device = len(kept), scores.device
    if count == 0:
        return PanopticSegmentation(torch.zeros(prediction.output_size, dtype=torch.int32, device=device), [])
    scores, classes = scores[kept, None, None], classes[kept]

    # index of the kept query that has the pixel; `count` for none
    owner = torch.empty(prediction.output_size, dtype=torch.int32, device=device)
    won, held, visible = (torch.zeros(count, dtype=torch.int64, device=device) for _ in range(3))
    chosen = prediction._replace(mask_logits=prediction.mask_logits[kept])
    for rows in chosen.tiles(planes=2 * count):
        masks = chosen.output_rows(rows).sigmoid_()
        best = (scores * masks).argmax(0)
        inside = masks >= 0.5
        won += torch.bincount(best.flatten(), minlength=count)
        held += inside.sum((1, 2))
        best = torch.where(inside.gather(0, best[None])[0], best, count)
        visible += torch.bincount(best.flatten(), minlength=count + 1)[:count]
        owner[rows] = best

    ids = [0] * (count + 1)
    segments: list[dict] = []
    stuff: dict[int, int] = {}
    queries = torch.stack([classes, won, held, visible], 1).tolist()
    for query, (category, n_won, n_held, n_visible) in enumerate(queries):
        if n_visible == 0 or n_won / n_held < overlap_threshold:
            continue
        if category in stuff:
            ids[query] = stuff[category]
            continue
        ids[query] = len(segments) + 1
        segments.append({"id": ids[query], "category_id": category, "isthing": category in things})
        if category not in things:
            stuff[category] = ids[query]
    table = torch.tensor(ids, dtype=torch.int32, device=owner.device)
    return PanopticSegmentation(table.index_select(0, owner.flatten()).view(owner.shape), segments)
