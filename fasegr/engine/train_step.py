"""One optimizer step: forward and backward of micro-batches, NaN check, clipping, the update."""

import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fasegr.checkpoint import Checkpointer
from fasegr.d2 import comm
from fasegr.engine.optimizer import GradientClipper, load_optimizer_state

__all__ = ["NonFiniteLoss", "StepReport", "TrainStep"]

_NAMED = 3  # how many losses and files an error names before it counts the rest


class NonFiniteLoss(FloatingPointError):
    """A loss, or the gradient, became NaN or infinite."""


class StepReport(NamedTuple):
    """The results of one step, the same in all processes."""

    losses: dict[str, float]  # means over micro-batches and processes
    grad_norm: float  # before clipping; infinite where GradScaler skipped the update
    grad_scale: float  # of GradScaler; 1 without it
    data_time: float  # seconds, of the slowest process
    stop: bool  # some process wants to stop; all processes read the same


class TrainStep:
    """A model with its optimizer and data, and one step of training.

    detectron2 keeps such an object in `DefaultTrainer._trainer`: its `model`, `optimizer` and `data_loader` are those
    of the trainer, and its state is saved in checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        clip: GradientClipper,
        *,
        accumulate: int = 1,
        amp_dtype: torch.dtype | None = None,
        output_dir: str = "",
    ):
        """accumulate: micro-batches a step. amp_dtype: of autocast, None for none; float16 comes with a GradScaler.
        output_dir: where `nan_ITERATION.pth` is written when a loss is not finite."""
        self.model = model.train()
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.clip = clip
        self.accumulate = accumulate
        self.output_dir = output_dir
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.updated = -1  # the last iteration that has changed the weights
        self._has_statistics = any(getattr(module, "track_running_stats", False) for module in model.modules())
        self.amp_dtype = amp_dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        self._batches: Iterator[list[dict]] | None = None

    def fetch(self) -> list[list[dict]]:
        """The micro-batches of the next step."""
        if self._batches is None:  # created late, since a resumed run first sets the start of its stream
            self._batches = iter(self.data_loader)
        return [next(self._batches) for _ in range(self.accumulate)]

    def close(self) -> None:
        """End the data workers, which otherwise live, with the batches they have prepared, as long as this object."""
        self._batches = None

    def run(self, iteration: int, batches: list[list[dict]], data_time: float = 0.0, stop: bool = False) -> StepReport:
        """Update the weights once.

        data_time: seconds that this process waited for `batches`; stop: it wants to stop after this step. Both are
        returned combined over processes. Raises NonFiniteLoss in all processes, before the update.
        """
        if self._has_statistics:
            self.updated = iteration  # the forward pass changes them
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, batch in enumerate(batches, start=1):
            try:
                losses.append(self._forward_backward(batch, is_last=i == len(batches)))
            except FloatingPointError as error:  # the matching found NaN before there was a loss
                raise self._failure(iteration, str(error), _files(batch), save=True) from error
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.clip(self.parameters)

        table = self._gather([loss for of_batch in losses for loss in of_batch.values()], grad_norm, data_time, stop)
        names = list(losses[0])
        values = table[:, :-4].view(-1, len(batches), len(names))
        norms, scales, data_times, stops = table[:, -4:].unbind(1)
        self._check(iteration, names, values, norms, batches)

        self.updated = iteration
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepReport(
            losses=dict(zip(names, values.mean((0, 1)).tolist(), strict=True)),
            grad_norm=norms[0].item(),  # all processes have the same gradient
            grad_scale=scales[0].item(),
            data_time=data_times.max().item(),
            stop=bool(stops.any()),
        )

    def _forward_backward(self, batch: list[dict], is_last: bool) -> dict[str, Tensor]:
        """Add a micro-batch to the gradients. Returns its losses, detached scalars."""
        # Gradients are averaged over processes once a step, in the backward pass of the last micro-batch.
        local = isinstance(self.model, DistributedDataParallel) and not is_last
        with self.model.no_sync() if local else nullcontext():
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                losses = self.model(batch)
            self.scaler.scale(sum(losses.values()) / self.accumulate).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _gather(self, losses: list[Tensor], grad_norm: Tensor, data_time: float, stop: bool) -> Tensor:
        """Everything that the host needs from a step, a row for each process, on the CPU.

        Columns: `losses`, norm and scale of the gradient, `data_time`, `stop`. It is a step's only wait for the GPU.
        """
        scale = self.scaler.scale(torch.ones((), device=self.device))
        row = torch.stack([scalar.float().reshape(()) for scalar in (*losses, grad_norm, scale)])
        row = torch.cat([row, torch.tensor([data_time, stop], dtype=torch.float32, device=self.device)])
        processes = comm.get_world_size()
        if processes == 1:
            return row.cpu()[None]
        rows = row.new_empty(processes * len(row))
        dist.all_gather_into_tensor(rows, row)
        return rows.cpu().view(processes, -1)

    def _check(
        self, iteration: int, names: list[str], losses: Tensor, norms: Tensor, batches: list[list[dict]]
    ) -> None:
        """losses: (processes, micro-batches, names); norms: (processes,). All processes see the same, so all raise."""
        broken = ~losses.isfinite()
        if broken.any():
            found = {
                name: losses[:, :, i][broken[:, :, i]][0].item()
                for i, name in enumerate(names)
                if broken[:, :, i].any()
            }
            files = [_files(batch) for batch, bad in zip(batches, broken[comm.get_rank()], strict=True) if bad.any()]
        elif not self.scaler.is_enabled() and not norms.isfinite().all():
            # A GradScaler finds its scale this way; without one, the update would ruin the weights.
            found = {"the norm of the gradient": norms[0].item()}
            files = [_files(batch) for batch in batches]
        else:
            return
        files = [name for of_rank in comm.all_gather(files) for of_batch in of_rank for name in of_batch]
        what = _some([f"{name} is {value}" for name, value in found.items()])
        raise self._failure(iteration, what, files, save=comm.is_main_process(), losses=found)

    def _failure(self, iteration: int, what: str, files: list[str], save: bool, **evidence) -> NonFiniteLoss:
        """The error to raise. save: this process saves what is needed to investigate it."""
        message = f"iteration {iteration}: {what}. Images of the batch: {_some(files)}. "
        if self.output_dir:
            # The main process writes for all. If only this one found NaN, others may have, too, each in its images.
            name = f"nan_{iteration:07d}" + (f"_rank{comm.get_rank()}" if save and comm.get_rank() else "")
            path = os.path.join(self.output_dir, f"{name}.pth")
            try:
                saver = Checkpointer(self.model, self.output_dir, save_to_disk=save)
                saver.save_untagged(name, iteration=iteration, files=files, **evidence)
                message += f"The weights before this step and all file names are in {path}. "
            except (OSError, RuntimeError, ValueError) as error:  # what is wrong with the training matters more
                message += f"The weights before this step were not saved: {error}. "
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        return NonFiniteLoss(
            f"{message}What often helps: a lower SOLVER.BASE_LR (the learning rate is {lr:.3g} now), SOLVER.AMP.DTYPE "
            "bfloat16 or SOLVER.AMP.ENABLED False, SOLVER.CLIP_GRADIENTS.ENABLED True, correct labels of these images"
        )

    def state_dict(self) -> dict:
        return {"optimizer": self.optimizer.state_dict(), "grad_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        load_optimizer_state(self.optimizer, state["optimizer"])
        # A run may be resumed in another precision, which has no scale to restore.
        if self.scaler.is_enabled() and state["grad_scaler"]:
            self.scaler.load_state_dict(state["grad_scaler"])


def _files(batch: list[dict]) -> list[str]:
    return [sample.get("file_name", "an image without a name") for sample in batch]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
