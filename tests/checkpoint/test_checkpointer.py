import os

import pytest
import torch
from fvcore.common.checkpoint import PeriodicCheckpointer
from torch import nn
from torch.testing import assert_close

from fasegr.checkpoint import Checkpointer, read_checkpoint
from fasegr.checkpoint import checkpointer as module
from fasegr.d2 import DetectionCheckpointer


class Model(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = nn.ModuleDict({"class_embed": nn.Linear(4, classes + 1)})

    def forward(self, x):
        return self.sem_seg_head.predictor["class_embed"](self.backbone(x))


class Training:
    """A model that has learnt for `steps`, with optimizer and schedule."""

    def __init__(self, folder, steps=0, classes=3):
        self.model = Model(classes)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.checkpointer = Checkpointer(self.model, str(folder), optimizer=self.optimizer, scheduler=self.scheduler)
        self.learn(steps)

    def learn(self, steps):
        for step in range(steps):
            self.optimizer.zero_grad()
            self.model(torch.full((2, 4), 1.0 + step)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()


def file_names(folder):
    return sorted(os.listdir(folder))


def test_is_the_checkpointer_of_the_runtime(tmp_path):
    assert isinstance(Checkpointer(Model(), str(tmp_path)), DetectionCheckpointer)


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = Training(tmp_path, steps=3)
    whole.checkpointer.save("model_0000002", iteration=2)
    resumed = Training(tmp_path)
    assert resumed.checkpointer.resume_or_load("", resume=True) == {"iteration": 2}
    assert resumed.checkpointer.report.kind == "full"
    whole.learn(2)
    resumed.learn(2)
    assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_without_resume_only_the_model_is_loaded(tmp_path):
    source = Training(tmp_path, steps=3)
    source.checkpointer.save("model_final", iteration=2)
    target = Training(tmp_path / "other")
    rest = target.checkpointer.resume_or_load(str(tmp_path / "model_final.pth"), resume=True)  # nothing to resume from
    assert set(rest) == {"iteration", "optimizer", "scheduler"}
    assert_close(target.model.state_dict(), source.model.state_dict())
    assert target.scheduler.get_last_lr() == [0.1]


def test_no_path_loads_nothing(tmp_path):
    checkpointer = Training(tmp_path).checkpointer
    assert checkpointer.resume_or_load("", resume=True) == {}
    assert checkpointer.report is None


def test_state_of_a_training_with_other_classes_is_refused_but_its_weights_are_taken(tmp_path):
    Training(tmp_path, steps=1, classes=3).checkpointer.save("model_final")
    other = Training(tmp_path, classes=5)
    with pytest.raises(ValueError, match=r"state of a training of another model.*without --resume"):
        other.checkpointer.resume_or_load("", resume=True)
    other.checkpointer.resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
    assert other.checkpointer.report.kind == "fine-tune"


def test_reads_a_backbone_as_load_checkpoint_does(tmp_path):
    torch.save(Model().backbone.state_dict(), tmp_path / "backbone.pth")
    training = Training(tmp_path)
    training.checkpointer.load(str(tmp_path / "backbone.pth"))
    assert training.checkpointer.report.kind == "backbone"


def test_fvcore_reads_what_was_saved(tmp_path):
    source = Training(tmp_path, steps=1)
    source.checkpointer.save("model_final", iteration=1)
    model = Model()
    DetectionCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    assert_close(model.state_dict(), source.model.state_dict())


def test_periodic_checkpointer_of_detectron2(tmp_path):
    training = Training(tmp_path)
    periodic = PeriodicCheckpointer(training.checkpointer, period=2, max_iter=6, max_to_keep=2)
    for iteration in range(6):
        periodic.step(iteration)
    assert file_names(tmp_path) == ["last_checkpoint", "model_0000003.pth", "model_0000005.pth", "model_final.pth"]
    assert training.checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")


def test_best_checkpoint_is_not_the_one_to_resume_from(tmp_path):
    checkpointer = Training(tmp_path).checkpointer
    checkpointer.save("model_0000001")
    assert checkpointer.save_untagged("model_best", score=0.5)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert read_checkpoint(str(tmp_path / "model_best.pth")).rest["score"] == 0.5


def break_off(error):
    """A torch.save that stops half way."""

    def save(data, file):
        file.write(b"half of a checkpoint")
        raise error

    return save


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError("disk full"), OSError)]
)
def test_broken_save_leaves_the_checkpoint_before_it(error, seen, tmp_path, monkeypatch):
    training = Training(tmp_path, steps=1)
    training.checkpointer.save("model_final", iteration=1)
    before = {name: (tmp_path / name).read_bytes() for name in file_names(tmp_path)}
    training.learn(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", break_off(error))
        with pytest.raises(seen):
            training.checkpointer.save("model_final", iteration=2)
        with pytest.raises(seen):
            training.checkpointer.save("model_next", iteration=2)
    assert {name: (tmp_path / name).read_bytes() for name in file_names(tmp_path)} == before


def test_what_a_killed_process_left_is_neither_used_nor_kept(tmp_path, monkeypatch):
    """SIGKILL runs no clean-up: the half file stays until the next save."""
    training = Training(tmp_path, steps=1)
    training.checkpointer.save("model_0000001", iteration=1)
    monkeypatch.setattr(module.os, "remove", lambda path: None)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", break_off(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            training.checkpointer.save("model_0000002", iteration=2)
    assert len(file_names(tmp_path)) == 3
    monkeypatch.undo()

    resumed = Training(tmp_path)
    assert resumed.checkpointer.get_all_checkpoint_files() == [str(tmp_path / "model_0000001.pth")]
    assert resumed.checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    resumed.checkpointer.save("model_0000003")
    assert file_names(tmp_path) == ["last_checkpoint", "model_0000001.pth", "model_0000003.pth"]


def test_state_that_could_not_be_read_back_is_refused_on_saving(tmp_path):
    training = Training(tmp_path)
    training.checkpointer.save("model_final", iteration=1)
    with pytest.raises(ValueError, match=r"holds .*Training.*could not be read back"):
        training.checkpointer.save("model_final", iteration=Training)
    assert read_checkpoint(str(tmp_path / "model_final.pth")).rest["iteration"] == 1


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Training(tmp_path / "file").checkpointer.save("model_final")


@pytest.mark.parametrize("name", ["", "sub/model", "../model"])
def test_name_with_a_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="file name without folder"):
        Training(tmp_path).checkpointer.save(name)


def test_only_the_writing_process_writes(tmp_path):
    checkpointer = Checkpointer(Model(), str(tmp_path), save_to_disk=False)
    checkpointer.save("model_final")
    assert not checkpointer.save_untagged("model_best")
    assert file_names(tmp_path) == []


def test_damaged_checkpoint_is_named_and_nothing_is_loaded(tmp_path):
    training = Training(tmp_path, steps=1)
    training.checkpointer.save("model_final")
    path = tmp_path / "model_final.pth"
    path.write_bytes(path.read_bytes()[:-100])
    resumed = Training(tmp_path)
    before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"model_final\.pth.*damaged or incomplete"):
        resumed.checkpointer.resume_or_load("", resume=True)
    assert_close(resumed.model.state_dict(), before, rtol=0, atol=0)


def test_last_checkpoint_that_was_deleted_is_named(tmp_path):
    training = Training(tmp_path)
    training.checkpointer.save("model_final")
    (tmp_path / "model_final.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"model_final\.pth"):
        training.checkpointer.resume_or_load("", resume=True)


def test_failure_of_another_process_stops_this_one(tmp_path, monkeypatch):
    training = Training(tmp_path)
    training.checkpointer.save("model_final")
    monkeypatch.setattr(module.comm, "all_gather", lambda message: [message, "rank 1 has no such file"])
    with pytest.raises(OSError, match=r"another process.*rank 1 has no such file"):
        training.checkpointer.load(str(tmp_path / "model_final.pth"))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_leave_no_trace_in_the_file(wrap, tmp_path):
    model = Model()
    Checkpointer(wrap(model), str(tmp_path)).save("model_final")
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert list(saved) == list(model.state_dict())
