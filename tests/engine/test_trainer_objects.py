"""Trainings of instance and panoptic segmentation, from the configs of the painted scenes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasegr import Predictor, load_cfg
from fasegr.checkpoint import read_checkpoint
from fasegr.engine import Trainer
from fasegr.utils.metrics_file import read_metrics
from tests.evaluation.tiny_coco import TinyCoco

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
NAMES = {"instance": ["cat", "dog"], "panoptic": ["sky", "cat", "grass", "dog"]}
SCORES = {
    "instance": ("segm/AP", {"segm/AP50", "segm/AP-cat"}),
    "panoptic": ("panoptic_seg/PQ", {"panoptic_seg/PQ_th", "panoptic_seg/PQ-sky", "segm/AP", "sem_seg/mIoU"}),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return TinyCoco(tmp_path_factory.mktemp("tiny"))


def small_cfg(case, kind, output_dir, *opts):
    name = case.instances if kind == "instance" else case.panoptic
    small = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(NAMES[kind]),
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.DEC_LAYERS": 5,
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
        "DATASETS.TRAIN": (name,),
        "DATASETS.TEST": (name,),
        "INPUT.IMAGE_SIZE": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "TEST.EVAL_PERIOD": 1,
        "OUTPUT_DIR": str(output_dir),
    }
    config = QUICKSTART / f"faseg_scenes_{kind}.yaml"
    return load_cfg(config, [*(word for pair in small.items() for word in pair), *opts])


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_a_training_is_scored_and_seen(case, tmp_path, kind):
    cfg = small_cfg(case, kind, tmp_path)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    main, others = SCORES[kind]
    evaluations = [line for line in read_metrics(tmp_path / "metrics.json") if main in line]
    assert [line["iteration"] for line in evaluations] == [0, 1]
    assert others <= evaluations[0].keys()
    best = read_checkpoint(str(tmp_path / "model_best.pth")).rest
    assert best[main] == max(line[main] for line in evaluations)
    assert Image.open(tmp_path / "curves.png").width == 2 * 896
    assert len(np.unique(np.asarray(Image.open(tmp_path / "samples.png")).reshape(-1, 3), axis=0)) > 100

    predictor = Predictor(small_cfg(case, kind, tmp_path, "MODEL.WEIGHTS", str(tmp_path / "model_best.pth")))
    assert predictor.class_names == NAMES[kind]
    photo = Image.open(case.files[0])
    result = predictor(photo)
    assert result["instances"].image_size == (photo.height, photo.width)
    assert ("panoptic_seg" in result) == ("sem_seg" in result) == (kind == "panoptic")
    low, high = (predictor.draw(photo, result, min_score=score) for score in (0.0, 1.0))
    assert low.size[0] == high.size[0]
    assert (low == high) == (kind == "panoptic")  # whose segments have no scores


def test_half_precision(case, tmp_path):
    """Training and evaluation in bfloat16: masks, classes and scores of every kind of result."""
    opts = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ())
    trainer = Trainer(small_cfg(case, "panoptic", tmp_path, *opts))
    trainer.resume_or_load(resume=False)
    trainer.train()
    cfg = small_cfg(case, "panoptic", tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        results = Trainer.test(cfg, trainer.unwrapped_model)
    assert set(results) == {"panoptic_seg", "segm", "sem_seg"}
    assert all(0 <= results[task][score] <= 100 for task, score in (("panoptic_seg", "PQ"), ("segm", "AP")))


def test_multi_scale_testing_of_a_panoptic_model_is_semantic(case, tmp_path):
    cfg = small_cfg(case, "panoptic", tmp_path, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "[64]")
    results = Trainer.test_with_TTA(cfg, Trainer.build_model(cfg))
    assert set(results) == {"sem_seg_TTA"} and "mIoU" in results["sem_seg_TTA"]
