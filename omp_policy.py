"""How torch's threads wait for one another on a CPU. Programs import this first, since it is read with torch.

A thread that has done its part of an operation spins until the others have done theirs. That is quickest while each
has a core to itself. Where something else runs too, it keeps a core from the very thread that it waits for, and a step
takes many times as long. With this policy it sleeps instead. What the user has set is left alone; processes that a
program starts inherit it.

On a Mac, the few operations that its GPU lacks are computed on the CPU, as the gradient of grid_sample in torch 2.11;
otherwise torch raises an error.
"""

import os
import sys

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # OpenMP's own, GNU's, LLVM's and Intel's

if not any(name in os.environ for name in CHOICES):
    os.environ["OMP_WAIT_POLICY"] = "passive"
if sys.platform == "darwin":
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
