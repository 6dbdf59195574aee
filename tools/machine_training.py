"""Trainings of seconds, by which tools/check_machine.py tries a machine: in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fasegr import load_cfg
from fasegr.config.packaged import packaged_configs
from fasegr.d2 import HookBase, comm, default_argument_parser
from fasegr.data.datasets import register_from_config
from fasegr.data.datasets.scenes.painter import CLASSES
from fasegr.data.datasets.scenes.semantic import generate_scenes
from fasegr.engine.launch import launch, readable_errors
from fasegr.engine.trainer import Trainer

__all__ = ["ITERATIONS", "paint", "train"]

ITERATIONS = 4  # the second half of them is repeated from a checkpoint


def paint(folder: Path) -> None:
    """The dataset: a few scenes, and the names of their classes."""
    generate_scenes(folder / "scenes", {"train": 24}, size=64)
    (folder / "classes.txt").write_text("\n".join(CLASSES))


def train(folder: Path, device: str, processes: int, runs: Sequence[str], batch: int, log: Path) -> None:
    """Do `runs` with the dataset in `folder`, and write the loss of each iteration to folder/RUN.json.

    processes: 1, or that many, on as many GPUs where `device` is one. What is printed goes to `log`. runs:
    "whole" (float32), "resumed" (the second half of "whole", from its checkpoint), "several" (like "whole"), "float16"
    and "bfloat16" (autocast). Raises SystemExit if it fails. Meant for a process of its own.
    """
    with open(log, "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    with readable_errors():
        options = {
            "MODEL.DEVICE": device,
            "MODEL.RESNETS.NORM": "GN",  # the statistics of batch norm are those of a process
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(CLASSES),
            "DATASETS.FOLDER.NAME": "machine",
            "DATASETS.FOLDER.ROOT": str(folder / "scenes"),
            "DATASETS.FOLDER.CLASSES": str(folder / "classes.txt"),
            "DATASETS.TRAIN": ("machine_train",),
            "DATASETS.TEST": (),
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.CROP.SIZE": (64, 64),
            "INPUT.SIZE_DIVISIBILITY": 64,
            "SOLVER.IMS_PER_BATCH": batch,
            "SOLVER.REFERENCE_BATCH": 0,
            "SOLVER.BASE_LR": 1e-4,
            "SOLVER.MAX_ITER": ITERATIONS,
            "SOLVER.WARMUP_ITERS": 0,
            "SOLVER.CHECKPOINT_PERIOD": ITERATIONS // 2,
            "SOLVER.AMP.ENABLED": False,
            "FLOAT32_PRECISION": "highest",
            "SEED": 3,
            "OUTPUT_DIR": str(folder / f"training_{runs[0]}"),
        }
        quickstart = packaged_configs() / "quickstart/faseg_scenes.yaml"
        cfg = load_cfg(quickstart, [word for pair in options.items() for word in pair])
        if device != cfg.MODEL.DEVICE:
            raise ValueError(f"{device} is not available in a process of its own")
        args = default_argument_parser().parse_args(["--num-gpus", str(0 if device == "cpu" else 1)])
        if processes > 1:
            args.num_gpus = processes
        args.runs = tuple(runs)
        launch(_work, args, cfg)


def _work(args, cfg) -> None:
    register_from_config(cfg)
    out = Path(cfg.OUTPUT_DIR)
    for run in args.runs:
        own = cfg.clone()
        own.defrost()
        own.OUTPUT_DIR = str(out / run)
        if run in ("float16", "bfloat16"):
            own.SOLVER.AMP.ENABLED, own.SOLVER.AMP.DTYPE = True, run
        own.freeze()
        if run == "resumed":
            (out / run).mkdir()
            name = f"model_{ITERATIONS // 2 - 1:07d}.pth"
            shutil.copy(out / "whole" / name, out / run)
            (out / run / "last_checkpoint").write_text(name)
        trainer = Trainer(own)
        trainer.unwrapped_model.criterion.draw = _even_points
        losses = _Losses()
        trainer.register_hooks([losses])
        trainer.resume_or_load(resume=run == "resumed")
        trainer.train()
        if comm.is_main_process():
            (out.parent / f"{run}.json").write_text(json.dumps(losses.seen))


class _Losses(HookBase):
    def __init__(self):
        self.seen: list[float] = []

    def after_step(self) -> None:
        self.seen.append(self.trainer.storage.latest()["total_loss"][0])


def _even_points(images: int, points: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same points in all images, in place of random ones, which depend on how images are spread over processes."""
    i = torch.arange(points, device=device, dtype=dtype)
    return torch.stack([(0.754877666 * i) % 1, (0.569840291 * i) % 1], -1).expand(images, -1, -1)
