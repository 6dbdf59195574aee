"""Positional queries Q_p, which tell each query where to attend: one class for each row of the paper's table 5.

A positional query has two methods. `first(query_embed, context)` is called once, when only the masks predicted from the
learnable queries are known; `update(query_pos, query_embed, context)` after every layer but the last, and may return
`query_pos` unchanged. `query_embed` is B of eq. 2, (B, Q, C): the part that does not depend on the image, learned or,
for `grid_anchor`, points on a grid. `reads_attention` says whether `update` uses the attention, which is computed only
where something uses it.

All but one have the form of eq. 2, Q_p = h(X + B), and differ only in X: table 5 changes nothing else in FASeg.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fasegr.modeling.layers import Linear
from fasegr.modeling.transformer_decoder.feature_levels import FeatureLevel
from fasegr.modeling.transformer_decoder.position_encoding import encode_points


class PositionalQueryContext(NamedTuple):
    """Inputs of a positional query, between two layers.

    attention: (B, Q, n), of the last layer, on `level`. Both are None before the first layer; the attention is also
    None after a layer that returns none (the high-resolution one).
    mask_logits: (B, Q, m), the latest masks on `next_level`, that of the next layer; None if that layer uses no mask,
    so that none were computed.
    """

    attention: Tensor | None
    level: FeatureLevel | None
    mask_logits: Tensor | None
    next_level: FeatureLevel


class ConstantQuery:
    """B itself: the same for every image and layer.

    With a learned B the positional queries of DETR and Mask2Former (Carion et al., "End-to-end object detection with
    transformers", ECCV 2020), with `GridAnchors` those of Anchor DETR.
    """

    reads_attention = False

    def first(self, query_embed: Tensor, context: PositionalQueryContext) -> Tensor:
        return query_embed

    def update(self, query_pos: Tensor, query_embed: Tensor, context: PositionalQueryContext) -> Tensor:
        return query_embed


class DynamicFocusAwareQuery:
    """DFPQ: Q_p = h(A K_p + B), the key positions that the last layer attended to (paper, eq. 2).

    After a layer that returns no attention, the query stays the same. h: the projection, (..., C) to (..., C).
    region: what the first query pools K_p over, the "foreground" of the predicted mask (paper) or its "background"
    (released code and weights).
    """

    reads_attention = True

    def __init__(self, h: nn.Module, *, region: str):
        if region not in ("background", "foreground"):
            raise ValueError(f"first_query_region is {region!r}; choose background (release) or foreground (paper)")
        self.h = h
        self.region = region

    def first(self, query_embed: Tensor, context: PositionalQueryContext) -> Tensor:
        region = context.mask_logits < 0 if self.region == "background" else context.mask_logits >= 0
        return self.h(_average(context.next_level.key_pos, region) + query_embed)

    def update(self, query_pos: Tensor, query_embed: Tensor, context: PositionalQueryContext) -> Tensor:
        if context.attention is None:
            return query_pos
        return self.h(_pool(context.attention, context.level.key_pos) + query_embed)


class _MaskQuery:
    """Q_p = h(X + B) with X taken from the foreground of the mask predicted by the previous layer.

    The masks are those of the next layer's masked attention, and X is computed on its level. Before a layer without
    masks the query stays the same; after it, the latest masks are used. X is 0 where a mask is empty, which leaves the
    learned query.
    """

    reads_attention = False

    def __init__(self, h: nn.Module):
        self.h = h

    def first(self, query_embed: Tensor, context: PositionalQueryContext) -> Tensor:
        return self.h(self._position(context.mask_logits >= 0, context.next_level) + query_embed)

    def update(self, query_pos: Tensor, query_embed: Tensor, context: PositionalQueryContext) -> Tensor:
        return query_pos if context.mask_logits is None else self.first(query_embed, context)

    def _position(self, foreground: Tensor, level: FeatureLevel) -> Tensor:
        """foreground: (B, Q, n) bool on `level`. Returns X, (B, Q, C)."""
        raise NotImplementedError


class DynamicForegroundQuery(_MaskQuery):
    """The key positions of the whole predicted foreground: X is the mean of K_p over it (paper, table 5).

    DFPQ with the mask in place of the attention: all pixels of the segment have the same weight.
    """

    def _position(self, foreground: Tensor, level: FeatureLevel) -> Tensor:
        return _average(level.key_pos, foreground)


class DynamicAnchorQuery(_MaskQuery):
    """The centre of the predicted foreground, updated in every layer: X is its sinusoidal code (paper, table 5).

    Source: Liu et al., "DAB-DETR: Dynamic anchor boxes are better queries for DETR", ICLR 2022, whose decoder moves the
    anchor of each query from layer to layer; here a query predicts a mask instead of a box, so its centre is the
    anchor. It is the mean position of the pixels, relative to height and width, hence the same on each level.
    """

    def _position(self, foreground: Tensor, level: FeatureLevel) -> Tensor:
        # Sums and positions in float32 at least: half precision cannot distinguish neighbouring columns.
        dtype = torch.promote_types(level.key_pos.dtype, torch.float32)
        region = foreground.unflatten(2, level.size)
        count = region.sum((2, 3), dtype=dtype)

        def mean(along: int, size: int) -> Tensor:
            positions = (torch.arange(size, dtype=dtype, device=foreground.device) + 0.5) / size
            return (region.sum(along, dtype=dtype) * positions).sum(-1) / count.clamp(min=1)

        height, width = level.size
        centre = torch.stack([mean(3, height), mean(2, width)], -1)
        return encode_points(centre, level.key_pos.shape[-1]) * (count > 0).unsqueeze(-1)


class GridAnchors(nn.Module):
    """B from predefined anchor points: h(sinusoidal code of a point on a grid), instead of a learned table.

    Source: Wang et al., "Anchor DETR: Query design for transformer-based detector", AAAI 2022 (one pattern for each
    point). The grid has round(sqrt(N)) rows, each of N / rows points or one more, evenly spaced, so that any number
    of queries covers the image evenly and no two share a point: 100 queries are 10 x 10, 7 are rows of 3, 2 and 2.
    No learned B is added: that would make the points a mere initialisation.
    """

    def __init__(self, num_queries: int, dim: int):
        super().__init__()
        self.num_queries = num_queries
        self.h = query_projection(dim)

    @property
    def weight(self) -> Tensor:
        """(Q, C), as `nn.Embedding.weight`."""
        weight = self.h[0].weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return self.h(encode_points(self.points(dtype, weight.device), weight.shape[1]).to(weight.dtype))

    def points(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(Q, 2): y and x, each in (0, 1)."""
        n, rows = self.num_queries, round(self.num_queries**0.5)
        query = torch.arange(n, device=device)
        row = torch.div(query * rows, n, rounding_mode="floor")
        start = -torch.div(-row * n, rows, rounding_mode="floor")  # the first query of the row: n / rows, rounded up
        stop = -torch.div(-(row + 1) * n, rows, rounding_mode="floor")
        y = (row.to(dtype) + 0.5) / rows
        x = ((query - start).to(dtype) + 0.5) / (stop - start).to(dtype)
        return torch.stack([y, x], -1)


def query_projection(dim: int) -> nn.Sequential:
    """h: two linear layers with a ReLU in between."""
    return nn.Sequential(Linear(dim, dim), nn.ReLU(), Linear(dim, dim))


def build_dynamic_query(
    name: str, h: nn.Module, *, first_query_region: str
) -> DynamicFocusAwareQuery | DynamicAnchorQuery | DynamicForegroundQuery:
    """A positional query that depends on the image. name: "dfpq", "dynamic_anchor" or "dynamic_foreground"."""
    if name == "dfpq":
        return DynamicFocusAwareQuery(h, region=first_query_region)
    if name == "dynamic_anchor":
        return DynamicAnchorQuery(h)
    if name == "dynamic_foreground":
        return DynamicForegroundQuery(h)
    raise ValueError(
        f"positional_query is {name!r}; choose dfpq, learnable, grid_anchor, dynamic_anchor or dynamic_foreground"
    )


def _pool(attention: Tensor, key_pos: Tensor) -> Tensor:
    """A K_p (eq. 2): attention (B, Q, n), key_pos (B, n, C) to (B, Q, C), the positions each query attended to."""
    return attention.to(key_pos.dtype) @ key_pos


def _average(key_pos: Tensor, region: Tensor) -> Tensor:
    """Mean of key_pos (B, n, C) over a region (B, Q, n), bool: (B, Q, C), 0 where the region is empty."""
    # Weights first: a sum over all pixels of a level can overflow float16, a mean does not.
    dtype = torch.promote_types(key_pos.dtype, torch.float32)
    weights = region.to(dtype) / (region.sum(-1, keepdim=True, dtype=dtype) + 1e-6)
    return _pool(weights, key_pos)
