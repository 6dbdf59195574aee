"""How much memory training a model takes, counted without a GPU and without computing anything.

The network runs on fake tensors, which have a shape but no data. Two parts are counted:

- activations: what autograd saves between forward and backward pass, and the predictions, which the losses read. Each
  storage counts once; parameters, buffers and images do not count.
- state: parameters, their gradients and the two moments of AdamW.

Both are exact, except that under autocast the statistics of norms count half, which is a thousandth of the whole at
most. Left out are tensors that live for one operation only (workspaces, gradients of activations) and what the losses
save.

`count_training_peak` leaves none of these out but the workspaces: it follows every tensor from its birth to its end
through a whole step. On a CPU it is what torch's allocator hands out at most.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasegr.analysis.flops import fake_copy
from fasegr.modeling.matcher import HungarianMatcher, Match

__all__ = ["TrainingMemory", "count_training_memory", "count_training_peak"]


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
    saved: dict[int, Tensor] = {}  # by storage; holding a tensor keeps the storage's address from being reused

    def save(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    fake, network = fake_copy(model)
    network.train()
    with fake:
        images = torch.zeros(batch, len(model.pixel_mean), *size)
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), _autocast(amp_dtype):
            outputs = network.sem_seg_head(network.backbone(images))
        for prediction in tree_leaves(outputs):
            save(prediction)
    for tensor in (images, *network.parameters(), *network.buffers()):
        saved.pop(tensor.untyped_storage()._cdata, None)
    activations = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    state = sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())
    return TrainingMemory(activations, state)


def count_training_peak(
    model: nn.Module,
    size: tuple[int, int],
    *,
    batch: int,
    segments: int,
    amp_dtype: torch.dtype | None = None,
    keeps_gradients: bool = False,
    copies: int = 2,
) -> int:
    """Most bytes in use at once in a step that trains `model`, a segmentor on the CPU, state included.

    size: (height, width) of the `batch` images, which have `segments` targets each. amp_dtype: as above.
    keeps_gradients: those of the weights are there before the step: of micro-batches before it, or of several
    processes. copies: of the trained weights, that the optimizer (AdamW: 2 moments) and an average keep. The matching,
    which values decide, is left out: its costs are computed in tiles before the losses are.
    """
    fake, network = fake_copy(model)
    network.train()
    network.criterion.matcher = _FirstQueries(model.criterion.matcher)
    trained = [p for p in network.parameters() if p.requires_grad]
    with fake:
        samples = [
            {
                "image": torch.zeros(len(model.pixel_mean), *size, dtype=torch.uint8),
                "labels": torch.zeros(segments, dtype=torch.int64),
                "masks": torch.zeros(segments, *size, dtype=torch.bool),
            }
            for _ in range(batch)
        ]
        if keeps_gradients:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in trained if p.grad is not None]
        before = [*network.parameters(), *network.buffers(), *tree_leaves(samples), *gradients]
        alive = _Alive(before)
        with alive:
            with _autocast(amp_dtype):
                loss = sum(network(samples).values())
            loss.backward()
    return alive.peak + copies * sum(p.numel() * p.element_size() for p in trained)


def _autocast(amp_dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    dtype = torch.bfloat16 if amp_dtype == torch.float16 else amp_dtype
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


class _Alive(TorchDispatchMode):
    """A context that counts the bytes of all storages that are in use; `peak` is the most so far."""

    def __init__(self, tensors: Iterable[Tensor]):
        """tensors: that are there before."""
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._before = [tensor.untyped_storage() for tensor in tensors]  # held, so that no other gets their address
        for storage in self._before:
            self._add(storage)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class _FirstQueries:
    """In place of a matcher, which needs values: the first queries get the targets."""

    def __init__(self, matcher: HungarianMatcher):
        self.num_points = matcher.num_points

    def __call__(
        self,
        pred_logits: Sequence[Tensor],
        pred_masks: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
        points: Tensor,
    ) -> list[Match]:
        layers, queries = len(pred_logits), pred_logits[0].shape[1]
        counts = [min(queries, len(target["labels"])) for target in targets]
        return [Match(*(torch.arange(count).expand(layers, -1),) * 2) for count in counts]
