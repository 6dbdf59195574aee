"""Masked cross-attention of inference on a GPU, by Triton kernels that store no attention weights.

The plain form (`attention.py`) writes the weights A of all heads, (B, M, Q, n), and reads them several times. Here a
block of weights stays on the chip, where it is made of scores s = q k / sqrt(D) and used up at once.

**Output.** One pass over the keys, with the running maximum t of a row's scores, and the sums l and o of exp(s - t) and
exp(s - t) v so far, which are scaled by exp(t - t') where the maximum grows to t' (Dao et al., "FlashAttention",
NeurIPS 2022). The row's output is o / l; of the weights only L = t + log l, one number a row and head, is kept. The
queries alone are too few to occupy a GPU, so the keys are cut into parts, each with its own output o_p and L_p; then

    o = sum_p softmax(L)_p o_p,   L = logsumexp(L).

**What is read of the attention.** exp(s - L) is the weight again. Its mean over heads, made a second time block by
block, is multiplied with K_p for eq. 2, (B, Q, C), or summed over queries for omega, (B, n): each only when asked for.
Sums run in a fixed order, within a program or over parts, so that results repeat to the last bit.

That trades memory traffic for products: the scores are made twice, where a selection reads them three times. Parts take
C numbers for each query and PART keys, a sixteenth of A with 8 heads and 256 channels. How much time is gained has not
been measured on a GPU; it should grow with n, and at the 256 to 2048 cells of a 1/32 map the plain form may be as fast.
Training needs the weights for the backward pass and takes the plain form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fasegr.modeling.ops.triton_support import element_type, has_triton, launching_on

BLOCK_QUERIES = 32
MAX_BLOCK_KEYS = 64
BLOCK_BYTES = 8192  # of a block of keys of one head, so that all blocks fit the shared memory of any GPU
MAX_BLOCK_CHANNELS = 256  # of K_p that one program takes: for more, the weights are made once more
POOLED_KEYS = 32  # in a block of K_p, whose channels are those of all heads
PART = 512  # keys that one program goes through: few images, too, then give a GPU enough programs


def supports(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels apply: q (B, M, Q, D), k and v (B, M, n, D) on a GPU that Triton compiles for.

    D from 16 to 128. float64 is for comparing programs, and left to the plain form.
    """
    return (
        q.device.type == "cuda"
        and q.dtype == k.dtype == v.dtype
        and q.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)))
        and 16 <= q.shape[3] <= 128
        and max(k.shape[1:].numel(), q.shape[2] * k.shape[2]) < 2**31  # offsets within an image have 32 bits
        and has_triton(q.device.index, torch.bfloat16)  # TF32 came with bfloat16
    )


class FusedAttention:
    """The attention of one layer, averaged over heads, as `attention.AttentionWeights`: made anew when it is read.

    q: (B, Q, M, D). k: (B, n, M, D). hidden: (B, Q, n) bool or None. log_sums: (B, Q, M) of exp(scores) over keys.
    """

    def __init__(self, q: Tensor, k: Tensor, hidden: Tensor | None, log_sums: Tensor):
        self.read = q, k, hidden, log_sums

    def pool(self, key_pos: Tensor) -> Tensor:
        """A K_p: key_pos (B, n, C) to (B, Q, C)."""
        return _pool(*self.read, key_pos)

    def sum_over_queries(self) -> Tensor:
        """(B, n)."""
        return _sum_over_queries(*self.read)


def attend_by_triton(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, FusedAttention]:
    """Output (B, M, Q, D) and attention; shapes as `supports`; hidden: (B, 1, Q, n) bool, no row all True, or None."""
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))  # as they lie in memory after their projections
    hidden = None if hidden is None else hidden.squeeze(1).contiguous()
    out, log_sums = _attend(q, k, v, hidden)
    return out.transpose(1, 2), FusedAttention(q, k, hidden, log_sums)


@torch.library.custom_op("fasegr::masked_attention", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, Q, M, D) in the dtype of q, (B, Q, M) in float32 at least."""
    from fasegr.modeling.transformer_decoder import triton_cross_attention_kernels as kernels

    (batch, queries, heads, _), keys = q.shape, k.shape[1]
    dtype = _statistics_type(q)
    blocks = -(-queries // BLOCK_QUERIES)
    parts, part = _parts(keys)
    out = q.new_empty(parts, *q.shape, dtype=q.dtype if parts == 1 else dtype)
    log_sums = q.new_empty(parts, batch, queries, heads, dtype=dtype)
    with launching_on(q.device):
        kernels.attend[(blocks, parts, batch * heads)](
            q, k, v, hidden, out, log_sums, batch, queries, keys, PART=part, **_sizes(q)
        )
    if parts == 1:
        return out[0], log_sums[0]
    return (log_sums.softmax(0).unsqueeze(-1) * out).sum(0).to(q.dtype), log_sums.logsumexp(0)


@_attend.register_fake
def _(q, k, v, hidden):
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=_statistics_type(q))


@torch.library.custom_op("fasegr::attention_pool", mutates_args=())
def _pool(q: Tensor, k: Tensor, hidden: Tensor | None, log_sums: Tensor, key_pos: Tensor) -> Tensor:
    """(B, Q, C) in the dtype of key_pos."""
    from fasegr.modeling.transformer_decoder import triton_cross_attention_kernels as kernels

    (batch, queries, *_), (keys, channels) = q.shape, key_pos.shape[1:]
    blocks = -(-queries // BLOCK_QUERIES)
    block_channels = min(MAX_BLOCK_CHANNELS, _power_of_two(channels))
    tiles = -(-channels // block_channels)
    parts, part = _parts(keys)
    sizes = _sizes(q)
    sizes["BLOCK_KEYS"] = min(sizes["BLOCK_KEYS"], POOLED_KEYS)
    out = q.new_empty(parts, batch, queries, channels, dtype=key_pos.dtype if parts == 1 else log_sums.dtype)
    with launching_on(q.device):
        kernels.pool[(blocks, parts, batch * tiles)](
            *(q, k, hidden, log_sums, key_pos, out, batch, queries, keys, *key_pos.stride()),
            PART=part,
            CHANNELS=channels,
            BLOCK_CHANNELS=block_channels,
            **sizes,
            num_warps=8,
        )
    return out[0] if parts == 1 else out.sum(0).to(key_pos.dtype)


@_pool.register_fake
def _(q, k, hidden, log_sums, key_pos):
    return key_pos.new_empty(q.shape[0], q.shape[1], key_pos.shape[2])


@torch.library.custom_op("fasegr::attention_sum", mutates_args=())
def _sum_over_queries(q: Tensor, k: Tensor, hidden: Tensor | None, log_sums: Tensor) -> Tensor:
    """(B, n) in the dtype of log_sums."""
    from fasegr.modeling.transformer_decoder import triton_cross_attention_kernels as kernels

    (batch, queries, *_), keys = q.shape, k.shape[1]
    out = log_sums.new_empty(batch, keys)
    sizes = _sizes(q)
    with launching_on(q.device):
        kernels.sum_over_queries[(-(-keys // sizes["BLOCK_KEYS"]), batch)](
            q, k, hidden, log_sums, out, keys, QUERIES=queries, **sizes
        )
    return out


@_sum_over_queries.register_fake
def _(q, k, hidden, log_sums):
    return log_sums.new_empty(q.shape[0], k.shape[1])


def _statistics_type(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _power_of_two(n: int) -> int:
    """The least that is not below n, and 16, which products need."""
    return max(16, 1 << (n - 1).bit_length())


def _parts(keys: int) -> tuple[int, int]:
    """How many parts the keys are cut into, and how many keys one has: few numbers, as each is compiled for."""
    part = max(MAX_BLOCK_KEYS, min(PART, _power_of_two(keys)))
    return -(-keys // part), part


def _sizes(q: Tensor) -> dict:
    """What the kernels are compiled for."""
    heads, dim = q.shape[2:]
    dtype, block_dim = _statistics_type(q), _power_of_two(dim)
    return {
        "HEADS": heads,
        "DIM": dim,
        "SCALE": 1 / math.sqrt(dim),
        "BLOCK_QUERIES": BLOCK_QUERIES,
        "BLOCK_KEYS": max(16, min(MAX_BLOCK_KEYS, BLOCK_BYTES // (q.element_size() * block_dim))),
        "BLOCK_DIM": block_dim,
        "ACC": element_type(dtype),
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",  # three TF32 products are as exact as float32's
        "num_stages": 2,  # more keep too many blocks in shared memory
    }
