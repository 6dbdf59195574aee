"""What the built-in runtime does where detectron2 does otherwise, or nothing: refuse, with a reason."""

import logging
import os
import pickle

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset, Sampler

from fasegr.d2 import builtin
from fasegr.d2.builtin import comm


def test_defaults_are_detectron2s():
    config = pytest.importorskip("detectron2.config", reason="detectron2 is not installed: defaults were not compared")
    assert builtin.get_cfg() == config.get_cfg()


def test_yaml_is_never_code(tmp_path):
    (tmp_path / "base.yaml").write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(yaml.constructor.ConstructorError):
        builtin.get_cfg().merge_from_file(str(tmp_path / "leaf.yaml"))
    with pytest.raises(ValueError, match="run code"):
        builtin.get_cfg().merge_from_file(str(tmp_path / "leaf.yaml"), allow_unsafe=True)


def test_older_config_version(tmp_path):
    (tmp_path / "old.yaml").write_text("VERSION: 1\n")
    with pytest.raises(ValueError, match="VERSION 1; only version 2"):
        builtin.get_cfg().merge_from_file(str(tmp_path / "old.yaml"))


def test_configurable_goes_on_init_or_takes_a_function():
    with pytest.raises(TypeError, match="__init__"):
        builtin.configurable(lambda cfg: None)
    assert builtin.configurable() is builtin.configurable


def test_backbone_of_another_type():
    builtin.BACKBONE_REGISTRY._do_register("not_a_backbone", lambda cfg, shape: nn.Identity())
    cfg = builtin.get_cfg()
    cfg.MODEL.BACKBONE.NAME = "not_a_backbone"
    try:
        with pytest.raises(TypeError, match=r"not_a_backbone.*Identity"):
            builtin.build_backbone(cfg)
    finally:
        del builtin.BACKBONE_REGISTRY._obj_map["not_a_backbone"]


def test_loader_says_what_it_cannot_do(monkeypatch):
    build = builtin.build_detection_train_loader
    with pytest.raises(ValueError, match="aspect_ratio_grouping=False"):
        build([1], mapper=None, total_batch_size=1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for size in (0, 3):
        with pytest.raises(ValueError, match=f"total_batch_size is {size}.*2 processes"):
            build([1], mapper=None, total_batch_size=size, aspect_ratio_grouping=False)


@pytest.mark.parametrize(("rank", "shard"), [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 7]), (3, [8, 9])])
def test_shards_of_a_dataset_that_does_not_divide(monkeypatch, rank, shard):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    assert list(builtin.build_detection_test_loader(list(range(10)), mapper=None)) == [[i] for i in shard]


def test_more_ranks_than_images(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr(comm, "get_rank", lambda: 3)
    assert list(builtin.build_detection_test_loader([0], mapper=None)) == []


def test_local_ranks_need_a_group():
    with pytest.raises(RuntimeError, match="create_local_process_group"):
        comm.get_local_process_group()


def test_checkpoint_is_never_code(tmp_path):
    torch.save({"model": {}, "extra": logging.getLogger}, tmp_path / "code.pth")
    with pytest.raises(pickle.UnpicklingError):
        builtin.DetectionCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "code.pth"))


def test_auto_port_is_for_one_machine():
    with pytest.raises(ValueError, match="auto"):
        builtin.launch(print, 1, num_machines=2, dist_url="auto")


@pytest.mark.parametrize(
    "method", ["build_optimizer", "build_train_loader", "build_lr_scheduler", "build_test_loader", "build_evaluator"]
)
def test_what_decides_a_training_is_the_subclasss(method):
    with pytest.raises(NotImplementedError, match=f"DefaultTrainer must override {method}"):
        getattr(builtin.DefaultTrainer, method)(*[None] * (1 if method == "build_train_loader" else 2))


def test_state_of_a_hook_that_is_gone(caplog):
    trainer = builtin.DefaultTrainer.__mro__[1]()
    trainer.load_state_dict({"iteration": 5, "hooks": {"Gone": {"x": 1}}})
    assert trainer.iter == 5
    assert "Gone" in caplog.text


# ---- gradients are averaged over processes, on CPUs too


class Weight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return {"loss": (self.weight * torch.tensor(batch)).mean()}


class Numbers(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return float(index)


class Share(Sampler):
    """Of each pair of numbers, one a rank, or both in the only rank."""

    def __init__(self):
        self.rank, self.world = comm.get_rank(), comm.get_world_size()

    def __iter__(self):
        return iter(range(self.rank, 100, self.world))


class Trainer(builtin.DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return Weight()

    @classmethod
    def build_optimizer(cls, cfg, model):
        return torch.optim.SGD(model.parameters(), lr=1.0)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return None

    @classmethod
    def build_train_loader(cls, cfg):
        return builtin.build_detection_train_loader(
            Numbers(), mapper=None, sampler=Share(), total_batch_size=2, aspect_ratio_grouping=False
        )

    def build_hooks(self):
        return []

    def run_step(self):
        loss = self.model(next(self._trainer._data_loader_iter))["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def _train(folder):
    cfg = builtin.get_cfg()
    cfg.OUTPUT_DIR = folder
    cfg.SOLVER.MAX_ITER = 3
    trainer = Trainer(cfg)
    trainer.train()
    torch.save(trainer.checkpointer.model.weight.item(), os.path.join(folder, f"weight{comm.get_rank()}.pt"))
    trainer.checkpointer.save("model")
    comm.synchronize()
    trainer.checkpointer.load(os.path.join(folder, "model.pth"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="launch() uses a GPU for each process where there are GPUs")
def test_two_processes_train_as_one(tmp_path):
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        builtin.launch(_train, world, dist_url="auto", args=(str(folder),))
    (alone,) = (torch.load(file) for file in (tmp_path / "1").glob("weight*"))
    assert [torch.load(file) for file in (tmp_path / "2").glob("weight*")] == [alone, alone]
    assert alone == 1 - (0.5 + 2.5 + 4.5)
