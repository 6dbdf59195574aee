import torch

from fasegr.evaluation.leave_out import leave_out
from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation


def test_unsure_pixels():
    scores = torch.tensor([[[0.9, 0.6, 0.0]], [[0.1, 0.4, 0.0]]])  # of no score at all, nothing is known: 1 / 2
    assert leave_out({"sem_seg": scores}, 0.55)["sem_seg_labels"].tolist() == [[0, 0, -1]]
    assert leave_out({"sem_seg": scores}, 0.7)["sem_seg_labels"].tolist() == [[0, -1, -1]]


def test_small_parts_of_a_class():
    """Parts that touch at a corner are one; another part of the same class counts for itself."""
    labels = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.uint8)
    expected = [[1, 0, 0, 0], [0, 1, 0, -1], [0, 0, 0, 0], [-1, 0, 0, 0]]
    assert leave_out({"sem_seg_labels": labels}, min_area=2)["sem_seg_labels"].tolist() == expected


def test_areas_of_pixels_that_are_left_out_do_not_count():
    scores = torch.tensor([[[0.9, 0.9, 0.6]], [[0.1, 0.1, 0.4]]])
    assert leave_out({"sem_seg": scores}, 0.7, 3)["sem_seg_labels"].tolist() == [[-1, -1, -1]]


def test_instances():
    masks = torch.zeros(3, 2, 2, dtype=torch.bool)
    masks[0, 0, 0] = masks[1] = masks[2] = True
    found = Instances(torch.tensor([0.9, 0.3, 0.8]), torch.tensor([0, 1, 2]), masks)
    kept = leave_out({"instances": found}, 0.5, 2)["instances"]
    assert kept.pred_classes.tolist() == [2] and kept.pred_masks.shape == (1, 2, 2)


def test_panoptic_segments():
    ids = torch.tensor([[1, 2, 2], [0, 3, 3]], dtype=torch.int32)
    segments = [{"id": i, "category_id": i, "isthing": True} for i in (1, 2, 3)]
    kept = leave_out({"panoptic_seg": PanopticSegmentation(ids, segments)}, min_area=2)["panoptic_seg"]
    assert kept.segment_ids.tolist() == [[0, 2, 2], [0, 3, 3]]
    assert [segment["id"] for segment in kept.segments] == [2, 3]
