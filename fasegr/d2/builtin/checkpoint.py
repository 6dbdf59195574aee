"""Checkpoints that the main process writes and every process reads."""

from typing import Any

from fvcore.common.checkpoint import Checkpointer
from torch import nn

from . import comm


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer for a model and whatever else has a state dict; only rank 0 writes by default.

    How files are written and read is up to `fasegr.checkpoint.Checkpointer`.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
