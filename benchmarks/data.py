"""Benchmarks of data: reading and augmenting training images, and scoring predictions.

They use generated files of the requested size: noise with a spectrum like that of photographs, and blobs for labels.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fasegr
from benchmarks import peers
from benchmarks.case import OURS, PEER, Case
from benchmarks.load import timed
from benchmarks.measure import Clock, read
from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.dataset_mappers import build_mapper
from fasegr.evaluation import SemSegEvaluator


def times(case: dict[str, Any]) -> dict[str, Any]:
    """Seconds for `batch` images in each round, by side."""
    case = Case.of(case).prepare()
    with tempfile.TemporaryDirectory() as folder:
        sides = _sides(case, folder)
        runs = {name: lambda step=step: read(step, [], Clock(torch.device("cpu"))) for name, (_, step) in sides.items()}
        return timed(case, runs, {name: label for name, (label, _) in sides.items()})


def agreement(case: dict[str, Any]) -> dict[str, float]:
    """For evaluation, the largest difference between our scores and the peer's, in percentage points. Nothing for the
    mapper: augmentation is random, so the two agree only in distribution."""
    case = Case.of(case).prepare()
    if case.kind == "mapper":
        return {}
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = _evaluators(case, folder)
        scores = []
        for evaluator, step in (ours, theirs):
            step()
            scores.append(evaluator.evaluate()["sem_seg"])
    names = [name for name in scores[0] if not name.startswith("Boundary") and name in scores[1]]
    return {"percentage points": float(np.nanmax([abs(scores[0][name] - scores[1][name]) for name in names]))}


def write_images(
    folder: str, size: tuple[int, int], count: int, num_classes: int, suffix: str = ".jpg", ignore_label: int = 255
) -> list[dict]:
    """Write `count` images and label maps to `folder`; returns their records."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        image, labels = Path(folder, f"{i}{suffix}"), Path(folder, f"{i}_labels.png")
        Image.fromarray(_natural_image(rng, size)).save(image, **({"quality": 90} if suffix == ".jpg" else {}))
        classes = rng.permutation(num_classes)[:9].astype(np.uint8)
        blobs = classes[_smooth_noise(rng, size, len(classes), 8).argmax(0)]
        blobs[_smooth_noise(rng, size, 1, 8)[0] > 1.2] = ignore_label
        Image.fromarray(blobs).save(labels)
        records.append({"file_name": str(image), "sem_seg_file_name": str(labels), "height": size[0], "width": size[1]})
    return records


def _natural_image(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: octaves of noise, each half as strong as the next coarser one."""
    total, cells = np.zeros((3, *size), np.float32), 4
    while cells <= min(size):
        total += _smooth_noise(rng, size, 3, cells) * (4 / cells)
        cells *= 2
    return np.clip(128 + 60 * total.transpose(1, 2, 0), 0, 255).astype(np.uint8)


def _score_map(rng: np.random.Generator, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """(C, H, W) scores, in which only nine classes ever have the highest one."""
    scores = _smooth_noise(rng, size, num_classes, 8)
    scores[rng.permutation(num_classes)[:9]] += 10
    return scores


def _smooth_noise(rng: np.random.Generator, size: tuple[int, int], count: int, cells: int) -> np.ndarray:
    """(count, H, W) smooth noise with `cells` cells along the shorter side."""
    grid = [max(1, round(side * cells / min(size))) for side in size]
    noise = torch.from_numpy(rng.standard_normal((1, count, *grid), dtype=np.float32))
    return torch.nn.functional.interpolate(noise, size=size, mode="bicubic", align_corners=False)[0].numpy()


def _sides(case: Case, folder: str) -> dict[str, tuple[str, Callable[[], Any]]]:
    if case.kind == "mapper":
        return _mappers(case, folder)
    steps = [step for _, step in _evaluators(case, folder)]
    labels = [OURS, _peer_name(case)] if case.peer else [OURS]
    return {side: (label, step) for side, label, step in zip((OURS, PEER), labels, steps, strict=False)}


def _mappers(case: Case, folder: str) -> dict[str, tuple[str, Callable[[], Any]]]:
    cfg = fasegr.load_cfg(case.config, [*case.opts, "MODEL.DEVICE", "cpu"])
    lossless = any("cityscapes" in name for name in cfg.DATASETS.TRAIN)  # the files of Cityscapes are PNGs
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    records = write_images(folder, case.size, case.batch, classes, ".png" if lossless else ".jpg")
    mapper, rng = build_mapper(cfg, is_train=True), np.random.default_rng(0)
    sides = {OURS: (OURS, lambda: [mapper(dict(record), rng) for record in records])}
    if case.peer:
        program, theirs = _checkout(case)
        np.random.seed(0)
        peer = program.MaskFormerSemanticDatasetMapper(theirs, True)
        sides[PEER] = (_peer_name(case), lambda: [peer(record) for record in records])
    return sides


def _evaluators(case: Case, folder: str) -> list[tuple[Any, Callable[[], None]]]:
    """Our evaluator and, if there is a peer, its evaluator, each with a function that evaluates all images."""
    cfg = fasegr.load_cfg(case.config, [*case.opts, "MODEL.DEVICE", "cpu"])
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    records = write_images(folder, case.size, case.batch, classes)
    scores = [torch.from_numpy(_score_map(np.random.default_rng(i), case.size, classes)) for i in range(len(records))]
    results: list[dict[str, Tensor]] = [{"sem_seg": score} for score in scores]
    metadata = {"stuff_classes": [f"class {i}" for i in range(classes)], "ignore_label": 255}
    dataset = f"fasegr_benchmark_{Path(folder).name}"
    _register(dataset, DatasetCatalog, MetadataCatalog, records, metadata)
    ours = SemSegEvaluator(dataset, distributed=False)
    our_results = results
    if case.kind == "evaluation-labels":
        our_results = [{"sem_seg_labels": score.argmax(0).to(torch.uint8)} for score in scores]
    evaluators = [(ours, _evaluation(ours, records, our_results))]
    if case.peer:
        program, _ = _checkout(case)
        catalog = program.MetadataCatalog
        # `program` is the peer's train_net.py, which imports only one of the two catalogs.
        datasets = sys.modules[type(catalog).__module__].DatasetCatalog
        _register(dataset, datasets, catalog, records, metadata)
        theirs = program.SemSegEvaluator(dataset, distributed=False)
        evaluators.append((theirs, _evaluation(theirs, records, results)))
    return evaluators


def _evaluation(evaluator: Any, records: Sequence[dict], results: Sequence[dict]) -> Callable[[], None]:
    def step() -> None:
        evaluator.reset()
        for record, result in zip(records, results, strict=True):
            evaluator.process([record], [result])

    return step


def _register(name: str, datasets: Any, metadata: Any, records: list[dict], entries: dict[str, Any]) -> None:
    datasets.register(name, lambda: records)
    metadata.get(name).set(**entries)


def _checkout(case: Case):
    if case.peer == peers.HUGGING_FACE or peers.is_plain(case.peer):
        raise peers.Unusable(f"{case.kind} can only be compared with a checkout; --peer is {case.peer}")
    program = peers.load_checkout(case.peer)
    config = peers.find_config(case.config, case.peer, case.peer_config)
    return program, peers.load_peer_cfg(program, config, case.opts, "cpu")


def _peer_name(case: Case) -> str:
    return Path(case.peer).name
