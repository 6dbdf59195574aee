import uuid

import pytest

from fasegr.config import add_fasegr_config
from fasegr.d2 import DatasetCatalog, MetadataCatalog, get_cfg
from fasegr.data.datasets.cityscapes import CLASSES
from fasegr.evaluation import CityscapesEvaluator, SemSegEvaluator, build_evaluator


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.OUTPUT_DIR = "out"
    cfg.DATASETS.TEST = ("one",)
    return cfg


def register(**metadata) -> str:
    name = f"test_{uuid.uuid4().hex}"
    DatasetCatalog.register(name, list)
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


def test_where_predictions_are_saved(cfg):
    name = register()
    assert build_evaluator(cfg, name).output_dir == "out/inference"
    assert build_evaluator(cfg, name, "elsewhere").output_dir == "elsewhere"
    cfg.DATASETS.TEST = (name, "another")
    assert build_evaluator(cfg, name).output_dir == f"out/inference/{name}"


def test_unknown_type(cfg):
    with pytest.raises(ValueError, match="evaluator_type 'lvis'; there are: sem_seg, cityscapes_sem_seg"):
        build_evaluator(cfg, register(evaluator_type="lvis"))
