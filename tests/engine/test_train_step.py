import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fasegr.checkpoint import Checkpointer, read_checkpoint
from fasegr.engine.train_step import NonFiniteLoss, TrainStep


class Model(nn.Module):
    """Two losses of a linear layer; `spoil` is applied to the first."""

    def __init__(self, spoil=lambda loss: loss):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.spoil = spoil
        self.scale = 1.0
        self.seen_dtype = None

    def forward(self, batch):
        outputs = self.layer(torch.stack([sample["x"] for sample in batch]))
        self.seen_dtype = outputs.dtype
        loss = self.scale * outputs.float().square().mean()
        return {"loss_a": self.spoil(loss), "loss_b": 0.5 * loss}


def samples(number, start=0):
    generator = torch.Generator().manual_seed(start)
    return [{"x": torch.randn(3, generator=generator), "file_name": f"{start + i}.jpg"} for i in range(number)]


def make_step(model, batches=(), max_norm=float("inf"), deferred=False, **options):
    """deferred: as on a GPU."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=deferred)
    step = TrainStep(model, batches, optimizer, lambda parameters: clip_grad_norm_(parameters, max_norm), **options)
    step.deferred = deferred
    return step


def test_a_step_is_the_plain_one():
    torch.manual_seed(0)
    model, batch = Model(), samples(4)
    reference = copy.deepcopy(model)
    loss = 1.5 * reference.layer(torch.stack([s["x"] for s in batch])).square().mean()
    loss.backward()
    norm = clip_grad_norm_(reference.parameters(), 0.2)
    torch.optim.SGD(reference.parameters(), lr=0.1).step()

    step = make_step(model, [batch], max_norm=0.2)
    report = step.run(0, step.fetch(), data_time=0.5)
    assert sum(report.losses.values()) == pytest.approx(loss.item())
    assert list(report.losses) == ["loss_a", "loss_b"]
    assert report.grad_norm == pytest.approx(norm.item())
    assert (report.data_time, report.grad_scale, report.stop) == (0.5, 1.0, False)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


def test_accumulation_equals_the_whole_batch():
    torch.manual_seed(0)
    whole, parts, batch = Model(), Model(), samples(6)
    parts.load_state_dict(whole.state_dict())
    one = make_step(whole, [batch])
    three = make_step(parts, [batch[0:2], batch[2:4], batch[4:6]], accumulate=3)
    assert one.run(0, one.fetch()).losses == pytest.approx(three.run(0, three.fetch()).losses)
    torch.testing.assert_close(whole.state_dict(), parts.state_dict())


def test_a_single_process_has_nothing_to_gather():
    assert make_step(Model(), gather_period=20).run(0, [samples(1)]).losses


def test_the_wish_to_stop_comes_back():
    step = make_step(Model())
    assert step.run(0, [samples(1)], stop=True).stop


def test_bfloat16():
    model = Model()
    step = make_step(model, amp_dtype=torch.bfloat16)
    step.run(0, [samples(2)])
    assert model.seen_dtype == torch.bfloat16
    assert model.layer.weight.dtype == torch.float32
    assert not step.scaler.is_enabled()


def test_float16_scales_and_skips_infinite_gradients():
    """On the CPU, which computes float16 slowly but like a GPU."""
    model = Model()
    model.scale = 1e-3  # small enough for the scale that GradScaler begins with
    step = make_step(model, amp_dtype=torch.float16)
    first = step.run(0, [samples(2)])
    assert model.seen_dtype == torch.float16
    assert first.grad_scale == 2**16
    assert math.isfinite(first.grad_norm), "it was unscaled before it was measured and clipped"

    weights = copy.deepcopy(model.state_dict())
    model.spoil = lambda loss: loss + 1e38 * (model.layer.weight.sum() - model.layer.weight.sum().detach())
    second = step.run(1, [samples(2)])
    assert not math.isfinite(second.grad_norm)
    torch.testing.assert_close(model.state_dict(), weights)
    assert step.run(2, [samples(2)]).grad_scale == 2**15

    resumed = make_step(Model(), amp_dtype=torch.float16)
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    assert resumed.scaler.get_scale() == step.scaler.get_scale()
    make_step(Model()).load_state_dict(copy.deepcopy(step.state_dict()))  # continued in float32: no scale to take


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value, tmp_path):
    def spoil(loss):
        return loss * value if spoil.calls.append(1) or len(spoil.calls) == 2 else loss

    spoil.calls = []
    model = Model(spoil)
    weights = copy.deepcopy(model.state_dict())
    step = make_step(model, accumulate=2, output_dir=str(tmp_path))
    with pytest.raises(NonFiniteLoss) as stopped:
        step.run(41, [samples(2, start=10), samples(5, start=20)])
    message = str(stopped.value)
    assert message.startswith(
        f"iteration 41: loss_a is {value}. Images of the batch: 20.jpg, 21.jpg, 22.jpg and 2 more. "
    )
    assert "SOLVER.BASE_LR (the learning rate is 0.1 now)" in message
    torch.testing.assert_close(model.state_dict(), weights)

    saved = read_checkpoint(str(tmp_path / "nan_0000041.pth"))
    torch.testing.assert_close(saved.weights, dict(weights))
    assert saved.rest["iteration"] == 41
    assert saved.rest["files"] == [f"{i}.jpg" for i in range(20, 25)]
    assert repr(saved.rest["losses"]) == repr({"loss_a": value})


def test_a_full_disk_does_not_hide_nan(tmp_path, monkeypatch):
    def full(self, name, **kwargs):
        raise OSError("could not write checkpoint: No space left on device")

    monkeypatch.setattr(Checkpointer, "save_untagged", full)
    step = make_step(Model(lambda loss: loss * float("nan")), output_dir=str(tmp_path))
    with pytest.raises(NonFiniteLoss, match=r"iteration 3: loss_a is nan.* not saved: .*No space left on device"):
        step.run(3, [samples(1)])


def test_what_an_update_has_changed_is_known():
    plain, statistics = Model(), Model(lambda loss: loss * float("nan"))
    statistics.norm = nn.BatchNorm1d(3)
    step = make_step(plain)
    step.run(4, [samples(2)])
    assert step.updated == 4
    plain.spoil = lambda loss: loss * float("nan")
    with pytest.raises(NonFiniteLoss):
        step.run(5, [samples(2)])
    assert step.updated == 4
    step = make_step(statistics)
    with pytest.raises(NonFiniteLoss):
        step.run(5, [samples(2)])
    assert step.updated == 5, "batch statistics change in the forward pass"


def test_a_gradient_that_is_not_finite():
    model = Model()
    model.spoil = lambda loss: loss + (model.layer.weight * 0).sum().sqrt()  # 0, with a derivative of 0 / 0
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(
        NonFiniteLoss, match=r"iteration 3: the norm of the gradient is nan. Images of the batch: 0.jpg"
    ):
        make_step(model).run(3, [samples(1)])
    torch.testing.assert_close(model.state_dict(), weights)


def test_a_model_that_finds_nan_itself(tmp_path):
    def spoil(loss):
        raise FloatingPointError("the matching cost is not finite")

    with pytest.raises(
        NonFiniteLoss, match=r"iteration 3: the matching cost is not finite. Images of the batch: 0.jpg"
    ):
        make_step(Model(spoil), output_dir=str(tmp_path)).run(3, [samples(1)])
    assert (tmp_path / "nan_0000003.pth").exists()


@pytest.mark.parametrize("amp_dtype", [None, torch.float16])
def test_a_gpu_is_not_waited_for(amp_dtype):
    """Reports come a step later and are the same, and so are the weights, of a step too whose update is skipped."""
    models = [Model(), Model()]
    models[1].load_state_dict(models[0].state_dict())
    now, later = (make_step(model, amp_dtype=amp_dtype, deferred=i == 1) for i, model in enumerate(models))
    reports = []
    for i in range(4):
        for model in models:
            model.scale = 1e38 if amp_dtype and i == 2 else 1e-3  # whose gradient is infinite: no error in float16
        reports.append(now.run(i, [samples(2, start=i)], data_time=i, stop=i == 3))
        before = later.run(i, [samples(2, start=i)], data_time=i, stop=i == 3)
        assert repr(before) == repr(reports[-2] if i else None)
        torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)
    assert repr(later.finish()) == repr(reports[-1])
    assert later.finish() is None
    assert now.scaler.state_dict() == later.scaler.state_dict()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_a_bad_step_does_not_reach_the_weights_of_a_gpu(optimizer, tmp_path):
    model = Model()
    step = make_step(model, deferred=True, output_dir=str(tmp_path))
    step.optimizer = optimizer(model.parameters(), lr=0.1, fused=True)
    step.run(0, [samples(2)])
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(step.optimizer.state_dict())
    model.spoil = lambda loss: loss * float("nan")
    step.run(1, [samples(2, start=10)])
    assert step.is_broken()
    model.spoil = lambda loss: loss
    with pytest.raises(NonFiniteLoss, match=r"iteration 1: loss_a is nan. Images of the batch: 10.jpg, 11.jpg"):
        step.run(2, [samples(2, start=20)])
    assert step.updated == 0
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(step.optimizer.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(read_checkpoint(str(tmp_path / "nan_0000001.pth")).weights, dict(weights))
