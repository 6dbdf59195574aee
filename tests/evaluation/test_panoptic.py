import json
import math

import numpy as np
import pytest
import torch

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.coco_json import panoptic_metadata
from fasegr.data.image_io import BadFile
from fasegr.data.panoptic_png import read_segment_ids, write_segment_ids
from fasegr.evaluation import PanopticEvaluator
from fasegr.evaluation.panoptic import match_segments, panoptic_quality
from tests.evaluation.tiny_coco import CATEGORIES, THINGS, TinyCoco

NAMES = [category.name for category in CATEGORIES]


@pytest.fixture
def case(tmp_path):
    return TinyCoco(tmp_path)


def slow_match(truth_ids, truth, predicted_ids, predicted, num_classes):
    """Section 4 of Kirillov et al., a pair of masks at a time."""
    tally = np.zeros((num_classes, 4))
    void = truth_ids == 0
    found, matched = set(), set()
    for t in truth:
        for p in predicted:
            a, b = truth_ids == t["id"], (predicted_ids == p["id"]) & ~void
            if t.get("iscrowd") or t["category_id"] != p["category_id"] or not (a | b).any():
                continue
            iou = (a & b).sum() / (a | b).sum()
            if iou > 0.5:
                tally[t["category_id"], :2] += iou, 1
                found.add(t["id"])
                matched.add(p["id"])
    for p in predicted:
        mask = predicted_ids == p["id"]
        excused = void.copy()
        for t in truth:
            if t.get("iscrowd") and t["category_id"] == p["category_id"]:
                excused |= truth_ids == t["id"]
        if p["id"] not in matched and mask.any() and (mask & excused).sum() / mask.sum() <= 0.5:
            tally[p["category_id"], 2] += 1
    for t in truth:
        if t["id"] not in found and not t.get("iscrowd"):
            tally[t["category_id"], 3] += 1
    return tally


def infos(*rows):
    """(id, class) or (id, class, is a crowd)."""
    return [{"id": r[0], "category_id": r[1], "iscrowd": int(len(r) > 2 and r[2])} for r in rows]


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_the_slow_one(tmp_path, seed):
    case = TinyCoco(tmp_path, seed=seed)
    total = np.zeros((4, 4))
    for image, output in enumerate(case.panoptic_outputs()):
        truth = infos(*((s.id, s.label, s.crowd) for s in case.segments[image]))
        predicted_ids, predicted = output["panoptic_seg"]
        arguments = (case.ids(image), truth, predicted_ids.numpy(), predicted, 4)
        tally = match_segments(*arguments)
        np.testing.assert_allclose(tally, slow_match(*arguments), rtol=1e-12)
        total += tally
    assert (total[:, 1:].sum(0) > 0).all()  # all three kinds occur


def row(text: str) -> np.ndarray:
    """A map of one row, an id for each character, '.' for 0."""
    return np.array([[0 if c == "." else int(c) for c in text]])


@pytest.mark.parametrize(
    ("truth", "truth_infos", "predicted", "predicted_infos", "expected"),
    [
        # 3 of 4 pixels: IoU 3/4
        ("1111....", [(1, 0)], "222.....", [(2, 0)], [[0.75, 1, 0, 0], [0, 0, 0, 0]]),
        # the same pixels of another class: one too many, one missed
        ("1111....", [(1, 0)], "222.....", [(2, 1)], [[0, 0, 0, 1], [0, 0, 1, 0]]),
        # IoU of exactly one half is no match
        ("11113333", [(1, 0), (3, 1)], "22....44", [(2, 0), (4, 1)], [[0, 0, 1, 1], [0, 0, 1, 1]]),
        # 4 pixels of the prediction are void: the union is 4, not 8
        ("1111....", [(1, 0)], "22222222", [(2, 0)], [[1, 1, 0, 0], [0, 0, 0, 0]]),
        # more than half of the prediction is void: not counted; exactly half: a false positive
        ("11111...", [(1, 0)], "...33333", [(3, 1)], [[0, 0, 0, 1], [0, 0, 0, 0]]),
        ("11111...", [(1, 0)], "..333333", [(3, 1)], [[0, 0, 0, 1], [0, 0, 1, 0]]),
        # a crowd is neither found nor missed, and predictions of its own class on it are ignored
        ("11111111", [(1, 0, True)], "22222333", [(2, 0), (3, 1)], [[0, 0, 0, 0], [0, 0, 1, 0]]),
        # void and crowd count together
        ("113333..", [(1, 0, True), (3, 1)], "22...222", [(2, 0)], [[0, 0, 0, 0], [0, 0, 0, 1]]),
        # a segment without pixels is not there
        ("1111....", [(1, 0)], "1111....", [(1, 0), (5, 1)], [[1, 1, 0, 0], [0, 0, 0, 0]]),
        ("........", [], "........", [], [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_by_hand(truth, truth_infos, predicted, predicted_infos, expected):
    tally = match_segments(row(truth), infos(*truth_infos), row(predicted), infos(*predicted_infos), 2)
    np.testing.assert_array_equal(tally, expected)


def test_quality_by_hand():
    # two found with IoU 0.6 and 0.8, one too many, three missed; nothing; one missed
    columns = panoptic_quality(np.array([[1.4, 2, 1, 3], [0, 0, 0, 0], [0, 0, 0, 1]]))
    np.testing.assert_allclose(columns["PQ"], [35, math.nan, 0])
    np.testing.assert_allclose(columns["SQ"], [70, math.nan, 0])
    np.testing.assert_allclose(columns["RQ"], [50, math.nan, 0])


def test_scores_are_means_over_classes_that_occur(case):
    outputs = case.panoptic_outputs()
    evaluator = PanopticEvaluator(case.panoptic)
    evaluator.process(case.inputs(), outputs)
    scores = evaluator.evaluate()["panoptic_seg"]

    tally = sum(
        slow_match(
            case.ids(image),
            infos(*((s.id, s.label, s.crowd) for s in case.segments[image])),
            *(output["panoptic_seg"][0].numpy(), output["panoptic_seg"][1], 4),
        )
        for image, output in enumerate(outputs)
    )
    iou, tp, fp, fn = tally.T
    assert tp.min() > 0
    sq, rq = 100 * iou / tp, tp / (tp + fp / 2 + fn / 2)
    expected = {}
    for suffix, classes in (("", range(4)), ("_th", THINGS), ("_st", (0, 2))):
        classes = list(classes)
        expected[f"PQ{suffix}"] = (sq * rq)[classes].mean()
        expected[f"SQ{suffix}"], expected[f"RQ{suffix}"] = sq[classes].mean(), 100 * rq[classes].mean()
    expected |= {f"PQ-{name}": value for name, value in zip(NAMES, sq * rq, strict=True)}
    assert list(scores) == list(expected)
    np.testing.assert_allclose(list(scores.values()), list(expected.values()), rtol=1e-12)


def perfect(case, image):
    table = {segment.id: number for number, segment in enumerate(case.segments[image], start=1)}
    ids = np.vectorize(lambda value: table.get(value, 0))(case.ids(image)).astype(np.int32)
    segments = [
        {"id": n, "category_id": s.label, "isthing": s.label in THINGS}
        for s, n in zip(case.segments[image], table.values(), strict=True)
    ]
    return {"panoptic_seg": (torch.from_numpy(ids), segments)}


def test_the_ground_truth_itself_has_100_percent(case):
    evaluator = PanopticEvaluator(case.panoptic, distributed=False)
    evaluator.process(case.inputs(), [perfect(case, image) for image in range(4)])
    assert set(evaluator.evaluate()["panoptic_seg"].values()) == {100.0}


def test_a_second_round_starts_from_nothing(case):
    evaluator = PanopticEvaluator(case.panoptic)
    evaluator.process(case.inputs(), case.panoptic_outputs())
    evaluator.reset()
    evaluator.process(case.inputs(), [perfect(case, image) for image in range(4)])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100


def test_saves_cocos_format(case, tmp_path):
    outputs = case.panoptic_outputs()
    evaluator = PanopticEvaluator(case.panoptic, output_dir=tmp_path / "out", save_json=True)
    evaluator.process(case.inputs(), outputs)
    evaluator.evaluate()
    saved = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    assert [annotation["image_id"] for annotation in saved] == [100, 101, 102, 103]
    for annotation, output in zip(saved, outputs, strict=True):
        ids, segments = output["panoptic_seg"]
        np.testing.assert_array_equal(read_segment_ids(tmp_path / "out" / "panoptic" / annotation["file_name"]), ids)
        classes = [next(c.id for c in CATEGORIES if c.name == NAMES[s["category_id"]]) for s in segments]
        assert annotation["segments_info"] == [
            {"id": s["id"], "category_id": c} for s, c in zip(segments, classes, strict=True)
        ]


def test_images_without_ground_truth(case, tmp_path):
    name = case.panoptic + "_test"
    DatasetCatalog.register(name, lambda: [{"file_name": file, "image_id": i} for i, file in enumerate(case.files)])
    MetadataCatalog.get(name).set(**panoptic_metadata(CATEGORIES))
    with pytest.raises(ValueError, match=r"no panoptic ground truth .* TEST\.SAVE_JSON"):
        PanopticEvaluator(name)
    evaluator = PanopticEvaluator(name, output_dir=tmp_path / "out", save_json=True)
    evaluator.process(case.inputs(), case.panoptic_outputs())
    assert evaluator.evaluate() == {}
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == 4


def test_errors(case, tmp_path):
    evaluator = PanopticEvaluator(case.panoptic)
    with pytest.raises(ValueError, match=r"no image of .* was evaluated"):
        evaluator.evaluate()
    with pytest.raises(KeyError, match=r"x\.jpg is not an image of"):
        evaluator.process([{"file_name": "x.jpg"}], [perfect(case, 0)])
    with pytest.raises(BadFile, match=r"0\.png"):
        evaluator.process(case.inputs(slice(1)), [{"panoptic_seg": (torch.zeros(4, 4, dtype=torch.int32), [])}])
    ids, _ = perfect(case, 0)["panoptic_seg"]
    with pytest.raises(BadFile, match=r"the prediction for .*0\.jpg: holds the segment \d, which is not listed"):
        evaluator.process(case.inputs(slice(1)), [{"panoptic_seg": (ids, [])}])
    with pytest.raises(ValueError, match=r"a segment of class 9, but .* has 4 classes"):
        evaluator.process(case.inputs(slice(1)), [{"panoptic_seg": (ids, infos((1, 9)))}])
    write_segment_ids(case.root / "panoptic" / "0.png", np.where(case.ids(0) == 0, 5, case.ids(0)))
    with pytest.raises(BadFile, match=r"panoptic/0\.png: holds the segment 5, which is not listed"):
        evaluator.process(case.inputs(slice(1)), [perfect(case, 0)])
    with pytest.raises(ValueError, match="output_dir is None"):
        PanopticEvaluator(case.panoptic, save_json=True)


def test_two_processes_make_the_counts_of_one(case, two_processes):
    evaluator = PanopticEvaluator(case.panoptic, distributed=False)
    evaluator.process(case.inputs(), case.panoptic_outputs())
    expected = evaluator.evaluate()["panoptic_seg"]
    main, other = two_processes.results("panoptic")
    assert other is None
    assert main["panoptic_seg"] == pytest.approx(expected)
    saved = json.loads((two_processes.folder / "predictions.json").read_text())["annotations"]
    assert sorted(annotation["image_id"] for annotation in saved) == [100, 101, 102, 103]
