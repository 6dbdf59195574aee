"""High-resolution cross-attention (HRCA): which pixels of a fine map the queries attend to (omega, paper section 3.3).

A selection is called with a `CrossAttentionContext` and returns pixel indices (B, k) of the context's level, a 1/4 or
1/8 map, or None for all of its pixels. `reads_attention` says whether it needs the attention of the round's coarsest
layer. `cross_attention.SparseCrossAttention` attends to what is selected.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.transformer_decoder.attention import CrossAttentionContext

Size = tuple[int, int]


class AllPixels:
    """Vanilla cross-attention: every pixel."""

    reads_attention = False

    def __call__(self, context: CrossAttentionContext) -> None:
        return None


class _OneInOmega:
    """One pixel in `omega` is selected."""

    def __init__(self, omega: int):
        if omega < 1:
            raise ValueError(f"omega is {omega}; it must be an int >= 1 (32 in the paper)")
        self.omega = omega

    def count(self, n: int) -> int:
        count = n // self.omega
        # Small images have fewer cells than omega; attention needs a key. In an export, n is a symbol.
        return max(1, count) if isinstance(count, int) else torch.sym_max(1, count)


class TopWindows(_OneInOmega):
    """HRCA as released: the whole windows of the coarse cells that all queries together attend to most."""

    reads_attention = True

    def __init__(self, omega: int):
        super().__init__(omega)
        self._windows = ops.Kept()

    def __call__(self, context: CrossAttentionContext) -> Tensor:
        return self.windows(context.coarse_attention.sum(1), context.coarse_size, context.level.size)

    def windows(self, scores: Tensor, coarse: Size, fine: Size) -> Tensor:
        """Pixels (B, k), in a map of size `fine`, of the windows of the cells with the highest scores (B, n)."""
        cells = scores.topk(self.count(coarse[0] * coarse[1]), sorted=False).indices
        return self._windows(_pixels_of_windows, tuple(coarse), tuple(fine), scores.device)[cells].flatten(1)


class TopPixels(_OneInOmega):
    """HRCA as the paper describes it: attention is upsampled bilinearly and the strongest pixels are kept."""

    reads_attention = True

    def __call__(self, context: CrossAttentionContext) -> Tensor:
        height, width = context.level.size
        scores = context.coarse_attention.sum(1).unflatten(1, (1, *context.coarse_size))
        scores = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False).flatten(1)
        return scores.topk(self.count(height * width), sorted=False).indices


class RandomWindows(TopWindows):
    """As many windows as in HRCA, drawn at random for every image (paper, table 6)."""

    reads_attention = False

    def __call__(self, context: CrossAttentionContext) -> Tensor:
        memory, (height, width) = context.level.memory, context.coarse_size
        dtype = torch.promote_types(memory.dtype, torch.float32)  # like attention weights
        noise = torch.rand(memory.shape[0], height * width, dtype=dtype, device=memory.device)
        return self.windows(noise, context.coarse_size, context.level.size)


Selection = AllPixels | TopWindows | TopPixels | RandomWindows


def build_selection(attention: str, selection: str, omega: int) -> Selection:
    """attention: "hrca", "random" or "vanilla". selection: of HRCA, "window" (release) or "pixel" (paper)."""
    if attention == "vanilla":
        return AllPixels()
    if attention == "random":
        return RandomWindows(omega)
    if attention == "hrca" and selection in ("window", "pixel"):
        return TopWindows(omega) if selection == "window" else TopPixels(omega)
    raise ValueError(
        f"high_res_attention is {attention!r} with the selection {selection!r}; "
        "choose hrca (with window or pixel), random, vanilla, rcda or none"
    )


def _pixels_of_windows(coarse: Size, fine: Size, device: torch.device) -> Tensor:
    """For each cell of the coarse map, the pixels of its window on the fine one: (n, pixels of a window)."""
    rows, columns = _window(coarse, fine)
    pixels = torch.arange(fine[0] * fine[1], device=device).view(coarse[0], rows, coarse[1], columns)
    return pixels.transpose(1, 2).reshape(coarse[0] * coarse[1], rows * columns)


def _window(coarse: Size, fine: Size) -> Size:
    rows, columns = fine[0] // coarse[0], fine[1] // coarse[1]
    if (rows * coarse[0], columns * coarse[1]) != tuple(fine):
        raise ValueError(
            f"the high-resolution map {tuple(fine)} is not a multiple of the coarsest one {tuple(coarse)}; "
            "pad images to a multiple of 32"
        )
    return rows, columns
