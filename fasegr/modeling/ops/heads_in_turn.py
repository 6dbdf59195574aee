"""Attention that hands out the mean of its weights, one head after another, on the CPU.

All heads at once make a few tensors of heads x queries x keys; on a large image they are the largest of the whole
decoder. One head's weights stay in the cache, are added to the mean, and give their memory to the next.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fasegr.modeling.ops import switches as fast_paths

LEAST_KEYS = 1024
"""With fewer keys all heads together fit the cache, and their products are quicker in one."""


def supports(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `attend` is to be used: in inference on the CPU, of many keys, in full precision."""
    return (
        all(fast_paths.in_cpu_inference(x) for x in (q, k, v))
        and k.shape[2] >= LEAST_KEYS
        and fast_paths.in_full_precision(q, k, v)
        and fast_paths.enabled("heads_in_turn")
    )


def attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """q: (B, M, Q, D). k, v: (B, M, n, D). hidden: (B, 1, Q, n), no row all True, or None.

    Returns what the heads read, (B, M, Q, D), and the mean of their weights, (B, Q, n).
    """
    batch, heads, queries, dim = q.shape
    bias = q.new_zeros(batch, queries, k.shape[2]) if hidden is None else _bias(hidden, q.dtype)
    out, mean = torch.empty_like(q), None
    for head in range(heads):
        scores = torch.baddbmm(bias, q[:, head], k[:, head].transpose(1, 2), alpha=1 / math.sqrt(dim))
        weights = scores.softmax(-1)
        out[:, head] = weights @ v[:, head]
        mean = weights if mean is None else mean.add_(weights)
    return out, mean.div_(heads)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(hidden[:, 0], dtype=dtype).masked_fill_(hidden[:, 0], float("-inf"))
