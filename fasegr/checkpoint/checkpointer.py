"""Checkpoints of a training: written completely or not at all, read back for resuming."""

import os
import re
import threading
from collections.abc import Iterable
from typing import IO, Any

import torch
from torch import nn

from fasegr.d2 import DetectionCheckpointer, comm
from fasegr.utils.files import remove_partial, replacing

from .loading import KINDS, LoadReport, compare, load_weights, unwrap
from .paths import local_path
from .reading import Contents, check_readable, read_checkpoint

RESUMABLE = re.compile(r"model_(final|\d+)\.pth")  # what a training saves to resume from
SAVING = threading.RLock()  # held while a checkpoint is written, so that nothing ends the process from another thread


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, whose files survive a kill, are read without running code, and are never half loaded.

    A checkpoint replaces an older one of its name only when it is complete on disk and has been found readable.
    `report` says how the weights last loaded fit the model (None before that). partial: load what fits of weights of
    another model; never where a training is resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        partial: bool = False,
        **checkpointables: Any,
    ):
        super().__init__(unwrap(model), save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.partial = partial
        self.report: LoadReport | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and `kwargs` to `save_dir`/`name`.pth, and have training resume from it.

        Only the main process writes. Raises OSError if the disk is full or read-only, ValueError for a `name` with a
        folder in it and for a state that could not be read back; earlier checkpoints then stay as they were.
        """
        if self.save_dir and self.save_to_disk:
            remove_partial(self.save_dir)
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
            _make_room(path)
            with SAVING, replacing(path, "wb", check_readable, durable=True) as file:
                _save(data, file)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as either
            raise OSError(f"could not write checkpoint {path}: {error}; earlier checkpoints are untouched") from error
        return True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write to the file `last_checkpoint` which one training resumes from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        _make_room(path)
        with replacing(path, durable=True) as file:
            file.write(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether a training was saved in `save_dir`, readable or not. The same in all processes."""
        return comm.all_gather(os.path.exists(os.path.join(self.save_dir, "last_checkpoint")) or bool(self._saved()))[0]

    def get_checkpoint_file(self) -> str:
        """The checkpoint that the file `last_checkpoint` names, "" if there is none."""
        return self._tagged()[0]

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the last checkpoint in `save_dir` if `resume` and there is one, else load the weights in `path`.

        The last is the one that the file `last_checkpoint` names. If that is lost, damaged or of another model, it is
        the one of the highest iteration that is none of these; a warning says which and why. Raises ValueError if all
        are: a training that was asked to resume never starts from the beginning beside its checkpoints.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        last, refused = comm.all_gather(self._tagged())[0]
        for others in (False, True):  # of which nothing is read if they are not needed
            found = [last] if last else []
            if others:
                found, damaged = comm.all_gather(self._newest_first(last))[0]
                refused = [*refused, *damaged]
            for candidate in found:
                try:
                    rest = self._load(candidate, self.checkpointables, whole=True)
                except (OSError, ValueError) as error:
                    refused.append(str(error))
                    continue
                if refused:
                    self.logger.warning("Resuming from %s. What is wrong:\n%s", candidate, "\n".join(refused))
                return rest
        raise ValueError(
            f"nothing in {self.save_dir} can be resumed. To start from the beginning, run without --resume, which "
            "renames what is there. What is wrong:\n" + "\n".join(refused)
        )

    def _saved(self) -> list[str]:
        """Paths of the checkpoints of a training in `save_dir`."""
        names = os.listdir(self.save_dir) if os.path.isdir(self.save_dir) else []
        return [os.path.join(self.save_dir, name) for name in sorted(names) if RESUMABLE.fullmatch(name)]

    def _tagged(self) -> tuple[str, list[str]]:
        """The checkpoint that the file `last_checkpoint` names; "" and the reason if it names none in its folder."""
        tag = os.path.join(self.save_dir, "last_checkpoint")
        try:
            with open(tag, encoding="utf-8", errors="replace") as file:
                name = file.read(1024).strip()
        except OSError as error:
            return "", [f"{tag} cannot be read ({error.strerror})"]
        path = os.path.join(self.save_dir, name)
        if os.path.basename(name) == name and os.path.isfile(path):
            return path, []
        return "", [f"{tag} names {name!r}, which is no file in this folder"]

    def _newest_first(self, but: str) -> tuple[list[str], list[str]]:
        """The checkpoints of this model in `save_dir` without `but`, and what is wrong with others.

        Damage in tensors is not noticed here.
        """
        iterations, damaged = {}, []
        for path in self._saved():
            if path == but:
                continue
            try:
                weights, rest = read_checkpoint(path, mmap=True)
                if not isinstance(rest.get("iteration"), int):
                    raise ValueError(f"{path} holds no state of a training")
                if compare(self.model, weights, path).kind != "full":
                    raise ValueError(f"{path} holds the state of a training of another model")
                iterations[path] = rest["iteration"]
            except (OSError, ValueError) as error:
                damaged.append(str(error))
        return sorted(iterations, key=iterations.get, reverse=True), damaged

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and those `checkpointables` (None: all) that the file has; returns what else it holds.

        The model is loaded by the rules of `load_checkpoint`; where the state of a training comes with it (resuming),
        every weight must fit. An empty `path` loads nothing. In several processes an error in one is an error in all.
        """
        if not path:
            self.logger.info(
                "No weights given: the model starts from random weights, a backbone from timm's if PRETRAINED"
            )
            return {}
        return self._load(path, self.checkpointables if checkpointables is None else checkpointables)

    def _load(self, path: str, checkpointables: Iterable[str], whole: bool = False) -> dict[str, Any]:
        """whole: the file must have all `checkpointables`."""
        contents = self._read_everywhere(path)
        rest = contents.rest
        states = {key: rest.pop(key) for key in checkpointables if key in rest}
        if whole and (missing := set(checkpointables) - set(states)):
            raise ValueError(f"{path} holds weights, but not the state of a training ({', '.join(sorted(missing))})")
        resumes = bool(states)
        self.report = load_weights(
            self.model,
            contents.weights,
            path,
            kinds=("full",) if resumes else KINDS,
            partial=self.partial and not resumes,
        )
        for key, state in states.items():
            self.logger.info("Loading %s from %s", key, path)
            try:
                self.checkpointables[key].load_state_dict(state)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: its entry {key!r} is not the state of this training ({type(error).__name__}: {error})"
                ) from error
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


def _make_room(path: str) -> None:
    """Rename a folder that has the name of the file `path`, which could not replace it."""
    if os.path.isdir(path):
        os.rename(path, f"{path}.folder")


def _save(data: dict[str, Any], file: IO[bytes]) -> None:
    """torch.save, whose errors say why a write failed: torch's own say only that fewer bytes arrived than expected."""
    writer = _Writer(file)
    try:
        torch.save(data, writer)
    except RuntimeError:
        if writer.error is not None:
            raise writer.error from None
        raise


class _Writer:
    """What torch.save needs of `file`; `error` is the last one that writing to it raised."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
