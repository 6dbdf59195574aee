"""What happens around the steps of a training: schedule, records, checkpoints, evaluation, progress."""

import datetime
import logging
import math
import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fasegr.checkpoint import Checkpointer, read_checkpoint
from fasegr.checkpoint.loading import compare
from fasegr.d2 import HookBase, comm
from fasegr.engine.interruption import Interrupted
from fasegr.engine.metrics import MetricsFile, set_aside
from fasegr.engine.trackers import FILE as TRACKERS_FILE
from fasegr.engine.trackers import Trackers, check_installed
from fasegr.utils.memory import peak_memory
from fasegr.utils.nested import flatten

__all__ = ["BestCheckpoint", "Checkpoints", "Evaluation", "LearningRate", "Metrics", "Progress"]

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"model_((best|final)(_ema)?|\d+)\.pth")
KEPT = 100  # scalars of each name; detectron2's writers look at the last 20
LOGGERS = ("fasegr", "detectron2", "fvcore")  # that have handlers of their own


def _peak_megabytes(trainer) -> float:
    return peak_memory(torch.device(trainer.cfg.MODEL.DEVICE)) / 2**20


class LearningRate(HookBase):
    """Records the learning rate of the largest group, and steps the schedule after each iteration."""

    def before_train(self) -> None:
        groups = self.trainer.optimizer.param_groups
        self._group = max(groups, key=lambda group: sum(p.numel() for p in group["params"]))

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("lr", self._group["lr"], smoothing_hint=False)
        self.trainer.scheduler.step()

    def state_dict(self) -> dict:
        return self.trainer.scheduler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.trainer.scheduler.load_state_dict(state)


class Metrics(HookBase):
    """Writes means over `period` iterations of all scalars in the storage to metrics.json, TensorBoard and the log.

    The current sums are part of a checkpoint, so a resumed run writes the same lines as one that was not interrupted.
    Place it before the hook that saves.
    """

    def __init__(self, output_dir: str, period: int = 20, trackers: Sequence[str] = ()):
        """trackers: "wandb", "mlflow", which get the same lines."""
        check_installed(trackers)
        self.output_dir = output_dir
        self.period = period
        self.file: MetricsFile | None = None
        self._tracker_names = trackers
        self._trackers: Trackers | None = None
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._added: dict[str, float] = {}  # the iteration of the last value of each

    def before_train(self) -> None:
        if not comm.is_main_process():
            return
        if self.trainer.start_iter == 0:
            checkpoints = [name for name in os.listdir(self.output_dir) if CHECKPOINT.fullmatch(name)]
            number = set_aside(self.output_dir, ["metrics.json", "last_checkpoint", TRACKERS_FILE, *checkpoints])
            if number is not None:
                logger.warning(
                    "%s holds an earlier run that is not being resumed: this one starts from the beginning. Its "
                    "metrics.json, last_checkpoint and checkpoints were renamed to metrics.%d.json, last_checkpoint.%d "
                    "and so on; delete them if they are not needed",
                    *(self.output_dir, number, number),
                )
        start = self.trainer.start_iter
        self.file = MetricsFile(self.output_dir, start)
        if self._tracker_names:
            self._trackers = Trackers(self._tracker_names, self.output_dir, self.trainer.cfg, resumed=start > 0)

    def after_step(self) -> None:
        iteration = self.trainer.iter
        self._add()
        if (iteration + 1) % self.period and iteration + 1 != self.trainer.max_iter:
            return
        self.trainer.finish_step()
        self._add()
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        for history in getattr(self.trainer.storage, "histories", dict)().values():
            del history.values()[:-KEPT]  # detectron2's storage keeps every scalar, which nothing reads
        if self.file is not None:
            eta = means["time"] * (self.trainer.max_iter - iteration - 1)
            means |= {"eta_seconds": eta, "memory": _peak_megabytes(self.trainer)}
            self.write(iteration, means)
            logger.info(self._line(iteration, means))

    def _add(self) -> None:
        """Add the values that are new."""
        for name, (value, put_at) in self.trainer.storage.latest().items():
            if put_at > self._added.get(name, self.trainer.start_iter - 1):
                self._added[name] = put_at
                self._sums[name] += value
                self._counts[name] += 1

    def leave_out(self, names: Iterable[str]) -> None:
        """Scalars that are never part of the means: they have lines of their own."""
        self._added |= dict.fromkeys(names, math.inf)

    def _line(self, iteration: int, means: Mapping[str, float]) -> str:
        # Losses of inner layers (loss_mask_3) are in metrics.json; here they would hide the rest.
        losses = [name for name in means if name.startswith("loss") and not re.search(r"_\d+$", name)]
        left = datetime.timedelta(seconds=int(means["eta_seconds"]))
        parts = [f"iteration {iteration + 1} of {self.trainer.max_iter}", f"{left} left"]
        parts += [f"{name} {means[name]:.4g}" for name in ("total_loss", *losses, "lr", "grad_norm") if name in means]
        parts += [f"{means['time']:.3f} s a step, {means['data_time']:.3f} of it for data", f"{means['memory']:.0f} MB"]
        return "  ".join(parts)

    def close(self) -> None:
        """Call this when all hooks are done: the last evaluation writes in its `after_train`."""
        if self.file is not None:
            self.file.close()
        if self._trackers is not None:
            self._trackers.close(finished=self.trainer.iter >= self.trainer.max_iter)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Write a separate line, for what comes less often than every step."""
        if self.file is not None:
            finite = self.file.write(iteration, scalars)
            if self._trackers is not None:
                self._trackers.write(iteration, finite)

    def has_scores(self, task: str) -> bool:
        """Whether the run that is resumed here wrote scores `task`/... for its last iteration. The same in all
        processes."""
        names = self.file.last if self.file is not None else ()
        return comm.all_gather(any(name.startswith(f"{task}/") for name in names))[0]

    def state_dict(self) -> dict:
        self._add()
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict) -> None:
        self._sums = defaultdict(float, state["sums"])
        self._counts = defaultdict(int, state["counts"])


class Checkpoints(HookBase):
    """Saves model_ITERATION.pth every `period` iterations, and model_final.pth at the end.

    average: of the average of the weights, which is saved as model_final_ema.pth.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, average: Checkpointer | None = None):
        self.checkpointer = checkpointer
        self.period = period
        self.average = average
        self.complete = self.saved = -1  # the last iterations of which all state is there, and is in a checkpoint

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self.save_final()
        elif done % self.period == 0:
            self.save_now()
        self.complete = self.trainer.iter  # the hooks with a state came before this one

    def save_final(self) -> None:
        self.trainer.finish_step()
        if self.average is not None:
            self.average.save_untagged("model_final_ema", iteration=self.trainer.iter)
        self.checkpointer.save("model_final", iteration=self.trainer.iter)
        self.saved = self.trainer.iter

    def save_now(self) -> None:
        if self.saved != self.trainer.iter:
            self.trainer.finish_step()
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            self.saved = self.trainer.iter


class BestCheckpoint(HookBase):
    """Keeps the weights with the highest `score` so far as `name`.pth. Place it before the evaluation.

    A resumed run reads the score from that file: regular checkpoints are saved before the evaluation.
    """

    def __init__(self, model: torch.nn.Module, output_dir: str, score: str, name: str = "model_best"):
        self.checkpointer = Checkpointer(model, output_dir)
        self.name = name
        self.path = os.path.join(output_dir, f"{name}.pth")
        self.score = score
        self.best = -float("inf")

    def before_train(self) -> None:
        if not comm.is_main_process() or self.trainer.start_iter == 0 or not os.path.exists(self.path):
            return
        try:
            self.best = self._read_score()
        except (OSError, ValueError) as error:
            logger.warning("The best model so far is lost, and the next one evaluated will take its place: %s", error)

    def _read_score(self) -> float:
        weights, rest = read_checkpoint(self.path)
        fit = compare(self.checkpointer.model, weights, self.path)
        if fit.kind != "full":
            raise ValueError(f"{self.path} holds weights of another model\n{fit.differences()}")
        score = rest.get(self.score)
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{self.path} does not have the score {self.score}; it is {score!r:.80}")
        return score

    def keep(self, iteration: int, scores: Mapping[str, float]) -> None:
        """Save the model, which has these `scores` after `iteration`, if it is the best so far."""
        value = scores.get(self.score, -float("inf"))
        if value > self.best:
            logger.info("%s is %.2f, the best so far: saving %s.pth", self.score, value, self.name)
            self.best = value
            self.checkpointer.save_untagged(self.name, iteration=iteration, **{self.score: value})


class Evaluation(HookBase):
    """Evaluates every `period` iterations (0: never) and at the end.

    If an earlier run was killed during an evaluation, after it had saved its checkpoint, that one is run first.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict], metrics: Metrics, *best: BestCheckpoint):
        """evaluate: called in all processes; returns nested results, {} in all but the main process.
        best: one or more, which are shown the scores before they are written to `metrics`."""
        self.period = period
        self.evaluate = evaluate
        self.metrics = metrics
        self.best = best
        self.task = best[0].score.rpartition("/")[0]
        self._last = -1  # iteration after which it was run last

    def before_train(self) -> None:
        done = self.trainer.start_iter
        due = self.period > 0 and done > 0 and done % self.period == 0 and done < self.trainer.max_iter
        if due and not self.metrics.has_scores(self.task):
            self._run(done - 1)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done < self.trainer.max_iter:
            self._run(self.trainer.iter)

    def after_train(self) -> None:
        start, end = self.trainer.start_iter, self.trainer.max_iter
        if self.trainer.iter < max(start + 1, end):  # after a failure or an interruption
            return
        if self._last == max(start, end) - 1:  # the training has ended early, with an evaluation
            return
        if start >= end and self.metrics.has_scores(self.task):
            logger.info("Its evaluation is in metrics.json, too: nothing is left to do")
        else:
            self._run(max(start, end) - 1)

    def _run(self, iteration: int) -> None:
        interruption = self.trainer.interruption
        if any(comm.all_gather(interruption.signum is not None)):  # else one would leave the others alone in it
            raise Interrupted(interruption.signum or signal.SIGTERM, together=True)
        self.trainer.finish_step()
        try:
            with interruption.at_once():
                scores = {name: float(score) for name, score in flatten(self.evaluate(), "/").items()}
        except RuntimeError as error:
            # Another process may have left at a signal that is still on its way here.
            if comm.get_world_size() == 1 or not interruption.arrives(seconds=1):
                raise
            raise Interrupted(interruption.signum) from error
        self.trainer.storage.put_scalars(smoothing_hint=False, cur_iter=iteration, **scores)
        self.metrics.leave_out(scores)
        for best in self.best:
            best.keep(iteration, scores)  # before the line: a run killed in between evaluates again
        self._last = iteration
        self.metrics.write(iteration, scores)
        comm.synchronize()


class Progress(HookBase):
    """A progress bar on the main process's terminal: iterations, rate, time left, total loss, peak memory.

    There is none if standard error is not a terminal; the log has the same numbers every 20 iterations.
    """

    def __init__(self):
        self._open = ExitStack()

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            disable=None if comm.is_main_process() else True,
            unit="it",
            dynamic_ncols=True,
            smoothing=0,  # the mean over the run, evaluations included, is what predicts its end
        )
        self._open.callback(self._bar.close)
        if not self._bar.disable:  # log lines go above the bar, not through it
            self._open.enter_context(logging_redirect_tqdm([logging.getLogger(name) for name in LOGGERS]))

    def after_step(self) -> None:
        if self._bar.disable:
            return
        loss, _ = self.trainer.storage.latest().get("total_loss", (math.nan, 0))  # not read yet in the first step
        self._bar.set_postfix_str(f"loss {loss:.3f}, {_peak_megabytes(self.trainer):.0f} MB", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Call this when all hooks are done, however the training ended."""
        self._open.close()
