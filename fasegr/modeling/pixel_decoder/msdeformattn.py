"""Pixel decoder: deformable transformer encoder over the coarse maps, FPN to the finest, and key positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.layers import ConvNorm, Linear, build_norm, c2_xavier_fill
from fasegr.modeling.transformer_decoder.feature_levels import level_strides
from fasegr.modeling.transformer_decoder.position_encoding import build_key_position


class PixelDecoderOutput(NamedTuple):
    """mask_features: (B, mask_dim, H/4, W/4). features and key_positions: (B, C, h, w) for each level, coarse first."""

    mask_features: Tensor
    features: list[Tensor]
    key_positions: list[Tensor]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable self-attention over tokens (Zhu et al., "Deformable DETR", ICLR 2021).

    dim channels, num_levels maps, num_heads heads, num_points points for each head and level.
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide the {dim} channels of deformable attention")
        self.grid = (num_heads, num_levels, num_points)
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
        self._planes = ops.Kept()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Head h samples in direction h of a circle, its p-th point p pixels away; all points have the same weight."""
        heads, levels, points = self.grid
        angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction /= direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1, dtype=torch.float32)
        offsets = direction.view(heads, 1, 1, 2) * steps.view(1, 1, points, 1)
        self.sampling_offsets.weight.zero_()
        self.sampling_offsets.bias.copy_(offsets.expand(heads, levels, points, 2).reshape(-1))
        self.attention_weights.weight.zero_()
        self.attention_weights.bias.zero_()
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor) -> Tensor:
        """tokens, position: (B, T, C). reference: (2, T, 1, L * P), by `_reference_points`."""
        value = self.value_proj(tokens).unflatten(-1, (self.grid[0], -1))
        points = self._sampling_points(tokens + position, reference)
        return self.output_proj(ops.deformable_attention(value, shapes, *points))

    def _sampling_points(self, query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where to sample, x and y, and the attention weights, all (B, T, M, L, P). query: (B, T, C)."""
        heads, levels, points = self.grid
        offsets, attention = self.sampling_offsets, self.attention_weights
        weight, bias = self._planes(_in_planes, offsets.weight, attention.weight, offsets.bias, attention.bias)
        # Sub-pixel locations need float32, hence outside autocast.
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(torch.promote_types(query.dtype, weight.dtype))
            planes = F.linear(query, weight, bias).unflatten(-1, (3, heads, levels * points))
            x, y, scores = planes.unbind(2)
            x_ref, y_ref = reference
            grid = (levels, points)
            return tuple(plane.unflatten(-1, grid) for plane in (x + x_ref, y + y_ref, scores.softmax(-1)))


def _in_planes(
    offsets: Tensor, attention: Tensor, offsets_bias: Tensor, attention_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one product for x, y and attention weights, each in a separate plane."""
    weight = torch.cat([offsets[0::2], offsets[1::2], attention])
    return weight, torch.cat([offsets_bias[0::2], offsets_bias[1::2], attention_bias])


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward network, post-norm: (B, T, C) to (B, T, C)."""

    def __init__(self, dim: int, ffn_dim: int, num_levels: int, num_heads: int, num_points: int, dropout: float):
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, ffn_dim)
        self.linear2 = Linear(ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor) -> Tensor:
        tokens = self.norm1(tokens + self.dropout(self.self_attn(tokens, position, shapes, reference)))
        hidden = self.dropout(F.relu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class _Encoder(nn.Module):
    """The stack of layers, under the name it has in released state dicts (`transformer.encoder.layers`)."""

    def __init__(self, layers: Sequence[EncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DeformableEncoder(nn.Module):
    """Deformable transformer encoder over several maps at once. num_points: of the attention, for each level."""

    def __init__(self, dim: int, layers: Sequence[EncoderLayer], num_levels: int, num_points: int):
        super().__init__()
        self.num_points = num_points
        self._reference = ops.Kept()
        self.encoder = _Encoder(layers)
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim).normal_())
        for module in self.modules():
            if isinstance(module, EncoderLayer):
                nn.init.xavier_uniform_(module.linear1.weight)
                nn.init.xavier_uniform_(module.linear2.weight)

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """maps, positions: (B, C, h, w) for each level. Returns maps of the same shapes."""
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        position = torch.cat(
            [p.flatten(2).transpose(1, 2) + e for p, e in zip(positions, self.level_embed, strict=True)], dim=1
        )
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        reference = self._reference(_reference_points, shapes, self.num_points, dtype, tokens.device)
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, shapes, reference)
        levels = tokens.split([h * w for h, w in shapes], dim=1)
        return [t.transpose(1, 2).unflatten(2, shape) for t, shape in zip(levels, shapes, strict=True)]


def _reference_points(
    shapes: Sequence[tuple[int, int]], points: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(2, T, 1, L * P): x and y of the centre of each token, in pixels of each level, for each of P points."""

    def centres(size: int) -> Tensor:
        return (torch.arange(size, dtype=dtype, device=device) + 0.5) / size

    x = torch.cat([centres(w).expand(h, w).flatten() for h, w in shapes])
    y = torch.cat([centres(h).unsqueeze(1).expand(h, w).flatten() for h, w in shapes])
    # Tensors times numbers: the host would wait for the copy of a tensor made from numbers.
    x = torch.stack([x * w for _, w in shapes], dim=-1)
    y = torch.stack([y * h for h, _ in shapes], dim=-1)
    return torch.stack([x, y])[:, :, None].repeat_interleave(points, dim=-1)


class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone maps to mask features, the maps that the transformer decoder attends to, and their key positions.

    in_channels: {name: channels}, finest map first. strides: {name: stride}. encoder_features: the names that enter
    the deformable encoder; finer ones are merged after it, FPN-like, down to `common_stride`.
    num_levels: maps for the transformer decoder, coarse first (3: the encoder's; 4: the 1/4 map too). With few layers,
    those that it would not use are left out, since their parameters would get no gradients.
    key_position: "conditional" (FASeg), "sinusoidal" (Mask2Former) or "learnable".
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        strides: Mapping[str, int],
        *,
        encoder_features: Sequence[str],
        dim: int,
        mask_dim: int,
        norm: str,
        num_layers: int,
        num_heads: int,
        num_points: int,
        ffn_dim: int,
        dropout: float,
        common_stride: int,
        num_levels: int,
        key_position: str,
    ):
        super().__init__()
        names = sorted(in_channels, key=lambda name: strides[name])
        missing = [name for name in encoder_features if name not in in_channels]
        if missing:
            raise ValueError(f"encoder_features has {missing}; the maps of the backbone are {names}")
        self.encoder_features = sorted(encoder_features, key=lambda name: -strides[name])
        finest = min(strides[name] for name in encoder_features)
        self.fpn_features = [n for n in reversed(names) if common_stride <= strides[n] < finest]
        levels = [*self.encoder_features, *self.fpn_features]
        if num_levels > len(levels):
            raise ValueError(f"num_levels is {num_levels}; there are {len(levels)} maps: {levels}")
        if strides[levels[-1]] != common_stride:
            raise ValueError(f"common_stride is {common_stride}; the finest map has stride {strides[levels[-1]]}")
        self.levels = levels[:num_levels]

        key_position_module = build_key_position(key_position, dim, num_levels)
        # Maps outside the encoder are projected only for their key positions.
        projected = self.levels if key_position_module.reads_features else self.encoder_features
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels[name], dim, 1), nn.GroupNorm(32, dim)) for name in projected
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.pos_linear = key_position_module

        num_encoder_levels = len(self.encoder_features)
        layers = [
            EncoderLayer(dim, ffn_dim, num_encoder_levels, num_heads, num_points, dropout) for _ in range(num_layers)
        ]
        self.transformer = DeformableEncoder(dim, layers, num_encoder_levels, num_points)

        # adapter_1, layer_1 belong to the finest map, as in released state dicts
        for i, name in enumerate(reversed(self.fpn_features), start=1):
            lateral = ConvNorm(in_channels[name], dim, 1, bias=norm == "", norm=build_norm(norm, dim))
            output = ConvNorm(dim, dim, 3, padding=1, bias=norm == "", norm=build_norm(norm, dim), activation=F.relu_)
            for conv in (lateral, output):
                c2_xavier_fill(conv)
            self.add_module(f"adapter_{i}", lateral)
            self.add_module(f"layer_{i}", output)
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)
        c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        """Keyword arguments of the class; input_shape is {name: ShapeSpec} of the backbone."""
        head, former, faseg = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER, cfg.MODEL.FASEG
        missing = [name for name in head.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.IN_FEATURES has {missing}; the backbone has {list(input_shape)}")
        used = min(len(level_strides(faseg.HIGH_RES.ATTENTION, faseg.HIGH_RES.LEVELS)), former.DEC_LAYERS - 1)
        encoder_features = head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES
        return {
            "in_channels": {name: input_shape[name].channels for name in head.IN_FEATURES},
            "strides": {name: input_shape[name].stride for name in head.IN_FEATURES},
            "encoder_features": encoder_features,
            "dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "num_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "ffn_dim": head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD,
            "dropout": former.DROPOUT,
            "common_stride": head.COMMON_STRIDE,
            "num_levels": max(used, len(encoder_features)),
            "key_position": faseg.KEY_POSITION,
        }

    def forward(self, features: Mapping[str, Tensor]) -> PixelDecoderOutput:
        """features: {name: (B, C, H/stride, W/stride)} of the backbone."""
        maps, positions = [], []
        for i, name in enumerate(self.levels):
            projected = self.input_proj[i](features[name]) if i < len(self.input_proj) else features[name]
            positions.append(self.pos_linear(i, projected))
            if name in self.encoder_features:
                maps.append(projected)
            del projected  # of maps outside the encoder, only the key positions are kept
        outputs = self.transformer(maps, positions[: len(maps)])
        for i, name in zip(range(len(self.fpn_features), 0, -1), self.fpn_features, strict=True):
            lateral = self.get_submodule(f"adapter_{i}")(features[name])
            # In place, since the finest maps set the peak memory; no gradient needs the lateral map.
            lateral += F.interpolate(outputs[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            outputs.append(self.get_submodule(f"layer_{i}")(lateral))
        return PixelDecoderOutput(self.mask_features(outputs[-1]), outputs[: len(self.levels)], positions)
