"""Softmax over a handful of entries."""

from __future__ import annotations

from torch import Tensor

from fasegr.modeling.ops import switches as fast_paths


def softmax_of_few(scores: Tensor) -> Tensor:
    """`scores.softmax(-1)`, where the last dimension is short.

    torch's kernel takes the rows one after another and has a fixed cost for each, which is most of it where a row has a
    dozen entries. In inference on the CPU each of the four steps of exp(s - max) / sum is taken for all rows at once.
    """
    if not (fast_paths.in_cpu_inference(scores) and fast_paths.enabled("softmax_of_few")):
        return scores.softmax(-1)
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp_()
    return exponentials.div_(exponentials.sum(-1, keepdim=True))
