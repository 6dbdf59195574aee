"""Checkpoints of a training: written completely or not at all, read back for resuming."""

import glob
import os
from typing import Any

import torch
from torch import nn

from fasegr.d2 import DetectionCheckpointer, comm
from fasegr.utils.files import replacing

from .loading import KINDS, LoadReport, load_weights, unwrap
from .paths import local_path
from .reading import Contents, check_readable, read_checkpoint


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, whose files survive a kill, are read without running code, and are never half loaded.

    A checkpoint replaces an older one of its name only when it is complete on disk and has been found readable.
    `report` says how the weights last loaded fit the model (None before that).
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        super().__init__(unwrap(model), save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.report: LoadReport | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and `kwargs` to `save_dir`/`name`.pth, and have training resume from it.

        Only the main process writes. Raises OSError if the disk is full or read-only, ValueError for a `name` with a
        folder in it and for a state that could not be read back; earlier checkpoints then stay as they were.
        """
        if self.save_dir and self.save_to_disk:
            for left in glob.glob(os.path.join(glob.escape(self.save_dir), "*.partial")):
                os.remove(left)  # by a process that was killed while it wrote
        if self.save_untagged(name, **kwargs):
            self.tag_last_checkpoint(f"{name}.pth")

    def save_untagged(self, name: str, **kwargs: Any) -> bool:
        """Like `save`, but training still resumes from the one before: for the best model. Returns whether it wrote."""
        if not self.save_dir or not self.save_to_disk:
            return False
        if os.path.basename(name) != name or not name:
            raise ValueError(f"checkpoint name is {name!r}; it must be a file name without folder and extension")
        path = os.path.join(self.save_dir, f"{name}.pth")
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        os.makedirs(self.save_dir, exist_ok=True)
        self.logger.info("Saving checkpoint to %s", path)
        try:
            with replacing(path, "wb", check_readable, durable=True) as file:
                torch.save(data, file)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as either
            raise OSError(f"could not write checkpoint {path}: {error}; earlier checkpoints are untouched") from error
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write to the file `last_checkpoint` which one training resumes from."""
        with replacing(os.path.join(self.save_dir, "last_checkpoint"), durable=True) as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and those `checkpointables` (None: all) that the file has; returns what else it holds.

        The model is loaded by the rules of `load_checkpoint`; where the state of a training comes with it (resuming),
        every weight must fit. An empty `path` loads nothing. In several processes an error in one is an error in all.
        """
        if not path:
            self.logger.info("No weights given: the model starts from random weights")
            return {}
        contents = self._read_everywhere(path)
        rest = contents.rest
        wanted = self.checkpointables if checkpointables is None else checkpointables
        states = {key: rest.pop(key) for key in list(wanted) if key in rest}
        self.report = load_weights(self.model, contents.weights, path, kinds=("full",) if states else KINDS)
        for key, state in states.items():
            self.logger.info("Loading %s from %s", key, path)
            self.checkpointables[key].load_state_dict(state)
        return rest

    def _read_everywhere(self, path: str) -> Contents:
        """Read `path` in every process, or fail in every process: the others would wait for one that failed."""
        error = None
        try:
            contents = read_checkpoint(local_path(path))
        except (OSError, ValueError) as caught:
            error = caught
        failures = [message for message in comm.all_gather(str(error or "")) if message]
        if error is not None:
            raise error
        if failures:
            raise OSError(f"another process could not read the checkpoint: {failures[0]}")
        return contents
