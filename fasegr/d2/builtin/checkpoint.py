"""Checkpoints that the main process writes and every process reads."""

from typing import Any

import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from . import comm


class DetectionCheckpointer(Checkpointer):
    """fvcore's checkpointer for a model and whatever else has a state dict.

    Only rank 0 writes, unless `save_to_disk` says otherwise. Files are read as tensors and plain containers, never as
    code; one without an entry ``model`` is taken for the model's state dict.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)

    def _load_file(self, f: str) -> dict[str, Any]:
        loaded = torch.load(f, map_location="cpu", weights_only=True)
        return loaded if "model" in loaded else {"model": loaded}
