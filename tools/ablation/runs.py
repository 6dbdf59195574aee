"""The runs of a study: one training for each row and seed, in a folder of its own, as train_net.py leaves it.

What a run is, its whole config, stands in its folder as `run.json`; its result is the last evaluation in
`metrics.json`. So a study that was killed finds out by looking which runs are done, which are to be continued and
which to be begun, and rows that are the same config in several tables share their runs.
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
from tools.ablation.tables import CONFIGS, Row, Table, flat, transferred

__all__ = ["DATASETS", "Base", "Cell", "Run", "base_of", "iterations_done", "locked", "plan", "score", "write_identity"]

# What says where and how fast a run is computed, not what: keys, or whole sections.
NOT_IDENTITY = ("OUTPUT_DIR", "MODEL.DEVICE", "VIS_PERIOD", "DATALOADER.NUM_WORKERS", "INPUT.CACHE", "SPEED.")

METRICS_TAIL = 1 << 18  # bytes, of which the last evaluation, with two numbers a class, is a small part

# name: the base config (None: the recipe of the table) and the registered names of training and test set
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
    """What all rows are made on: a config file (None: each table's recipe), and options (key, value, ...) on top."""

    file: Path | None
    options: list


class Run(NamedTuple):
    """config, options: of train_net.py. folder: its OUTPUT_DIR. identity: the keys that say what is computed, with
    their values. max_iter: its iterations. score: the name of its score in metrics.json."""

    config: Path
    options: list
    folder: Path
    identity: dict[str, Any]
    max_iter: int
    score: str


class Cell(NamedTuple):
    """One run as a part of a table."""

    table: Table
    row: Row
    run: Run


def base_of(dataset: str | None, config: str | os.PathLike | None, options: Sequence = ()) -> Base:
    """The base that the command line describes.

    dataset: of DATASETS, or a registered one (NAME_train and NAME_val), or None: that of the config. config: the base
    config file, by default the dataset's own. options: key, value, key, value, ...
    """
    if dataset is None and config is None:
        raise ValueError(f"say what to train on: --dataset ({', '.join(DATASETS)}, ...) or --base-config")
    if dataset is None:
        return Base(_existing(config), list(options))
    own, train, test = DATASETS.get(dataset, (None, f"{dataset}_train", f"{dataset}_val"))
    if config is None:
        if dataset not in DATASETS:
            raise ValueError(f"{dataset} has no config of its own here; name one with --base-config")
        return Base(own, list(options))
    config = _existing(config)
    load_cfg(config, ["MODEL.DEVICE", "cpu"])  # registers the dataset that the file describes, if it does
    if own is not None:
        load_cfg(own, ["MODEL.DEVICE", "cpu"])
    missing = [name for name in (train, test) if name not in DatasetCatalog.list()]
    if missing:
        raise ValueError(f"--dataset {dataset} needs {' and '.join(missing)}, not registered; "
                         f"there are {', '.join(sorted(DatasetCatalog.list()))}")  # fmt: skip
    named = ["DATASETS.TRAIN", [train], "DATASETS.TEST", [test]]
    if classes := MetadataCatalog.get(train).get("stuff_classes"):
        named += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(classes)]
    return Base(config, [*named, *options])


def plan(tables: Sequence[tuple[Table, Sequence[Row]]], seeds: Sequence[int], base: Base, output: Path) -> list[Cell]:
    """The cells of `tables` (each with the rows that are wanted), all rows with the first seed first.

    A row's run is in OUTPUT/TABLE/ROW/seedN, unless the same config was or will be run for another row: then it is
    that one. Raises ValueError where the folder of a run holds one of another config.
    """
    recorded = _recorded(output)
    wanted = [(table, row, _run(table, row, base)) for table, rows in tables for row in rows]
    cells = []
    for seed in seeds:
        for table, row, any_seed in wanted:
            run = any_seed._replace(
                options=[*any_seed.options, "SEED", seed],
                folder=output / table.name / row.name / f"seed{seed}",
                identity={**any_seed.identity, "SEED": seed},
            )
            if run.folder in recorded:
                _refuse_another(run, recorded[run.folder])
            else:
                same = [f for f, identity in recorded.items() if not _differing(run.identity, identity)]
                run = run._replace(folder=same[0]) if same else run
            recorded[run.folder] = run.identity
            cells.append(Cell(table, row, run))
    return cells


def _run(table: Table, row: Row, base: Base) -> Run:
    """The row's run, its seed and folder still to be filled in."""
    config = base.file or table.recipe
    changes = transferred(table, row, load_cfg(config, [*base.options, "MODEL.DEVICE", "cpu"]))
    taken = sorted({*changes, "SEED", "OUTPUT_DIR"} & set(base.options[0::2]))
    if taken:
        raise ValueError(
            f"{', '.join(taken)} cannot be an option of all runs of {table.name}: it is what the runs differ in"
        )
    options = [*base.options, *(word for pair in changes.items() for word in pair)]
    cfg = load_cfg(config, [*options, "MODEL.DEVICE", "cpu"])
    if not cfg.DATASETS.TEST:
        raise ValueError(f"{config}: DATASETS.TEST is empty, so the rows would have no scores")
    identity = {key: value for key, value in flat(cfg).items() if not key.startswith(NOT_IDENTITY)}
    name = "sem_seg/mIoU" if len(cfg.DATASETS.TEST) == 1 else f"{cfg.DATASETS.TEST[0]}/sem_seg/mIoU"
    return Run(config, options, Path(), identity, cfg.SOLVER.MAX_ITER, name)


def score(run: Run) -> float | None:
    """The score of the last evaluation, in %, or None while there is none."""
    lines = [line for line in _metrics(run.folder) if line["iteration"] == run.max_iter - 1 and run.score in line]
    return lines[-1][run.score] if lines else None


def iterations_done(run: Run) -> int:
    """Iterations that metrics.json knows of."""
    lines = _metrics(run.folder)
    return lines[-1]["iteration"] + 1 if lines else 0


def _metrics(folder: Path) -> list[dict]:
    """The last lines of metrics.json; one that is being written right now is left out."""
    path = folder / "metrics.json"
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - METRICS_TAIL)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]


def write_identity(run: Run) -> None:
    """Puts run.json into the run's folder, which is made."""
    run.folder.mkdir(parents=True, exist_ok=True)
    partial = run.folder / "run.json.partial"
    partial.write_text(json.dumps({"config": str(run.config), "identity": run.identity}, indent=1))
    partial.replace(run.folder / "run.json")


@contextmanager
def locked(run: Run) -> Iterator[int | None]:
    """A file descriptor that holds the run's lock, or None if a process that is alive holds it already.

    A process that inherits the descriptor holds the lock as well, so a training that outlives whoever started it is
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


def _recorded(output: Path) -> dict[Path, dict[str, Any]]:
    """{folder: identity} of the runs in `output`."""
    files = sorted(output.glob("*/*/seed*/run.json"))
    return {file.parent: json.loads(file.read_text())["identity"] for file in files}


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Keys in which two identities differ. A key that only one knows (it came later) counts as at its default."""
    cfg = get_cfg()
    add_fasegr_config(cfg)
    defaults = flat(cfg)
    keys = sorted({*ours, *theirs})
    return [key for key in keys if ours.get(key, defaults.get(key)) != theirs.get(key, defaults.get(key))]


def _refuse_another(run: Run, recorded: Mapping[str, Any]) -> None:
    keys = _differing(run.identity, recorded)
    if keys:
        changes = ", ".join(f"{key} {recorded.get(key)!r}, now {run.identity.get(key)!r}" for key in keys[:4])
        raise ValueError(f"{run.folder} holds a run of another config ({changes}); choose another --output")


def _existing(config: str | os.PathLike) -> Path:
    path = Path(config).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"the base config {path} does not exist")
    return path.resolve()
