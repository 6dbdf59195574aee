import numpy as np
import pytest
import torch

from fasegr.d2 import DatasetCatalog
from fasegr.evaluation import InstanceEvaluator, PanopticEvaluator, SemSegEvaluator
from fasegr.evaluation.ground_truth import ground_truth_result
from tests.evaluation.tiny_coco import THINGS, TinyCoco


@pytest.fixture
def case(tmp_path):
    return TinyCoco(tmp_path)


def results_of(case, name, kind):
    sizes = [segments[0].mask.shape for segments in case.segments]
    return [
        ground_truth_result(record, kind, size) for record, size in zip(DatasetCatalog.get(name), sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("dataset", "kind", "evaluator", "score"),
    [
        ("instances", "instances", InstanceEvaluator, ("segm", "AP")),
        ("panoptic", "panoptic_seg", PanopticEvaluator, ("panoptic_seg", "PQ")),
        ("panoptic", "sem_seg_labels", None, None),
    ],
)
def test_has_a_score_of_100_percent(case, dataset, kind, evaluator, score):
    results = results_of(case, getattr(case, dataset), kind)
    if evaluator is None:  # labels have ignored pixels, predictions do not
        for result, segments in zip(results, case.segments, strict=True):
            expected = np.full(segments[0].mask.shape, 255)
            for segment in segments:
                expected[segment.mask] = segment.label
            np.testing.assert_array_equal(result[kind], expected)
        return
    evaluator = evaluator(getattr(case, dataset))
    evaluator.process(case.inputs(), results)
    assert evaluator.evaluate()[score[0]][score[1]] == pytest.approx(100)


def test_a_record_without_ground_truth_of_the_kind(case):
    assert results_of(case, case.instances, "panoptic_seg") == [None] * 4
    assert results_of(case, case.instances, "sem_seg_labels") == [None] * 4
    assert results_of(case, case.panoptic, "instances") == [None] * 4


def test_an_image_without_objects():
    result = ground_truth_result({"annotations": []}, "instances", (4, 6))["instances"]
    assert len(result) == 0 and result.image_size == (4, 6)


def test_semantic_scores_of_panoptic_ground_truth(case):
    """Void is ignored, crowds are not."""
    labels = [torch.from_numpy(sum(s.label * s.mask for s in segments)) for segments in case.segments]
    evaluator = SemSegEvaluator(case.panoptic)
    evaluator.process(case.inputs(), [{"sem_seg_labels": label} for label in labels])
    scores = evaluator.evaluate()["sem_seg"]
    assert scores["mIoU"] == scores["BoundaryIoU"] == 100

    wrong = [torch.where(label == THINGS[0], THINGS[1], label) for label in labels]
    evaluator.reset()
    evaluator.process(case.inputs(), [{"sem_seg_labels": label} for label in wrong])
    scores = evaluator.evaluate()["sem_seg"]
    cat, dog = (
        sum(s.mask.sum() for segments in case.segments for s in segments if s.label == label) for label in THINGS
    )
    assert scores["IoU-cat"] == 0
    assert scores["IoU-dog"] == pytest.approx(100 * dog / (cat + dog))
