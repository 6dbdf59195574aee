"""Maps at full size, a strip of rows at a time.

At the size of the image, the masks of all queries and the scores of all classes are the largest tensors of the program.
Bilinear resizing makes a row from two rows, so any strip of the result is computed from a strip of what it is made of,
and only strips need to exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling.ops import switches as fast_paths

# Elements of one strip's planes. 2 Mi of float32 stay in the caches of a CPU and still fill a GPU's cores.
STRIP_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}


def row_strips(first: int, last: int, row_elements: int, device: torch.device) -> Iterator[slice]:
    """Rows [first, last) in slices that `row_elements` a row let fit."""
    step = max(1, STRIP_ELEMENTS.get(device.type, STRIP_ELEMENTS["cpu"]) // row_elements)
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def resized_rows(
    rows_of: Callable[[int, int], Tensor], rows: slice, size: tuple[int, int], output: tuple[int, int]
) -> Tensor:
    """(N, rows, output width): `rows` of a map (N, *size) that is resized to `output`, bilinear.

    rows_of: rows [first, last) of the map, (N, last - first, width). The rule is that of
    `F.interpolate(mode="bilinear", align_corners=False)`.
    """
    if size == output:
        return rows_of(rows.start, rows.stop)
    low, high, fraction = source_rows(rows, size[0], output[0])
    first, last = int(low[0]), int(high[-1]) + 1
    source = rows_of(first, last)
    if fast_paths.in_cpu_inference(source) and fast_paths.enabled("strip_rows"):
        # Horizontally first, since an upsampled strip has few source rows; then each row of the result is written
        # where it belongs, without two gathered copies of the strip.
        wide = F.interpolate(source[None], size=(last - first, output[1]), mode="bilinear", align_corners=False)[0]
        strip = wide.new_empty(len(wide), len(low), output[1])
        for row, (a, b, share) in enumerate(zip(low.tolist(), high.tolist(), fraction.tolist(), strict=True)):
            torch.lerp(wide[:, a - first], wide[:, b - first], share, out=strip[:, row])
        return strip
    low, high = ((index - first).to(source.device, non_blocking=True) for index in (low, high))
    fraction = fraction.to(source.device, source.dtype, non_blocking=True)
    mixed = torch.lerp(source[:, low], source[:, high], fraction.unsqueeze(1))
    return F.interpolate(mixed[None], size=(len(low), output[1]), mode="bilinear", align_corners=False)[0]


def image_rows(masks: Tensor, rows: slice, padded: tuple[int, int], width: int) -> Tensor:
    """(Q, rows, width): `rows` of the image in masks (Q, h, w) that are resized to the padded input, (Q, *padded)."""
    return resized_rows(lambda first, last: masks[:, first:last], rows, tuple(masks.shape[1:]), padded)[:, :, :width]


def mask_strips(
    mask_logits: Tensor, padded: tuple[int, int], image: tuple[int, int], output: tuple[int, int], planes: int
) -> Iterator[tuple[slice, Tensor]]:
    """Output rows and the mask logits there, (Q, rows, output width), in float32 or more.

    mask_logits: (Q, h, w). padded: size of the network's input, which the masks are resized to; image: the part of it
    that is image, top left, which is resized to `output`. planes: maps that the caller makes of a strip, to bound it.
    """
    mask_logits = mask_logits.to(torch.promote_types(mask_logits.dtype, torch.float32))
    for rows in row_strips(0, output[0], row_elements(planes, padded, image, output), mask_logits.device):
        yield (
            rows,
            resized_rows(
                lambda first, last: image_rows(mask_logits, slice(first, last), padded, image[1]), rows, image, output
            ),
        )


def row_elements(planes: int, padded: tuple[int, int], image: tuple[int, int], output: tuple[int, int]) -> int:
    """Elements that one output row costs in `planes` maps, with those of the image rows that it is made of."""
    return planes * max(padded[1], output[1]) * max(1, image[0] // output[0])


def source_rows(rows: slice, size: int, output: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `rows` of `output` in all: which two of `size` rows each is made of, and the weight of the second; (n,) each,
    on the host."""
    position = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * (size / output) - 0.5
    position = position.clamp_(min=0)
    low = position.long().clamp_(max=size - 1)
    return low, (low + 1).clamp_(max=size - 1), position - low
