"""How far every faster form of `fasegr/modeling/ops` is from its plain form on a device."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from fasegr.modeling.ops.class_argmax import class_argmax
from fasegr.modeling.ops.convolution import conv2d, uses_patch_products
from fasegr.modeling.ops.deformable_attention import compare_with_grid, sample_by_bag
from fasegr.modeling.ops.kernel_check import Deviation, deviations
from fasegr.modeling.ops.point_sample import TableSampler, bags_of_points, sample_points, supports_table
from fasegr.modeling.ops.switches import enabled
from fasegr.modeling.ops.triton_deformable_attention import sample_by_triton
from fasegr.modeling.ops.triton_support import why_not

__all__ = ["DTYPES", "Comparison", "compare_form"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_ENCODER = {"heads": 8, "dim": 32, "levels": 3, "points": 4}  # of all recipes


class Comparison(NamedTuple):
    """unused: why the faster form is not taken, "" where it is. deviations: of its result and gradients, relative to
    the greatest value of the plain form in float64; empty where it cannot be computed here."""

    unused: str
    deviations: list[Deviation]


def compare_form(name: str, device: torch.device, dtype: torch.dtype) -> Comparison:
    """The faster form `name`, one of FASTER_FORMS, for tensors of `dtype` on `device`, with the plain form."""
    if not enabled(name):
        return Comparison("turned off by FASEGR_PLAIN", [])
    return _CASES[name](device, dtype)


def _embedding_bag(device: torch.device, dtype: torch.dtype) -> Comparison:
    if device.type != "cpu":
        return Comparison("for CPUs", [])
    return Comparison("", compare_with_grid(sample_by_bag, device, dtype=dtype, **_ENCODER))


def _triton(device: torch.device, dtype: torch.dtype) -> Comparison:
    if device.type != "cuda":
        found = []
        if os.environ.get("TRITON_INTERPRET") == "1" and device.type == "cpu":  # slow, so a small one
            found = compare_with_grid(sample_by_triton, device, dtype=dtype, heads=1, dim=16, levels=1, points=1)
        return Comparison("for NVIDIA GPUs", found)
    if reason := why_not(device.index, dtype):
        return Comparison(reason, [])
    return Comparison("", compare_with_grid(sample_by_triton, device, dtype=dtype, **_ENCODER))


def _patch_products(device: torch.device, dtype: torch.dtype) -> Comparison:
    x, weight = _random((2, 8, 12, 9), device, dtype), _random((6, 8, 3, 3), device, dtype).requires_grad_()
    if not uses_patch_products(x, weight):
        return Comparison("for CPUs with AVX2 and without AVX-512, in float32", [])
    convolve = partial(conv2d, bias=None, stride=(2, 1), padding=(1, 1))
    plain = partial(torch.nn.functional.conv2d, stride=(2, 1), padding=(1, 1))
    return Comparison("", deviations(convolve, plain, [x, weight], ["the input", "the weight"]))


def _class_argmax(device: torch.device, dtype: torch.dtype) -> Comparison:
    if device.type != "cpu":
        return Comparison("for CPUs", [])
    scores = _random((19, 40, 30), device, dtype)
    differ = (class_argmax(scores).long() != scores.double().argmax(0)).double().mean().item()
    return Comparison("", [Deviation("the share of pixels with another class", differ, 0.0)])


def _point_table(device: torch.device, dtype: torch.dtype) -> Comparison:
    coords = torch.rand(50, 2, generator=torch.Generator().manual_seed(1)).mul(1.4).sub(0.2).to(device)
    if not supports_table(coords):
        return Comparison("for CPUs and NVIDIA GPUs", [])
    plain = partial(sample_points, coords=coords.cpu().double())
    starts = torch.arange(0, 4 * len(coords), 4, device=device)
    sampler = TableSampler(*bags_of_points(coords, 9, 7), starts, 9, 7)
    return Comparison("", deviations(sampler, plain, [_random((5, 9, 7), device, dtype)], ["maps"]))


def _random(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


_CASES: dict[str, Callable[[torch.device, torch.dtype], Comparison]] = {
    "embedding_bag": _embedding_bag,
    "triton_deformable_attention": _triton,
    "patch_products": _patch_products,
    "class_argmax": _class_argmax,
    "point_table": _point_table,
}
