"""2D convolution, with its own weight gradient on processors that have AVX2 but no AVX-512.

There oneDNN computes the weight gradient of kernels larger than 1 x 1 at a third of the processor's peak. Here it is
a matrix product: an output pixel depends on a patch of kh kw C numbers; with a row for each pixel in P (patches) and G
(gradient of the output), the weight gradient is P^T G. The forward pass and the gradient of the input are oneDNN's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fasegr.modeling.ops import switches

PATCH_ELEMENTS = 2**21
"""Elements of the patches that are copied at a time; 8 MB in float32."""

Pair = tuple[int, int]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """`F.conv2d(x, weight, bias, stride, padding)`: (B, C, H, W) by (O, C, kh, kw) to (B, O, H', W')."""
    if uses_patch_products(x, weight):
        return _PatchProducts.apply(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding)


class _PatchProducts(torch.autograd.Function):
    """`F.conv2d` whose weight gradient is `weight_gradient`; its arguments are those of `conv2d`."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(grad, x, weight.shape[2:], ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def weight_gradient(grad: Tensor, x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Gradient of the weight: (B, O, H', W') and (B, C, H, W) to (O, C, *kernel).

    The patches of a few rows of the map are copied at a time.
    """
    (rows, columns), channels = kernel, x.shape[1]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])).contiguous()
    grad = grad.permute(0, 2, 3, 1)
    batch, height, width, out_channels = grad.shape
    out = x.new_zeros(rows * columns * channels, out_channels)
    step = max(1, PATCH_ELEMENTS // (width * len(out)))
    _, row_stride, pixel_stride, _ = padded.stride()
    for image in range(batch):
        for top in range(0, height, step):
            g = grad[image, top : top + step]
            patches = padded[image, top * stride[0] :].as_strided(
                (len(g), width, rows, columns * channels),
                (stride[0] * row_stride, stride[1] * pixel_stride, row_stride, 1),
            )
            out.addmm_(patches.reshape(-1, len(out)).t(), g.reshape(-1, out_channels))
    return out.view(rows, columns, channels, out_channels).permute(3, 2, 0, 1)


def uses_patch_products(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv2d` takes its own weight gradient."""
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and weight.shape[2:] != (1, 1)
        and _eager_on_cpu(x, weight)
        and torch.backends.cpu.get_cpu_capability() == "AVX2"  # torch.compile cannot ask this
        and switches.enabled("patch_products")
    )


def _eager_on_cpu(*tensors: Tensor) -> bool:
    """Whether all are ordinary CPU tensors of one dtype, float32 or float64, outside autocast and torch.compile."""
    return (
        all(type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" for x in tensors)
        and {x.dtype for x in tensors} in ({torch.float32}, {torch.float64})
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
