"""The trainer: a model, its data, its optimizer and the hooks around them, as a config describes them."""

import logging
import math
import os
import signal
import time
import weakref
from contextlib import closing

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from fasegr.checkpoint import Checkpointer
from fasegr.d2 import DatasetEvaluator, DatasetEvaluators, DefaultTrainer, EventStorage, HookBase, build_model, comm
from fasegr.data.build import TrainingSampler, build_test_loader, build_train_loader, with_class_weights
from fasegr.engine.early_stop import Patience
from fasegr.engine.hooks import BestCheckpoint, Checkpoints, Evaluation, LearningRate, Metrics, Progress
from fasegr.engine.interruption import Interrupted, Interruption
from fasegr.engine.lr_scheduler import build_lr_scheduler
from fasegr.engine.optimizer import build_gradient_clipper, build_optimizer
from fasegr.engine.output_lock import locked
from fasegr.engine.pictures import Pictures
from fasegr.engine.process_settings import sizes_that_vary
from fasegr.engine.seed import draw_seed, seed_all
from fasegr.engine.train_step import NonFiniteLoss, StepReport, TrainStep
from fasegr.engine.watch import tell
from fasegr.engine.weight_average import WeightAverage
from fasegr.evaluation import build_evaluator, inference_dir, main_score
from fasegr.evaluation.prediction_writer import PredictionWriter
from fasegr.inference.sliding_window import with_sliding_window
from fasegr.inference.test_time_augmentation import SemanticSegmentorWithTTA, tta_cfg
from fasegr.utils.files import remove_partial, replacing
from fasegr.visualization.overlays import palette
from fasegr.visualization.report_page import write_report_page

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """detectron2's trainer with the paper's optimization, and runs that can be killed and resumed exactly.

    The step (precision, accumulation, clipping, NaN check) is `TrainStep`. Randomness depends only on the seed, the
    iteration and the process, and the data only on the seed and the position in its stream, so a resumed run gives the
    same numbers as an uninterrupted one. SEED -1 draws a seed; a checkpoint's seed takes precedence over the config's.
    """

    def __init__(self, cfg):
        # Not DefaultTrainer's: detectron2's wraps models on the CPU as if they were on a GPU, which torch rejects, and
        # uses a float16 scaler whatever the precision.
        super(DefaultTrainer, self).__init__()
        self.cfg = cfg.clone()
        if cfg.SEED < 0:
            self._set_seed(draw_seed())
            logger.info("SEED is %d: drawn %d", cfg.SEED, self.cfg.SEED)

        self.cfg = with_class_weights(self.cfg)
        seed_all(self.cfg.SEED, -1, rank=0)  # the same initial weights in all processes
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        data_loader, self._sampler = self.build_train_loader(self.cfg)
        self._trainer = TrainStep(
            _distribute(model, compress=cfg.SOLVER.COMPRESS_GRADIENTS),
            data_loader,
            optimizer,
            build_gradient_clipper(self.cfg),
            accumulate=cfg.SOLVER.ACCUMULATE,
            amp_dtype=_amp_dtype(self.cfg),
            gather_period=cfg.SPEED.GATHER_METRICS_PERIOD,
            output_dir=cfg.OUTPUT_DIR,
        )
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, partial=cfg.MODEL.WEIGHTS_PARTIAL, trainer=weakref.proxy(self)
        )
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.interruption = Interruption(
            "Stopping after this step, then saving a checkpoint. Press Ctrl-C again to stop now without saving."
            if comm.is_main_process()
            else "",
            tell,
        )
        self._stop = False  # some process wants to
        self.register_hooks(self.build_hooks())

    def _set_seed(self, seed: int) -> None:
        self.cfg.defrost()
        self.cfg.SEED = seed
        self.cfg.freeze()

    @property
    def unwrapped_model(self) -> nn.Module:
        """The model itself, without the wrapper that averages gradients."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    @classmethod
    def build_model(cls, cfg) -> nn.Module:
        model = build_model(cfg)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        logger.info("%s: %.2f M parameters, %.2f M trained", cfg.MODEL.META_ARCHITECTURE, millions, trainable)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg) -> tuple[torch.utils.data.DataLoader, TrainingSampler]:
        """The loader of this process's micro-batches, and the sampler whose `start_iteration` says where it begins."""
        return build_train_loader(cfg, cfg.SEED)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str) -> torch.utils.data.DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
        """The evaluator of a dataset; with TEST.SAVE_PREDICTIONS, predictions are written too."""
        evaluator = build_evaluator(cfg, dataset_name, output_dir)
        if not cfg.TEST.SAVE_PREDICTIONS:
            return evaluator
        folder = os.path.join(output_dir or inference_dir(cfg, dataset_name), "predictions")
        writer = PredictionWriter(dataset_name, folder, cfg.TEST.SAVE_PREDICTIONS, palette)
        return DatasetEvaluators([evaluator, writer])

    @classmethod
    def test(cls, cfg, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> dict:
        """Results of `model` on DATASETS.TEST, through sliding windows if TEST.SLIDING_WINDOW is enabled; TEST.REPORT
        writes OUTPUT_DIR/inference/report, over that of an earlier evaluation."""
        with sizes_that_vary():
            results = super().test(cfg, with_sliding_window(cfg, model), evaluators)
        if evaluators is None:
            write_report_pages(cfg)
        return results

    @classmethod
    def test_with_TTA(cls, cfg, model: nn.Module) -> dict:
        """The same with TEST.AUG's sizes and mirror images, as sem_seg_TTA; files go to OUTPUT_DIR/inference_TTA."""
        return cls._test_apart(tta_cfg(cfg), SemanticSegmentorWithTTA(cfg, model), "TTA")

    @classmethod
    def _test_apart(cls, cfg, model: nn.Module, suffix: str) -> dict:
        """Results with a suffix to the names of tasks; files go to OUTPUT_DIR/inference_SUFFIX."""
        names, folder = cfg.DATASETS.TEST, f"inference_{suffix}"
        evaluators = [cls.build_evaluator(cfg, name, inference_dir(cfg, name, folder)) for name in names]
        results = super().test(cfg, model, evaluators)
        write_report_pages(cfg, folder)
        if len(names) == 1:
            return {f"{task}_{suffix}": scores for task, scores in results.items()}
        return {name: {f"{task}_{suffix}": scores for task, scores in results[name].items()} for name in results}

    def build_hooks(self) -> list[HookBase]:
        """The same in all processes: the main one saves the hooks' states, and every process loads them."""
        cfg = self.cfg
        me = weakref.proxy(self)  # hooks must not keep the trainer alive
        self._metrics = metrics = Metrics(cfg.OUTPUT_DIR, trackers=cfg.TRACKERS)
        self._progress = Progress()
        self._average = self._patience = averaged = None
        hooks = [LearningRate(), metrics]
        if cfg.SOLVER.EMA.ENABLED:
            self._average = WeightAverage(self.unwrapped_model, cfg.SOLVER.EMA.DECAY)
            averaged = Checkpointer(self._average.model, cfg.OUTPUT_DIR)
            hooks.append(self._average)
        self._checkpoints = Checkpoints(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, averaged)
        hooks.append(self._checkpoints)
        if cfg.DATASETS.TEST:
            first = cfg.DATASETS.TEST[0]
            score = main_score(cfg, first) if len(cfg.DATASETS.TEST) == 1 else f"{first}/{main_score(cfg, first)}"
            best = [BestCheckpoint(self.unwrapped_model, cfg.OUTPUT_DIR, score)]
            if self._average is not None:
                task, _, metric = score.rpartition("/")
                averaged = self._average.model, cfg.OUTPUT_DIR, f"{task}_EMA/{metric}", "model_best_ema"
                best.append(BestCheckpoint(*averaged))
            period = cfg.TEST.EVAL_PERIOD
            hooks += [*best, Evaluation(period, lambda: me._evaluate(), metrics, *best)]
            if cfg.SOLVER.PATIENCE:
                self._patience = Patience(cfg.SOLVER.PATIENCE, period, [each.score for each in best], cfg.OUTPUT_DIR)
                hooks.append(self._patience)
            hooks.append(Pictures(cfg.OUTPUT_DIR, lambda: me.build_test_loader(me.cfg, first), first))
        else:
            hooks.append(Pictures(cfg.OUTPUT_DIR))
        return [*hooks, self._progress]

    def _evaluate(self) -> dict:
        """Results of the model, and as tasks with the suffix _EMA those of the average of its weights."""
        weights = f"{self.cfg.OUTPUT_DIR}, iteration {max(self._trainer.updated + 1, self.start_iter)}"
        results = self.test(with_weights(self.cfg, weights), self.unwrapped_model)
        if self._average is None:
            return results
        cfg = with_weights(self.cfg, f"{weights}, average")
        with sizes_that_vary():
            more = self._test_apart(cfg, with_sliding_window(cfg, self._average.model), "EMA")
        if len(cfg.DATASETS.TEST) == 1:
            return results | more
        return {name: results[name] | more[name] for name in results}

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR if `resume` and there is one, else load MODEL.WEIGHTS."""
        if resume and not self.checkpointer.has_checkpoint():
            logger.warning("No checkpoint in %s to resume from: starting from the beginning", self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)

    def train(self) -> None:
        """Train from `start_iter` to `max_iter`.

        Ctrl-C, SIGTERM and SIGHUP raise Interrupted, after the current step is finished and a checkpoint is saved. If a
        step fails, the one before it is saved. Raises OSError if another training is using OUTPUT_DIR.
        """
        with locked(self.cfg.OUTPUT_DIR):
            self._train()

    def _train(self) -> None:
        # detectron2's loop does not handle interruptions, and prints a traceback for a user's mistake too.
        if comm.is_main_process():
            os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
            remove_partial(self.cfg.OUTPUT_DIR)
            with replacing(os.path.join(self.cfg.OUTPUT_DIR, "config.yaml")) as file:
                file.write(self.cfg.dump())  # with the seed that was drawn, or that came with the checkpoint
        self._sampler.start_iteration = self.iter = self.start_iter
        if self.start_iter < self.max_iter:
            logger.info("Training from iteration %d to %d", self.start_iter, self.max_iter)
        else:
            logger.info("The checkpoint is from the last iteration: nothing is left to train")
        with (
            self.interruption,
            EventStorage(self.start_iter) as self.storage,
            closing(self._metrics),
            closing(self._progress),
        ):
            try:
                self.before_train()
                self._loop()
            finally:
                self._trainer.close()
                self.after_train()

    def _loop(self) -> None:
        try:
            for self.iter in range(self.start_iter, self.max_iter):  # noqa: B020 (hooks read it)
                if self._patience is not None and self._patience.exhausted:
                    self._end_early()
                    break
                self.before_step()
                self.run_step()
                self.after_step()
                # Several processes agree in the next step.
                if self._stop or (self.interruption.signum is not None and comm.get_world_size() == 1):
                    raise Interrupted(self.interruption.signum or signal.SIGTERM, together=True)
            self.iter += 1
        except Interrupted as interrupted:
            how = str(interrupted).capitalize()
            if self.iter < self.start_iter:
                logger.info("%s before a step was finished: there is nothing to save", how)
                raise
            self._checkpoints.save_now()
            logger.info(
                "%s after iteration %d; a checkpoint is in %s. To continue, run the same command with --resume",
                *(how, self.iter + 1, self.cfg.OUTPUT_DIR),
            )
            raise
        except NonFiniteLoss:
            raise
        except Exception as error:
            self._save_complete_step(error)
            raise

    def _end_early(self) -> None:
        """Make the last step that was finished the last of the training."""
        logger.info(
            "%s has not risen in %d evaluations (SOLVER.PATIENCE): the training ends after %d of %d iterations. To "
            "train on, run the same command with --resume and SOLVER.PATIENCE 0",
            *(" or ".join(self._patience.scores), self.cfg.SOLVER.PATIENCE, self.iter, self.max_iter),
        )
        self.max_iter, self.iter = self.iter, self.iter - 1
        self._checkpoints.save_final()

    def _save_complete_step(self, error: Exception) -> None:
        """Save the last step of which all is there, so that `error` in a later one costs no other."""
        complete = self._checkpoints.complete
        if complete != self._trainer.updated or complete < self.start_iter or not comm.is_main_process():
            return
        at, self.iter = self.iter, complete
        try:
            if self._trainer.is_broken():
                logger.error("The step before was not finite: nothing is saved")
                return
            self._checkpoints.save_now()
            logger.error(
                "%s at iteration %d. Iteration %d is saved in %s; to continue, run the same command with --resume",
                *(type(error).__name__, at + 1, complete + 1, self.cfg.OUTPUT_DIR),
            )
        except (OSError, RuntimeError, ValueError) as failure:  # as on a GPU whose context is lost
            logger.error("After this error, iteration %d could not be saved: %s", complete + 1, failure)

    def run_step(self) -> None:
        """One update of the weights. On a GPU its losses are read during the next one, or by `finish_step`."""
        start = time.perf_counter()
        batches = self._fetch()
        data_time = time.perf_counter() - start
        # After the data: a loader that starts draws a random number, in the first step of a run only.
        seed_all(self.cfg.SEED, self.iter, comm.get_rank())
        self._record(self._trainer.run(self.iter, batches, data_time, stop=self.interruption.signum is not None))
        self.storage.put_scalar("time", time.perf_counter() - start)

    def finish_step(self) -> None:
        """Wait for the results of the latest step: hooks call this, in all processes, before they read or save what it
        has done. Raises NonFiniteLoss."""
        self._record(self._trainer.finish())

    def _record(self, report: StepReport | None) -> None:
        if report is None:
            return
        self._stop |= report.stop
        scalars = {"data_time": report.data_time}
        if report.losses:
            scalars |= {"total_loss": sum(report.losses.values()), **report.losses}
        if math.isfinite(report.grad_norm):
            scalars["grad_norm"] = report.grad_norm
        if self._trainer.scaler.is_enabled():
            scalars["grad_scale"] = report.grad_scale
        self.storage.put_scalars(cur_iter=report.iteration, **scalars)

    def _fetch(self) -> list[list[dict]]:
        try:
            with self.interruption.waiting_for_workers():
                return self._trainer.fetch()
        except Exception:
            if self.interruption.signum is None:
                raise
            # The signal reached data workers too, before they could ignore it, or on macOS.
            self.iter -= 1  # the last step that was finished
            raise Interrupted(self.interruption.signum) from None

    def state_dict(self) -> dict:
        return {**super().state_dict(), "seed": self.cfg.SEED}

    def load_state_dict(self, state: dict) -> None:
        for key in ("iteration", "seed"):
            if not isinstance(state[key], int) or state[key] < 0:
                raise ValueError(f"{key} is {state[key]!r}; it must be an int >= 0")
        super().load_state_dict(state)
        if state["seed"] != self.cfg.SEED:
            logger.info("SEED is %d, that of the run in the checkpoint, instead of %d", state["seed"], self.cfg.SEED)
            self._set_seed(state["seed"])
            self.data_loader, self._sampler = self.build_train_loader(self.cfg)


def with_weights(cfg, weights: str):
    """The config with other MODEL.WEIGHTS, so that a report says what was tested."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    cfg.freeze()
    return cfg


def write_report_pages(cfg, folder: str = "inference") -> None:
    """Draw the report of each dataset in DATASETS.TEST, if TEST.REPORT has one written."""
    if not cfg.TEST.REPORT or not comm.is_main_process():
        return
    for name in cfg.DATASETS.TEST:
        path = os.path.join(inference_dir(cfg, name, folder), "report")
        if os.path.exists(os.path.join(path, "report.json")):
            logger.info("The report of the evaluation is %s", write_report_page(path))


def _amp_dtype(cfg) -> torch.dtype | None:
    """Type of autocast, None for none. Raises ValueError for float16 on the CPU, which does not compute in it."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError(
            "SOLVER.AMP.DTYPE is 'float16' with MODEL.DEVICE cpu; it must be 'bfloat16' there; "
            "SOLVER.AMP.ENABLED False trains in float32"
        )
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[cfg.SOLVER.AMP.DTYPE]


def _distribute(model: nn.Module, compress: bool = False) -> nn.Module:
    """`model`, wrapped to average gradients where there is more than one process.

    compress: send them as bfloat16, half as many bytes.
    """
    if comm.get_world_size() == 1:
        return model
    # Plain batch norm computes statistics in each process; the main one's, which are saved, are sent to all.
    # Frozen statistics and SyncBN's are equal already.
    differ = any(type(module) is nn.BatchNorm2d for module in model.modules())
    # Without device_ids, since with them every tensor of the batch is copied to the GPU before the model does it, and
    # waited for. Not as a static graph: its first step counts how often a parameter is used, which the micro-batches of
    # SOLVER.ACCUMULATE and drop path change. Gradients are the memory that is sent, instead of a copy of it.
    wrapped = DistributedDataParallel(model, broadcast_buffers=differ, gradient_as_bucket_view=True)
    if compress:
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped
