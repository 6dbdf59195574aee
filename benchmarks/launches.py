"""Counts, without a GPU, what a GPU would be asked to do: tensors without values that claim to be on one.

At small batches a GPU waits for the host, which needs some microseconds for each operation, large or small. So the
number of operations is the cost, and it is exact.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fasegr
from benchmarks.case import Case
from benchmarks.measure import WHOLE, read
from benchmarks.models import NUM_MASKS, OTHER
from benchmarks.sides import BACKBONE, CRITERION, DECODER, PIXEL_DECODER, autocast, loss_parts, network_parts
from fasegr.modeling.matcher import Match
from fasegr.modeling.ops import triton_deformable_attention

aten = torch.ops.aten
ALLOCATIONS = {aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default, aten.empty_like.default}


@dataclasses.dataclass
class Count:
    """kernels: operations that compute. casts: those of them that only change the type. views: operations that only
    describe memory in another way, which cost the host time but launch nothing. waits: copies that the host waits for.
    """

    kernels: int = 0
    casts: int = 0
    views: int = 0
    waits: int = 0

    def without(self, others: list[Count]) -> Count:
        mine, theirs = dataclasses.astuple(self), zip(*map(dataclasses.astuple, others), strict=True)
        return Count(*(a - sum(b) for a, b in zip(mine, theirs, strict=True)))


class Launches(TorchDispatchMode):
    """Counts the operations that torch dispatches to the GPU, below autograd and autocast, by part.

    An operation is one call of an ATen function, or of our own, with a tensor on the GPU among its arguments or
    results. Most are one kernel; a sort or a copy of many tensors are a few. Allocations are not counted. Fused
    attention, which torch chooses only where there is a GPU, is one operation, and two for its mask. What asks for a
    value (`item`, `nonzero`, an index of bools) and so waits for the GPU is an error: these tensors have none.
    """

    def __init__(self):
        super().__init__()
        self._counts: dict[str, Count] = defaultdict(Count)
        self._open: list[str] = []

    def enter(self, part: str) -> None:
        self._open.append(part)

    def leave(self, called, arguments, result) -> None:
        self._open.pop()

    def readings(self) -> dict[str, Count]:
        return dict(self._counts)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        asked = not isinstance(out, Tensor | list | tuple)  # for a property: shape, device
        if not asked and func not in ALLOCATIONS and any(tensor.is_cuda for tensor in tensors):
            is_view = _is_view(func)
            is_cast = func is aten._to_copy.default and args[0].device == out.device
            waits = _waits(func, args, kwargs, out)
            for part in self._open or [WHOLE]:
                count = self._counts[part]
                count.kernels += not is_view
                count.casts += is_cast
                count.views += is_view
                count.waits += waits
        return out


def _is_view(func) -> bool:
    returns = func._schema.returns
    aliases = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    return aliases or func in (aten._unsafe_view.default, aten.lift_fresh.default)


def _waits(func, args, kwargs, out) -> bool:
    """Whether the call is a copy between host and GPU that the host waits for."""
    if func not in (aten._to_copy.default, aten.copy_.default):
        return False
    moved = args[0].device != (out if func is aten._to_copy.default else args[1]).device
    return moved and not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)


# Where torch asks for no driver before it makes a tensor without values; 2.7 does.
AVAILABLE = torch.cuda.is_available() or hasattr(torch._C, "_ensureCUDADeviceGuardSet")


@contextmanager
def on_fake_gpu() -> Iterator[None]:
    """Tensors have no values; those on "cuda" are as on a GPU for which every kernel exists."""
    if not AVAILABLE:
        raise RuntimeError(f"torch {torch.__version__} needs a GPU to count for one; 2.11 does not")
    with ExitStack() as stack:
        for owner, name, replacement in (
            (triton_deformable_attention, "has_triton", lambda index, dtype: True),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (Tensor, "pin_memory", lambda self, *where: self),
            (nn.Module, "to", lambda self, *where, **how: self),  # created there; these tensors cannot be moved
            (F, "scaled_dot_product_attention", _fused_attention),
            ("fasegr.modeling.matcher", "assign", _any_assignment),
        ):
            target = f"{owner}.{name}" if isinstance(owner, str) else None
            patch = mock.patch(target, replacement) if target else mock.patch.object(owner, name, replacement)
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode())
        yield


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """As torch does it on a GPU: a bool mask becomes numbers, and one kernel does the rest."""
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            infinity = torch.scalar_tensor(float("-inf"), dtype=query.dtype, device=query.device)
            attn_mask = torch.where(attn_mask, 0.0, infinity)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, torch.is_grad_enabled())[0]


def _any_assignment(costs: Tensor, counts: list[int]) -> list[Match]:
    """As `matcher.assign`, which needs values."""
    layers, queries = costs.shape[1:3]
    shapes = [(layers, min(queries, count)) for count in counts]
    return [Match(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)) for shape in shapes]


def gpu_model(config: str, opts: tuple[str, ...] = ()) -> nn.Module:
    """Our model on a GPU that is not there. Call it within `on_fake_gpu`."""
    cfg = fasegr.load_cfg(config, [*opts, "MODEL.DEVICE", "cpu"])
    cfg.MODEL.DEVICE = "cuda"  # load_cfg looks whether there is one
    with torch.device("cuda"):
        return fasegr.build_model(cfg)


def samples(case: Case, num_classes: int) -> list[dict]:
    """Images with targets as a data worker gives them, on the host."""
    masks = min(NUM_MASKS, num_classes)
    return [
        {
            "image": torch.zeros(3, *case.size, dtype=torch.uint8),
            "labels": torch.zeros(masks, dtype=torch.int64),
            "masks": torch.zeros(masks, *case.size, dtype=torch.bool),
        }
        for _ in range(case.batch)
    ]


def times(case: dict[str, Any]) -> dict[str, Any]:
    """The counts of each part under "counts": of a training forward pass, losses included, or of an inference. They are
    those of a second pass: the first one computes what later ones remember."""
    case = Case.of(case)
    training = case.kind == "launches-training"
    with on_fake_gpu():
        model = gpu_model(case.config, case.opts).train(training)
        batch = samples(case, model.criterion.num_classes)

        def forward(batch):
            with torch.set_grad_enabled(training), autocast(torch.device("cuda"), case.dtype):
                return model(batch)

        forward(batch[:1])
        launches = Launches()
        with launches:
            counts = read(lambda: forward(batch), [*network_parts(model), *loss_parts(model)], launches)
    inside = [counts[part] for part in (BACKBONE, PIXEL_DECODER, DECODER, CRITERION) if part in counts]
    counts[OTHER] = counts[WHOLE].without(inside)
    return {"counts": {part: dataclasses.asdict(count) for part, count in counts.items()}}
