"""From masks and their classes to a score or a label for every pixel.

A pixel's score for a class is the sum over queries of class probability times mask probability. Scores come in strips
of rows (`score_strips`), so that what is made of them, a map, labels or a sum of several, is all that has full size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fasegr.modeling.meta_arch import triton_semantic
from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops.resized_rows import image_rows, mask_strips, resized_rows, row_elements, row_strips


def score_strips(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: tuple[int, int],
    image: tuple[int, int],
    output: tuple[int, int],
    *,
    resize_masks: bool = False,
    classes_last: bool = False,
) -> Iterator[tuple[slice, Tensor]]:
    """Output rows and their scores (C, rows, output width), for one image, from top to bottom.

    class_logits: (Q, C + 1), the last being no-object. mask_logits: (Q, h, w). padded: size of the network's input,
    which the masks are upsampled to; image: the part of it that is image, top left; output: the size asked for.
    resize_masks: bring the mask logits to the output size and take the product there; else the scores are resized.
    classes_last: lay a strip out pixel by pixel, as a search for the largest score wants it.
    """
    dtype = torch.promote_types(mask_logits.dtype, torch.float32)  # sums over a hundred queries, compared closely
    mask_logits = mask_logits.to(dtype)
    probabilities = class_logits.to(dtype).softmax(-1)[:, :-1].t()  # (C, Q)
    planes = sum(probabilities.shape)

    def product(masks: Tensor) -> Tensor:
        rows = masks.sigmoid_().transpose(0, 1)  # row by row, since small products stay in the cache
        left = probabilities.expand(len(rows), -1, -1)
        with torch.autocast(masks.device.type, enabled=False):  # which would take it in half precision
            if classes_last:
                return torch.bmm(rows.mT, left.mT).permute(2, 0, 1)
            return torch.bmm(left, rows).transpose(0, 1)

    def image_scores(first: int, last: int) -> Tensor:
        return product(image_rows(mask_logits, slice(first, last), padded, image[1]))

    if resize_masks and image != output:
        for rows, masks in mask_strips(mask_logits, padded, image, output, planes):
            yield rows, product(masks)
    else:
        for rows in row_strips(0, output[0], row_elements(planes, padded, image, output), mask_logits.device):
            yield rows, resized_rows(image_scores, rows, image, output)


def semantic_scores(*arguments, resize_masks: bool = False) -> Tensor:
    """(C, *output) scores of one image; arguments as `score_strips`."""
    if _fused(*arguments):
        return triton_semantic.semantic_map(*arguments, labels=False, resize_masks=resize_masks)
    return collect_scores(score_strips(*arguments, resize_masks=resize_masks), arguments[-1])


def semantic_labels(*arguments, resize_masks: bool = False) -> Tensor:
    """(*output) most likely class of each pixel, uint8 (int16 above 256 classes); arguments as `score_strips`."""
    if _fused(*arguments):
        return triton_semantic.semantic_map(*arguments, labels=True, resize_masks=resize_masks)
    *_, image, output = arguments
    as_made = resize_masks or image == output  # resizing scores is quicker plane by plane
    return collect_labels(score_strips(*arguments, resize_masks=resize_masks, classes_last=as_made), output)


def _fused(*arguments) -> bool:
    return triton_semantic.supports(*arguments) and fast_paths.enabled("triton_semantic_output")


def semantic_result(
    strips: Iterable[tuple[slice, Tensor]], output: tuple[int, int], semantic_output: str
) -> dict[str, Tensor]:
    """What a model returns of one image: `sem_seg` scores or, if `semantic_output` is "labels", `sem_seg_labels`."""
    if semantic_output == "labels":
        return {"sem_seg_labels": collect_labels(strips, output)}
    return {"sem_seg": collect_scores(strips, output)}


def collect_scores(strips: Iterable[tuple[slice, Tensor]], output: tuple[int, int]) -> Tensor:
    """(C, *output) from strips (C, rows, output width)."""
    strips = iter(strips)
    first_rows, first = next(strips)
    scores = first.new_empty(first.shape[0], *output)
    scores[:, first_rows] = first
    for rows, strip in strips:
        scores[:, rows] = strip
    return scores


def collect_labels(strips: Iterable[tuple[slice, Tensor]], output: tuple[int, int]) -> Tensor:
    """(*output) class with the highest score, uint8 (int16 above 256 classes), from strips (C, rows, output width)."""
    labels = None
    for rows, strip in strips:
        if labels is None:
            dtype = torch.uint8 if len(strip) <= 256 else torch.int16
            labels = torch.empty(output, dtype=dtype, device=strip.device)
        labels[rows] = strip.max(0).indices  # quicker on a CPU than argmax
    return labels
