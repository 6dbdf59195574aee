"""Weights & Biases and MLflow, which get the numbers of metrics.json too (TRACKERS).

Where they keep a run is for their own environment variables to say (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME ...). A resumed training continues the run whose id is in OUTPUT_DIR/trackers.json.
"""

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fasegr.utils.files import write_json
from fasegr.utils.nested import flatten

__all__ = ["FILE", "Trackers", "check_installed"]

logger = logging.getLogger(__name__)

FILE = "trackers.json"
PROJECT = "fasegr"
# What MLflow's servers take: characters of a name, length of a parameter, how many in one request.
NOT_IN_A_NAME, LONGEST, PARAMETERS, METRICS = re.compile(r"[^\w\-. :/]"), 500, 100, 1000


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run_id: str | None, output_dir: str, config: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", _run_name(output_dir)),
            id=run_id,
            resume="allow",
            dir=output_dir,
            config=dict(config),
        )
        self.run_id = self._run.id

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=iteration)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class Mlflow:
    """A run of MLflow."""

    def __init__(self, run_id: str | None, output_dir: str, config: Mapping[str, Any]):
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, mlflow.MlflowClient()
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            run_id = self._client.create_run(number, run_name=_run_name(output_dir)).info.run_id
            parameters = [Param(key, str(value)[:LONGEST]) for key, value in config.items()]
            for i in range(0, len(parameters), PARAMETERS):
                self._client.log_batch(run_id, params=parameters[i : i + PARAMETERS])
        self.run_id = run_id

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(NOT_IN_A_NAME.sub("_", name), scalars[name], now, iteration) for name in scalars]
        for i in range(0, len(metrics), METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[i : i + METRICS])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


KINDS: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def check_installed(names: Sequence[str]) -> None:
    """Raises ImportError for a tracker whose package is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"TRACKERS has {name!r}, which is not installed; run `pip install {name}`, or take it out of TRACKERS"
            )


class Trackers:
    """Open runs of several trackers. Raises RuntimeError, OSError or ValueError if one cannot be opened.

    Later, the first error of one is a warning and the last thing that it gets: nothing reads a tracker to go on, and a
    server that is away must not end a training.
    """

    def __init__(self, names: Sequence[str], output_dir: str, config: Mapping[str, Any], resumed: bool):
        """config: nested, as a CfgNode. resumed: continue the runs that `output_dir` names."""
        path = os.path.join(output_dir, FILE)
        known = _read(path) if resumed else {}
        config = flatten(config)
        self._open: dict[str, Wandb | Mlflow] = {}
        for name in names:
            try:
                self._open[name] = KINDS[name](known.get(name), output_dir, config)
            except Exception as error:  # of a package, its server or the network: of any class
                again = f", or delete {path} to begin a new run there" if name in known else ""
                raise ValueError(
                    f"TRACKERS has {name!r}, which cannot be opened ({type(error).__name__}: {error}). Look at its "
                    f"environment variables and login{again}, or take it out of TRACKERS"
                ) from error
        if names:
            write_json({**known, **{name: tracker.run_id for name, tracker in self._open.items()}}, path)

    def write(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """scalars: finite numbers by name."""
        self._each(lambda tracker: tracker.write(iteration, scalars))

    def close(self, finished: bool) -> None:
        """finished: whether the training reached its end."""
        self._each(lambda tracker: tracker.close(finished))
        self._open.clear()

    def _each(self, act: Callable[["Wandb | Mlflow"], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:  # as above
                logger.warning(
                    "%s cannot be written (%s: %s): it will not show the rest of this run, which metrics.json has",
                    *(name, type(error).__name__, error),
                )
                del self._open[name]


def _read(path: str) -> dict[str, str]:
    """Ids of runs by tracker; none where the file is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s): trackers begin new runs", path, error)
        return {}
    items = content.items() if isinstance(content, dict) else ()
    return {name: run_id for name, run_id in items if name in KINDS and isinstance(run_id, str)}


def _run_name(output_dir: str) -> str:
    return os.path.basename(os.path.abspath(output_dir))
