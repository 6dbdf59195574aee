"""From masks and their classes to a score or a label for every pixel.

A pixel's score for a class is the sum over queries of class probability times mask probability. Scores are computed
in tiles of rows (`score_tiles`), so that only the result has full size: a map, labels, or a sum of several.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fasegr.modeling import ops
from fasegr.modeling.meta_arch.image_prediction import ImagePrediction
from fasegr.modeling.row_tiles import Size, resize_rows

ScoreTiles = Iterable[tuple[slice, Tensor]]
"""Rows of the output and their scores (C, rows, output width), from top to bottom."""


def score_tiles(prediction: ImagePrediction, *, resize_masks: bool = False) -> Iterator[tuple[slice, Tensor]]:
    """The scores of one image, computed lazily.

    resize_masks: resize the mask logits to the output size before the product; otherwise the scores are resized.
    """
    prediction = prediction.in_float32()
    probabilities = prediction.class_logits.softmax(-1)[:, :-1].t()  # (C, Q)

    def scores(masks: Tensor) -> Tensor:
        with torch.autocast(masks.device.type, enabled=False):  # which would take the product in half precision
            rows = masks.sigmoid_().transpose(0, 1)  # a product per row: small ones stay in the cache
            return torch.bmm(probabilities.expand(len(rows), -1, -1), rows).transpose(0, 1)

    for rows in prediction.tiles(planes=sum(probabilities.shape)):
        if resize_masks:
            yield rows, scores(prediction.output_rows(rows))
        else:
            sizes = prediction.image_size, prediction.output_size
            yield rows, resize_rows(lambda a, b: scores(prediction.image_rows(a, b)), rows, *sizes)


def semantic_result(tiles: ScoreTiles, output_size: Size, semantic_output: str) -> dict[str, Tensor]:
    """What a segmentor returns for one image: `sem_seg` scores or, with semantic_output "labels", `sem_seg_labels`."""
    if semantic_output == "labels":
        return {"sem_seg_labels": collect_labels(tiles, output_size)}
    return {"sem_seg": collect_scores(tiles, output_size)}


def collect_scores(tiles: ScoreTiles, output_size: Size) -> Tensor:
    """(C, *output_size) scores."""
    scores = None
    for rows, tile in tiles:
        if scores is None:
            scores = tile.new_empty(len(tile), *output_size)
        scores[:, rows] = tile
    return scores


def collect_labels(tiles: ScoreTiles, output_size: Size) -> Tensor:
    """(*output_size) class with the highest score, uint8 (int16 above 256 classes)."""
    labels = None
    for rows, tile in tiles:
        classes = ops.class_argmax(tile)
        if labels is None:
            labels = classes.new_empty(output_size)
        labels[rows] = classes
    return labels
