"""The predictions for one image, and its masks at the size of the output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fasegr.modeling.row_tiles import Size, elements_per_row, resize_rows, row_tiles


class ImagePrediction(NamedTuple):
    """Masks and classes of the Q queries for one image, from which semantic, panoptic and instance results are made.

    class_logits: (Q, C + 1), the last class being no-object. mask_logits: (Q, h, w).
    padded_size: of the network's input, to which the masks are upsampled. image_size: without the padding, which is at
    the right and bottom. output_size: to which the image is resized. All are (height, width).
    """

    class_logits: Tensor
    mask_logits: Tensor
    padded_size: Size
    image_size: Size
    output_size: Size

    def in_float32(self) -> ImagePrediction:
        """The same with logits of at least float32: results sum over many queries and compare close values."""
        dtype = torch.promote_types(self.mask_logits.dtype, torch.float32)
        return self._replace(class_logits=self.class_logits.to(dtype), mask_logits=self.mask_logits.to(dtype))

    def tiles(self, planes: int) -> Iterator[slice]:
        """Slices of output rows, small enough for `planes` maps of them to fit a tile."""
        row = elements_per_row(planes, self.padded_size, self.image_size, self.output_size)
        return row_tiles(0, self.output_size[0], row, self.mask_logits.device)

    def image_rows(self, first: int, last: int) -> Tensor:
        """(Q, last - first, image width): rows of the mask logits at the size of the network's input."""
        rows = resize_rows(
            lambda a, b: self.mask_logits[:, a:b],
            slice(first, last),
            tuple(self.mask_logits.shape[1:]),
            self.padded_size,
        )
        return rows[:, :, : self.image_size[1]]

    def output_rows(self, rows: slice) -> Tensor:
        """(Q, rows, output width): rows of the mask logits at the size of the output."""
        return resize_rows(self.image_rows, rows, self.image_size, self.output_size)
