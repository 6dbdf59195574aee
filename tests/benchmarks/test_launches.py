"""Operations on a GPU that is not there: what is counted, and that no change brings them back."""

import dataclasses
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

import fasegr
from benchmarks import launches
from benchmarks.case import Case
from benchmarks.launches import Count, Launches, on_fake_gpu
from benchmarks.measure import ROOT
from fasegr.engine.optimizer import build_gradient_clipper, build_optimizer
from fasegr.engine.train_step import TrainStep
from tests.modeling.meta_arch.test_segmentor import SMALL

pytestmark = pytest.mark.skipif(
    not launches.AVAILABLE, reason=f"torch {torch.__version__} needs a GPU to count for one"
)
R50 = str(ROOT / "configs/ade20k/semantic-segmentation/faseg_r50.yaml")


def counted(line, *tensors):
    meter = Launches()
    with meter:
        line(*tensors)
    return meter.readings().get("whole", Count())


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (lambda x: x + 1, Count(kernels=1)),
        (lambda x: x.t().reshape(6)[2:], Count(kernels=1, views=3)),
        (lambda x: x.half().to(torch.float32), Count(kernels=2, casts=2)),
        (lambda x: torch.empty_like(x).shape, Count()),
        (lambda x: torch.zeros(3, device="cpu") + 1, Count()),
        (lambda x: x.cpu(), Count(kernels=1, waits=1)),
        (lambda x: x.to("cpu", non_blocking=True), Count(kernels=1)),
    ],
)
def test_what_is_counted(line, count):
    with on_fake_gpu():
        assert counted(line, torch.empty(2, 3, device="cuda")) == count


def test_weights_are_cast_once_a_step_and_fused_attention_is_one_operation():
    with on_fake_gpu():
        x, weight = torch.empty(2, 4, device="cuda"), torch.empty(4, 4, device="cuda", requires_grad=True)
        with torch.autocast("cuda", dtype=torch.float16):
            assert counted(lambda: F.linear(F.linear(x, weight), weight)).casts == 2
        q = torch.empty(1, 2, 3, 4, device="cuda", dtype=torch.float16)
        assert counted(lambda: F.scaled_dot_product_attention(q, q, q)).kernels == 1


def of_r50(kind, batch):
    case = Case(kind, R50, batch=batch, dtype="float16")
    return launches.times(dataclasses.asdict(case))["counts"]


def test_a_training_forward_pass():
    """The numbers of docs/benchmarks.md, with nothing to spare: who adds an operation says why, and changes both."""
    counts = of_r50("launches-training", 16)
    network = sum(counts[part]["kernels"] for part in ("backbone", "pixel decoder", "decoder"))
    assert network <= 1258
    assert counts["criterion"]["kernels"] <= 596
    assert counts["whole"]["casts"] <= 386
    assert counts["whole"]["waits"] == counts["matching"]["waits"] == 1


def test_inference():
    counts = of_r50("launches-inference", 1)["whole"]
    assert counts["kernels"] <= 936
    assert counts["waits"] == 0


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_whole_step_waits_once(monkeypatch, dtype):
    """For the matching's costs. The backward pass, which needs a real GPU, is left out: it computes nothing here."""

    def backward(loss):
        for parameter in step.parameters:
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.cuda, "Event", mock.Mock())
    cfg = fasegr.load_cfg(R50, [*SMALL, "MODEL.DEVICE", "cpu"])
    case = Case("launches-training", R50, opts=tuple(SMALL), size=(64, 64), batch=2)
    with on_fake_gpu():
        model = launches.gpu_model(R50, tuple(SMALL)).train()
        step = TrainStep(model, [], build_optimizer(cfg, model), build_gradient_clipper(cfg), amp_dtype=dtype)
        batch = launches.samples(case, model.criterion.num_classes)
        step.run(0, [batch])
        step.finish = lambda: None  # the results of the first step have no values to read
        meter = Launches()
        with meter:
            step.run(1, [batch])
    assert meter.readings()["whole"].waits == 1
