"""The runs of a study: one training for each row and seed, in its own folder, written by train_net.py.

The folder's `run.json` has the whole config of the run, `metrics.json` its result, which is the last evaluation. From
these a study that was killed knows which runs are finished, which to continue and which to start, and rows that have
the same config in several tables share their runs.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fasegr import add_fasegr_config, load_cfg
from fasegr.d2 import DatasetCatalog, MetadataCatalog, get_cfg
from fasegr.utils.files import write_json
from tools.ablation.tables import CONFIGS, Row, Table, flat_config, overrides_on_base

__all__ = [
    "DATASETS",
    "Base",
    "PlannedRun",
    "Run",
    "iterations_done",
    "locked",
    "plan",
    "resolve_base",
    "score",
    "write_identity",
]

# Keys and sections that do not change what a run computes.
NOT_IDENTITY = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "VIS_PERIOD",
    "DATALOADER.NUM_WORKERS",
    "INPUT.CACHE",
    *(f"SPEED.{name}" for name in ("TUNED_ALLOCATOR", "THREADS", "COMPILE", "DETERMINISTIC")),
)

METRICS_TAIL = 1 << 18  # bytes read from the end of metrics.json, far more than the last evaluation has

# name: base config (None: the recipe of the table), registered names of training and test set
DATASETS = {
    "ade20k": (None, "ade20k_sem_seg_train", "ade20k_sem_seg_val"),
    "cityscapes": (
        CONFIGS / "cityscapes/semantic-segmentation/faseg_r50.yaml",
        "cityscapes_fine_sem_seg_train",
        "cityscapes_fine_sem_seg_val",
    ),
    "camvid": (CONFIGS / "camvid/faseg_r18_cpu.yaml", "camvid_train", "camvid_val"),
    "scenes": (CONFIGS / "quickstart/faseg_scenes.yaml", "scenes_train", "scenes_val"),
}


class Base(NamedTuple):
    """What all rows change: a config file (None: each table's recipe) with options (key, value, ...)."""

    file: Path | None
    options: list


class Run(NamedTuple):
    """config, options: for train_net.py. folder: its OUTPUT_DIR. identity: the keys that determine its result, with
    their values. max_iter: its iterations. score: the name of its score in metrics.json."""

    config: Path
    options: list
    folder: Path
    identity: dict[str, Any]
    max_iter: int
    score: str


class PlannedRun(NamedTuple):
    """A run and the row that it is for; rows of several tables may share a run."""

    table: Table
    row: Row
    run: Run


def resolve_base(dataset: str | None, config: str | os.PathLike | None, options: Sequence = ()) -> Base:
    """The base that the command line asks for.

    dataset: one of DATASETS, or a registered one (NAME_train and NAME_val), or None for the config's. config: the base
    config file, by default that of the dataset. options: key, value, key, value, ...
    """
    if dataset is None and config is None:
        raise ValueError(f"there is nothing to train on; give --dataset ({', '.join(DATASETS)}, ...) or --base-config")
    if dataset is None:
        return Base(_existing(config), list(options))
    own, train, test = DATASETS.get(dataset, (None, f"{dataset}_train", f"{dataset}_val"))
    if config is None:
        if dataset not in DATASETS:
            raise ValueError(f"--dataset {dataset} has no config of its own; give one with --base-config")
        return Base(own, list(options))
    config = _existing(config)
    load_cfg(config, ["MODEL.DEVICE", "cpu"])  # registers the dataset, if the file describes one
    if own is not None:
        load_cfg(own, ["MODEL.DEVICE", "cpu"])
    missing = [name for name in (train, test) if name not in DatasetCatalog.list()]
    if missing:
        raise ValueError(f"--dataset {dataset} needs {' and '.join(missing)}, not registered; "
                         f"registered are {', '.join(sorted(DatasetCatalog.list()))}")  # fmt: skip
    named = ["DATASETS.TRAIN", [train], "DATASETS.TEST", [test]]
    if classes := MetadataCatalog.get(train).get("stuff_classes"):
        named += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(classes)]
    return Base(config, [*named, *options])


def plan(
    tables: Sequence[tuple[Table, Sequence[Row]]], seeds: Sequence[int], base: Base, output: Path
) -> list[PlannedRun]:
    """The runs of `tables` (each with the selected rows), all rows with the first seed first.

    A row's run is in OUTPUT/TABLE/ROW/seedN, unless another row has a run of the same config: then they share it.
    Raises ValueError if the folder of a run has one of another config.
    """
    recorded = _recorded_runs(output)
    selected = [(table, row, _run(table, row, base)) for table, rows in tables for row in rows]
    planned = []
    for seed in seeds:
        for table, row, any_seed in selected:
            run = any_seed._replace(
                options=[*any_seed.options, "SEED", seed],
                folder=output / table.name / row.name / f"seed{seed}",
                identity={**any_seed.identity, "SEED": seed},
            )
            if run.folder in recorded:
                _check_same_config(run, recorded[run.folder])
            else:
                same = [f for f, identity in recorded.items() if not _differing_keys(run.identity, identity)]
                run = run._replace(folder=same[0]) if same else run
            recorded[run.folder] = run.identity
            planned.append(PlannedRun(table, row, run))
    return planned


def _run(table: Table, row: Row, base: Base) -> Run:
    """The row's run, without seed and folder."""
    config = base.file or table.recipe
    changes = overrides_on_base(table, row, load_cfg(config, [*base.options, "MODEL.DEVICE", "cpu"]))
    conflicts = sorted({*changes, "SEED", "OUTPUT_DIR"} & set(base.options[0::2]))
    if conflicts:
        raise ValueError(
            f"{', '.join(conflicts)} cannot be an option of all runs of {table.name}, because the runs differ in it"
        )
    options = [*base.options, *(word for pair in changes.items() for word in pair)]
    cfg = load_cfg(config, [*options, "MODEL.DEVICE", "cpu"])
    if not cfg.DATASETS.TEST:
        raise ValueError(f"{config}: DATASETS.TEST is empty, so the rows would have no scores; name a dataset in it")
    identity = {key: value for key, value in flat_config(cfg).items() if not key.startswith(NOT_IDENTITY)}
    name = "sem_seg/mIoU" if len(cfg.DATASETS.TEST) == 1 else f"{cfg.DATASETS.TEST[0]}/sem_seg/mIoU"
    return Run(config, options, Path(), identity, cfg.SOLVER.MAX_ITER, name)


def score(run: Run) -> float | None:
    """The score after the last iteration in %, or None while there is none."""
    lines = [line for line in _metrics(run.folder) if line["iteration"] == run.max_iter - 1 and run.score in line]
    return lines[-1][run.score] if lines else None


def iterations_done(run: Run) -> int:
    """Iterations that metrics.json has."""
    lines = _metrics(run.folder)
    return lines[-1]["iteration"] + 1 if lines else 0


def _metrics(folder: Path) -> list[dict]:
    """The last lines of metrics.json, without one that is still being written.

    Only the end is read: a progress bar asks for it twice a second, and a long training writes many megabytes.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - METRICS_TAIL)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]


def write_identity(run: Run) -> None:
    """Write run.json into the run's folder."""
    write_json({"config": str(run.config), "identity": run.identity}, run.folder / "run.json", indent=1)


@contextmanager
def locked(run: Run) -> Iterator[int | None]:
    """A file descriptor that holds the run's lock, or None if a live process holds it.

    A process that inherits the descriptor also holds the lock, so a training that outlives the one that started it is
    not started twice.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run.folder / "run.lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def _recorded_runs(output: Path) -> dict[Path, dict[str, Any]]:
    """{folder: identity} of the runs in `output`."""
    files = sorted(output.glob("*/*/seed*/run.json"))
    return {file.parent: json.loads(file.read_text())["identity"] for file in files}


def _differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two identities differ. A key that one of them lacks, because it is newer, has its default."""
    cfg = get_cfg()
    add_fasegr_config(cfg)
    defaults = flat_config(cfg)
    keys = sorted({*ours, *theirs})
    return [key for key in keys if ours.get(key, defaults.get(key)) != theirs.get(key, defaults.get(key))]


def _check_same_config(run: Run, recorded: Mapping[str, Any]) -> None:
    keys = _differing_keys(run.identity, recorded)
    if keys:
        changes = ", ".join(f"{key} {recorded.get(key)!r}, now {run.identity.get(key)!r}" for key in keys[:4])
        raise ValueError(f"{run.folder} has a run of another config ({changes}); choose another --output")


def _existing(config: str | os.PathLike) -> Path:
    path = Path(config).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"the base config {path} does not exist")
    return path.resolve()
