"""Key positions K_p, which tell a query where a key is: one map for each level, shared by encoder and decoder.

A key position is a module `f(level, features)`: features (B, C, H, W) of the level's projection, returns (B, C, H, W).
`reads_features` says whether the values of the features matter, or only their size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConditionalPosition(nn.ModuleList):
    """Depthwise 3x3 convolution of the features, one for each level.

    Source: Chu et al., "Conditional positional encodings for vision transformers", ICLR 2023; the zero padding
    is what makes positions distinguishable.
    """

    reads_features = True

    def __init__(self, dim: int, num_levels: int):
        super().__init__(nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(num_levels))

    def forward(self, level: int, features: Tensor) -> Tensor:
        return self[level](features)


class LearnablePosition(nn.ModuleList):
    """A table of table_size x table_size learned vectors for each level, resized to the map.

    Source: "learnable absolute" of the paper's table 3, which cites Gehring et al., "Convolutional sequence to sequence
    learning", ICML 2017: one learned vector for each position, initialised with deviation 0.1. A table covers the
    whole image, so it is resized bilinearly to maps of any size (antialiased where it shrinks: otherwise training at
    one size would skip entries that another needs).

    table_size: 16 is one vector for each cell of the coarsest map of a 512 x 512 image. All levels have as many: one
    for each pixel of the 1/4 map would be 4.2 M parameters, few of which would be trained at a time by attention to
    one key in 32; so FASeg keeps the 51 M of the other rows.
    """

    reads_features = False

    def __init__(self, dim: int, num_levels: int, table_size: int = 16):
        super().__init__(nn.Embedding(table_size * table_size, dim) for _ in range(num_levels))
        self.table_size = table_size
        for table in self:
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, level: int, features: Tensor) -> Tensor:
        batch, size = features.shape[0], features.shape[-2:]
        table = self[level].weight.t().unflatten(1, (1, self.table_size, self.table_size)).transpose(0, 1)
        resized = F.interpolate(table, size=size, mode="bilinear", align_corners=False, antialias=True)
        return resized.to(features.dtype).expand(batch, -1, -1, -1)


class SinusoidalPosition(nn.Module):
    """Sines and cosines of row and column, each scaled to (0, 2 pi]: DETR's and Mask2Former's encoding.

    Source: Carion et al., "End-to-end object detection with transformers", ECCV 2020. The first half of the channels
    encodes the row, the second the column; even channels are sines, odd ones cosines of the same frequency.
    """

    reads_features = False

    def __init__(self, dim: int, temperature: float = 10000.0):
        super().__init__()
        if dim % 4:
            raise ValueError(
                f"a sinusoidal position has pairs for rows and columns; {dim} channels are not a multiple of 4"
            )
        self.dim = dim
        self.temperature = temperature

    def forward(self, level: int, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        # Angles in float32 at least: bfloat16 cannot distinguish neighbouring columns.
        dtype = torch.promote_types(features.dtype, torch.float32)
        half = self.dim // 2

        def encode(size: int) -> Tensor:
            position = torch.arange(1, size + 1, dtype=dtype, device=features.device) / (size + 1e-6)
            return _sines_and_cosines(position, half, self.temperature)

        rows = encode(height).t().unsqueeze(2).expand(half, height, width)
        columns = encode(width).t().unsqueeze(1).expand(half, height, width)
        return torch.cat([rows, columns]).to(features.dtype).expand(batch, self.dim, height, width)


def encode_points(points: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sinusoidal codes (..., dim) of points (..., 2), y and x relative to height and width.

    The channels are those of `SinusoidalPosition`.
    """
    if dim % 4:
        raise ValueError(f"a sinusoidal code has pairs for rows and columns; {dim} channels are not a multiple of 4")
    return _sines_and_cosines(points, dim // 2, temperature).flatten(-2)


def _sines_and_cosines(positions: Tensor, channels: int, temperature: float) -> Tensor:
    """(...) positions relative to a side to (..., channels): pairs of sine and cosine, of decreasing frequency."""
    step = torch.arange(channels, dtype=positions.dtype, device=positions.device)
    frequency = temperature ** (-2 * torch.div(step, 2, rounding_mode="floor") / channels)
    angle = (positions * (2 * math.pi)).unsqueeze(-1) * frequency
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def build_key_position(name: str, dim: int, num_levels: int) -> nn.Module:
    """name: "conditional" (FASeg), "sinusoidal" (Mask2Former) or "learnable"."""
    if name == "conditional":
        return ConditionalPosition(dim, num_levels)
    if name == "learnable":
        return LearnablePosition(dim, num_levels)
    if name == "sinusoidal":
        return SinusoidalPosition(dim)
    raise ValueError(f"key_position is {name!r}; choose conditional, sinusoidal or learnable")
