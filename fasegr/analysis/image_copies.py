"""Copies and near copies of images, by a perceptual hash.

The hash is pHash, as the package imagehash computes it (Zauner 2010, http://phash.org): the signs of the 8 x 8 lowest
frequencies of a 32 x 32 grey image around their median. With scipy, which is there, it is three lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import fft

from fasegr.data.image_io import decode, open_file, open_image

__all__ = ["NearCopy", "grey_thumbnail", "near_copies", "perceptual_hash"]

SIDE = 32  # pixels of a thumbnail
MAX_BITS = 10  # of 64 that the hashes of near copies may differ in
LEAST_CORRELATION = 0.95  # of their thumbnails
_PAIRS = 1 << 24  # compared at a time


class NearCopy(NamedTuple):
    """first, second: indices. bits: of the hashes that differ. correlation: of the thumbnails."""

    first: int
    second: int
    bits: int
    correlation: float


def grey_thumbnail(path: str | Path) -> np.ndarray:
    """(32, 32) uint8. All of the file is decoded, a JPEG only as finely as that needs. Raises as `open_image`."""
    with open_file(path) as opened:
        if opened.format == "JPEG":
            opened.draft("L", (2 * SIDE, 2 * SIDE))
            image = decode(opened, path)
            grey = image if image.mode == "L" else image.convert("RGB").convert("L")
            return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    return np.asarray(open_image(path).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def perceptual_hash(thumbnail: np.ndarray) -> np.uint64:
    """64 bits, of which few differ between pictures that look alike. thumbnail: (32, 32) grey."""
    lowest = fft.dctn(thumbnail.astype(np.float64))[:8, :8]
    return np.packbits(lowest > np.median(lowest)).view(np.uint64)[0]


def near_copies(
    hashes: np.ndarray, thumbnails: np.ndarray, other_hashes: np.ndarray, other_thumbnails: np.ndarray
) -> list[NearCopy]:
    """For each image of the second list its nearest one in the first, if they are near copies; the nearest pairs first.

    hashes: (N,) uint64. thumbnails: (N, 32, 32). Images of one grey level are near copies of no other.
    """
    if not len(hashes):
        return []
    found = []
    rows = max(1, _PAIRS // len(hashes))
    for start in range(0, len(other_hashes), rows):
        part = other_hashes[start : start + rows]
        bits = np.bitwise_count(part[:, None] ^ hashes)
        nearest = bits.argmin(1)
        for i in np.flatnonzero(bits[np.arange(len(part)), nearest] <= MAX_BITS):
            candidates = np.flatnonzero(bits[i] <= MAX_BITS)
            correlation = _correlation(other_thumbnails[start + i], thumbnails[candidates])
            best = int(correlation.argmax())
            if correlation[best] >= LEAST_CORRELATION:
                first = int(candidates[best])
                found.append(NearCopy(first, int(start + i), int(bits[i, first]), float(correlation[best])))
    return sorted(found, key=lambda pair: (pair.bits, -pair.correlation))


def _correlation(thumbnail: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) of one thumbnail with each of N; 0 where either has one grey level."""
    flat = np.concatenate([thumbnail[None], others]).reshape(1 + len(others), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    return flat[1:] @ flat[0]
