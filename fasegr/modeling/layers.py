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
        self._vectors = ops.Kept()

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The two (C,) vectors this norm multiplies by and adds."""
        return self._vectors(_scale_and_shift, self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def forward(self, input: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift.to(input.dtype).view(1, -1, 1, 1), input, scale.to(input.dtype).view(1, -1, 1, 1))

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


def _scale_and_shift(
    weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    scale = weight * (running_var + eps).rsqrt()
    return scale, bias - running_mean * scale


def _fold(weight: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution in place of `weight` and a norm: (w * x) s + t = (s w) * x + t."""
    return ops.scaled_for_products(weight, scale.view(-1, 1, 1, 1)), shift


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
        self._folded, self._bias = ops.KeptWeights(), ops.Kept()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, FrozenBatchNorm2d):
            scale, shift = self.norm.scale_and_shift()
            shift = self._bias(ops.for_products, shift)
            weight, bias = self._folded(_fold, self.weight, scale, shift)  # far smaller than the map, also in training
            x = ops.conv2d(x, weight, bias, self.stride, self.padding)
        else:
            x = ops.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            if self.norm is not None:
                x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class Linear(nn.Linear):
    """`nn.Linear` with a bias, whose parameters change their type once for inference under autocast."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self._parameters_for_products = ops.KeptWeights()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self._parameters_for_products(lambda *both: both, self.weight, self.bias))


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU in between: (..., in_dim) to (..., out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(Linear(i, o) for i, o in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def c2_xavier_fill(conv: nn.Conv2d) -> None:
    """Caffe2's XavierFill, the initialisation of the released FPN and mask convolutions (fan-in only)."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
