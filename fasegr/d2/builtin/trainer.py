"""The training loop and its hooks."""

import logging
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from . import comm
from .checkpoint import DetectionCheckpointer
from .config import CfgNode
from .evaluation import DatasetEvaluator, inference_on_dataset
from .events import EventStorage
from .modeling import build_model

logger = logging.getLogger(__name__)


class HookBase:
    """Something done around iterations. `trainer` is set on registration; a hook with a state has it in `state_dict`.

    Order: before_train, (before_step, the step with after_backward inside, after_step) for each iteration, after_train.
    The last is called after a failure or an interruption too; `trainer.iter` is `trainer.max_iter` only if all went
    well.
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None: ...

    def after_train(self) -> None: ...

    def before_step(self) -> None: ...

    def after_backward(self) -> None: ...

    def after_step(self) -> None: ...

    def state_dict(self) -> dict:
        return {}


class TrainerBase:
    """A loop over `run_step` that calls hooks.

    iter: the iteration under way; start_iter, max_iter: first and one past the last; storage: the open EventStorage.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, which run in this order; None is skipped."""
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must be a HookBase, not a {type(hook).__name__}")
            hook.trainer = weakref.proxy(self)  # neither keeps the other, and the model, alive
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        logger.info("Training from iteration %d to %d", start_iter, max_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1
            except Exception:
                logger.exception("Training stopped at iteration %d:", self.iter)
                raise
            finally:
                self.after_train()

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

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must say what one iteration does in run_step")

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
                logger.warning("The checkpoint has a state of hook %s, which is not registered; it is left out", name)
            else:
                hook.load_state_dict(state)


class _Parts(TrainerBase):
    """A model with its data and its optimizer, whose state is one entry of a checkpoint. The step is the subclass's."""

    def __init__(self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer):
        super().__init__()
        self.model, self.data_loader, self.optimizer = model.train(), data_loader, optimizer
        self._batches: Iterator | None = None

    @property
    def _data_loader_iter(self) -> Iterator:
        """One iterator for the whole run, made when first used so that a resumed run can set its start before."""
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return self._batches

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


def create_ddp_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    """`model`, wrapped to average gradients where there is more than one process."""
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **kwargs)


def _of_parts(name: str) -> property:
    """An attribute that lives in `_trainer`, where detectron2 has it too."""
    return property(
        lambda self: getattr(self._trainer, name),
        lambda self, value: setattr(self._trainer, name, value),
    )


class DefaultTrainer(TrainerBase):
    """Training as a config describes it, made of parts that subclasses override.

    The model, the loop and checkpoints come from here; optimizer, schedule, data, hooks and step, which decide what a
    training gives, from the subclass. Once built it has `cfg`, `model`, `optimizer`, `data_loader`, `scheduler` and
    `checkpointer`; a checkpoint holds the state of optimizer and hooks, and where training stood.
    """

    model = _of_parts("model")
    optimizer = _of_parts("optimizer")
    data_loader = _of_parts("data_loader")

    def __init__(self, cfg: CfgNode):
        super().__init__()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        self._trainer = _Parts(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR if `resume` and there is one; else load MODEL.WEIGHTS."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # a checkpoint holds the iteration that it was written after

    def train(self) -> None:
        super().train(self.start_iter, self.max_iter)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def build_hooks(self) -> list[HookBase | None]:
        raise _left_to_subclass(type(self), "build_hooks")

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        raise _left_to_subclass(cls, "build_optimizer")

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        raise _left_to_subclass(cls, "build_lr_scheduler")

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        raise _left_to_subclass(cls, "build_train_loader")

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        raise _left_to_subclass(cls, "build_test_loader")

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        raise _left_to_subclass(cls, "build_evaluator")

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> dict:
        """Results of `model` on DATASETS.TEST: ``{task: {metric: value}}``, by dataset first where there are several.

        evaluators: one for each dataset; made by `build_evaluator` if not given.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(
                f"{len(evaluators)} evaluators for {len(names)} datasets; give one for each of {tuple(names)}"
            )
        results = {}
        for i, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[i]
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                for task, metrics in results[name].items():
                    logger.info(
                        "%s, %s: %s", name, task, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items() if "-" not in k)
                    )
        return results[names[0]] if len(names) == 1 else results


def _left_to_subclass(cls: type, method: str) -> NotImplementedError:
    return NotImplementedError(f"{cls.__name__} must override {method}; fasegr.engine.Trainer does")
