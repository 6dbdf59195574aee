"""The exponential moving average of the weights of a training (SOLVER.EMA)."""

import copy
import logging

import torch
from torch import nn

from fasegr.d2 import HookBase

__all__ = ["WeightAverage"]

logger = logging.getLogger(__name__)


class WeightAverage(HookBase):
    """After update n = 1, 2, ... average = d * average + (1 - d) * weights, with d = min(decay, (1 + n) / (10 + n)).

    The smaller d of the first updates forgets the random weights, of which the final d would keep a share for 1 / (1 -
    decay) iterations (as TensorFlow's ExponentialMovingAverage with num_updates). Statistics of batch norms are
    averaged too, integers are copied; frozen parameters are shared. The average is part of a checkpoint of the
    training. Place it before the hook that saves.

    model: the average, as a model in evaluation mode of its own.
    """

    def __init__(self, model: nn.Module, decay: float):
        """model: as it trains, without wrappers. decay: in [0, 1)."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be a number in [0, 1) (0.9998 is usual)")
        self.decay = decay
        self.updates: int | None = None  # None: has not begun
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        self.model = copy.deepcopy(model, frozen).eval().requires_grad_(False)
        pairs = [
            (ours, theirs)
            for ours, theirs in zip(_tensors(self.model), _tensors(model), strict=True)
            if ours is not theirs
        ]
        self._averaged = [(ours, theirs) for ours, theirs in pairs if theirs.is_floating_point()]
        self._copied = [(ours, theirs) for ours, theirs in pairs if not theirs.is_floating_point()]

    def before_train(self) -> None:
        if self.updates is None:
            if self.trainer.start_iter > 0:
                logger.warning("The checkpoint has no average of the weights (SOLVER.EMA): it begins here")
            self.updates = 0
            self._update(decay=0.0)

    def after_step(self) -> None:
        self.updates += 1
        self._update(min(self.decay, (1 + self.updates) / (10 + self.updates)))

    @torch.no_grad()
    def _update(self, decay: float) -> None:
        if self._averaged:
            ours, theirs = map(list, zip(*self._averaged, strict=True))
            torch._foreach_lerp_(ours, theirs, 1 - decay)
        for ours, theirs in self._copied:
            ours.copy_(theirs)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        if type(state["updates"]) is not int or state["updates"] < 0:
            raise ValueError(f"updates is {state['updates']!r}; it must be an int >= 0")
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
