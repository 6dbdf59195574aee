"""Positional queries Q_p: where each query is told to look.

A positional query has two methods. `first` is asked once, when only the masks predicted from the learnable queries are
known; `renew` after every layer that hands out its attention. Both take `base`, the learnable B of (Q, C).
`reads_attention` says whether `renew` uses the attention at all.
"""

from __future__ import annotations

from torch import Tensor, nn


class LearnableQuery:
    """The learnable positional queries of DETR and Mask2Former: the same for every image and layer."""

    reads_attention = False

    def first(self, base: Tensor, mask_logits: Tensor, key_pos: Tensor) -> Tensor:
        return base

    def renew(self, base: Tensor, attention: Tensor, key_pos: Tensor) -> Tensor:
        return base


class DynamicFocusAwareQuery:
    """DFPQ: Q_p = h(A K_p + B), the key positions where the last layer looked (paper, eq. 2).

    h: the projection, (..., C) to (..., C). region: what the first query pools K_p over, the "foreground" of the
    predicted mask (paper) or its "background" (released code and weights).
    """

    reads_attention = True

    def __init__(self, h: nn.Module, *, region: str):
        if region not in ("background", "foreground"):
            raise ValueError(
                f"MODEL.FASEG.FIRST_QUERY_REGION is {region!r}; choose background (release) or foreground (paper)"
            )
        self.h = h
        self.region = region

    def first(self, base: Tensor, mask_logits: Tensor, key_pos: Tensor) -> Tensor:
        """mask_logits: (B, Q, n) on the coarsest level; key_pos: (B, n, C). Returns (B, Q, C)."""
        region = mask_logits < 0 if self.region == "background" else mask_logits >= 0
        region = region.to(key_pos.dtype)
        mean = (region @ key_pos) / (region.sum(-1, keepdim=True) + 1e-6)
        return self.h(mean + base)

    def renew(self, base: Tensor, attention: Tensor, key_pos: Tensor) -> Tensor:
        """attention: (B, Q, n) weights that sum to one over n; key_pos: (B, n, C). Returns (B, Q, C)."""
        return self.h(attention.to(key_pos.dtype) @ key_pos + base)
