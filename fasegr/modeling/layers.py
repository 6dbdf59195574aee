"""Small layers shared by backbone, pixel decoder and transformer decoder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling import ops


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine, all of them buffers (no gradient, no update).

    input: (B, C, H, W). Returns the same shape in the dtype of the input.
    """

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The two (C,) vectors this norm multiplies by and adds."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, input: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift.to(input.dtype).view(1, -1, 1, 1), input, scale.to(input.dtype).view(1, -1, 1, 1))

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "FrozenBN": FrozenBatchNorm2d,
    "BN": nn.BatchNorm2d,
    "SyncBN": ops.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(32, channels),
}


def build_norm(name: str, channels: int) -> nn.Module | None:
    """The norm layer `name` over `channels`, or None for the empty name."""
    if name == "":
        return None
    if name not in _NORMS:
        raise ValueError(f"norm {name!r} is not known; choose one of {sorted(_NORMS)} or '' for none")
    if name == "GN" and channels % 32:
        raise ValueError(f"norm 'GN' has 32 groups, which do not divide {channels} channels; use a multiple of 32")
    return _NORMS[name](channels)


class ConvNorm(nn.Conv2d):
    """Convolution, norm and activation in one module, named as in detectron2's state dicts (`conv1.norm.weight`).

    A FrozenBatchNorm2d is folded into the weight, also in training: the map is then written once instead of twice.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, FrozenBatchNorm2d):
            # (w * x) * s + t = (s w) * x + t; the weight is far smaller than the map, also in training
            scale, shift = self.norm.scale_and_shift()
            x = ops.conv2d(x, self.weight * scale.view(-1, 1, 1, 1), shift, self.stride, self.padding)
        else:
            x = ops.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            if self.norm is not None:
                x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU in between: (..., in_dim) to (..., out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def c2_xavier_fill(conv: nn.Conv2d) -> None:
    """Caffe2's XavierFill, the initialisation of the released FPN and mask convolutions (fan-in only)."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
