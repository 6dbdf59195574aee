"""Parameters and multiply-adds of a model by module, without computing anything.

Multiply-adds are counted as fvcore counts its "flops": one for each multiply-add of a matrix product or a convolution,
five for each element of a norm, four for each element of a bilinear sample, sixteen of a bicubic one; additions,
activations and softmax are free. The network runs on fake tensors, which have a shape but no data, so any size takes
seconds on any machine.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import fasegr.modeling.ops.deformable_attention  # noqa: F401 (registers torch.ops.fasegr)

__all__ = ["FORMULAS", "SEMANTIC_OUTPUT", "ModelCost", "count_cost", "fake_copy"]

SEMANTIC_OUTPUT = "semantic output"


class ModelCost(NamedTuple):
    """Parameters, and multiply-adds of one image, by module name: "" is the whole model. SEMANTIC_OUTPUT counts as a
    module."""

    parameters: dict[str, int]
    multiply_adds: dict[str, int]


def count_cost(model: nn.Module, size: tuple[int, int]) -> ModelCost:
    """Cost of `model`, a segmentor on the CPU, in evaluation with one image of `size` (height, width)."""
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}
    parameters = {name: number for name, number in counts.items() if number}

    height, width = (math.ceil(side / model.size_divisibility) * model.size_divisibility for side in size)
    fake, fake_model = fake_copy(model)
    # without gradients, for which the counter would register backward hooks
    network = _Network(fake_model).eval().requires_grad_(False)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with fake, torch.no_grad(), counter:
        outputs = network(torch.zeros(1, len(model.pixel_mean), height, width))
    multiply_adds = {}
    for path, by_operator in counter.get_flop_counts().items():
        name = path.partition(".")[2]  # without the name of the wrapper
        multiply_adds[name] = sum(by_operator.values()) // 2  # the counter counts a multiply-add as two
    for name, module in reversed(list(model.named_modules())):
        if name not in multiply_adds:  # a container that is never called itself
            children = (f"{name}.{child}" for child, _ in module.named_children())
            multiply_adds[name] = sum(multiply_adds.get(child, 0) for child in children)
    # Counted by hand, as it depends on values how the output is tiled: for each pixel a bilinear sample of each query's
    # mask, and a sum over the queries for each class.
    _, queries, classes = outputs["pred_logits"].shape
    multiply_adds[SEMANTIC_OUTPUT] = size[0] * size[1] * queries * (4 + classes - 1)
    multiply_adds[""] = sum(multiply_adds[part] for part in ("backbone", "sem_seg_head", SEMANTIC_OUTPUT))
    return ModelCost(parameters, multiply_adds)


def fake_copy(model: nn.Module) -> tuple[FakeTensorMode, nn.Module]:
    """A copy of `model` whose parameters and buffers are fake tensors, and the mode to run it in."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        return fake, copy.deepcopy(model)


class _Network(nn.Module):
    """A segmentor from normalised images to predictions."""

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.backbone, self.sem_seg_head = segmentor.backbone, segmentor.sem_seg_head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.sem_seg_head(self.backbone(images))


# Operators that the counter does not know, in its unit: two for each multiply-add. Arguments are shapes.


def _norm(input_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 5 * math.prod(input_shape)


def _upsample(input_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 4 * math.prod(out_shape)


def _upsample_bicubic(input_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * 16 * math.prod(out_shape)


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
    torch.ops.aten._upsample_bicubic2d_aa: _upsample_bicubic,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.fasegr.deformable_bag: _deformable,
}
