"""Benchmarks of what programs do as a whole: a model on a test set, and several trainings at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fasegr
from benchmarks.case import OURS, Case
from benchmarks.data import write_images
from benchmarks.load import timed
from benchmarks.measure import ROOT, WHOLE, Clock, read
from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.engine.trainer import Trainer
from fasegr.utils.metrics_file import read_metrics

ITERATIONS, WARMUP = 40, 20  # of each training; a line of metrics has the mean of 20


def times(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each round: an evaluation of `batch` images with the config's data workers ("testing"), or a step of
    one of `batch` trainings of the painted scenes ("runs")."""
    case = Case.of(case).prepare()
    if case.peer:
        raise ValueError(f"{case.kind} is measured without a peer; leave out --peer {case.peer}")
    with tempfile.TemporaryDirectory() as folder:
        if case.kind == "runs":
            return timed(case, {OURS: lambda: _trainings(case)}, {OURS: f"{case.batch} runs"})
        return timed(case, {OURS: _evaluation(case, folder)}, {OURS: OURS})


def _evaluation(case: Case, folder: str) -> Callable[[], dict[str, float]]:
    cfg = fasegr.load_cfg(case.config, [*case.opts, "MODEL.DEVICE", case.device, "OUTPUT_DIR", folder])
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    records = write_images(folder, case.size, case.batch, classes)
    name = f"fasegr_benchmark_{Path(folder).name}"
    DatasetCatalog.register(name, lambda: records)
    names = [f"class {i}" for i in range(classes)]
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", stuff_classes=names, ignore_label=255)
    cfg.DATASETS.TEST = [name]
    model = fasegr.build_model(cfg)
    return lambda: read(lambda: Trainer.test(cfg, model), [], Clock(torch.device(case.device)))


def _trainings(case: Case) -> dict[str, float]:
    """Mean seconds of a step, by the trainings' own clocks."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "tools/run_ablation.py"), "--table", "5", "--rows", "dfpq"]
        command += ["--dataset", "scenes", "--base-config", case.config, "--output", folder, "--gpus-per-run", "0"]
        command += ["--seeds", str(case.batch), "--jobs", str(case.batch), "--", *case.opts]
        command += ["SOLVER.MAX_ITER", str(ITERATIONS), "TEST.EVAL_PERIOD", "0"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"run_ablation.py exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        files = [*Path(folder).rglob("metrics.json")]
        lines = [line for file in files for line in read_metrics(file)]
        steps = [line["time"] for line in lines if "time" in line and line["iteration"] >= WARMUP]
        if len(files) != case.batch or not steps:
            raise RuntimeError(f"{len(files)} of {case.batch} trainings have written metrics: {done.stdout}")
        return {WHOLE: sum(steps) / len(steps)}
