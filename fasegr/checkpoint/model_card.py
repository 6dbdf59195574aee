"""The card of a model: what it is, what it was trained on and how, and how good it was found to be.

Everything in it is read from the config and from what a training and an evaluation left in their folder; what is not
there is said to be not recorded.
"""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .paths import local_path
from .reading import read_checkpoint

__all__ = ["Run", "model_card", "read_run"]

logger = logging.getLogger(__name__)

_REPORT = ("report.json", "report/report.json", "inference/report/report.json")
_COMMAND = re.compile(r"Command line: (Namespace\(.*\))$")
_SCORES = ("mIoU", "BoundaryIoU", "fwIoU", "mACC", "pACC", "ECE", "AP", "AP50", "AP75", "PQ", "SQ", "RQ")
# The hub's names of metrics.
_METRICS = {"mIoU": "mean_iou", "pACC": "accuracy", "AP": "mean_average_precision", "PQ": "panoptic_quality"}


class Run(NamedTuple):
    """What is known of a training. command: its line, or "". scores: name -> value in percent, of the same weights,
    as `dataset` scored them, counted at `iteration`. report: of an evaluation of the same weights."""

    command: str = ""
    iteration: int | None = None
    scores: Mapping[str, float] = {}
    report: Mapping[str, Any] | None = None


def read_run(weights: str, folder: str | os.PathLike | None) -> Run:
    """What the OUTPUT_DIR `folder`, of a training or an evaluation, tells of the file `weights`.

    folder: None is the one that the file is in. Scores of other weights are not taken. Raises FileNotFoundError for a
    folder that is not there.
    """
    beside = None if not weights or "://" in weights else Path(weights).expanduser().absolute()
    if beside is not None and not beside.is_dir():
        beside = beside.parent
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; it is the OUTPUT_DIR of a training or an evaluation")
    folders = [Path(f) for f in dict.fromkeys(f for f in (folder, beside) if f is not None)]
    command = next((c for f in folders if (c := _command(f / "log.txt"))), "")
    iteration = _iteration(weights) if beside is not None else None
    scores: Mapping[str, float] = {}
    if iteration is not None and beside is not None:
        scores = _scores(beside / "metrics.json", iteration)
    report = next((r for f in folders for name in _REPORT if (r := _report(f / name, weights))), None)
    return Run(command, iteration, scores, report)


def _iteration(weights: str) -> int | None:
    try:
        iteration = read_checkpoint(local_path(weights), mmap=True).rest.get("iteration")
    except (OSError, ValueError):
        return None
    return iteration if type(iteration) is int else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _command(log: Path) -> str:
    """The first command of a training in a log, as it would be typed, without folders of that machine."""
    for line in _lines(log):
        if not (match := _COMMAND.search(line)):
            continue
        try:
            call = ast.parse(match[1], mode="eval").body  # parsed, not run
            given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (ValueError, SyntaxError, AttributeError):
            continue
        if given.get("eval_only") or not given.get("config_file"):
            continue
        parts = ["fasegr train --config-file", given["config_file"]]
        if given.get("num_gpus", 1) != 1:
            parts.append(f"--num-gpus {given['num_gpus']}")
        return " ".join(_shown(str(part)) for part in [*parts, *given.get("opts", [])])
    return ""


def _shown(word: str) -> str:
    word = os.path.basename(os.path.normpath(word)) if os.path.isabs(word) else word
    return word if re.fullmatch(r"[\w./:=@,+ -]+", word) else "'" + word.replace("'", "'\"'\"'") + "'"


def _scores(path: Path, iteration: int) -> dict[str, float]:
    """Of the evaluation at `iteration` in a training's metrics.json."""
    found: dict[str, float] = {}
    for line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("iteration") == iteration:
            found = {k: v for k, v in row.items() if "/" in k and isinstance(v, (int, float))} or found
    return found


def _report(path: Path, weights: str) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        of = str(report.get("weights", ""))
        scores = report["scores"]
        if not isinstance(scores, dict) or not isinstance(report["classes"], list):
            raise ValueError("no scores")
    except (ValueError, OSError, LookupError, AttributeError) as error:
        logger.warning("%s cannot be read as a report of an evaluation (%s); the card goes without it", path, error)
        return None
    if not of or os.path.realpath(os.path.expanduser(of)) != os.path.realpath(os.path.expanduser(weights)):
        logger.warning("%s is of other weights, %s; the card goes without it", path, of or "not named")
        return None
    return report


def model_card(
    *,
    name: str,
    license: str,
    classes: Sequence[str],
    values: Mapping[str, Any],
    parameters: int,
    run: Run,
) -> str:
    """README.md, with the hub's metadata at its head. values: the config by dotted key, as it is published."""
    sections = [
        _head(name, license, values, run),
        _what(name, classes, values, parameters),
        _use(name),
        _quality(run),
        _training(values, run),
        f"## Licence\n\n{license or 'Not stated by the author. Ask before you use it.'}\n",
    ]
    return "\n".join(sections)


def _head(name: str, license: str, values: Mapping[str, Any], run: Run) -> str:
    metadata: dict[str, Any] = {
        "library_name": "fasegr",
        "pipeline_tag": "image-segmentation",
        "tags": ["fasegr", "image-segmentation", *_tasks(values)],
    }
    if license:
        metadata["license"] = license
    metrics = [
        {"type": _METRICS[metric], "name": metric, "value": round(value[0], 2)}
        for metric, value in _table(run).items()
        if metric in _METRICS
    ]
    if metrics:
        dataset = _dataset_name(values, run)
        result = {"task": {"type": "image-segmentation"}, "dataset": {"name": dataset, "type": dataset}}
        metadata["model-index"] = [{"name": name, "results": [{**result, "metrics": metrics}]}]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n"


def _tasks(values: Mapping[str, Any]) -> list[str]:
    test = "MODEL.MASK_FORMER.TEST."
    kinds = {"SEMANTIC_ON": "semantic-segmentation", "INSTANCE_ON": "instance-segmentation"}
    kinds["PANOPTIC_ON"] = "panoptic-segmentation"
    return [task for key, task in kinds.items() if values[test + key]]


def _dataset_name(values: Mapping[str, Any], run: Run) -> str:
    if run.report and run.report.get("dataset"):
        return str(run.report["dataset"])
    return ", ".join(values["DATASETS.TEST"]) or "not recorded"


def _table(run: Run) -> dict[str, list[float]]:
    """Score -> [value] or [value, low end, high end] of its 95 % interval."""
    found: dict[str, list[float]] = {}
    for key, value in run.scores.items():
        metric = key.rpartition("/")[2]
        if metric in _SCORES and not math.isnan(value):
            found.setdefault(metric, [float(value)])
    for metric, triple in (run.report or {}).get("scores", {}).items():
        if _is_triple(triple):
            found[metric] = [float(v) for v in triple]
    return {metric: found[metric] for metric in _SCORES if metric in found}


def _what(name: str, classes: Sequence[str], values: Mapping[str, Any], parameters: int) -> str:
    kind = "Mask2Former" if values["MODEL.FASEG.POSITIONAL_QUERY"] == "learnable" else "FASeg"
    backbone = values["MODEL.BACKBONE.NAME"]
    what = {
        "build_fasegr_resnet_backbone": f"ResNet-{values.get('MODEL.RESNETS.DEPTH')}",
        "build_fasegr_swin_backbone": f"Swin, {values.get('MODEL.SWIN.EMBED_DIM')} channels, depths "
        f"{list(values.get('MODEL.SWIN.DEPTHS', ()))}",
        "build_timm_backbone": f"{values.get('MODEL.TIMM.NAME')} of timm",
    }.get(backbone, backbone)
    lines = [
        f"# {_text(name)}\n",
        f"A {kind} model for {', '.join(t.replace('-', ' ') for t in _tasks(values))}: backbone {what}, "
        f"{values['MODEL.MASK_FORMER.NUM_OBJECT_QUERIES']} queries, {parameters / 1e6:.1f} M parameters. Made with "
        "fasegr (FASeg, He et al., CVPR 2023, as a Detectron2 extension).\n",
        f"**Classes** ({values['MODEL.SEM_SEG_HEAD.NUM_CLASSES']}): "
        + (", ".join(map(_text, classes)) if classes else "their names are not recorded")
        + ".\n",
    ]
    return "\n".join(lines)


def _use(name: str) -> str:
    on_hub = f"hf://{name}" if "/" in name else name
    return f"""## How to use

    fasegr predict --config-file {on_hub} --input street.jpg --output seen

    import fasegr
    predictor = fasegr.from_pretrained("{name}")
    result = predictor("street.jpg")
    predictor.draw("street.jpg", result).save("seen.png")

`--config-file {on_hub}` does the same for `fasegr eval`, `export` and `train`, which starts from these weights.
"""


def _quality(run: Run) -> str:
    table = _table(run)
    if not table:
        return "## Scores\n\nNot recorded.\n"
    lines = ["## Scores\n"]
    if run.report:
        count = run.report.get("num_images")
        lines.append(
            f"On {_text(str(run.report.get('dataset', 'a dataset that is not named')))}"
            f"{f', {count} images' if count else ''}; the intervals are of 95 %, by resampling images.\n"
        )
    else:
        lines.append(f"Of the evaluation during training, after iteration {run.iteration + 1}.\n")
    lines += _rows("score", table)
    if classes := _per_class(run):
        lines += ["", *_rows("class, IoU", classes)]
    return "\n".join(lines) + "\n"


def _rows(title: str, table: Mapping[str, Sequence[float]]) -> list[str]:
    """A table of values and, where there are any, the ends of their intervals."""
    lines = [f"| {title} | value | 95 % interval |", "|---|---|---|"]
    for name, (value, *ends) in table.items():
        lines.append(f"| {_text(name)} | {value:.2f} | {f'{ends[0]:.2f} to {ends[1]:.2f}' if ends else 'none'} |")
    return lines


def _per_class(run: Run) -> dict[str, list[float]]:
    if run.report:
        rows = [row for row in run.report["classes"] if isinstance(row, dict) and _is_triple(row.get("IoU"))]
        return {str(row.get("name")): row["IoU"] for row in rows}
    found = {key.partition("/IoU-")[2]: value for key, value in run.scores.items() if "/IoU-" in key}
    return {name: [value] for name, value in found.items() if not math.isnan(value)}


def _is_triple(value: Any) -> bool:
    """Whether it is a score and the ends of its interval, as a report has them where they are defined."""
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)


def _training(values: Mapping[str, Any], run: Run) -> str:
    if not run.command and run.iteration is None:
        return "## Training\n\nNot recorded.\n"
    train = ", ".join(values["DATASETS.TRAIN"]) or "not recorded"
    lines = [
        "## Training\n",
        f"- Data: {_text(train)}",
        f"- Schedule of the config: {values['SOLVER.MAX_ITER']} iterations of {values['SOLVER.IMS_PER_BATCH']} images, "
        f"{values['SOLVER.OPTIMIZER']}, learning rate {values['SOLVER.BASE_LR']:g}",
    ]
    if run.iteration is not None:
        lines.append(f"- The weights are those after iteration {run.iteration + 1}")
    if run.command:
        lines.append(f"- Command:\n\n      {run.command}")
    else:
        lines.append("- Command: not recorded")
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """A name as Markdown shows it, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))
