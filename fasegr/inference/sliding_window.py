"""Sliding window inference: large images in overlapping windows, whose scores are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from fasegr.d2 import configurable
from fasegr.inference.precision import in_precision
from fasegr.modeling.meta_arch.semantic_inference import semantic_result
from fasegr.modeling.row_tiles import elements_per_row, resize_rows, row_tiles, source_rows

__all__ = ["SlidingWindow", "with_sliding_window"]


def with_sliding_window(cfg, model: nn.Module) -> nn.Module:
    """`model` in the precision of SPEED.DTYPE, in a `SlidingWindow` if TEST.SLIDING_WINDOW.ENABLED."""
    model = in_precision(cfg, model)
    return SlidingWindow(cfg, model) if cfg.TEST.SLIDING_WINDOW.ENABLED else model


class SlidingWindow(nn.Module):
    """A segmentor that segments large images in windows. Its result is semantic, `sem_seg` or `sem_seg_labels`.

    The image, after resizing for the network, is covered by windows at equal steps. A pixel's score is the mean over
    the windows that contain it, weighted by sin^2 of its position in the window, from nearly 0 at the edges to 1 in
    the middle, in both directions. That leaves no visible seams, and edges, where a window sees little context, count
    least. An image that fits into one window goes to the segmentor as it is.

    Windows are run one at a time and finished rows are passed on, so memory grows with the window and the width of the
    image, but not with its height (except for a `sem_seg` of full size, if that is the output).
    """

    @configurable
    def __init__(self, model: nn.Module, *, size: Sequence[int], overlap: float, semantic_output: str = "scores"):
        """model: has `score_tiles`, like FASeg. size: (height, width) of a window, at most that of the image; best the
        crop size of training. overlap: least share of a window that the next one also covers. semantic_output: as in
        FASeg.
        """
        super().__init__()
        if len(size) != 2 or not all(isinstance(side, int) and side >= 1 for side in size):
            raise ValueError(
                f"size is {tuple(size)}; expected height and width of a window in pixels, each an int >= 1"
            )
        if not 0 <= overlap < 1:
            raise ValueError(
                f"overlap is {overlap}; expected a share of the window, at least 0 and below 1 (0.5 is usual)"
            )
        self.model = model
        self.size = tuple(size)
        self.overlap = overlap
        self.semantic_output = semantic_output
        self.training = model.training

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> dict:
        window = cfg.TEST.SLIDING_WINDOW
        return {
            "model": model,
            "size": window.SIZE,
            "overlap": window.OVERLAP,
            "semantic_output": cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """The segmentor's protocol at test time."""
        return [
            semantic_result(self._tiles(sample), _output_size(sample), self.semantic_output)
            for sample in batched_inputs
        ]

    def score_tiles(self, batched_inputs: list[dict]) -> list[Iterator[tuple[slice, Tensor]]]:
        """For each image, strips of rows of `sem_seg`, computed as they are asked for."""
        return [self._tiles(sample) for sample in batched_inputs]

    def _tiles(self, sample: dict) -> Iterator[tuple[slice, Tensor]]:
        size = tuple(sample["image"].shape[-2:])
        if all(side <= window for side, window in zip(size, self.size, strict=True)):
            return self.model.score_tiles([sample])[0]
        return resize_bands(self._bands(sample["image"]), size, _output_size(sample))

    def _bands(self, image: Tensor) -> Iterator[Tensor]:
        """Scores (C, rows, W) of the image from top to bottom, as many rows at a time as a row of windows finishes."""
        height, width = image.shape[-2:]
        tops, row_weights = window_weights(height, self.size[0], self.overlap)
        lefts, column_weights = window_weights(width, self.size[1], self.overlap)
        window_height, window_width = row_weights.shape[1], column_weights.shape[1]
        unfinished = None  # sums for rows that the previous windows and these have in common
        for top, next_top, in_rows in zip(tops, [*tops[1:], height], row_weights, strict=True):
            band = None
            for left, in_columns in zip(lefts, column_weights, strict=True):
                window = image[:, top : top + window_height, left : left + window_width]
                for rows, scores in self.model.score_tiles([{"image": window}])[0]:
                    if band is None:
                        band = scores.new_zeros(len(scores), window_height, width)
                        if unfinished is not None:
                            band[:, : unfinished.shape[1]] = unfinished
                    weights = (in_rows[rows, None] * in_columns).to(scores)
                    band[:, rows, left : left + window_width] += scores * weights
            yield band[:, : next_top - top]
            unfinished = band[:, next_top - top :]


def window_weights(length: int, size: int, overlap: float) -> tuple[list[int], Tensor]:
    """Windows of `size` along one side of an image: their starts, and the weights (windows, size) of their pixels:
    sin^2 over the window, normalised so that the weights of all windows sum to one at every pixel."""
    size = min(size, length)
    steps = math.ceil((length - size) / max(1, math.floor(size * (1 - overlap))))
    starts = [round(i * (length - size) / steps) for i in range(steps + 1)] if steps else [0]
    ramp = torch.sin(math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += ramp
    return starts, torch.stack([ramp / total[start : start + size] for start in starts])


def resize_bands(
    bands: Iterable[Tensor], size: tuple[int, int], output: tuple[int, int]
) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of rows of a map (C, *size) resized to `output`, bilinear; the map comes in bands (C, rows, width)."""
    low, high, _ = source_rows(slice(0, output[0]), size[0], output[0])
    first = done = 0  # row of the map that `kept` begins with; rows of the output that were passed on
    kept = None
    for band in bands:
        kept = band if kept is None else torch.cat([kept, band], 1)
        ready = int((high < first + kept.shape[1]).sum())
        elements = elements_per_row(4 * len(kept), size, size, output)
        for rows in row_tiles(done, ready, elements, kept.device):
            yield rows, resize_rows(lambda a, b: kept[:, a - first : b - first], rows, size, output)  # noqa: B023
        done = ready
        if done < output[0]:
            needed = min(int(low[done]), first + kept.shape[1])
            kept, first = kept[:, needed - first :], needed


def _output_size(sample: dict) -> tuple[int, int]:
    height, width = sample["image"].shape[-2:]
    return sample.get("height", height), sample.get("width", width)
