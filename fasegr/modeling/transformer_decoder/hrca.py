"""Which pixels of a high-resolution map the queries attend to (omega, paper section 3.3).

A selection is asked `pixels(attention, low, high)`: the attention of the round's coarsest layer, the sizes (h, w) of
that level and of the high-resolution one, 1/4 or 1/8. It returns pixel indices (B, k) of the latter, or None for all of
them. `reads_attention` says whether the attention is used at all.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fasegr.modeling.transformer_decoder.attention import Attention, AttentionWeights

Size = tuple[int, int]


class AllPixels:
    """Vanilla cross-attention: every pixel."""

    reads_attention = False

    def pixels(self, attention: Attention | None, low: Size, high: Size) -> None:
        return None


class _Share:
    """A share of one in `omega` of the pixels."""

    def __init__(self, omega: int):
        if omega < 1:
            raise ValueError(f"MODEL.FASEG.HIGH_RES.OMEGA is {omega}; it must be an int >= 1 (32 in the paper)")
        self.omega = omega

    def count(self, n: int) -> int:
        return max(1, n // self.omega)  # small images have fewer cells than omega; with no key there is no context


class TopWindows(_Share):
    """HRCA as released: the coarse cells that all queries together attend to most bring their whole windows."""

    reads_attention = True

    def pixels(self, attention: Attention, low: Size, high: Size) -> Tensor:
        rows, columns = _window(low, high)
        cells = attention.sum_over_queries().topk(self.count(low[0] * low[1]), sorted=False).indices
        top, left = torch.div(cells, low[1], rounding_mode="floor") * rows, cells % low[1] * columns
        y = torch.arange(rows, device=cells.device)
        x = torch.arange(columns, device=cells.device)
        within = (y[:, None] * high[1] + x).flatten()
        return ((top * high[1] + left).unsqueeze(-1) + within).flatten(1)


class TopPixels(_Share):
    """HRCA as the paper words it: attention is upsampled bilinearly and the strongest pixels are kept."""

    reads_attention = True

    def pixels(self, attention: Attention, low: Size, high: Size) -> Tensor:
        scores = attention.sum_over_queries().unflatten(1, (1, *low))
        scores = F.interpolate(scores, size=high, mode="bilinear", align_corners=False).flatten(1)
        return scores.topk(self.count(high[0] * high[1]), sorted=False).indices


class RandomWindows(_Share):
    """As many windows as HRCA takes, drawn at random for every image (paper, table 6)."""

    reads_attention = True  # only for its device and batch: the draw ignores the values

    def pixels(self, attention: Attention, low: Size, high: Size) -> Tensor:
        noise = torch.rand_like(attention.sum_over_queries())
        return TopWindows(self.omega).pixels(AttentionWeights(noise.unsqueeze(1)), low, high)


Selection = AllPixels | TopWindows | TopPixels | RandomWindows


def build_selection(attention: str, selection: str, omega: int) -> Selection:
    """The selection of MODEL.FASEG.HIGH_RES.ATTENTION and, of HRCA, .SELECTION."""
    if attention == "vanilla":
        return AllPixels()
    if attention == "random":
        return RandomWindows(omega)
    if attention == "hrca" and selection == "window":
        return TopWindows(omega)
    if attention == "hrca" and selection == "pixel":
        return TopPixels(omega)
    raise ValueError(
        f"MODEL.FASEG.HIGH_RES.ATTENTION is {attention!r} with SELECTION {selection!r}; "
        "choose hrca (with window or pixel), random, vanilla, rcda or none"
    )


def _window(low: Size, high: Size) -> Size:
    rows, columns = high[0] // low[0], high[1] // low[1]
    if (rows * low[0], columns * low[1]) != tuple(high):
        raise ValueError(
            f"the high-resolution map {tuple(high)} is no whole multiple of the coarsest one {tuple(low)}; "
            "pad images to a multiple of 32 (MODEL.MASK_FORMER.SIZE_DIVISIBILITY)"
        )
    return rows, columns
