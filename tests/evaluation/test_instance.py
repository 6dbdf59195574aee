import json
import logging
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from fasegr.d2 import RUNTIME, DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.coco_json import Category, panoptic_metadata, register_instances, register_panoptic
from fasegr.evaluation import InstanceEvaluator
from fasegr.modeling.meta_arch.instance_inference import Instances
from tests.evaluation.tiny_coco import CATEGORIES, THINGS, TinyCoco

AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


@pytest.fixture
def case(tmp_path):
    return TinyCoco(tmp_path)


def evaluate(case, outputs, **options):
    evaluator = InstanceEvaluator(case.instances, distributed=False, **options)
    evaluator.process(case.inputs(), outputs)
    return evaluator.evaluate()


def slow_precision(case, outputs, label, threshold, area):
    """COCO's: of all detections by falling score, each takes the free truth it overlaps most, real objects before
    those that do not count; precision at 101 recalls, made to fall."""
    low, high = area
    detections, real = [], 0
    for image, output in enumerate(outputs):
        truth = [s for s in case.segments[image] if s.label in THINGS and THINGS.index(s.label) == label]
        skipped = [s.crowd or not low <= s.mask.sum() <= high for s in truth]
        real += len(truth) - sum(skipped)
        free = [True] * len(truth)
        found = output["instances"]
        for i in np.argsort(-found.scores.numpy(), kind="stable"):
            if found.pred_classes[i] != label:
                continue
            mask = found.pred_masks[i].numpy()
            overlaps = []
            for t, s in enumerate(truth):
                both = (mask & s.mask).sum()
                iou = both / (mask.sum() if s.crowd else (mask | s.mask).sum())
                if iou >= min(threshold, 1 - 1e-10) and (free[t] or s.crowd):
                    overlaps.append((not skipped[t], iou, t))
            if not overlaps:
                if low <= mask.sum() <= high:
                    detections.append((found.scores[i].item(), False))
                continue
            counts, _, taken = max(overlaps)
            free[taken] = False
            if counts:
                detections.append((found.scores[i].item(), True))
    if real == 0:
        return math.nan
    detections.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in detections])
    recall, precision = right / real, right / np.arange(1, len(detections) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, np.linspace(0, 1, 101))
    return 100 * np.append(precision, 0)[at.clip(max=len(precision))].mean()


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_reference(tmp_path, seed):
    case = TinyCoco(tmp_path, seed=seed)
    outputs = case.instance_outputs()
    scores = evaluate(case, outputs)["segm"]
    thresholds = np.linspace(0.5, 0.95, 10)
    classes = range(len(THINGS))

    def ap(thresholds, area="", labels=classes):
        values = [slow_precision(case, outputs, c, t, AREAS[area]) for c in labels for t in thresholds]
        return np.nanmean(values) if not np.isnan(values).all() else math.nan

    expected = {"AP": ap(thresholds), "AP50": ap([0.5]), "AP75": ap([0.75])}
    expected |= {f"AP{area}": ap(thresholds, area) for area in "sml"}
    expected |= {f"AP-{CATEGORIES[THINGS[c]].name}": ap(thresholds, labels=[c]) for c in classes}
    assert list(scores) == list(expected)
    np.testing.assert_allclose(list(scores.values()), list(expected.values()), rtol=1e-9)
    assert 5 < scores["AP75"] < scores["AP"] < scores["AP50"] < 95
    assert math.isnan(scores["APl"])  # no object is so large


def perfect(case):
    outputs = []
    for segments in case.segments:
        things = [s for s in segments if s.label in THINGS and not s.crowd]
        masks = torch.from_numpy(np.stack([s.mask for s in things]))
        labels = torch.tensor([THINGS.index(s.label) for s in things])
        outputs.append({"instances": Instances(torch.ones(len(things)), labels, masks)})
    return outputs


def test_more_than_100_detections(case, caplog):
    """The cats are found, but come after 100 wrong ones in each image; the dogs are found."""
    outputs = []
    for output in perfect(case):
        found = output["instances"]
        masks = torch.zeros(100, *found.pred_masks.shape[1:], dtype=torch.bool)
        masks[:, 0, 0] = True
        outputs.append(
            {
                "instances": Instances(
                    torch.cat([torch.linspace(1, 0.9, 100), 0.5 * found.scores]),
                    torch.cat([torch.zeros(100, dtype=torch.int64), found.pred_classes]),
                    torch.cat([masks, found.pred_masks]),
                )
            }
        )
    with caplog.at_level(logging.INFO, "fasegr"):
        scores = evaluate(case, outputs, max_detections=300)["segm"]
    assert "AP (MAX_DETS 300)" in caplog.text and "MAX_DETS 100" not in caplog.text
    assert scores["AP-cat"] > 1 and scores["AP-dog"] == pytest.approx(100)
    assert scores["AP100"] == pytest.approx(50)  # without any cat
    plain = evaluate(case, outputs)["segm"]
    assert plain["AP"] == scores["AP100"] and "AP100" not in plain


def test_the_ground_truth_itself_has_100_percent(case):
    scores = [value for value in evaluate(case, perfect(case))["segm"].values() if not math.isnan(value)]
    assert scores == pytest.approx([100] * len(scores))


def test_half_of_the_objects_by_hand(tmp_path):
    """Two objects, of which the better scored prediction is one and the other nothing: precision 1 up to recall 1/2."""
    case = TinyCoco(tmp_path, images=1)
    (output,) = perfect(case)
    cats = output["instances"].pred_classes == 0
    assert cats.sum() == 2
    masks = output["instances"].pred_masks[cats].clone()
    masks[1] = False
    masks[1, 0, 0] = True
    found = Instances(torch.tensor([0.9, 0.4]), torch.zeros(2, dtype=torch.int64), masks)
    scores = evaluate(case, [{"instances": found}])["segm"]
    assert scores["AP-cat"] == pytest.approx(100 * 51 / 101)  # recalls 0, 0.01, ..., 0.5
    assert scores["AP-dog"] == 0
    assert scores["AP"] == pytest.approx(50 * 51 / 101)


def none_found(case):
    size = case.segments[0][0].mask.shape
    return {"instances": Instances(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size) > 0)}


def test_a_model_that_finds_nothing_has_nothing(case, tmp_path):
    result = evaluate(case, [none_found(case)] * 4, output_dir=tmp_path / "out", save_json=True)
    assert result["segm"]["AP"] == result["segm"]["AP50"] == result["segm"]["AP-dog"] == 0
    assert json.loads((tmp_path / "out" / "coco_instances_results.json").read_text()) == []


def test_saves_cocos_format(case, tmp_path):
    outputs = case.instance_outputs()
    evaluate(case, outputs, output_dir=tmp_path / "out", save_json=True)
    saved = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    expected = [
        (100 + image, CATEGORIES[THINGS[label]].id, score, mask)
        for image, output in enumerate(outputs)
        for label, score, mask in zip(
            *(getattr(output["instances"], n) for n in ("pred_classes", "scores", "pred_masks")), strict=True
        )
    ]
    assert len(saved) == len(expected)
    for found, (image, category, score, mask) in zip(saved, expected, strict=True):
        assert (found["image_id"], found["category_id"], found["score"]) == (image, category, score)
        np.testing.assert_array_equal(coco_mask.decode(found["segmentation"]), mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(case, dtype, tmp_path):
    """Scores of float16 and bfloat16 go into JSON as numbers."""
    outputs = [
        {"instances": Instances(f.scores.to(dtype), f.pred_classes, f.pred_masks)}
        for f in (output["instances"] for output in perfect(case))
    ]
    assert evaluate(case, outputs, output_dir=tmp_path / "out", save_json=True)["segm"]["AP"] == pytest.approx(100)


def test_polygons_with_only_the_required_fields(tmp_path):
    """No area, no iscrowd; a box of 4 x 6 pixels."""
    annotation = {
        "id": 1,
        "image_id": 5,
        "category_id": 9,
        "bbox": [2, 1, 6, 4],
        "segmentation": [[2, 1, 8, 1, 8, 5, 2, 5]],
    }
    images = [{"id": 5, "file_name": "a.jpg", "height": 12, "width": 10}]
    content = {"images": images, "annotations": [annotation], "categories": [{"id": 9, "name": "box"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a.jpg").touch()
    register_instances(f"boxes_{tmp_path}", [Category(9, "box", True, (0, 0, 0))], tmp_path / "a.json", tmp_path)
    mask = torch.zeros(1, 12, 10, dtype=torch.bool)
    mask[0, 1:5, 2:8] = True
    evaluator = InstanceEvaluator(f"boxes_{tmp_path}")
    found = Instances(torch.ones(1), torch.zeros(1, dtype=torch.int64), mask)
    evaluator.process([{"file_name": str(tmp_path / "a.jpg")}], [{"instances": found}])
    scores = evaluator.evaluate()["segm"]
    assert scores == pytest.approx(
        {"AP": 100, "AP50": 100, "AP75": 100, "APs": 100, "APm": math.nan, "APl": math.nan, "AP-box": 100}, nan_ok=True
    )


def change(case, new):
    """Of each object in the file, the fields that `new(i, object)` returns."""
    path = case.root / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"] = [{**a, **new(i, a)} for i, a in enumerate(content["annotations"])]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("new", [lambda i, a: {"id": i}, lambda i, a: {"id": 1}, lambda i, a: {"id": None}])
def test_ids_of_objects_do_not_matter(case, new):
    """COCOeval takes 0 for "unmatched", and of two with one id sees one."""
    change(case, new)
    assert evaluate(case, perfect(case))["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("nothing", [None, [], [[1, 2, 3, 4]]])
def test_objects_without_an_outline_are_left_out(case, nothing):
    change(case, lambda i, a: {"segmentation": nothing} if i == 0 else {})
    assert evaluate(case, perfect(case))["segm"]["AP50"] > 80
    change(case, lambda i, a: {"segmentation": nothing})
    with pytest.raises(ValueError, match=r"instances\.json: none of its .* objects has an outline"):
        InstanceEvaluator(case.panoptic)  # whose own records are good


def test_run_lengths_on_which_pycocotools_would_not_return(case):
    change(case, lambda i, a: {"segmentation": {**a["segmentation"], "counts": [300, 50]}} if i == 2 else {})
    with pytest.raises(ValueError, match=r"instances\.json: annotations\[2\] .* has runs of 350 pixels"):
        InstanceEvaluator(case.panoptic)


def test_predictions_of_another_size_than_the_file_states(case):
    """The image was resized or turned after it was annotated: its objects would all count as missed."""
    (output,) = perfect(case)[:1]
    found = output["instances"]
    turned = Instances(found.scores, found.pred_classes, found.pred_masks.transpose(1, 2).contiguous())
    with pytest.raises(ValueError, match=r"0\.jpg: is .* but its annotations are for .* EXIF"):
        InstanceEvaluator(case.instances).process(case.inputs(slice(1)), [{"instances": turned}])


def test_on_a_panoptic_dataset(case):
    """Things and stuff share a numbering there."""
    outputs = case.instance_outputs()
    expected = evaluate(case, outputs)["segm"]
    shared = [
        {"instances": Instances(f.scores, torch.tensor(THINGS)[f.pred_classes], f.pred_masks)}
        for f in (output["instances"] for output in outputs)
    ]
    case.instances = case.panoptic
    np.testing.assert_equal(evaluate(case, shared)["segm"], expected)


def test_names_in_detectron2s_panoptic_metadata(case, tmp_path):
    """There thing_classes are all classes."""
    name = case.panoptic + "_d2"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(case.panoptic))
    names = {"thing_classes": [category.name for category in CATEGORIES]}
    MetadataCatalog.get(name).set(json_file=case.root / "instances.json", **panoptic_metadata(CATEGORIES) | names)
    assert list(InstanceEvaluator(name).class_names.values()) == ["cat", "dog"]


def test_errors(case, tmp_path):
    evaluator = InstanceEvaluator(case.instances)
    with pytest.raises(ValueError, match=r"no image of .* was evaluated"):
        evaluator.evaluate()
    with pytest.raises(KeyError, match=r"x\.jpg is not an image of"):
        evaluator.process([{"file_name": "x.jpg"}], [none_found(case)])
    found = Instances(torch.ones(1), torch.tensor([7]), torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"0\.jpg: .* class 7, but .* 2 classes of objects \(0\.\.1\)"):
        evaluator.process(case.inputs(slice(1)), [{"instances": found}])
    with pytest.raises(ValueError, match="output_dir is None"):
        InstanceEvaluator(case.instances, save_json=True)


def test_images_that_were_not_evaluated_count_as_empty(case, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fasegr"), "propagate", True)  # an earlier setup_logger may have cut it off
    evaluator = InstanceEvaluator(case.instances)
    evaluator.process(case.inputs(slice(2)), perfect(case)[:2])
    with caplog.at_level(logging.INFO, logger="fasegr"):
        scores = evaluator.evaluate()["segm"]
    assert scores["AP"] == pytest.approx(100 * 51 / 101)
    assert "2 images were not evaluated" in caplog.text
    assert "| cat " in caplog.text and "| dog " in caplog.text


def test_images_without_annotations(case, tmp_path):
    content = json.loads((case.root / "instances.json").read_text())
    del content["annotations"]
    (case.root / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"has no annotations in .* TEST\.SAVE_JSON"):
        InstanceEvaluator(case.instances)
    assert evaluate(case, perfect(case), output_dir=tmp_path / "out", save_json=True) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) > 4


def test_a_missing_file_is_named(case):
    name = case.panoptic + "_without"
    register_panoptic(name, CATEGORIES, case.root / "panoptic.json", case.root / "panoptic", case.root / "images")
    with pytest.raises(FileNotFoundError, match=r"json_file.*INSTANCE_ON False"):
        InstanceEvaluator(name)


def test_two_processes_find_what_one_does(case, two_processes):
    main, other = two_processes.results("instance")
    assert other is None
    assert main["segm"] == pytest.approx(evaluate(case, case.instance_outputs())["segm"], nan_ok=True)
    saved = json.loads((two_processes.folder / "coco_instances_results.json").read_text())
    assert {found["image_id"] for found in saved} == {100, 101, 102, 103}


@pytest.mark.skipif(RUNTIME != "detectron2", reason="detectron2 is not installed or not chosen")
def test_equals_detectron2(case, tmp_path):
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes
    from detectron2.structures import Instances as Theirs

    outputs = case.instance_outputs()
    evaluator = COCOEvaluator(case.instances, ("segm",), False, str(tmp_path / "out"), use_fast_impl=False)
    evaluator.reset()
    for image, (sample, output) in enumerate(zip(case.inputs(), outputs, strict=True)):
        found = output["instances"]
        theirs = Theirs(found.image_size, scores=found.scores, pred_classes=found.pred_classes)
        theirs.pred_masks, theirs.pred_boxes = found.pred_masks, Boxes(found.pred_boxes)
        evaluator.process([sample | {"image_id": 100 + image}], [{"instances": theirs}])
    expected = evaluator.evaluate()["segm"]
    assert evaluate(case, outputs)["segm"] == pytest.approx(expected, nan_ok=True, rel=1e-12)
