"""3 x 3 convolutions of stride 1 by Winograd's algorithm F(4 x 4, 3 x 3): a quarter of the multiplications.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016. An output tile of 4 x 4 pixels Y is made
from an input tile d of 6 x 6 that overlaps its neighbours by two, and a kernel g:

    Y = A^T [ (G g G^T) * (B^T d B) ] A

with * elementwise, summed over channels. For each of its 36 places that sum is a matrix product, tiles x channels by
channels x channels, so 36 products replace 16 x 9 = 144. B and A hold small integers and are applied as sums of maps.

float32 results are about 1e-5 from exact, relative to the largest; a direct sum is about 2e-6 from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 4
BLOCK = 256
"""Tiles taken at a time. With 256 channels their 36 places take 9 MB in float32, which stay in the cache."""


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` is quicker than a direct sum: whole tiles, enough of them, and channels whose product outweighs
    the transforms. x: (B, C, H, W). weight: (O, C, kh, kw)."""
    batch, _, height, width = x.shape
    whole = height % TILE == width % TILE == 0
    many = batch * height * width >= BLOCK * TILE**2
    return whole and many and weight.shape[2:] == (3, 3) and min(weight.shape[:2]) >= 128


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """`F.conv2d(x, weight, padding=1)`: (B, C, H, W) by (O, C, 3, 3) to (B, O, H, W), channels last, without a gradient
    of its own. H and W are multiples of 4."""
    batch, _, height, width = x.shape
    if height % TILE or width % TILE:
        raise ValueError(f"Winograd's tiles cover maps with sides that are multiples of {TILE}, not {height} x {width}")
    kernels = _kernels(weight)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    # no view of it is returned: a custom Function hands it out, and then an activation may change it in place
    shape = (batch, len(weight), height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    columns = width // TILE
    step = max(1, BLOCK // columns) * TILE
    for image, result in zip(padded, out.permute(0, 2, 3, 1), strict=True):
        for top in range(0, height, step):
            rows = result[top : top + step]
            tiles = _tiles(image[top : top + len(rows) + 2])
            products = torch.bmm(tiles.flatten(0, 1).flatten(1, 2), kernels)
            _write(products.view(*tiles.shape[:4], -1), rows)
    return out


@lru_cache(maxsize=4)
def _kernel_transform(dtype: torch.dtype) -> Tensor:
    """G, once along each side of the kernel: (36, 9)."""
    g = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
    g = torch.tensor(g, dtype=torch.float64) / 24
    return torch.kron(g, g).to(dtype)


def _kernels(weight: Tensor) -> Tensor:
    """G g G^T of each pair of channels, columns before rows: (36, C, O)."""
    out_channels, channels = weight.shape[:2]
    by_place = weight.permute(3, 2, 1, 0).reshape(9, -1)
    return (_kernel_transform(weight.dtype) @ by_place).view(36, channels, out_channels)


def _tiles(rows: Tensor) -> Tensor:
    """B^T d B of the tiles in rows of a padded map, (4 t + 2, 4 u + 2, C): (6, 6, t, u, C), columns before rows."""
    height, width, channels = rows.shape
    t, u = height // TILE, width // TILE
    by_row = rows.new_empty(6, t, width, channels)
    _input_transform([rows[i : i + TILE * t : TILE] for i in range(6)], by_row)
    tiles = rows.new_empty(6, 6, t, u, channels)
    _input_transform([by_row[:, :, i : i + TILE * u : TILE] for i in range(6)], tiles)
    return tiles


def _write(products: Tensor, rows: Tensor) -> None:
    """A^T m A of each tile, (6, 6, t, u, O), to its place in rows (4 t, 4 u, O)."""
    t, u = products.shape[2:4]
    by_column = products.new_empty(TILE, *products.shape[1:])
    _output_transform(products, by_column)
    _output_transform(by_column.transpose(0, 1), rows.view(t, TILE, u, TILE, -1).permute(1, 3, 0, 2, 4))


def _input_transform(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """B^T along one side, six maps to six:

    4 d0 - 5 d2 + d4
    (d4 - 4 d2) + (d3 - 4 d1)      (d4 - 4 d2) - (d3 - 4 d1)
    (d4 - d2) + 2 (d3 - d1)        (d4 - d2) - 2 (d3 - d1)
    4 d1 - 5 d3 + d5
    """
    even, odd = d[4] - d[2], d[3] - d[1]
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(d[0], d[2], out=out[0]).mul_(4).add_(even)
    torch.sub(d[5], d[3], out=out[5]).sub_(odd, alpha=4)
    torch.sub(d[4], d[2], alpha=4, out=even)
    torch.sub(d[3], d[1], alpha=4, out=odd)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])


def _output_transform(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A^T along one side, six maps to four:

    m0 + (m1 + m2) + (m3 + m4)     (m1 - m2) + 2 (m3 - m4)
    (m1 + m2) + 4 (m3 + m4)        (m1 - m2) + 8 (m3 - m4) + m5
    """
    near_sum, near_difference = m[1] + m[2], m[1] - m[2]
    far_sum, far_difference = m[3] + m[4], m[3] - m[4]
    torch.add(near_sum, far_sum, alpha=4, out=out[2])
    torch.add(near_difference, far_difference, alpha=2, out=out[1])
    torch.add(near_sum, far_sum, out=out[0]).add_(m[0])
    torch.add(near_difference, far_difference, alpha=8, out=out[3]).add_(m[5])
