"""The layout of feature maps in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) with the channels of a pixel next to one another, the layout that convolutions are fastest in on
    CPUs and GPUs. Other devices (MPS) keep the layout that they have."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type in ("cpu", "cuda") else x
