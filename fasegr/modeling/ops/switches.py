"""The switches of the fast paths: each faster form of a computation has a name here and a plain form that equals it.

To find out whether a fast path is at fault, turn it off: `FASEGR_PLAIN=embedding_bag python train_net.py ...`, several
names with commas, `FASEGR_PLAIN=all` for every one, or in code `with fast_paths.off("embedding_bag"): ...`. The plain
forms are the readable reference; the tests hold the two together in float64.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# name -> what is computed in another way, and where
FAST_PATHS = {
    "doubling": "bilinear upsampling by two as sums of maps, in inference on the CPU (doubling.py)",
    "embedding_bag": "deformable sampling as one weighted bag, on the CPU (pixel_decoder/ops/ms_deform_attn.py)",
    "triton_deformable_attention": "the same as one kernel, on a GPU (pixel_decoder/ops/triton_deform_attn.py)",
    "triton_semantic_output": "scores or labels of all pixels as one kernel, on a GPU (meta_arch/triton_semantic.py)",
    "triton_cross_attention": "no weights stored, inference on a GPU (transformer_decoder/triton_cross_attention.py)",
    "heads_in_turn": "attention whose mean is read, head by head, on the CPU (transformer_decoder/heads_in_turn.py)",
    "onednn_linear": "linear layers over many tokens, on a CPU where MKL is slow (linear.py)",
    "patch_products": "gradients of convolutions' weights, on a CPU without AVX-512 (convolution.py)",
    "softmax_of_few": "softmax over a few entries, in inference on the CPU (pixel_decoder/softmax.py)",
    "strip_rows": "rows of full-size strips one by one, in inference on the CPU (meta_arch/strips.py)",
    "token_blocks": "encoder layers by blocks of tokens, in inference on the CPU (pixel_decoder/token_blocks.py)",
    "winograd": "3 x 3 convolutions with fewer multiplications, on a CPU without AVX-512 (winograd.py)",
    "zero_rows": "no gradients of masks that no loss looks at, on a CPU (transformer_decoder/mask_product.py)",
}

_off: set[str] = set()


def enabled(name: str) -> bool:
    """Whether the fast path `name` is to be used where it applies. Unknown names are a KeyError: they are typos."""
    if name not in FAST_PATHS:
        raise KeyError(f"fast path {name!r} is not known; there are {', '.join(FAST_PATHS)}")
    return name not in _off and name not in _named_by_environment()


def at_work_on_cpu(x: Tensor) -> bool:
    """Whether `x` is computed with on the CPU, now: it is not traced and has content."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def in_cpu_inference(x: Tensor) -> bool:
    """Whether `x` is computed with on the CPU, now, and no gradient runs through it.

    Forms that write into memory of their own are for this case alone.
    """
    return at_work_on_cpu(x) and not (torch.is_grad_enabled() and x.requires_grad)


def in_full_precision(*tensors: Tensor) -> bool:
    """Whether all are computed with on the CPU in one type, float32 or float64: no autocast turns to another."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes in ({torch.float32}, {torch.float64}) and not torch.is_autocast_enabled("cpu")


@contextmanager
def off(*names: str) -> Iterator[None]:
    """The plain forms of `names` (of all fast paths without any) within the block."""
    unknown = sorted(set(names) - set(FAST_PATHS))
    if unknown:
        raise KeyError(f"fast paths {unknown} are not known; there are {', '.join(FAST_PATHS)}")
    added = set(names or FAST_PATHS) - _off
    _off.update(added)
    try:
        yield
    finally:
        _off.difference_update(added)


def _named_by_environment() -> set[str]:
    names = {name.strip() for name in os.environ.get("FASEGR_PLAIN", "").split(",") if name.strip()}
    if names == {"all"}:
        return set(FAST_PATHS)
    unknown = sorted(names - set(FAST_PATHS))
    if unknown:
        raise ValueError(f"FASEGR_PLAIN names {unknown}; choose all, or from {', '.join(FAST_PATHS)}")
    return names
