"""How much memory training a model takes, counted without a GPU and without computing anything.

The network runs on fake tensors, which have a shape but no data. Two parts are counted:

- activations: what autograd saves between forward and backward pass, and the predictions, which the losses read. Each
  storage counts once; parameters, buffers and images do not count.
- state: parameters, their gradients and the two moments of AdamW.

Both are exact, except that under autocast the statistics of norms count half, which is a thousandth of the whole at
most. Left out are tensors that live for one operation only (workspaces, gradients of activations) and what the losses
save.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fasegr.analysis.flops import fake_copy

__all__ = ["TrainingMemory", "count_training_memory"]


class TrainingMemory(NamedTuple):
    """Bytes of activations, and of the state: parameters, gradients and AdamW's moments."""

    activations: int
    state: int

    @property
    def total(self) -> int:
        return self.activations + self.state


def count_training_memory(
    model: nn.Module, size: tuple[int, int], *, batch: int, amp_dtype: torch.dtype | None = None
) -> TrainingMemory:
    """Memory for training `model`, a segmentor on the CPU, with `batch` images of `size` (height, width).

    amp_dtype: of autocast, None without. float16 counts as bfloat16, which has the same size and works on CPUs.
    """
    dtype = torch.bfloat16 if amp_dtype == torch.float16 else amp_dtype
    autocast = contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
    saved: dict[int, Tensor] = {}  # by storage; holding a tensor keeps the storage's address from being reused

    def save(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    fake, network = fake_copy(model)
    network.train()
    with fake:
        images = torch.zeros(batch, len(model.pixel_mean), *size)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast:
            outputs = network.sem_seg_head(network.backbone(images))
        for prediction in tree_leaves(outputs):
            save(prediction)
    for tensor in (images, *network.parameters(), *network.buffers()):
        saved.pop(tensor.untyped_storage()._cdata, None)
    activations = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    state = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())
    return TrainingMemory(activations, state)
