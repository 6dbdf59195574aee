"""The size of the tiles in which large results are computed."""

from __future__ import annotations

import torch


def tile_elements(device: torch.device) -> int:
    """Elements of a tile: on a CPU what fits its caches (8 MB of float32), elsewhere enough to keep all cores busy."""
    return 2**21 if device.type == "cpu" else 2**26
