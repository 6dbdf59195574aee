"""How much is computed at a time, where a large result is made tile by tile."""

from __future__ import annotations

import torch


def items_per_tile(elements_per_item: int, device: torch.device) -> int:
    """How many rows, layers, ... of `elements_per_item` each to compute together, at least one.

    On a CPU as many as stay in its caches (8 MB of float32), elsewhere as many as keep all cores busy.
    """
    elements = 2**21 if device.type == "cpu" else 2**26
    return max(1, elements // max(1, elements_per_item))
