"""How torch's threads wait for one another on a CPU. Programs import this first, for OpenMP reads it with torch.

A thread that has done its part of an operation spins until the others have done theirs. That is quickest while each
has a core to itself. Where something else runs too, it keeps a core from the very thread that it waits for, and a step
takes many times as long. With this policy it sleeps instead. What the user has set is left alone; processes that a
program starts inherit it.
"""

import os

CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # OpenMP's own, GNU's, LLVM's and Intel's

if not any(name in os.environ for name in CHOICES):
    os.environ["OMP_WAIT_POLICY"] = "passive"
