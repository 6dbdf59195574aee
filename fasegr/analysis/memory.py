"""How much memory training a model takes: measured on a GPU, or counted from what the backward pass keeps.

The count needs no GPU and computes nothing: the network runs on tensors that have shapes and no content. It has two
parts, both exact (but that under autocast the statistics of norms count half, as a thousandth of the whole or less):

- activations: what autograd keeps between forward and backward pass, and the predictions, which the losses read. Each
  storage counts once; parameters, buffers and images do not count.
- state: parameters, their gradients and the two moments of AdamW.

It leaves out what lives for one operation only (workspaces, the gradients on their way) and what the losses keep.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._pytree import tree_leaves

__all__ = ["TrainingMemory", "count_training_memory", "measure_training_memory", "noise_batch"]


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
    """What training `model`, a segmentor on the CPU, keeps with `batch` images of `size` (height, width).

    amp_dtype: of autocast, None for none. float16 counts as bfloat16, which is as wide, and which CPUs compute in.
    """
    dtype = torch.bfloat16 if amp_dtype == torch.float16 else amp_dtype
    kept: dict[int, Tensor] = {}  # storage: a tensor in it, so that the storage lives and no other gets its number

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        network = copy.deepcopy(model).train()
    with fake:
        images = torch.zeros(batch, len(model.pixel_mean), *size)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _autocast("cpu", dtype):
            outputs = network.sem_seg_head(network.backbone(images))
        for prediction in tree_leaves(outputs):
            keep(prediction)
    for known in (images, *network.parameters(), *network.buffers()):
        kept.pop(known.untyped_storage()._cdata, None)
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state = sum(p.numel() * p.element_size() for p in model.parameters())
    return TrainingMemory(activations, state + 3 * sum(p.numel() * p.element_size() for p in trained))


def measure_training_memory(
    model: nn.Module, samples: Sequence[dict], *, amp_dtype: torch.dtype | None = None, steps: int = 2
) -> int:
    """Most bytes of tensors at once on the GPU in `steps` training steps of `model`, a segmentor that is there.

    A step is all of it: images, losses, backward pass, gradient clipping aside, and AdamW. The second step is the first
    in which the optimizer has its moments from the start.
    """
    if model.device.type != "cuda":
        raise ValueError(f"the model is on {model.device}; the peak of a training step is measured on a GPU only")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cuda", enabled=amp_dtype == torch.float16)
    training = model.training
    model.train()
    torch.cuda.reset_peak_memory_stats(model.device)
    try:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with _autocast("cuda", amp_dtype):
                loss = sum(model(samples).values())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            del loss
        return torch.cuda.max_memory_allocated(model.device)
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)


def noise_batch(model: nn.Module, size: tuple[int, int], batch: int, classes: int = 10) -> list[dict]:
    """`batch` training samples of noise, each with `classes` masks: stripes, so that none is empty."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    stripes = torch.arange(height)[:, None].expand(size) * classes // height
    masks = stripes == torch.arange(classes)[:, None, None]
    shape = (len(model.pixel_mean), height, width)
    sample = {"height": height, "width": width, "labels": torch.arange(classes), "masks": masks}
    return [
        {**sample, "image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)} for _ in range(batch)
    ]


def _autocast(device: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)
