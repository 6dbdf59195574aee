"""The count of saved bytes: by hand on a small network, and against what a real pass saves."""

import pytest
import torch
from torch import nn

import fasegr
from fasegr.analysis.memory import count_training_memory, count_training_peak
from tools.ablation.tables import CONFIGS


class Head(nn.Module):
    """Two products with an activation between: (B, 3, H, W) to (B, 5)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 7, bias=False), nn.Linear(7, 5, bias=False)

    def forward(self, images):
        return {"pred_logits": self.second(self.first(images.mean((2, 3))).exp())}


def tiny():
    model = nn.Module()
    model.backbone, model.sem_seg_head = nn.Identity(), Head()
    model.pixel_mean = torch.zeros(3, 1, 1)
    return model


def test_by_hand():
    memory = count_training_memory(tiny(), (8, 8), batch=2)
    # the mean of the images, for the first weight; exp's result, for itself and for the second weight; the output
    assert memory.activations == 4 * 2 * (3 + 7 + 5)
    assert memory.state == 4 * 4 * (3 * 7 + 7 * 5)
    assert memory.total == memory.activations + memory.state


def test_frozen_parameters_have_no_gradients_and_need_nothing():
    model = tiny()
    model.sem_seg_head.first.requires_grad_(False)
    memory = count_training_memory(model, (8, 8), batch=2)
    assert memory.activations == 4 * 2 * (7 + 5)
    assert memory.state == 4 * (3 * 7 + 4 * 7 * 5)


@pytest.fixture(scope="module")
def small():
    return fasegr.build_model(fasegr.load_cfg(CONFIGS / "quickstart/faseg_scenes.yaml", ["MODEL.DEVICE", "cpu"]))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_real_pass_keeps_as_much(small, dtype):
    counted = count_training_memory(small, (64, 96), batch=2, amp_dtype=dtype)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    small.train()
    images = torch.zeros(2, 3, 64, 96)
    known = {tensor.untyped_storage().data_ptr() for tensor in (images, *small.parameters(), *small.buffers())}
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        outputs = small.sem_seg_head(small.backbone(images))
    for prediction in (outputs, *outputs["aux_outputs"]):
        keep(prediction["pred_logits"]), keep(prediction["pred_masks"])
    real = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in known)
    if dtype is None:
        assert counted.activations == real
    else:  # norms keep their statistics in float32, and their stand-ins in the type of their input
        assert 0.998 * real < counted.activations <= real


def test_counting_changes_nothing(small):
    small.eval()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    count_training_memory(small, (64, 64), batch=1)
    assert not small.training
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters())


def measured_peak(model, samples, dtype=None, gradients=False):
    """Most bytes of tensors at once in a real step, the weights included, as torch's allocator reports them."""
    state = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    state += sum(sample[name].numel() * sample[name].element_size() for sample in samples for name in sample)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if gradients else None
        state += 4 * parameter.numel() * gradients
    autocast = torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        with autocast:
            loss = sum(model(samples).values())
        loss.backward()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return state + peak


@pytest.mark.parametrize("kind", ["bfloat16", "checkpointing"])
def test_the_peak_of_a_real_step(kind):
    options = ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.DEC_LAYERS", 3]
    dtype = torch.bfloat16
    if kind == "checkpointing":
        dtype = None
        options += ["SOLVER.GRADIENT_CHECKPOINTING", True, "MODEL.MASK_FORMER.MASK_PILOT.ENABLED", True]
    model = fasegr.build_model(fasegr.load_cfg(CONFIGS / "quickstart/faseg_scenes.yaml", options))
    segments, size, gradients = 6, (64, 96), dtype is not None
    counted = count_training_peak(
        model, size, batch=2, segments=segments, amp_dtype=dtype, keeps_gradients=gradients, copies=0
    )
    masks = torch.rand(segments, *size) > 0.5
    sample = {"image": torch.zeros(3, *size, dtype=torch.uint8), "labels": torch.arange(segments), "masks": masks}
    real = measured_peak(model.train(), [sample, {**sample, "masks": masks.clone()}], dtype, gradients)
    assert counted == pytest.approx(real, rel=0.02)
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert real > (2.3 if gradients else 1.5) * weights  # a count of the state alone would be noticed
