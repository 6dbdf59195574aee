"""Key positions K_p: what tells a query where a key lies. One map for each level, used by encoder and decoder alike.

A key position is a module `f(level, features)`: features (B, C, H, W) of the level's projection, returns (B, C, H, W).
`reads_features` says whether the values of the features matter, or their size alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ConditionalPosition(nn.ModuleList):
    """Depthwise 3x3 convolution of the features, one for each level.

    Source: Chu et al., "Conditional positional encodings for vision transformers", ICLR 2023; the zeros around the map
    are what makes the position known.
    """

    reads_features = True

    def __init__(self, dim: int, num_levels: int):
        super().__init__(nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(num_levels))

    def forward(self, level: int, features: Tensor) -> Tensor:
        return self[level](features)


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
                f"a sinusoidal position has pairs for rows and columns: {dim} channels are no multiple of 4"
            )
        self.dim = dim
        self.temperature = temperature

    def forward(self, level: int, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        # Wavelengths and angles in float32 at least: bfloat16 does not tell neighbouring columns apart.
        dtype = torch.promote_types(features.dtype, torch.float32)
        half = self.dim // 2
        step = torch.arange(half, dtype=dtype, device=features.device)
        frequency = self.temperature ** (-2 * torch.div(step, 2, rounding_mode="floor") / half)

        def encode(size: int) -> Tensor:
            position = torch.arange(1, size + 1, dtype=dtype, device=features.device) / (size + 1e-6) * (2 * math.pi)
            angle = position[:, None] * frequency
            return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)

        rows = encode(height).t().unsqueeze(2).expand(half, height, width)
        columns = encode(width).t().unsqueeze(1).expand(half, height, width)
        return torch.cat([rows, columns]).to(features.dtype).expand(batch, self.dim, height, width)
