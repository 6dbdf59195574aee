"""Copies from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`. A copy to an NVIDIA GPU is queued with its work, and the host does not wait for it."""
    if device.type != "cuda":
        return x.to(device)  # without waiting, Apple's would read memory that may have been freed
    if x.device.type == "cpu":
        x = x.pin_memory()  # an asynchronous copy needs this; free if the data loader has done it
    return x.to(device, non_blocking=True)
