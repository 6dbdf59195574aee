"""Inference in half precision: a copy of the network whose weights have the type in which it computes."""

from __future__ import annotations

import copy
import functools
import logging

import torch
from torch import nn

from fasegr.modeling.layers import FrozenBatchNorm2d
from fasegr.utils.gpu import bfloat16_problem

__all__ = ["in_precision"]

logger = logging.getLogger(__name__)

# Their statistics stay in float32: every kernel of batch norm takes maps of half precision with them.
FLOAT32 = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def in_precision(cfg, model: nn.Module) -> nn.Module:
    """`model`, or, unless SPEED.DTYPE is float32, a copy for inference whose backbone and head compute in that type.

    Under autocast every operation casts its weights and maps; here the weights are cast once. Positions and sums that
    need it are in float32 all the same, and so are the results. Raises ValueError for float16 on a CPU. Where the
    processor has no instructions for the type, a warning says so: results are right, and come late.
    """
    dtype = TYPES[cfg.SPEED.DTYPE]
    if dtype is None:
        return model
    if dtype is torch.float16 and model.device.type == "cpu":
        raise ValueError("SPEED.DTYPE is 'float16' with MODEL.DEVICE cpu; it must be 'bfloat16' or 'float32' there")
    if reason := _slow(dtype, model.device):
        _warn(f"SPEED.DTYPE {cfg.SPEED.DTYPE}: {reason}; float32 is probably faster")
    half = copy.deepcopy(model)
    for part, original in ((half.backbone, model.backbone), (half.sem_seg_head, model.sem_seg_head)):
        for module in part.modules():
            if not isinstance(module, FLOAT32):
                module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, recurse=False)
        if original._compiled_call_impl is not None:  # which a copy has not
            part.compile()
    half.dtype = dtype
    return half


@functools.cache  # said once, and not before each evaluation
def _warn(message: str) -> None:
    logger.warning(message)


def _slow(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why computing in `dtype` does not pay on this machine; None if it does."""
    if device.type == "cpu":
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
            return None
        return f"this processor ({torch.backends.cpu.get_cpu_capability()}) has neither AVX512_BF16 nor AMX"
    if device.type == "cuda" and dtype is torch.bfloat16:
        return bfloat16_problem(device.index) or None
    return None
