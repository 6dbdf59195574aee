"""The layout of feature maps in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) in channels-last format, in which convolutions are fastest on CPUs and GPUs. On other devices (MPS)
    the format is unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type in ("cpu", "cuda") else x
