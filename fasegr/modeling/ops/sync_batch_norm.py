"""Batch norm synchronised over processes, on GPUs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SyncBatchNorm(nn.SyncBatchNorm):
    """`nn.SyncBatchNorm` that works on a CPU too, where torch cannot synchronise it: there it is plain batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return super().forward(input)
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(input, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)
