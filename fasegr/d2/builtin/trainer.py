"""What a trainer inherits: hooks, the state in a checkpoint, resuming, and evaluation. The loop is the subclass's."""

import logging
import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from . import comm
from .config import CfgNode
from .evaluation import DatasetEvaluator, inference_on_dataset
from .events import EventStorage

logger = logging.getLogger(__name__)


class HookBase:
    """Something done around iterations. `trainer` is set on registration; a hook with a state has it in `state_dict`.

    Order: before_train, (before_step, the step, after_step) for each iteration, after_train. The last is called after
    a failure or an interruption too; `trainer.iter` is `trainer.max_iter` only if all went well.
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None: ...

    def after_train(self) -> None: ...

    def before_step(self) -> None: ...

    def after_step(self) -> None: ...

    def state_dict(self) -> dict:
        return {}


class TrainerBase:
    """Hooks and where a training stands.

    iter: the current iteration; start_iter, max_iter: first and one past the last; storage: the open EventStorage.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase]) -> None:
        """Add hooks, which run in this order."""
        for hook in hooks:
            hook.trainer = weakref.proxy(self)  # neither keeps the other, and the model, alive
            self._hooks.append(hook)

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def state_dict(self) -> dict[str, Any]:
        """The iteration, and the states of hooks by class name: of several of a class, the first one's."""
        hooks: dict[str, dict] = {}
        for hook in self._hooks:
            if state := hook.state_dict():
                hooks.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, **({"hooks": hooks} if hooks else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint has a state of hook %s, which is not registered; it is ignored", name)
            else:
                hook.load_state_dict(state)


def _from_step(name: str) -> property:
    """An attribute that lives in `_trainer`, where detectron2 has it too."""
    return property(
        lambda self: getattr(self._trainer, name),
        lambda self, value: setattr(self._trainer, name, value),
    )


class DefaultTrainer(TrainerBase):
    """The base of `fasegr.engine.Trainer`, which builds the parts, runs the loop, and sets `cfg`, `checkpointer` and
    `_trainer`: the step, with its model, optimizer and data, whose state is one entry of a checkpoint."""

    model = _from_step("model")
    optimizer = _from_step("optimizer")
    data_loader = _from_step("data_loader")

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR if `resume` and there is one; else load MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # a checkpoint holds the iteration that it was written after

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> dict:
        """Results of `model` on DATASETS.TEST: ``{task: {metric: value}}``, by dataset first where there are several.

        evaluators: one for each dataset; made by `build_evaluator` if not given.
        """
        names = cfg.DATASETS.TEST
        results = {}
        for i, name in enumerate(names):
            evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                for task, metrics in results[name].items():
                    scores = ", ".join(
                        f"{metric} {value:.4f}" for metric, value in metrics.items() if "-" not in metric
                    )
                    logger.info("%s, %s: %s", name, task, scores)
        return results[names[0]] if len(names) == 1 else results
