"""One thing to measure, in the form that is passed between processes and stored in results."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fasegr.engine.process_settings import tune_allocator

OURS, PEER = "ours", "peer"

# kind -> the module that measures it
KINDS = {
    "inference": "models",
    "labels": "models",
    "training": "models",
    "criterion": "models",
    "deformable": "operations",
    "synchronisation": "operations",
    "launches-training": "launches",
    "launches-inference": "launches",
    "mapper": "data",
    "evaluation": "data",
    "evaluation-labels": "data",
    "testing": "programs",
    "runs": "programs",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    kind: "inference" (score maps) or "labels" (only labels), "training" (a whole step), "criterion" (the loss of
    random predictions, forward and backward); "deformable" (the attention operation only), "synchronisation"
    (whether the forward pass waits for the GPU); "launches-training" and "launches-inference" (the operations that a
    GPU would be asked for, counted without one); "mapper" (reading and augmenting training images), "evaluation" (of
    score maps), "evaluation-labels"; "testing" (a model on a test set, as the program does it), "runs" (`batch`
    trainings at once, as tools/run_ablation.py starts them).
    size: (height, width) of the images. batch: images per step; for data and evaluation, images per round.
    dtype: float32 or float64 for the model itself, bfloat16 or float16 through autocast.
    allocator: "default" or "tuned" (`tune_allocator`). threads: CPU threads, 0 for torch's default.
    beside: busy processes next to it; without a peer, each step is also taken without them.
    peer: None, "huggingface", "plain" or the path of a checkout; peer_config: its config file.
    """

    kind: str
    config: str
    opts: tuple[str, ...] = ()
    size: tuple[int, int] = (512, 512)
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    allocator: str = "default"
    threads: int = 0
    rounds: int = 5
    warmup: int = 1
    beside: int = 0
    peer: str | None = None
    peer_config: str | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> Case:
        """The inverse of `dataclasses.asdict`, also after a round trip through JSON."""
        return cls(**{**values, "size": tuple(values["size"]), "opts": tuple(values["opts"])})

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    def prepare(self) -> Case:
        """Apply the process-wide settings: allocator, threads and seed."""
        if self.allocator == "tuned" and not tune_allocator():
            raise ValueError("--allocator tuned needs glibc, which this process does not use; choose default")
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        return self
