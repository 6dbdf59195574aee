import dataclasses
from pathlib import Path

import pytest

from benchmarks.case import Case

CONFIG = Path(__file__).parents[2] / "configs/quickstart/faseg_scenes.yaml"
SMALL = {"MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64, "MODEL.WEIGHTS": ""}


@pytest.fixture
def case():
    """A function that makes a small case, with changes, in the form that is passed between processes."""

    def of(kind, **changes):
        opts = tuple(str(word) for pair in SMALL.items() for word in pair)
        small = Case(kind, str(CONFIG), opts=opts, size=(64, 96), rounds=2, warmup=0)
        return dataclasses.asdict(dataclasses.replace(small, **changes))

    return of
