"""Programs that run long and write down what they use: for test_long_run.py."""

import json
import os
import random

import numpy as np

from fasegr import Predictor, load_cfg


def used(pid: int | str = "self") -> dict[str, int] | None:
    """Resident memory in KiB, open descriptors and threads of a process; None if it has just ended."""
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    if "VmRSS" not in status:
        return None
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def predict(arguments: list[str]) -> None:
    """CONFIG WEIGHTS NUMBER OUT: predict NUMBER images of changing size, and write what is used after each."""
    config, weights, number, out = arguments
    predictor = Predictor(load_cfg(config, ["MODEL.WEIGHTS", weights]))
    sizes = random.Random(0)
    trace = []
    for _ in range(int(number)):
        height, width = sizes.randrange(32, 400), sizes.randrange(32, 400)
        image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        assert predictor(image)["sem_seg"].shape[-2:] == (height, width)
        trace.append(used())
    with open(out, "w") as file:
        json.dump(trace, file)
