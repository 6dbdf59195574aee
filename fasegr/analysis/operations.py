"""What a model costs: parameters and multiply-adds by module, without computing anything; time and memory, by doing it.

Multiply-adds are counted as fvcore counts its "flops": one for each product that is summed in a matrix product or a
convolution, five an element for a norm, four an element for a bilinear sample; additions, activations and softmax are
free. The network runs on tensors that have shapes and no content, so that any size is counted in seconds anywhere.
"""

from __future__ import annotations

import gc
import math
import re
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fasegr.modeling.ops.deformable_attention  # noqa: F401 (torch.ops.fasegr is registered there)

__all__ = ["FORMULAS", "SEMANTIC_OUTPUT", "Cost", "Speed", "count", "measure"]

SEMANTIC_OUTPUT = "semantic output"


class Cost(NamedTuple):
    """parameters, and multiply-adds of one image, by module: "" is the whole, SEMANTIC_OUTPUT a module as well."""

    parameters: dict[str, int]
    multiply_adds: dict[str, int]


class Speed(NamedTuple):
    """seconds: median time of a batch. quickest, slowest: of the batches. memory: most bytes above the loaded model."""

    seconds: float
    quickest: float
    slowest: float
    memory: int


def count(model: nn.Module, size: tuple[int, int]) -> Cost:
    """What `model`, a segmentor on the CPU, costs in evaluation with one image of `size` (height, width)."""
    parameters: dict[str, int] = defaultdict(int)
    for name, value in model.named_parameters():
        parts = name.split(".")[:-1]
        for depth in range(len(parts) + 1):
            parameters[".".join(parts[:depth])] += value.numel()

    height, width = (math.ceil(side / model.size_divisibility) * model.size_divisibility for side in size)
    network = _Network(model)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with _evaluated(model), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
        outputs = network(torch.zeros(1, len(model.pixel_mean), height, width))
    multiply_adds = {}
    for path, by_operator in counter.get_flop_counts().items():
        name = path.partition(".")[2]  # without the wrapper around all; the whole follows below
        multiply_adds[name] = sum(by_operator.values()) // 2  # it takes a product and its sum for two
    for name, module in reversed(list(model.named_modules())):
        if name not in multiply_adds:  # never called itself: a list, whose members are
            members = (f"{name}.{member}" for member, _ in module.named_children())
            multiply_adds[name] = sum(multiply_adds[member] for member in members if member in multiply_adds)
    # Counted by hand, since the strips that the output is made in need values: a pixel has a bilinear sample of each
    # query's mask, and a sum over the queries for each class.
    _, queries, classes = outputs["pred_logits"].shape
    multiply_adds[SEMANTIC_OUTPUT] = size[0] * size[1] * queries * (4 + classes - 1)
    multiply_adds[""] = sum(multiply_adds[part] for part in ("backbone", "sem_seg_head", SEMANTIC_OUTPUT))
    return Cost(dict(parameters), multiply_adds)


class _Network(nn.Module):
    """The part of a segmentor between normalised images and its predictions."""

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.backbone, self.sem_seg_head = segmentor.backbone, segmentor.sem_seg_head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.sem_seg_head(self.backbone(images))


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation, its parameters without gradient: the counter would hook itself into a backward pass."""
    training = model.training
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)


# What the counter does not know, in its unit: two for each multiply-add. Arguments are shapes.


def _norm(input_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 5 * math.prod(input_shape)


def _upsample(input_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 4 * math.prod(out_shape)


def _attention(query_shape, key_shape, value_shape, *args, out_shape=None, **kwargs) -> int:
    batch, heads, queries, dim = query_shape
    return 2 * batch * heads * queries * key_shape[2] * (dim + value_shape[3])


def _deformable(value_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 4 * math.prod(x_shape) * value_shape[3]  # four corners for each point and channel


FORMULAS = {
    torch.ops.aten.native_layer_norm: _norm,
    torch.ops.aten.native_group_norm: _norm,
    torch.ops.aten.upsample_bilinear2d: _upsample,
    torch.ops.aten._upsample_bilinear2d_aa: _upsample,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.fasegr.deformable_bag: _deformable,
}


def measure(model: nn.Module, size: tuple[int, int], *, batch: int = 1, repeats: int = 5) -> Speed:
    """Time and memory of `model`, a segmentor, in evaluation where it is, with `batch` images of noise of `size`.

    One batch more goes first, uncounted: it is the one that allocates, and that finds kernels.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(model.pixel_mean), *size)
    images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(batch)]
    samples = [{"image": image.to(model.device), "height": size[0], "width": size[1]} for image in images]
    with _evaluated(model), torch.no_grad():
        with _peak_memory(model.device) as memory:
            model(samples)
        times = []
        for _ in range(repeats):
            _wait_for(model.device)
            start = time.perf_counter()
            model(samples)
            _wait_for(model.device)
            times.append(time.perf_counter() - start)
    return Speed(statistics.median(times), min(times), max(times), memory[0])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Puts into the list that is given how many bytes more than before were in use at once inside the block.

    On a GPU tensors are counted; on the CPU the memory of the process, on Linux from now on, elsewhere its peak so far.
    """
    result: list[int] = []
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        result.append(torch.cuda.max_memory_allocated(device) - before)
        return
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the peak begins anew
    before = _process_memory("VmRSS")
    yield result
    result.append(max(0, _process_memory("VmHWM") - before))


def _process_memory(field: str) -> int:
    """Bytes: VmRSS in use now, VmHWM at the peak."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status.read_text())[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
