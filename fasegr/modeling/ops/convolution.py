"""Convolutions on processors with AVX2 at most, where oneDNN's are not the quickest.

Its direct sum is near the peak there, but Winograd's algorithm needs a quarter of the multiplications
(`winograd.conv3x3`). And its gradient of the weight of a kernel wider than 1 x 1 runs at a third of the peak: here it
is a matrix product of the patches that the kernel has seen. On a processor with AVX-512 neither has been of use.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops import winograd

NARROW_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX2"

PATCH_ELEMENTS = 2**21
"""Of the patches that are written out at a time; 8 MB in float32."""

Pair = tuple[int, int]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """`F.conv2d(x, weight, bias, stride, padding)`: (B, C, H, W) by (O, C, kh, kw) to (B, O, H', W')."""
    wide = weight.shape[2:] != (1, 1)
    if not (NARROW_VECTORS and wide and fast_paths.at_work_on_cpu(x) and fast_paths.in_full_precision(x, weight)):
        return F.conv2d(x, weight, bias, stride, padding)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))):
        return _forward(x, weight, bias, stride, padding)
    form = _Convolution.apply if fast_paths.enabled("patch_products") else F.conv2d
    return form(x, weight, bias, stride, padding)


def _by_winograd(x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> bool:
    return stride == padding == (1, 1) and winograd.suits(x, weight) and fast_paths.enabled("winograd")


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    if not _by_winograd(x, weight, stride, padding):
        return F.conv2d(x, weight, bias, stride, padding)
    out = winograd.conv3x3(x, weight)
    return out if bias is None else out.add_(bias.view(-1, 1, 1))


class _Convolution(torch.autograd.Function):
    """`F.conv2d` with gradients of its own; its arguments are those of `conv2d`."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return _forward(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _input_gradient(grad, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(grad, x, weight.shape[2:], ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if _by_winograd(grad, weight, stride, padding):
        return winograd.conv3x3(grad, weight.flip(2, 3).transpose(0, 1))  # undone by the mirrored kernel
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (True, False, False)
    )[0]


def weight_gradient(grad: Tensor, x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Gradient of the weight: (B, O, H', W') and (B, C, H, W) to (O, C, *kernel).

    A patch is what one output pixel is made of, kh kw C numbers. With a row for each pixel, P of patches and G of the
    gradient, the answer is P^T G. The patches of a few rows of the map are written out at a time.
    """
    (rows, columns), channels = kernel, x.shape[1]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    grad = grad.permute(0, 2, 3, 1)
    batch, height, width, out_channels = grad.shape
    out = x.new_zeros(rows * columns * channels, out_channels)
    step = max(1, PATCH_ELEMENTS // (width * len(out)))
    _, of_row, of_pixel, _ = padded.stride()
    for image in range(batch):
        for top in range(0, height, step):
            g = grad[image, top : top + step]
            patches = padded[image, top * stride[0] :].as_strided(
                (len(g), width, rows, columns * channels), (stride[0] * of_row, stride[1] * of_pixel, of_row, 1)
            )
            out.addmm_(patches.reshape(-1, len(out)).t(), g.reshape(-1, out_channels))
    return out.view(rows, columns, channels, out_channels).permute(3, 2, 0, 1)
