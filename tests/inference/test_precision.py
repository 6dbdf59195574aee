import logging
from pathlib import Path

import pytest
import torch

import fasegr
from fasegr.inference import precision
from fasegr.inference.precision import in_precision
from fasegr.inference.sliding_window import with_sliding_window

STEPS = 20
CONFIG = Path(__file__).parents[2] / "configs/quickstart/faseg_scenes.yaml"


def small(dtype, **changes):
    opts = {"MODEL.DEVICE": "cpu", "SPEED.DTYPE": dtype, **changes}
    return fasegr.load_cfg(CONFIG, [word for pair in opts.items() for word in pair])


def picture(seed):
    """Three classes, each with its colour, beside one another; the borders are elsewhere in every picture."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randint(8, 28, (1,), generator=generator), torch.randint(36, 56, (1,), generator=generator)
    column = torch.arange(64).expand(64, 64)
    classes = (column >= left).long() + (column >= right)
    colours = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
    image = colours[classes] + torch.randint(0, 40, (64, 64, 3), generator=generator)
    masks = torch.stack([classes == c for c in range(3)])
    return {"image": image.permute(2, 0, 1).to(torch.uint8), "labels": torch.arange(3), "masks": masks}


@pytest.fixture(scope="module")
def model():
    """Trained a little: with random weights all pixels have one class."""
    torch.manual_seed(0)
    model = fasegr.build_model(small("float32"))
    optimizer = torch.optim.AdamW(model.parameters(), 0.002)
    for step in range(STEPS):
        optimizer.zero_grad()
        sum(model([picture(4 * step + i) for i in range(4)]).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.fixture
def samples():
    return [{"image": picture(1000 + i)["image"], "height": 64, "width": 64} for i in range(4)]


def test_float32_is_the_model_itself(model):
    assert in_precision(small("float32"), model) is model


def test_bfloat16_gives_nearly_the_same_labels_as_float32_results(model, samples):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    half = with_sliding_window(small("bfloat16"), model)
    seen = []
    half.backbone.register_forward_hook(lambda module, inputs, maps: seen.extend(m.dtype for m in maps.values()))
    half.sem_seg_head.register_forward_hook(lambda module, inputs, out: seen.append(out["pred_masks"].dtype))
    with torch.no_grad():
        scores = [[r["sem_seg"] for r in m(samples)] for m in (model, half)]
    assert set(seen) == {torch.bfloat16}, "the network computes in bfloat16"
    assert all(s.dtype == torch.float32 for s in scores[1])
    agree = [(a.argmax(0) == b.argmax(0)).float().mean() for a, b in zip(*scores, strict=True)]
    assert min(agree) >= 0.99
    assert all(len(s.argmax(0).unique()) == 3 for s in scores[0]), "there is something to tell apart"
    assert all((a - b).abs().mean() < 0.01 * a.max() for a, b in zip(*scores, strict=True))
    for name, value in model.state_dict().items():
        assert value.equal(weights[name]), "the model that is trained stays as it is"


def test_statistics_of_batch_norm_stay(model):
    half = in_precision(small("bfloat16"), model)
    norms = [m for m in half.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(norm.running_var.dtype == norm.weight.dtype == torch.float32 for norm in norms)


@pytest.mark.parametrize(("has", "warns"), [(True, False), (False, True)])
def test_a_processor_without_the_instructions_is_said(model, monkeypatch, caplog, has, warns):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    precision._warn.cache_clear()
    with caplog.at_level(logging.WARNING, precision.__name__):
        for _ in range(2):
            in_precision(small("bfloat16"), model)
    assert caplog.text.count("neither AVX512_BF16 nor AMX") == warns


def test_float16_is_for_gpus(model):
    with pytest.raises(ValueError, match=r"SPEED\.DTYPE is 'float16' with MODEL.DEVICE cpu; it must be 'bfloat16'"):
        in_precision(small("float16"), model)
