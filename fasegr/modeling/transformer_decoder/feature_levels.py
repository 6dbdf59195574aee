"""The levels that the decoder attends to, coarse to fine, one in each layer of a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

COARSE_STRIDES = (32, 16, 8)  # in every round; the three of Mask2Former
HIGH_RES_CHOICES = ((4,), (8,), (4, 8))


class FeatureLevel(NamedTuple):
    """One map as the decoder attends to it. memory, key_pos: (B, n, C). size: (h, w) with h * w = n.

    key: memory + key_pos, which masked attention to this level compares with its queries in every round; None for a
    level without.
    """

    memory: Tensor
    key_pos: Tensor
    size: tuple[int, int]
    key: Tensor | None = None


def level_strides(high_res_attention: str, high_res_levels: Sequence[int]) -> tuple[int, ...]:
    """Strides of the maps of one round, coarse first.

    high_res_levels: strides of the maps with high-resolution attention. The 1/4 map is a level only if it is one of
    them: with [8], and with the attention "none", it is not used. Table 8 of the paper agrees: 1/8 costs 2,600 M fewer
    multiply-adds than 1/4, more than any attention on the 1/4 map costs (table 6: 1,100 M for all of its pixels).
    """
    if tuple(high_res_levels) not in HIGH_RES_CHOICES:
        raise ValueError(f"high_res_levels is {list(high_res_levels)}; choose [4], [8] or [4, 8]")
    fine = high_res_attention != "none" and 4 in high_res_levels
    return (*COARSE_STRIDES, 4) if fine else COARSE_STRIDES


def masked_strides(high_res_attention: str, high_res_levels: Sequence[int]) -> list[int | None]:
    """The same, with None in place of the maps that are attended to without masks."""
    unmasked = () if high_res_attention == "none" else tuple(high_res_levels)
    return [None if s in unmasked else s for s in level_strides(high_res_attention, high_res_levels)]
