"""Random numbers that depend on the seed and the iteration, and not on what was drawn before."""

import random

import numpy as np
import torch

from fasegr.d2 import comm

__all__ = ["draw_seed", "seed_all"]


def draw_seed() -> int:
    """A new seed, the same in all processes; all of them must call this."""
    return comm.all_gather(int(np.random.SeedSequence().generate_state(1)[0] >> 1))[0]


def seed_all(seed: int, iteration: int, rank: int) -> None:
    """Seed Python's, numpy's and torch's generators for one iteration in one process.

    Done before each step, this makes a resumed training equal to one that was never interrupted: only the iteration
    has to be remembered. The three numbers are hashed, so neighbouring iterations and ranks are unrelated.
    """
    # SeedSequence takes no negative numbers; iteration -1 is what comes before the first step (the initial weights).
    python, numpy, pytorch = np.random.SeedSequence([seed, iteration + 1, rank]).generate_state(3, np.uint32).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)  # of the CPU and of every GPU
