"""The transformer decoder: learnable queries attend to the maps of the pixel decoder, coarse to fine, in rounds.

Source: Cheng et al., "Masked-attention mask transformer", CVPR 2022 (masked attention, order of sub-layers) and the
FASeg paper (positional queries, high-resolution cross-attention), as the authors released it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.layers import MLP, Linear, c2_xavier_fill
from fasegr.modeling.mask_piloting import PilotQueries
from fasegr.modeling.pixel_decoder import PixelDecoderOutput
from fasegr.modeling.transformer_decoder.attention import CrossAttentionContext, FFNLayer, SelfAttentionLayer
from fasegr.modeling.transformer_decoder.cross_attention import build_cross_attention
from fasegr.modeling.transformer_decoder.feature_levels import FeatureLevel
from fasegr.modeling.transformer_decoder.positional_query import (
    ConstantQuery,
    GridAnchors,
    PositionalQueryContext,
    build_dynamic_query,
    query_projection,
)


class Prediction(NamedTuple):
    """class_logits: (B, Q, K + 1). mask_logits: (B, Q, H/4, W/4)."""

    class_logits: Tensor
    mask_logits: Tensor


class _PredictionInput(NamedTuple):
    """What a layer predicts from: normed queries (B, Q, C), and their mask embeddings (B, Q, mask_dim)."""

    queries: Tensor
    mask_embed: Tensor


class MultiScaleMaskedTransformerDecoder(nn.Module):
    """FASeg's decoder, and Mask2Former's with other arguments.

    num_layers: decoder layers; layer i attends to level i mod the number of levels. Levels without layers are omitted.
    positional_query: "dfpq", "learnable", "grid_anchor", "dynamic_anchor" or "dynamic_foreground".
    first_query_region: of DFPQ, "background" or "foreground".
    mask_threshold: of masked attention. high_res_attention: "hrca", "random", "vanilla", "rcda" or "none".
    high_res_levels: strides of its levels; 1/4 is a level only if it is one of them. omega: one key in `omega` is
    attended to. high_res_selection: of HRCA, "window" or "pixel". high_res_query: "static" or "dynamic".
    mask_pilot: whether it can be trained with piloted queries (`MaskPilot`), whose content is learned for each class.
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
        mask_pilot: bool = False,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; it must be >= 1")
        kinds = build_cross_attention(
            mask_threshold=mask_threshold,
            attention=high_res_attention,
            levels=high_res_levels,
            omega=omega,
            selection=high_res_selection,
            query=high_res_query,
        )[:num_layers]  # a level without a layer would have parameters without gradients
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
            kinds[i % len(kinds)](dim, num_heads) for i in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(dim, ffn_dim) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = (
            GridAnchors(num_queries, dim) if positional_query == "grid_anchor" else nn.Embedding(num_queries, dim)
        )
        self.level_embed = nn.Embedding(len(kinds), dim)
        if mask_pilot:
            self.label_enc = nn.Embedding(num_classes + 1, dim)  # the last for no-object
        self.input_proj = nn.ModuleList(nn.Identity() for _ in kinds)
        if in_channels != dim or enforce_input_project:
            self.input_proj = nn.ModuleList(nn.Conv2d(in_channels, dim, 1) for _ in kinds)
            for projection in self.input_proj:
                c2_xavier_fill(projection)
        self.class_embed = Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)
        self.need_weights = [self._needs_weights(i, len(kinds)) for i in range(num_layers)]

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
            "mask_pilot": former.MASK_PILOT.ENABLED,
        }

    def _needs_weights(self, i: int, num_levels: int) -> bool:
        """Whether a later layer uses the attention of layer i; only then is it computed."""
        layers = self.transformer_cross_attention_layers
        if not layers[i].uses_mask:
            return False
        for_query = self.positional_query.reads_attention and i + 1 < len(layers)
        rest_of_round = layers[i + 1 : i + num_levels] if i % num_levels == 0 else ()
        return for_query or any(layer.reads_attention for layer in rest_of_round)

    def forward(self, maps: PixelDecoderOutput) -> list[Prediction]:
        """The predictions of all layers in order; in evaluation mode only that of the last layer."""
        return self._predictions(self._decode(maps), maps.mask_features)

    def forward_piloted(
        self, maps: PixelDecoderOutput, pilot: PilotQueries
    ) -> tuple[list[Prediction], list[Prediction]]:
        """The predictions of all layers from the queries, which are those of `forward`, and from the piloted ones."""
        inputs, count = self._decode(maps, pilot), self.query_feat.num_embeddings
        own = [_PredictionInput(*(part[:, :count] for part in layer)) for layer in inputs]
        piloted = [_PredictionInput(*(part[:, count:] for part in layer)) for layer in inputs]
        return self._predictions(own, maps.mask_features), self._predictions(piloted, maps.mask_features)

    def _decode(self, maps: PixelDecoderOutput, pilot: PilotQueries | None = None) -> list[_PredictionInput]:
        """What each layer predicts from; in evaluation mode only the last. Piloted queries stand behind the others."""
        pairs = zip(maps.features, maps.key_positions, strict=True)
        levels = [self._level(i, f, p) for i, (f, p) in enumerate(islice(pairs, len(self.input_proj)))]
        level_mask_features = self._level_mask_features(maps.mask_features, levels)

        batch = maps.mask_features.shape[0]
        queries = self.query_feat.weight.expand(batch, -1, -1)
        query_embed = self.query_embed.weight.expand(batch, -1, -1)
        count, self_attn_mask = queries.shape[1], None
        if pilot is not None:
            piloted = self.label_enc(pilot.labels)
            queries = torch.cat((queries, piloted), 1)
            query_embed = torch.cat((query_embed, torch.zeros_like(piloted)), 1)
            self_attn_mask = _self_attn_mask(pilot.groups, count)
        inputs = [self._prediction_input(queries)]
        mask_logits = _mask_logits(inputs[-1], level_mask_features[0], pilot, 0, count)
        query_pos = self.positional_query.first(query_embed, PositionalQueryContext(None, None, mask_logits, levels[0]))
        coarse_attention = None

        layers = list(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        )
        for i, (cross_attention, self_attention, ffn) in enumerate(layers):
            level = levels[i % len(levels)]
            context = CrossAttentionContext(
                level, query_pos, query_embed, mask_logits, coarse_attention, levels[0].size, self.need_weights[i]
            )
            queries, attention, _ = cross_attention(queries, context)
            if i % len(levels) == 0:  # the coarsest
                # piloted queries know the targets, and must not choose what the others see
                coarse_attention = attention if attention is None else attention[:, :count]
            queries = ffn(self_attention(queries, query_pos, self_attn_mask))

            is_last = i + 1 == len(layers)
            next_uses_mask = not is_last and layers[i + 1][0].uses_mask
            if self.training or next_uses_mask or is_last:
                inputs.append(self._prediction_input(queries))
            if is_last:
                break
            next_level = (i + 1) % len(levels)
            mask_logits = None
            if next_uses_mask:
                mask_logits = _mask_logits(inputs[-1], level_mask_features[next_level], pilot, i + 1, count)
            query_pos = self.positional_query.update(
                query_pos, query_embed, PositionalQueryContext(attention, level, mask_logits, levels[next_level])
            )
        return inputs if self.training else inputs[-1:]

    def _level(self, i: int, features: Tensor, key_position: Tensor) -> FeatureLevel:
        memory = self.input_proj[i](features).flatten(2).transpose(1, 2) + self.level_embed.weight[i]
        key_pos, size = key_position.flatten(2).transpose(1, 2), tuple(features.shape[-2:])
        if not self.transformer_cross_attention_layers[i].uses_mask:
            return FeatureLevel(memory, key_pos, size)
        # every round projects them again
        return FeatureLevel(ops.for_products(memory), key_pos, size, key=ops.for_products(memory + key_pos))

    @torch.no_grad()
    def _level_mask_features(self, mask_features: Tensor, levels: list[FeatureLevel]) -> list[Tensor | None]:
        """(B, mask_dim, n) of every level with masked attention, None of the others.

        Resizing and the product with the mask embedding are linear and commute: the masks of a level cost a product at
        its own size. They are thresholded, so no gradient flows through them.
        """
        first = list(self.transformer_cross_attention_layers)[: len(levels)]  # later ones take the same turns
        return [
            ops.for_products(
                F.interpolate(mask_features, size=level.size, mode="bilinear", align_corners=False).flatten(2)
            )
            if layer.uses_mask
            else None
            for level, layer in zip(levels[: len(first)], first, strict=True)
        ]

    def _prediction_input(self, queries: Tensor) -> _PredictionInput:
        normed = self.decoder_norm(queries)
        return _PredictionInput(normed, self.mask_embed(normed))

    def _predictions(self, inputs: Sequence[_PredictionInput], mask_features: Tensor) -> list[Prediction]:
        features, size = mask_features.flatten(2), mask_features.shape[-2:]
        class_logits = self.class_embed(torch.stack([layer.queries for layer in inputs]))
        mask_logits = [(layer.mask_embed @ features).unflatten(2, size) for layer in inputs]
        return [Prediction(*pair) for pair in zip(class_logits, mask_logits, strict=True)]


def _mask_logits(
    prediction: _PredictionInput, mask_features: Tensor, pilot: PilotQueries | None, layer: int, count: int
) -> Tensor:
    """(B, Q, n): the masks within which the queries attend in `layer`, without a gradient.

    mask_features: (B, mask_dim, n), of its level. count: Q without the piloted queries, whose masks are given.
    """
    mask_embed = prediction.mask_embed.detach()
    if pilot is None:
        return mask_embed @ mask_features
    logits = mask_embed[:, :count] @ mask_features
    given = torch.zeros_like(pilot.attn_masks[layer], dtype=logits.dtype).masked_fill_(
        ~pilot.attn_masks[layer], float("-inf")
    )
    return torch.cat((logits, given.masked_fill_(pilot.attn_masks[layer], float("inf"))), 1)


def _self_attn_mask(groups: Tensor, count: int) -> Tensor:
    """(B, 1, Q, Q) bool, True where a query sees another: not a piloted one of another group than its own.

    groups: (B, N), of piloted queries, which stand behind `count` others.
    """
    others = groups.new_full((groups.shape[0], count), -1)
    group = torch.cat((others, groups), 1)
    return ((group[:, None, :] < 0) | (group[:, None, :] == group[:, :, None])).unsqueeze(1)
