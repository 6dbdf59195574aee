import json
import uuid

import pytest

from fasegr.config import add_fasegr_config
from fasegr.d2 import DatasetCatalog, MetadataCatalog, get_cfg
from fasegr.data.datasets.cityscapes import CLASSES
from fasegr.evaluation import (
    CityscapesEvaluator,
    InstanceEvaluator,
    PanopticEvaluator,
    SemSegEvaluator,
    build_evaluator,
    main_score,
)
from tests.evaluation.tiny_coco import TinyCoco


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.OUTPUT_DIR = "out"
    cfg.DATASETS.TEST = ("one",)
    return cfg


def register(records=(), **metadata) -> str:
    name = f"test_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, lambda: list(records))
    MetadataCatalog.get(name).set(stuff_classes=[label.name for label in CLASSES], **metadata)
    return name


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ({"evaluator_type": "sem_seg"}, SemSegEvaluator),
        ({"evaluator_type": "cityscapes_sem_seg"}, CityscapesEvaluator),
        ({}, SemSegEvaluator),
    ],
)
def test_by_the_type_of_the_dataset(cfg, metadata, kind):
    evaluator = build_evaluator(cfg, register(**metadata))
    assert type(evaluator) is kind and evaluator.distributed and evaluator.boundary
    assert not (evaluator.save_labels or evaluator.save_json or evaluator.save_submission)


def test_keys(cfg):
    name = register(submission_ids=list(range(19)))
    cfg.merge_from_list(["TEST.BOUNDARY_IOU", False, "TEST.SAVE_LABELS", True])
    cfg.merge_from_list(["TEST.SAVE_JSON", True, "TEST.SAVE_SUBMISSION", True])
    evaluator = build_evaluator(cfg, name)
    assert not evaluator.boundary
    assert evaluator.save_labels and evaluator.save_json and evaluator.save_submission


def test_a_report_is_about_classes_of_pixels(cfg, tmp_path):
    cfg.merge_from_list(["TEST.REPORT", True, "MODEL.WEIGHTS", "w.pth"])
    evaluator = build_evaluator(cfg, register())
    assert evaluator.report["weights"] == "w.pth" and evaluator.save_labels
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    for made in (build_evaluator, main_score):  # the second is called before a training
        with pytest.raises(ValueError, match=r"TEST.REPORT is True.*evaluator_type coco.*no class for each pixel"):
            made(cfg, register(evaluator_type="coco", json_file="x.json"))


def test_detections_beyond_100_are_scored_where_they_are_asked_for(cfg, tmp_path):
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    name = TinyCoco(tmp_path).instances
    for detections, scored in ((50, 100), (100, 100), (300, 300)):
        cfg.TEST.DETECTIONS_PER_IMAGE = detections
        assert build_evaluator(cfg, name).max_detections == scored


def test_where_predictions_are_saved(cfg):
    name = register()
    assert build_evaluator(cfg, name).output_dir == "out/inference"
    assert build_evaluator(cfg, name, "elsewhere").output_dir == "elsewhere"
    cfg.DATASETS.TEST = (name, "another")
    assert build_evaluator(cfg, name).output_dir == f"out/inference/{name}"


def test_unknown_type(cfg):
    with pytest.raises(ValueError, match="evaluator_type 'lvis'; expected one of sem_seg, cityscapes_sem_seg"):
        build_evaluator(cfg, register(evaluator_type="lvis"))


# objects


def switch_on(cfg, *kinds):
    for kind in ("SEMANTIC", "INSTANCE", "PANOPTIC"):
        cfg.merge_from_list([f"MODEL.MASK_FORMER.TEST.{kind}_ON", kind in kinds])


@pytest.fixture
def objects(tmp_path):
    """Options of `register` for a dataset whose two JSONs are there."""
    image = {"id": 1, "file_name": "a.jpg", "height": 3, "width": 3}
    (tmp_path / "a.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    record = {"file_name": "a.jpg", "image_id": 1, "pan_seg_file_name": "a.png", "segments_info": []}
    ids = {i: i for i in range(11, 19)}
    things = [label.name for label in CLASSES[11:]]
    return {
        "records": [record],
        "json_file": tmp_path / "a.json",
        "thing_classes": things,
        "thing_dataset_id_to_contiguous_id": ids,
    }


@pytest.mark.parametrize(
    ("kinds", "evaluators", "score"),
    [
        (["PANOPTIC"], [PanopticEvaluator], "panoptic_seg/PQ"),
        (["INSTANCE"], [InstanceEvaluator], "segm/AP"),
        (["SEMANTIC"], [SemSegEvaluator], "sem_seg/mIoU"),
        (["INSTANCE", "SEMANTIC"], [InstanceEvaluator, SemSegEvaluator], "segm/AP"),
        (
            ["SEMANTIC", "INSTANCE", "PANOPTIC"],
            [PanopticEvaluator, InstanceEvaluator, SemSegEvaluator],
            "panoptic_seg/PQ",
        ),
    ],
)
def test_a_panoptic_dataset_is_scored_by_what_the_model_gives(cfg, objects, kinds, evaluators, score):
    name = register(evaluator_type="coco_panoptic_seg", **objects)
    switch_on(cfg, *kinds)
    evaluator = build_evaluator(cfg, name)
    assert [type(e) for e in getattr(evaluator, "_evaluators", [evaluator])] == evaluators
    assert main_score(cfg, name) == score


def test_a_panoptic_dataset_without_annotated_instances(cfg, objects):
    name = register(evaluator_type="coco_panoptic_seg", **objects | {"json_file": None})
    switch_on(cfg, "INSTANCE", "PANOPTIC")
    assert type(build_evaluator(cfg, name)) is PanopticEvaluator
    switch_on(cfg, "INSTANCE", "SEMANTIC")
    assert main_score(cfg, name) == "sem_seg/mIoU"
    switch_on(cfg, "INSTANCE")
    with pytest.raises(FileNotFoundError, match="INSTANCE_ON False"):
        build_evaluator(cfg, name)


def test_a_dataset_of_instances(cfg, objects):
    name = register(evaluator_type="coco", **objects)
    switch_on(cfg, "INSTANCE", "SEMANTIC")
    assert type(build_evaluator(cfg, name)) is InstanceEvaluator
    assert main_score(cfg, name) == "segm/AP"
    switch_on(cfg, "SEMANTIC")
    for function in (build_evaluator, main_score):
        with pytest.raises(
            ValueError, match=r"nothing that can be scored .*\(evaluator_type coco\); set .*TEST\.INSTANCE_ON True"
        ):
            function(cfg, name)
