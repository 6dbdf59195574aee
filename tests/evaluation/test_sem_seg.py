import json
import logging
import math
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage

from fasegr.d2 import RUNTIME, DatasetCatalog, MetadataCatalog
from fasegr.evaluation import SemSegEvaluator
from tests.evaluation.tiny_coco import TinyCoco

IGNORE = 255


def blobs(rng: np.random.Generator, shape: tuple[int, int], classes: int) -> np.ndarray:
    return ndimage.gaussian_filter(rng.normal(size=(classes, *shape)), (0, 3, 3)).argmax(0).astype(np.uint8)


def register(
    name: str, root: Path, truths: list[np.ndarray], class_names: list[str], ignore=IGNORE, **metadata
) -> list[str]:
    """Write the label maps and register a dataset of them. Returns the names of its images, which do not exist."""
    root.mkdir(parents=True, exist_ok=True)
    records = []
    for i, truth in enumerate(truths):
        Image.fromarray(truth).save(root / f"{i}.png")
        records.append({"file_name": str(root / "images" / f"{i}.jpg"), "sem_seg_file_name": str(root / f"{i}.png")})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=class_names, ignore_label=ignore, evaluator_type="sem_seg", **metadata)
    return [record["file_name"] for record in records]


class Case:
    """A registered dataset of blobs with pixels to ignore, and predictions that are partly right."""

    def __init__(self, root: Path, classes: int = 5, images: int = 4, ignored: bool = True, seed: int = 0, **metadata):
        rng = np.random.default_rng(seed)
        self.name = f"test_{uuid.uuid4().hex}"
        self.class_names = [f"class {i}" for i in range(classes)]
        self.truths, self.predictions = [], []
        for _ in range(images):
            shape = tuple(rng.integers(40, 70, 2))
            truth, other = blobs(rng, shape, classes), blobs(rng, shape, classes)
            self.predictions.append(np.where(rng.random(shape) < 0.02, other, np.roll(truth, 2, 1)))
            if ignored:
                truth[blobs(rng, shape, 3) == 0] = IGNORE
            self.truths.append(truth)
        self.files = register(self.name, root, self.truths, self.class_names, **metadata)

    def inputs(self, images=slice(None)) -> list[dict]:
        return [{"file_name": file} for file in self.files[images]]

    def labels(self, images=slice(None)) -> list[dict]:
        return [{"sem_seg_labels": torch.from_numpy(prediction)} for prediction in self.predictions[images]]

    def scores(self) -> list[dict]:
        classes = torch.arange(len(self.class_names))[:, None, None]
        noise = torch.rand(len(self.class_names), 1, 1)
        return [{"sem_seg": (torch.from_numpy(p) == classes) * 2.0 + noise} for p in self.predictions]

    def evaluate(self, **options) -> dict[str, float]:
        evaluator = SemSegEvaluator(self.name, **options)
        evaluator.process(self.inputs(), self.labels())
        return evaluator.evaluate()["sem_seg"]


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path / "data")


def slow_scores(truths, predictions, class_names, ignore=IGNORE) -> dict[str, float]:
    """Every score from masks of single classes."""
    iou, accuracy, boundary_iou, pixels, hits = {}, {}, {}, {}, 0
    for label, name in enumerate(class_names):
        sums = np.zeros(3)
        boundary_sums = np.zeros(2)
        for truth, prediction in zip(truths, predictions, strict=True):
            t, p = truth == label, (prediction == label) & (truth != ignore)
            sums += (t & p).sum(), (t | p).sum(), t.sum()
            steps = max(1, round(0.02 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
            t, p = (m & ~ndimage.binary_erosion(m, np.ones((3, 3)), iterations=steps) for m in (t, p))
            boundary_sums += (t & p).sum(), (t | p).sum()
        hits += sums[0]
        pixels[name] = sums[2]
        present = sums[2] > 0
        iou[name] = 100 * sums[0] / sums[1] if present else math.nan
        accuracy[name] = 100 * sums[0] / sums[2] if present else math.nan
        boundary_iou[name] = 100 * boundary_sums[0] / boundary_sums[1] if present else math.nan
    return {
        "mIoU": np.nanmean(list(iou.values())),
        "fwIoU": np.nansum([iou[name] * pixels[name] for name in class_names]) / sum(pixels.values()),
        "mACC": np.nanmean(list(accuracy.values())),
        "pACC": 100 * hits / sum(pixels.values()),
        "BoundaryIoU": np.nanmean(list(boundary_iou.values())),
        **{f"IoU-{name}": value for name, value in iou.items()},
        **{f"ACC-{name}": value for name, value in accuracy.items()},
        **{f"BoundaryIoU-{name}": value for name, value in boundary_iou.items()},
    }


def assert_same(scores, expected):
    assert list(scores) == list(expected)
    np.testing.assert_allclose(list(scores.values()), list(expected.values()), rtol=1e-12)


def test_equals_a_slow_reference(case):
    scores = case.evaluate()
    assert_same(scores, slow_scores(case.truths, case.predictions, case.class_names))
    assert 5 < scores["BoundaryIoU"] < scores["mIoU"] < 95
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize("classes", [255, 256, 300])
def test_many_classes(tmp_path, classes):
    """Truth of 16 bits: beyond 255 classes the number of the ignored pixels fits into no byte."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes + 1, (60, 70)).astype(np.uint16)
    prediction = np.where(rng.random(truth.shape) < 0.5, truth, truth[::-1]).clip(max=classes - 1).astype(np.int32)
    names = [str(i) for i in range(classes)]
    name = f"test_{uuid.uuid4().hex}"
    files = register(name, tmp_path, [truth], names, ignore=classes)
    evaluator = SemSegEvaluator(name)
    evaluator.process([{"file_name": files[0]}], [{"sem_seg_labels": torch.from_numpy(prediction)}])
    assert_same(evaluator.evaluate()["sem_seg"], slow_scores([truth], [prediction], names, ignore=classes))


def test_scores_and_labels_give_the_same(case):
    evaluator = SemSegEvaluator(case.name)
    evaluator.process(case.inputs(), case.scores())
    assert_same(evaluator.evaluate()["sem_seg"], case.evaluate())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["labels", "scores"])
def test_on_a_gpu(case, kind):
    outputs = [{name: value.cuda() for name, value in output.items()} for output in getattr(case, kind)()]
    evaluator = SemSegEvaluator(case.name)
    evaluator.process(case.inputs(), outputs)
    assert_same(evaluator.evaluate()["sem_seg"], case.evaluate())


def test_predictions_on_ignored_pixels_make_no_difference(case):
    case.predictions = [np.where(truth == IGNORE, 3, truth).astype(np.uint8) for truth in case.truths]
    assert set(case.evaluate().values()) == {100.0}


def test_an_absent_class_is_nan_and_in_no_mean(case):
    case.truths = [np.where(truth == 2, 1, truth).astype(np.uint8) for truth in case.truths]
    case.files = register(case.name + "x", Path(case.files[0]).parents[1] / "x", case.truths, case.class_names)
    case.name += "x"
    scores = case.evaluate()
    for metric in ("IoU", "ACC", "BoundaryIoU"):
        per_class = [scores[f"{metric}-{name}"] for name in case.class_names]
        assert [math.isnan(value) for value in per_class] == [False, False, True, False, False]
        mean = {"IoU": "mIoU", "ACC": "mACC", "BoundaryIoU": "BoundaryIoU"}[metric]
        assert scores[mean] == pytest.approx(np.nanmean(per_class))
    assert_same(scores, slow_scores(case.truths, case.predictions, case.class_names))


def test_boundary_can_be_left_out(case):
    scores = case.evaluate(boundary=False)
    assert not any(name.startswith("Boundary") for name in scores)
    assert_same(scores, {name: value for name, value in case.evaluate().items() if not name.startswith("Boundary")})


def test_a_second_round_starts_from_nothing(case):
    evaluator = SemSegEvaluator(case.name)
    evaluator.process(
        case.inputs(), [{"sem_seg_labels": torch.zeros(p.shape, dtype=torch.uint8)} for p in case.predictions]
    )
    evaluator.reset()
    evaluator.process(case.inputs(), case.labels())
    assert_same(evaluator.evaluate()["sem_seg"], case.evaluate())


def test_logs_a_table_of_the_classes(case, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fasegr"), "propagate", True)  # an earlier setup_logger may have cut it off
    with caplog.at_level(logging.INFO, logger="fasegr"):
        scores = case.evaluate()
    lines = caplog.records[-1].getMessage().splitlines()
    assert f"{case.name}, 4 images" in lines[0]
    for name in case.class_names:
        (row,) = [line for line in lines if line.startswith(f"| {name} ")]
        assert f"{scores['IoU-' + name]:.2f}" in row
    assert f"mIoU {scores['mIoU']:.2f}" in lines[-1]


# predictions on disk


def test_saves_label_pngs(case, tmp_path):
    case.evaluate(output_dir=tmp_path / "out", save_labels=True)
    saved = sorted((tmp_path / "out").rglob("*"))
    assert saved == [tmp_path / "out" / "labels", *(tmp_path / "out" / "labels" / f"{i}.png" for i in range(4))]
    for i, prediction in enumerate(case.predictions):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "labels" / f"{i}.png")), prediction)


def test_images_of_one_stem_in_two_folders_are_both_saved(tmp_path):
    truths = [np.zeros((8, 9), np.uint8), np.ones((8, 9), np.uint8)]
    name = f"test_{uuid.uuid4().hex}"
    records = []
    for folder, truth in zip(("aachen", "zurich"), truths, strict=True):
        (tmp_path / folder).mkdir()
        Image.fromarray(truth).save(tmp_path / folder / "0.png")
        record = {"file_name": f"{tmp_path}/{folder}/0.jpg", "sem_seg_file_name": f"{tmp_path}/{folder}/0.png"}
        records.append(record)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["a", "b"])
    evaluator = SemSegEvaluator(name, output_dir=tmp_path / "out", save_labels=True)
    evaluator.process(records, [{"sem_seg_labels": torch.from_numpy(truth)} for truth in truths])
    for folder, truth in zip(("aachen", "zurich"), truths, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "labels" / folder / "0.png")), truth)


def test_saves_json_with_the_ids_of_the_dataset(tmp_path):
    case = Case(tmp_path / "data", stuff_dataset_id_to_contiguous_id={10 * (i + 1): i for i in range(5)})
    case.evaluate(output_dir=tmp_path / "out", save_json=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sem_seg_predictions.json"]
    segments = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert set(segments[0]) == {"file_name", "category_id", "segmentation"}
    for file, prediction in zip(case.files, case.predictions, strict=True):
        decoded = np.full(prediction.shape, -1)
        for segment in segments:
            if segment["file_name"] == file:
                decoded[coco.decode(segment["segmentation"]) == 1] = segment["category_id"] // 10 - 1
        np.testing.assert_array_equal(decoded, prediction)


def test_saving_needs_a_folder(case):
    with pytest.raises(ValueError, match="output_dir"):
        SemSegEvaluator(case.name, save_json=True)


# bad input


def test_ground_truth_of_another_size(case):
    evaluator = SemSegEvaluator(case.name)
    with pytest.raises(ValueError, match=r"0\.png: is .* but its image .*0\.jpg is 4 x 3"):
        evaluator.process(case.inputs(slice(1)), [{"sem_seg_labels": torch.zeros(3, 4, dtype=torch.uint8)}])


def test_ground_truth_out_of_range(tmp_path):
    name = f"test_{uuid.uuid4().hex}"
    files = register(name, tmp_path, [np.full((4, 4), 7, np.uint8)], ["a", "b"])
    with pytest.raises(ValueError, match=r"0\.png: holds the label 7"):
        SemSegEvaluator(name).process([{"file_name": files[0]}], [{"sem_seg": torch.zeros(2, 4, 4)}])


def test_prediction_of_other_classes(case):
    shape = case.predictions[0].shape
    evaluator = SemSegEvaluator(case.name)
    with pytest.raises(ValueError, match=r"0\.jpg: the model has scores of 7 classes.* has 5"):
        evaluator.process(case.inputs(slice(1)), [{"sem_seg": torch.zeros(7, *shape)}])
    with pytest.raises(ValueError, match=r"0\.jpg: the predicted labels range from 5 to 5.*5 classes"):
        evaluator.process(case.inputs(slice(1)), [{"sem_seg_labels": torch.full(shape, 5, dtype=torch.uint8)}])
    with pytest.raises(ValueError, match="from -1 to -1"):
        evaluator.process(case.inputs(slice(1)), [{"sem_seg_labels": torch.full(shape, -1, dtype=torch.int16)}])


def test_image_of_another_dataset(case):
    with pytest.raises(KeyError, match=rf"elsewhere.jpg is not an image of {case.name}"):
        SemSegEvaluator(case.name).process([{"file_name": "elsewhere.jpg"}], case.labels(slice(1)))


def test_nothing_evaluated(case):
    with pytest.raises(ValueError, match=f"no image of {case.name} was evaluated"):
        SemSegEvaluator(case.name).evaluate()


def test_nothing_labelled(tmp_path):
    name = f"test_{uuid.uuid4().hex}"
    files = register(name, tmp_path, [np.full((4, 4), IGNORE, np.uint8)], ["a", "b"])
    evaluator = SemSegEvaluator(name)
    evaluator.process([{"file_name": files[0]}], [{"sem_seg": torch.zeros(2, 4, 4)}])
    with pytest.raises(ValueError, match="is ignored"):
        evaluator.evaluate()


def test_two_processes_make_the_counts_of_one(tmp_path, two_processes):
    case = TinyCoco(tmp_path)
    evaluator = SemSegEvaluator(case.panoptic, distributed=False)
    evaluator.process(case.inputs(), case.semantic_outputs())
    expected = evaluator.evaluate()["sem_seg"]
    for kind in ("semantic", "semantic, one process without images"):
        main, other = two_processes.results(kind)
        assert other is None
        assert main["sem_seg"] == expected
    segments = json.loads((two_processes.folder / "sem_seg_predictions.json").read_text())
    assert {Path(segment["file_name"]).name for segment in segments} == {f"{i}.jpg" for i in range(4)}


# against detectron2


def detectron2_scores(name, inputs, outputs) -> dict[str, float]:
    from detectron2.evaluation import SemSegEvaluator as Theirs

    evaluator = Theirs(name, distributed=False)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.skipif(RUNTIME != "detectron2", reason="detectron2 is not installed or not chosen")
def test_equals_detectron2(case, tmp_path):
    case.truths = [np.where(truth == 2, 1, truth).astype(np.uint8) for truth in case.truths]  # a class to be NaN
    case.files = register(case.name + "x", tmp_path / "x", case.truths, case.class_names)
    case.name += "x"
    ours = case.evaluate(boundary=False)
    theirs = detectron2_scores(case.name, case.inputs(), case.scores())
    assert set(ours) <= set(theirs)
    np.testing.assert_allclose([theirs[name] for name in ours], list(ours.values()), rtol=1e-12)


@pytest.mark.skipif(RUNTIME != "detectron2", reason="detectron2 is not installed or not chosen")
def test_json_equals_detectron2(case, tmp_path):
    from detectron2.evaluation import SemSegEvaluator as Theirs

    case.evaluate(output_dir=tmp_path / "ours", save_json=True)
    theirs = Theirs(case.name, distributed=False, output_dir=str(tmp_path / "theirs"))
    theirs.reset()
    theirs.process(case.inputs(), case.scores())
    theirs.evaluate()
    ours, theirs = (json.loads((tmp_path / who / "sem_seg_predictions.json").read_text()) for who in ("ours", "theirs"))
    assert ours == theirs


@pytest.mark.skipif(RUNTIME != "detectron2", reason="detectron2 is not installed or not chosen")
def test_boundary_iou_equals_detectron2_for_one_class_against_the_rest(tmp_path):
    pytest.importorskip("cv2")  # without it detectron2 has no Boundary IoU
    case = Case(tmp_path / "data", ignored=False)
    scores = case.evaluate()
    for label, name in enumerate(case.class_names):
        one = f"{case.name}_{label}"
        masks = [(truth == label).astype(np.uint8) for truth in case.truths]
        files = register(one, tmp_path / one, masks, ["rest", name])
        one_hot = [
            {"sem_seg": torch.stack([p != label, p == label]).float()} for p in map(torch.from_numpy, case.predictions)
        ]
        theirs = detectron2_scores(one, [{"file_name": file} for file in files], one_hot)
        assert scores[f"BoundaryIoU-{name}"] == pytest.approx(theirs[f"BoundaryIoU-{name}"], rel=1e-12)


@pytest.fixture
def half_labelled(case):
    """The same dataset, but only the first two images have their truth."""
    name = f"test_{uuid.uuid4().hex}"
    records = [dict(record) for record in DatasetCatalog.get(case.name)]
    for record in records[2:]:
        del record["sem_seg_file_name"]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=case.class_names, submission_ids=[7, 8, 11, 300, 13])
    return name


def test_images_without_ground_truth_are_not_scored(case, half_labelled):
    evaluator = SemSegEvaluator(half_labelled)
    evaluator.process(case.inputs(), case.labels())
    assert_same(evaluator.evaluate()["sem_seg"], slow_scores(case.truths[:2], case.predictions[:2], case.class_names))


def test_submission(case, half_labelled, tmp_path, caplog):
    """Files are written with or without ground truth; without any the result is empty."""
    evaluator = SemSegEvaluator(half_labelled, output_dir=tmp_path / "out", save_submission=True)
    evaluator.process(case.inputs(slice(2, None)), case.labels(slice(2, None)))
    assert evaluator.evaluate() == {}
    assert "no ground truth to score" in caplog.text
    assert sorted(file.name for file in (tmp_path / "out" / "submission").iterdir()) == ["2.png", "3.png"]
    with Image.open(tmp_path / "out" / "submission" / "2.png") as saved:
        np.testing.assert_array_equal(np.array([7, 8, 11, 300, 13])[case.predictions[2]], np.asarray(saved))


def test_nothing_to_score_and_nothing_to_save(tmp_path):
    name = f"test_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: [{"file_name": "a.jpg"}])
    MetadataCatalog.get(name).set(stuff_classes=["sky"])
    with pytest.raises(ValueError, match="has no label maps, so nothing can be scored"):
        SemSegEvaluator(name)
    SemSegEvaluator(name, output_dir=tmp_path, save_labels=True)


def test_submission_needs_a_benchmark(case, tmp_path):
    with pytest.raises(ValueError, match="belongs to no benchmark with a known format"):
        SemSegEvaluator(case.name, output_dir=tmp_path, save_submission=True)
