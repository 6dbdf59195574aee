"""The transformer decoder: learnable queries read the maps of the pixel decoder, coarse to fine, round after round.

Source: Cheng et al., "Masked-attention mask transformer", CVPR 2022 (masked attention, order of sub-layers) and the
FASeg paper (positional queries, high-resolution cross-attention), as the authors released it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling.layers import MLP, c2_xavier_fill
from fasegr.modeling.ops.mask_logits import mask_products
from fasegr.modeling.pixel_decoder import PixelDecoderOutput
from fasegr.modeling.transformer_decoder.attention import FFNLayer, SelfAttentionLayer
from fasegr.modeling.transformer_decoder.cross_attention import build_reads
from fasegr.modeling.transformer_decoder.feature_levels import Level
from fasegr.modeling.transformer_decoder.positional_query import (
    ConstantQuery,
    GridAnchors,
    Seen,
    build_dynamic_query,
    query_projection,
)


class Prediction(NamedTuple):
    """class_logits: (B, Q, K + 1). mask_logits: (B, Q, H/4, W/4)."""

    class_logits: Tensor
    mask_logits: Tensor


class _Answer(NamedTuple):
    """What a layer predicts from, before the masks are made: (B, Q, C) and (B, Q, mask_dim)."""

    normed_queries: Tensor
    mask_embedding: Tensor


class MultiScaleMaskedTransformerDecoder(nn.Module):
    """FASeg's decoder, and Mask2Former's under other arguments.

    num_layers: decoder layers; layer i reads level i mod the number of levels.
    positional_query: "dfpq", "learnable", "grid_anchor", "dynamic_anchor" or "dynamic_foreground".
    first_query_region: of DFPQ, "background" or "foreground".
    high_res_attention: "hrca", "random", "vanilla", "rcda" or "none". high_res_levels: strides of the levels that it
    reads; 1/4 is a level only where it is one of them. high_res_selection: of HRCA, "window" or "pixel".
    high_res_query: "static" or "dynamic".
    """

    _version = 2  # as FASegHead's

    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int,
        dim: int,
        num_queries: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        mask_dim: int,
        enforce_input_project: bool,
        positional_query: str,
        first_query_region: str,
        mask_threshold: float,
        high_res_attention: str,
        high_res_levels: Sequence[int],
        omega: int,
        high_res_selection: str,
        high_res_query: str,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"MODEL.MASK_FORMER.DEC_LAYERS is {num_layers + 1}; it must be >= 2: it counts the layers "
                             "and the prediction from the learnable queries")  # fmt: skip
        self.reads = reads = build_reads(
            mask_threshold=mask_threshold,
            attention=high_res_attention,
            levels=high_res_levels,
            omega=omega,
            selection=high_res_selection,
            query=high_res_query,
        )
        if positional_query in ("learnable", "grid_anchor"):
            self.positional_query = ConstantQuery()
        else:
            # named as in released state dicts, hence registered here and not within the positional query
            self.adapt_pos2d = query_projection(dim)
            self.positional_query = build_dynamic_query(
                positional_query, self.adapt_pos2d, first_query_region=first_query_region
            )

        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            reads[i % len(reads)].make_layer(dim, num_heads, keeps_attention=self._is_read(i, num_layers))
            for i in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(dim, ffn_dim) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = (
            GridAnchors(num_queries, dim) if positional_query == "grid_anchor" else nn.Embedding(num_queries, dim)
        )
        self.level_embed = nn.Embedding(len(reads), dim)
        self.input_proj = nn.ModuleList(nn.Identity() for _ in reads)
        if in_channels != dim or enforce_input_project:
            self.input_proj = nn.ModuleList(nn.Conv2d(in_channels, dim, 1) for _ in reads)
            for projection in self.input_proj:
                c2_xavier_fill(projection)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)

    @classmethod
    def from_config(cls, cfg, in_channels: int) -> dict:
        """Keyword arguments of the class."""
        former, faseg = cfg.MODEL.MASK_FORMER, cfg.MODEL.FASEG
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "dim": former.HIDDEN_DIM,
            "num_queries": former.NUM_OBJECT_QUERIES,
            "num_heads": former.NHEADS,
            "ffn_dim": former.DIM_FEEDFORWARD,
            "num_layers": former.DEC_LAYERS - 1,  # the key also counts the prediction from the learnable queries
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": former.ENFORCE_INPUT_PROJ,
            "positional_query": faseg.POSITIONAL_QUERY,
            "first_query_region": faseg.FIRST_QUERY_REGION,
            "mask_threshold": faseg.MASK_THRESHOLD,
            "high_res_attention": faseg.HIGH_RES.ATTENTION,
            "high_res_levels": faseg.HIGH_RES.LEVELS,
            "omega": faseg.HIGH_RES.OMEGA,
            "high_res_selection": faseg.HIGH_RES.SELECTION,
            "high_res_query": faseg.HIGH_RES.QUERY,
        }

    def _is_read(self, i: int, num_layers: int) -> bool:
        """Whether a later layer uses the attention of layer i; only then is it formed."""
        levels = len(self.reads)
        if not self.reads[i % levels].uses_mask:
            return False
        by_query = self.positional_query.reads_attention and i + 1 < num_layers
        round_ = range(i, min(i + levels, num_layers)) if i % levels == 0 else ()
        by_selection = any(self.reads[j % levels].reads_attention for j in round_)
        return by_query or by_selection

    def forward(self, maps: PixelDecoderOutput) -> list[Prediction]:
        """Predictions, the last layer's last. In evaluation mode there is only that one."""
        levels = [self._level(i, f, p) for i, (f, p) in enumerate(zip(maps.features, maps.key_positions, strict=True))]
        mask_features = maps.mask_features
        level_masks = self._level_mask_features(mask_features, levels)

        batch = mask_features.shape[0]
        queries = self.query_feat.weight.expand(batch, -1, -1)
        base = self.query_embed.weight.expand(batch, -1, -1)
        answers = [self._answer(queries)]
        mask_logits = answers[-1].mask_embedding.detach() @ level_masks[0]
        query_pos = self.positional_query.first(base, Seen(None, None, mask_logits, levels[0]))
        low_attention = None

        sublayers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        last = len(self.transformer_ffn_layers) - 1
        for i, (cross_attention, self_attention, ffn) in enumerate(sublayers):
            level, read = levels[i % len(levels)], self.reads[i % len(levels)]
            attended = read(
                cross_attention, queries, query_pos, base, level, mask_logits, low_attention, levels[0].size
            )
            if level is levels[0]:
                low_attention = attended.attention
            queries = ffn(self_attention(attended.queries, query_pos))

            upcoming = (i + 1) % len(levels)
            masked = self.reads[upcoming].uses_mask
            if self.training or masked or i == last:
                answers.append(self._answer(queries))
            if i == last:
                break
            mask_logits = answers[-1].mask_embedding.detach() @ level_masks[upcoming] if masked else None
            seen = Seen(attended.attention, level, mask_logits, levels[upcoming])
            query_pos = self.positional_query.renew(query_pos, base, seen)
        return self._predictions(answers if self.training else answers[-1:], mask_features)

    def _level(self, i: int, features: Tensor, key_position: Tensor) -> Level:
        tokens = self.input_proj[i](features).flatten(2).transpose(1, 2) + self.level_embed.weight[i]
        return Level(tokens, key_position.flatten(2).transpose(1, 2), tuple(features.shape[-2:]))

    @torch.no_grad()
    def _level_mask_features(self, mask_features: Tensor, levels: list[Level]) -> list[Tensor | None]:
        """(B, mask_dim, n) of every level that masks its keys.

        Resizing and the product with the mask embedding are linear and commute: the masks of a level cost a product at
        its own size. They are thresholded, so no gradient runs through them.
        """
        return [
            F.interpolate(mask_features, size=level.size, mode="bilinear", align_corners=False).flatten(2)
            if read.uses_mask
            else None
            for level, read in zip(levels, self.reads, strict=True)
        ]

    def _answer(self, queries: Tensor) -> _Answer:
        normed = self.decoder_norm(queries)
        return _Answer(normed, self.mask_embed(normed))

    def _predictions(self, answers: Sequence[_Answer], mask_features: Tensor) -> list[Prediction]:
        masks = mask_products([answer.mask_embedding for answer in answers], mask_features)
        return [
            Prediction(self.class_embed(answer.normed_queries), of_layer)
            for answer, of_layer in zip(answers, masks, strict=True)
        ]
