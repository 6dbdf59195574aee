"""How much of the fault tests runs: FAULTS=1 (`make faults`) is all of it, the default a sample for every change."""

import os
import random
from collections.abc import Iterable

import pytest

SHARE = float(os.environ.get("FAULTS", "0.01"))
in_full = pytest.mark.skipif(SHARE < 1, reason="make faults runs it")


def count(number: int, at_least: int = 1) -> int:
    """The share of `number` cases."""
    return min(number, max(at_least, round(number * SHARE)))


def sample(cases: Iterable, at_least: int = 1) -> list:
    """The share of `cases`, in their order; the same ones every time."""
    cases = list(cases)
    chosen = random.Random(len(cases)).sample(range(len(cases)), count(len(cases), at_least))
    return [cases[i] for i in sorted(chosen)]
