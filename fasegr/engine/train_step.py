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
from fasegr.modeling import ops

__all__ = ["NonFiniteLoss", "StepReport", "TrainStep"]

_NAMED = 3  # how many losses and files an error names before it counts the rest
_SHARED = 3  # numbers of each step that processes always exchange: seconds for data, wish to stop, broken


class NonFiniteLoss(FloatingPointError):
    """A loss, or the gradient, became NaN or infinite."""


class StepReport(NamedTuple):
    """The results of one step, the same in all processes, except where losses are not gathered."""

    iteration: int
    losses: dict[str, float]  # means over micro-batches and processes; empty in steps that do not gather them
    grad_norm: float  # before clipping; infinite where GradScaler skipped the update
    grad_scale: float  # of GradScaler; 1 without it
    data_time: float  # seconds, of the slowest process
    stop: bool  # some process wants to stop; all processes read the same


class _StepInFlight(NamedTuple):
    """A step whose results the host has not read yet, which may not even be computed."""

    iteration: int
    names: list[str]  # of the losses
    files: list[list[str]]  # of each micro-batch
    own: Tensor  # (S,), by `_row`, and
    shared: Tensor  # (processes, S), or (processes, _SHARED) without losses; both on their way to the host
    arrived: torch.cuda.Event | None


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
        gather_period: int = 1,
        output_dir: str = "",
    ):
        """accumulate: micro-batches a step. amp_dtype: of autocast, None for none; float16 comes with a GradScaler.
        gather_period: steps from one that reports losses to the next, where there are several processes.
        output_dir: where `nan_ITERATION.pth` is written when a loss is not finite."""
        self.model = model.train()
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.clip = clip
        self.accumulate = accumulate
        self.gather_period = gather_period
        self.output_dir = output_dir
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.updated = -1  # the last iteration that has changed the weights
        self._has_statistics = any(getattr(module, "track_running_stats", False) for module in model.modules())
        self.amp_dtype = amp_dtype
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)
        # A GPU is not waited for: a fused optimizer itself skips an update that would ruin the weights.
        self.deferred = self.device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False)
        self._in_flight: _StepInFlight | None = None
        self._batches: Iterator[list[dict]] | None = None

    def fetch(self) -> list[list[dict]]:
        """The micro-batches of the next step."""
        if self._batches is None:  # created late, since a resumed run first sets the start of its stream
            self._batches = iter(self.data_loader)
        return [next(self._batches) for _ in range(self.accumulate)]

    def close(self) -> None:
        """End the data workers, which otherwise live, with the batches they have prepared, as long as this object."""
        self._batches = None

    def run(
        self, iteration: int, batches: list[list[dict]], data_time: float = 0.0, stop: bool = False
    ) -> StepReport | None:
        """Update the weights once, unless a loss or the gradient is not finite. Returns the report of this step or, if
        `deferred`, of the one before, None if that has been read.

        data_time: seconds that this process waited for `batches`; stop: it wants to stop after this step. Both are
        returned combined over processes. Raises NonFiniteLoss in all processes, with the weights before the step that
        it names.
        """
        if self._has_statistics:
            self.updated = iteration  # the forward pass changes them
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, batch in enumerate(batches, start=1):
            try:
                losses.append(self._forward_backward(batch, is_last=i == len(batches)))
            except FloatingPointError as error:  # the matching found NaN before there was a loss
                self.finish()  # the step before comes first
                raise self._failure(iteration, str(error), _files(batch), save=True) from error
        report = self.finish()  # costs no time: the matching has waited for all that the GPU had to do before it
        self.scaler.unscale_(self.optimizer)
        grad_norm = self.clip(self.parameters)

        values = torch.stack([loss.float().reshape(()) for of_batch in losses for loss in of_batch.values()])
        broken = self._broken(values, grad_norm)
        own = self._row(values, grad_norm, data_time, stop, broken)
        gathers = comm.get_world_size() == 1 or (iteration + 1) % self.gather_period == 0
        shared = _over_processes(own if gathers else own[-_SHARED:])
        files = [_files(batch) for batch in batches]
        self._in_flight = self._to_host(iteration, list(losses[0]), files, own, shared)
        if self.deferred:
            self.updated = iteration
            skip = shared[:, -1].amax()
            if self.scaler.is_enabled():
                skip = torch.maximum(skip, 1 - grad_norm.isfinite().float())
            self.optimizer.found_inf = skip
            self.optimizer.step()
            del self.optimizer.found_inf
        else:
            report = self.finish()
            self.updated = iteration
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return report

    def finish(self) -> StepReport | None:
        """Wait for the step in flight, if there is one. Returns its report, and raises NonFiniteLoss, in all
        processes."""
        if self._in_flight is None:
            return None
        step, self._in_flight = self._in_flight, None
        if _is_broken(step):
            raise self._non_finite(step)
        losses = {}
        if step.shared.shape[1] > _SHARED:
            values = step.shared[:, : -_SHARED - 2].view(-1, len(step.files), len(step.names)).mean((0, 1))
            losses = dict(zip(step.names, values.tolist(), strict=True))
        return StepReport(
            step.iteration,
            losses,
            *step.own[-_SHARED - 2 : -_SHARED].tolist(),  # all processes have the same gradient
            data_time=step.shared[:, -3].max().item(),
            stop=bool(step.shared[:, -2].any()),
        )

    def is_broken(self) -> bool:
        """Whether the step in flight has failed: `finish` would say more, with the help of all processes."""
        return self._in_flight is not None and _is_broken(self._in_flight)

    def _forward_backward(self, batch: list[dict], is_last: bool) -> dict[str, Tensor]:
        """Add a micro-batch to the gradients. Returns its losses, detached scalars."""
        # Gradients are averaged over processes once a step, in the backward pass of the last micro-batch.
        local = isinstance(self.model, DistributedDataParallel) and not is_last
        with self.model.no_sync() if local else nullcontext():
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
                losses = self.model(batch)
            self.scaler.scale(sum(losses.values()) / self.accumulate).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _broken(self, losses: Tensor, grad_norm: Tensor) -> Tensor:
        """1 where this step must not change the weights and the training ends, else 0: a float32 scalar."""
        values = losses if self.scaler.is_enabled() else torch.cat((losses, grad_norm.float().reshape(1)))
        # A GradScaler finds its scale by infinite gradients; without one, the update would ruin the weights.
        return 1 - values.isfinite().all().float()

    def _row(self, losses: Tensor, grad_norm: Tensor, data_time: float, stop: bool, broken: Tensor) -> Tensor:
        """Everything that is read from a step: `losses`, norm and scale of the gradient, and the _SHARED rest."""
        scale = self.scaler.scale(torch.ones((), device=self.device))
        host = ops.to_device(torch.tensor([data_time, stop], dtype=torch.float32), self.device)
        return torch.cat((losses, torch.stack((grad_norm.float().reshape(()), scale)), host, broken.reshape(1)))

    def _to_host(self, iteration: int, names: list[str], files: list[list[str]], *results: Tensor) -> _StepInFlight:
        arrived = None
        results = [result.to("cpu", non_blocking=self.device.type == "cuda") for result in results]
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return _StepInFlight(iteration, names, files, *results, arrived)

    def _non_finite(self, step: _StepInFlight) -> NonFiniteLoss:
        """The error about a step, from what all processes have found."""
        losses = step.own[: -_SHARED - 2].view(len(step.files), len(step.names))
        broken = ~losses.isfinite()
        found = {name: losses[:, i][broken[:, i]][0].item() for i, name in enumerate(step.names) if broken[:, i].any()}
        files = [names for names, bad in zip(step.files, broken, strict=True) if bad.any()]
        of_ranks = comm.all_gather((found, files))
        # each loss as the first process has it that finds it broken, in the order of the losses
        named = {name: values[name] for name in step.names for values, _ in reversed(of_ranks) if name in values}
        if not named:
            named = {"the norm of the gradient": step.own[-_SHARED - 2].item()}
            of_ranks = comm.all_gather((named, step.files))
        files = [name for _, of_rank in of_ranks for of_batch in of_rank for name in of_batch]
        what = _some([f"{name} is {value}" for name, value in named.items()])
        if self.updated == step.iteration and not self._has_statistics:
            self.updated -= 1  # skipped
        return self._failure(step.iteration, what, files, save=comm.is_main_process(), losses=named)

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


def _over_processes(row: Tensor) -> Tensor:
    """`row` of each process, (processes, S)."""
    processes = comm.get_world_size()
    if processes == 1:
        return row[None]
    rows = row.new_empty(processes * len(row))
    dist.all_gather_into_tensor(rows, row)
    return rows.view(processes, -1)


def _is_broken(step: _StepInFlight) -> bool:
    if step.arrived is not None:
        step.arrived.synchronize()
    return bool(step.shared[:, -1].any())


def _files(batch: list[dict]) -> list[str]:
    return [sample.get("file_name", "an image without a name") for sample in batch]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
