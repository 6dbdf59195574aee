import os
from contextlib import nullcontext

import numpy as np
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


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    """torch's own message is `unexpected pos 64 vs 0`."""
    training = Training(tmp_path)
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(module, "replacing", lambda *args, **kwargs: nullcontext(full))
        with pytest.raises(OSError, match=r"could not write checkpoint .*model_final\.pth.*No space left on device"):
            training.checkpointer.save("model_final")


def test_only_the_writing_process_writes(tmp_path):
    checkpointer = Checkpointer(Model(), str(tmp_path), save_to_disk=False)
    checkpointer.save("model_final")
    assert not checkpointer.save_untagged("model_best")
    assert file_names(tmp_path) == []


def three(folder):
    """A training with model_0000001, model_0000003 and model_final (of iteration 5) in `folder`."""
    training = Training(folder, steps=2)
    for name, iteration in (("model_0000001", 1), ("model_0000003", 3), ("model_final", 5)):
        training.learn(2)
        training.checkpointer.save(name, iteration=iteration)
    return training


def flip(path):
    """Change a bit of a weight."""
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["backbone.weight"].numpy().tobytes()
    data[data.index(weight) + 7] ^= 1
    path.write_bytes(data)


def tear(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_state(path):
    data = torch.load(path, weights_only=True)
    torch.save({"model": data["model"], "iteration": 9}, path)


def state_of_something_else(path):
    data = torch.load(path, weights_only=True)
    torch.save({**data, "optimizer": {"a": 1}}, path)


def of_another_model(path):
    Training(path.parent / "other", classes=7).checkpointer.save(path.stem, iteration=9)
    (path.parent / "other" / path.name).replace(path)


def not_finite(path):
    data = torch.load(path, weights_only=True)
    data["model"]["backbone.weight"][1, 2] = float("nan")
    torch.save(data, path)


DAMAGES = {
    "torn": (tear, "damaged or incomplete"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or incomplete"),
    "text": (lambda path: path.write_text("model"), "damaged or incomplete"),
    "a flipped bit": (flip, "damaged or incomplete"),
    "deleted": (lambda path: path.unlink(), "which is no file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "which is no file"),
    "weights alone": (without_state, "not the state of a training"),
    "another state": (state_of_something_else, "entry 'optimizer' is not the state of this training"),
    "another model": (of_another_model, "of a training of another model"),
    "NaN": (not_finite, "backbone.weight has NaN"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_resumed_from(damage, tmp_path, caplog):
    three(tmp_path)
    break_it, why = DAMAGES[damage]
    break_it(tmp_path / "model_final.pth")
    assert Training(tmp_path).checkpointer.resume_or_load("", resume=True) == {"iteration": 3}
    assert "Resuming from" in caplog.text
    assert "model_0000003.pth" in caplog.text
    assert why in caplog.text

    flip(tmp_path / "model_0000003.pth")
    assert Training(tmp_path).checkpointer.resume_or_load("", resume=True) == {"iteration": 1}


TAGS = {
    "none": None,
    "nothing": b"",
    "not UTF-8": b"\xff\xfe\0",
    "long": b"m" * 10**6,
    "a file that is not there": b"model_0009999.pth",
    "another folder's": b"../other/model_final.pth",
    "something else": b"model_best.pth",
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("final_is_last", [True, False])
def test_a_lost_or_foreign_last_checkpoint(tag, final_is_last, tmp_path, caplog):
    training = three(tmp_path)
    three(tmp_path / "other") if tag == "another folder's" else None
    training.checkpointer.save_untagged("model_best", iteration=7)
    torch.save(training.model.state_dict(), tmp_path / "model_best.pth")
    if not final_is_last:  # MAX_ITER was raised after the end
        training.checkpointer.save("model_0000008", iteration=8)
    (tmp_path / "last_checkpoint").unlink()
    if TAGS[tag] is not None:
        (tmp_path / "last_checkpoint").write_bytes(TAGS[tag])
    resumed = Training(tmp_path).checkpointer
    assert resumed.has_checkpoint()
    assert resumed.resume_or_load("", resume=True)["iteration"] == (5 if final_is_last else 8)
    assert "last_checkpoint" in caplog.text or "model_best" in caplog.text


def test_an_earlier_checkpoint_can_be_chosen(tmp_path, caplog):
    three(tmp_path)
    tear(tmp_path / "model_final.pth")  # which is not looked at
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth\n")
    assert Training(tmp_path).checkpointer.resume_or_load("", resume=True) == {"iteration": 1}
    assert "What is wrong" not in caplog.text


def test_nothing_whole_is_an_error_and_no_new_start(tmp_path):
    training = three(tmp_path)
    for path in tmp_path.glob("*.pth"):
        flip(path)
    resumed = Training(tmp_path)
    before = {name: value.clone() for name, value in resumed.model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"run without --resume(.|\n)*model_final(.|\n)*model_0000003(.|\n)*model_0000001"
    ):
        resumed.checkpointer.resume_or_load("", resume=True)
    assert_close(resumed.model.state_dict(), before, rtol=0, atol=0)
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    with pytest.raises(ValueError, match=r"last_checkpoint names 'model_final\.pth', which is no file"):
        training.checkpointer.resume_or_load("", resume=True)


def test_every_flipped_bit_is_found_or_harmless(tmp_path):
    """The rest of a file are names and sizes of its parts, times and padding."""
    training = Training(tmp_path, steps=2)
    training.checkpointer.save("model_final", iteration=1)
    path = tmp_path / "model_final.pth"
    data, whole = path.read_bytes(), read_checkpoint(str(path))
    rng = np.random.default_rng(0)
    found = 0
    for position, bit in zip(rng.integers(0, len(data), 300), rng.integers(0, 8, 300), strict=True):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(bit)
        path.write_bytes(flipped)
        try:
            contents = read_checkpoint(str(path))
        except ValueError:
            found += 1
        else:
            assert_close(contents.weights, whole.weights, rtol=0, atol=0)
            assert_close(contents.rest["optimizer"], whole.rest["optimizer"], rtol=0, atol=0)
    assert found > 50


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
