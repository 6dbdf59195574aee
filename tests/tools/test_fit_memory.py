import pytest
import torch

import fasegr
from fasegr.analysis import fit_memory as analysis
from tools import fit_memory

CONFIG = ["--config-file", "configs/quickstart/faseg_scenes.yaml"]
GIB = 2**30


@pytest.fixture(autouse=True)
def formula(monkeypatch):
    """A GiB for the weights and half of one for each image of 128 x 128; a quarter with checkpointing."""

    def counter(cfg, segments, checkpointing):
        assert segments == 12
        return lambda size, images, keeps: GIB + images * size[0] * size[1] * GIB // (2 + 2 * checkpointing) // 128**2

    monkeypatch.setattr(fit_memory, "counter", counter)


def run(capsys, *arguments):
    fit_memory.main([*CONFIG, *arguments])
    return capsys.readouterr().out


def test_keys_that_keep_the_recipe(capsys):
    out = run(capsys, "--memory", "4", "--reserve", "1")
    assert "6 images a step on 1 GPU(s), of 128 x 128 with 12 segments, float32" in out
    assert "off            3               2           128 x 128     2.50 GiB  4 images" in out
    assert "on             6               1           128 x 128     2.50 GiB  8 images" in out
    assert out.split("The recipe, in this memory:\n")[1].split("\n")[0] == "  SOLVER.ACCUMULATE 2"
    assert "batch norms, which take the statistics of the images that are computed at once" in out


def test_checkpointing_where_only_it_keeps_the_recipe(capsys):
    out = run(capsys, "--memory", "1.3", "--reserve", "0")
    assert "SOLVER.ACCUMULATE 6 SOLVER.GRADIENT_CHECKPOINTING True" in out


def test_a_smaller_crop(capsys):
    out = run(capsys, "--memory", "1.2", "--reserve", "0")
    assert "smaller crop, which changes results" in out
    assert 'INPUT.CROP.SIZE "(96, 96)" INPUT.SIZE_DIVISIBILITY 96' in out


def test_what_fits_as_it_is_and_what_never_will(capsys):
    assert "fits as it is" in run(capsys, "--memory", "80")
    assert "does not fit: take a smaller one" in run(capsys, "--memory", "1", "--reserve", "0.5")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "1"], "--memory is 1 and --reserve 1.5; expected memory > reserve"),
        (["--memory", "nan"], "--memory is nan"),
        (["--memory", "8", "--processes", "4"], "--processes is 4; it must divide SOLVER.IMS_PER_BATCH, which is 6"),
        (["--memory", "8", "--segments", "0"], "must be at least 1"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        run(capsys, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_counted_model_is_the_one_that_trains(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        analysis, "count_training_peak", lambda model, size, **rest: asked.update(rest, model=model) or 1
    )
    options = [
        "SOLVER.EMA.ENABLED",
        True,
        "SOLVER.AMP.ENABLED",
        True,
        "MODEL.MASK_FORMER.CLASS_WEIGHTS",
        "inverse_sqrt",
    ]
    cfg = fasegr.load_cfg(CONFIG[1], ["MODEL.DEVICE", "cpu", *options])
    analysis.counter(cfg, segments=3, checkpointing=True)((64, 64), 2, True)
    model = asked.pop("model")
    assert "forward" in vars(model.backbone.stem)  # checkpointing
    assert model.criterion is not None
    assert asked == {
        "batch": 2,
        "segments": 3,
        "amp_dtype": torch.float16,
        "keeps_gradients": True,
        "copies": 3,  # two moments and the average
    }
