import random

import numpy as np
import torch

from fasegr.engine.seed import draw_seed, seed_all


def draws(*args):
    seed_all(*args)
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_all_generators_are_seeded():
    assert draws(1, 5, 0) == draws(1, 5, 0)


def test_seed_iteration_and_rank_all_count():
    base = draws(1, 5, 0)
    for other in ((2, 5, 0), (1, 6, 0), (1, 5, 1), (1, -1, 0), (5, 1, 0)):
        assert not set(base) & set(draws(*other))


def test_drawn_seeds_differ_and_are_valid():
    seeds = {draw_seed() for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
