"""Compile every kernel for a GPU that need not be there, as its wrapper launches it: python FILE COMPUTE_CAPABILITY

The interpreter accepts what a compiler rejects: block sizes that are not powers of two, products that are too small,
tiles that do not fit. Prints a line for each compilation: the kernel and its bytes of shared memory. TRITON_INTERPRET
must not be set.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fasegr.modeling.ops import triton_deformable_attention, triton_deformable_attention_kernels

TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.bool: "*i1", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")


class Compiled:
    """Replaces a kernel: a launch compiles it and runs nothing."""

    def __init__(self, kernel, capability: int):
        self.kernel, self.capability = kernel, capability

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *args, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, aligned = {}, {}, {}
        for i, (name, parameter) in enumerate(zip(self.kernel.arg_names, self.kernel.params, strict=True)):
            value = named[name]
            if parameter.is_constexpr or value is None:
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[name], aligned[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
            else:
                signature[name] = "i32"
        source = ASTSource(self.kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        print(self.kernel.__name__, compiled.metadata.shared, flush=True)


def main(capability: int) -> None:
    kernels = triton_deformable_attention_kernels
    for name in ("sample", "sample_backward", "sum_by_cell"):
        setattr(kernels, name, Compiled(getattr(kernels, name), capability))

    halves = (torch.float16, torch.bfloat16) if capability >= 80 else (torch.float16,)
    shapes = [(4, 4), (2, 2), (1, 1)]
    for dtype, dim in ((halves[-1], 32), (torch.float32, 100)):
        value = torch.zeros(1, 21, 8, dim, dtype=dtype, requires_grad=True)
        x, y, weight = (torch.zeros(1, 5, 8, 3, 4, requires_grad=True) for _ in range(3))
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            triton_deformable_attention.sample_by_triton(value, shapes, x, y, weight).sum().backward()


if __name__ == "__main__":
    main(int(sys.argv[1]))
