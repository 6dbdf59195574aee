import logging
import math
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.cityscapes import CLASSES, LABELS
from fasegr.data.image_io import BadFile, read_label
from fasegr.evaluation import CityscapesEvaluator
from fasegr.evaluation.cityscapes import AVERAGE_INSTANCE, count_instances
from tests.data.cityscapes_tree import write_cityscapes

TRAIN_IDS = np.array([label.train_id for label in LABELS if label.id >= 0], np.uint8)
PERSON, RIDER, CAR = 11, 12, 13


class Case:
    """A registered tree of the real layout, and predictions that are partly right, some of a class that is nowhere."""

    def __init__(self, root: Path, seed: int = 0):
        write_cityscapes(root, splits=[("val", 4)], seed=seed)
        rng = np.random.default_rng(seed)
        self.folder = root / "cityscapes" / "gtFine" / "val"
        self.records, self.predictions = [], []
        for file in sorted(self.folder.rglob("*_labelIds.png")):
            truth = TRAIN_IDS[read_label(file)]
            label = str(file).replace("labelIds", "labelTrainIds")
            Image.fromarray(truth).save(label)
            image = str(file).replace("gtFine_labelIds", "leftImg8bit")
            self.records.append({"file_name": image, "sem_seg_file_name": label})
            moved = np.roll(truth, 2, 1)
            noise = rng.integers(0, 19, truth.shape).astype(np.uint8)  # also truck and train, which are not there
            self.predictions.append(np.where((moved == 255) | (rng.random(truth.shape) < 0.1), noise, moved))
        self.name = f"test_{uuid.uuid4().hex}"
        DatasetCatalog.register(self.name, lambda: self.records)
        MetadataCatalog.get(self.name).set(
            stuff_classes=[label.name for label in CLASSES],
            ignore_label=255,
            evaluator_type="cityscapes_sem_seg",
            submission_ids=[label.id for label in CLASSES],
        )

    def outputs(self) -> list[dict]:
        return [{"sem_seg_labels": torch.from_numpy(prediction)} for prediction in self.predictions]

    def evaluate(self, **options) -> dict[str, float]:
        evaluator = CityscapesEvaluator(self.name, **options)
        evaluator.process(self.records, self.outputs())
        return evaluator.evaluate()["sem_seg"]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


@pytest.fixture
def theirs(monkeypatch):
    """cityscapesScripts' results for label maps and answers: theirs(truth files, answer files) -> dict."""
    module = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # which it calls, and numpy 2.4 no longer has
    for name, value in (("JSONOutput", False), ("quiet", True)):
        monkeypatch.setattr(module.args, name, value)

    def results(truths, answers):
        return module.evaluateImgLists([str(file) for file in answers], [str(file) for file in truths], module.args)

    return results


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_cityscapesscripts(tmp_path, theirs, seed):
    """On the files that would be sent to the server."""
    case = Case(tmp_path, seed)
    scores = case.evaluate(output_dir=tmp_path / "out", save_submission=True)
    truths = sorted(case.folder.rglob("*_labelIds.png"))
    answers = [tmp_path / "out/submission" / f.name.replace("gtFine_labelIds", "leftImg8bit") for f in truths]
    expected = theirs(truths, answers)

    groups = {
        "IoU": ("averageScoreClasses", "classScores"),
        "iIoU": ("averageScoreInstClasses", "classInstScores"),
        "IoU_sup": ("averageScoreCategories", "categoryScores"),
        "iIoU_sup": ("averageScoreInstCategories", "categoryInstScores"),
    }
    compared = 0
    for metric, (mean, each) in groups.items():
        assert scores[metric] == pytest.approx(100 * expected[mean], rel=1e-12)
        for name, value in expected[each].items():
            ours = scores.get(f"{metric}-{name}", math.nan)  # labels that are not evaluated are not among ours
            assert ours == pytest.approx(100 * value, rel=1e-12, nan_ok=True), f"{metric}-{name}"
            compared += not math.isnan(value)
    assert compared == 19 + 8 + 7 + 2
    assert scores["mIoU"] == scores["IoU"] and 10 < scores["iIoU"] < 90
    assert scores["IoU-truck"] == scores["iIoU-train"] == 0 < scores["iIoU-person"]


def test_small_instances_count_as_much_as_large_ones():
    """Two persons, of 4 and of 16 pixels; a rider of 2."""
    instances = torch.zeros(6, 8, dtype=torch.int32)
    instances[0, :4] = 24000
    instances[1:3] = 24007
    instances[3, :2] = 25000
    instances[4] = 26  # a group of cars, which is no instance
    instances[5, :4] = 29001  # a caravan, which is not evaluated
    prediction = torch.zeros(6, 8, dtype=torch.uint8)
    prediction[0, :3] = PERSON
    prediction[0, 3] = RIDER
    prediction[1, :4] = PERSON
    prediction[3, 0] = CAR
    prediction[4:] = CAR
    sums = count_instances(instances, prediction)
    assert sums[PERSON].tolist() == [2, 3 / 4 + 4 / 16, 1 + 4 / 16]
    assert sums[RIDER].tolist() == [1, 0, 0]
    assert sums.sum(0).tolist() == [3, 1, 1.25]
    assert (count_instances(instances, prediction.int()) == sums).all()


def test_instance_weights(tmp_path):
    case = Case(tmp_path)
    scores = case.evaluate()
    confusion = np.zeros((256, 256))
    found = missed = 0.0
    for record, prediction in zip(case.records, case.predictions, strict=True):
        truth = read_label(record["sem_seg_file_name"])
        np.add.at(confusion, (truth, prediction), 1)
        instances = read_label(record["sem_seg_file_name"].replace("labelTrainIds", "instanceIds"))
        for number in set(instances[instances >= 24000].tolist()):
            if number // 1000 == 26:
                mask = instances == number
                weight = AVERAGE_INSTANCE["car"] / mask.sum()
                found += weight * (prediction[mask] == CAR).sum()
                missed += weight * (prediction[mask] != CAR).sum()
    wrong = confusion[:19, CAR].sum() - confusion[CAR, CAR]
    assert scores["iIoU-car"] == pytest.approx(100 * found / (found + missed + wrong), rel=1e-12)


def test_reset(case):
    expected = case.evaluate()
    evaluator = CityscapesEvaluator(case.name)
    for _ in range(2):
        evaluator.reset()
        evaluator.process(case.records, case.outputs())
        assert evaluator.evaluate()["sem_seg"] == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_tables(case, caplog):
    caplog.set_level(logging.INFO)
    case.evaluate()
    classes, categories = (record.getMessage() for record in caplog.records[-2:])
    assert "iIoU" in classes and "| bicycle" in classes and "mIoU" in classes
    assert "IoU_sup" in categories and "| human" in categories and "| mean" in categories and "void" not in categories


def test_without_files_of_instances(case, caplog):
    with_instances = case.evaluate()
    for file in case.folder.rglob("*_instanceIds.png"):
        file.unlink()
    scores = case.evaluate()
    assert "iIoU is not computed" in caplog.text
    assert set(with_instances) - set(scores) == {name for name in with_instances if name.startswith("iIoU")}
    assert scores == pytest.approx({name: with_instances[name] for name in scores}, nan_ok=True)


def test_a_missing_file_of_instances(case):
    next(case.folder.rglob("*_instanceIds.png")).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 4 label maps have no file of instances"):
        case.evaluate()


@pytest.mark.parametrize(
    ("instances", "message"),
    [(np.full((48, 96), 34000, np.uint16), "holds the id 34000"), (np.zeros((40, 96), np.uint16), "is 96 x 40")],
)
def test_bad_files_of_instances(case, instances, message):
    Image.fromarray(instances).save(case.records[0]["sem_seg_file_name"].replace("labelTrainIds", "instanceIds"))
    with pytest.raises(BadFile, match=message):
        case.evaluate()


def test_other_classes_are_refused(case):
    name = f"test_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: case.records)
    MetadataCatalog.get(name).set(stuff_classes=["road", "sky"])
    with pytest.raises(ValueError, match="has the classes road, sky"):
        CityscapesEvaluator(name)
