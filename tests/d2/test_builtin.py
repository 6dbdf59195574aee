"""What the built-in runtime does beyond the contract: more processes than a test can start, and errors of its own."""

import pytest
import torch

from fasegr.d2.builtin import comm, config, data, launch


def test_defaults_are_detectron2s():
    theirs = pytest.importorskip("detectron2.config", reason="detectron2 is not installed: defaults were not compared")
    assert config.get_cfg() == theirs.get_cfg()


@pytest.mark.parametrize(
    ("rank", "records", "part"),
    [(0, 10, [0, 1, 2]), (1, 10, [3, 4, 5]), (2, 10, [6, 7]), (3, 10, [8, 9]), (3, 1, [])],
)
def test_parts_of_a_dataset_that_does_not_divide(monkeypatch, rank, records, part):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    assert list(data.build_detection_test_loader(list(range(records)), mapper=int)) == [[i] for i in part]


def test_the_train_loader_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="aspect_ratio_grouping=False"):
        data.build_detection_train_loader([1], mapper=None, sampler=[0], total_batch_size=1, aspect_ratio_grouping=True)


def test_ranks_of_several_machines(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(comm, "_processes_per_machine", None)
    with pytest.raises(RuntimeError, match="create_local_process_group"):
        comm.get_local_rank()
    comm.create_local_process_group(4)
    assert comm.get_local_rank() == 1


def test_auto_port_is_for_one_machine():
    with pytest.raises(ValueError, match="auto"):
        launch.launch(print, 1, num_machines=2, dist_url="auto")
