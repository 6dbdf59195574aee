import pytest
import yaml

import fasegr
from fasegr.config import add_fasegr_config
from fasegr.config.batch_scaling import scale_to_batch
from fasegr.d2 import get_cfg


def schedule(**changes):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.SOLVER.REFERENCE_BATCH = 16
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 160000, 5000, 5000
    for key, value in changes.items():
        cfg.SOLVER[key] = value
    return cfg


def test_everything_scales_together_and_is_said(caplog):
    cfg = schedule(IMS_PER_BATCH=4, WARMUP_ITERS=10)
    scale_to_batch(cfg)
    solver = cfg.SOLVER
    assert solver.BASE_LR == 2.5e-5
    assert (solver.MAX_ITER, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (640000, 40, 20000)
    assert cfg.TEST.EVAL_PERIOD == 20000
    assert "for a batch of 16 and was scaled to 4" in caplog.text
    assert "SOLVER.MAX_ITER 160000 -> 640000" in caplog.text
    assert "SOLVER.BASE_LR 0.0001 -> 2.5e-05" in caplog.text


def test_larger_batches_take_fewer_and_longer_steps():
    cfg = schedule(IMS_PER_BATCH=32)
    scale_to_batch(cfg)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (2e-4, 80000)


def test_weight_decay_of_the_whole_training_stays():
    cfg, scaled = schedule(), schedule(IMS_PER_BATCH=40)
    scale_to_batch(scaled)
    product, expected = (c.SOLVER.BASE_LR * c.SOLVER.MAX_ITER for c in (scaled, cfg))
    assert product == pytest.approx(expected)


def test_the_average_of_the_weights_covers_the_same_epochs():
    cfg = schedule(IMS_PER_BATCH=4)
    scale_to_batch(cfg)
    assert cfg.SOLVER.EMA.DECAY == 0.9998  # off
    cfg = schedule(IMS_PER_BATCH=4)
    cfg.SOLVER.EMA.ENABLED = True
    scale_to_batch(cfg, explicit=["SOLVER.EMA.ENABLED"])
    assert pytest.approx(0.9998) == cfg.SOLVER.EMA.DECAY**4  # four steps in place of one
    cfg = schedule(IMS_PER_BATCH=4)
    cfg.SOLVER.EMA.ENABLED = True
    scale_to_batch(cfg, explicit=["SOLVER.EMA.DECAY"])
    assert cfg.SOLVER.EMA.DECAY == 0.9998


@pytest.mark.parametrize("changes", [{}, {"REFERENCE_BATCH": 0, "IMS_PER_BATCH": 4}])
def test_nothing_to_do(changes, caplog):
    cfg = schedule(**changes)
    before = cfg.clone()
    scale_to_batch(cfg)
    assert cfg == before
    assert not caplog.text


def test_steps_scale_where_the_schedule_has_steps():
    cfg = schedule(IMS_PER_BATCH=8, LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(120000, 150000))
    scale_to_batch(cfg)
    assert list(cfg.SOLVER.STEPS) == [240000, 300000]
    cfg = schedule(IMS_PER_BATCH=8, STEPS=(3,))
    scale_to_batch(cfg)
    assert list(cfg.SOLVER.STEPS) == [3]


def test_what_cannot_be_divided_is_refused_and_nothing_changed():
    cfg = schedule(IMS_PER_BATCH=12, MAX_ITER=90000)
    before = cfg.clone()
    message = r"IMS_PER_BATCH is 12;.*CHECKPOINT_PERIOD 5000 would be 6666\.67.*such as 1, 2, 4, 5, 8, 10, 16.*BATCH 0"
    with pytest.raises(ValueError, match=message) as error:
        scale_to_batch(cfg)
    assert "MAX_ITER" not in str(error.value)  # 120000 would do
    assert cfg == before


# through load_cfg


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("SOLVER: {IMS_PER_BATCH: 16, REFERENCE_BATCH: 16, MAX_ITER: 800, CHECKPOINT_PERIOD: 100}\n")
    return path


def load(path, *opts):
    return fasegr.load_cfg(path, ["MODEL.DEVICE", "cpu", *opts])


def test_another_batch_on_the_command_line_keeps_the_recipe(recipe):
    solver = load(recipe, "SOLVER.IMS_PER_BATCH", "8").SOLVER
    assert (solver.MAX_ITER, solver.CHECKPOINT_PERIOD, solver.BASE_LR) == (1600, 200, 5e-5)


def test_keys_stated_next_to_it_are_meant_as_they_stand(recipe):
    solver = load(recipe, "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "0.1").SOLVER
    assert (solver.MAX_ITER, solver.CHECKPOINT_PERIOD, solver.BASE_LR) == (7, 200, 0.1)


def test_a_dump_is_not_scaled_again(recipe, tmp_path):
    cfg = load(recipe, "SOLVER.IMS_PER_BATCH", "8")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load(tmp_path / "config.yaml")
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    # from there, a third batch is as far from the recipe as it would be directly
    assert load(tmp_path / "config.yaml", "SOLVER.IMS_PER_BATCH", "4").SOLVER.MAX_ITER == 3200


def test_a_reference_below_zero_is_refused(recipe):
    with pytest.raises(ValueError, match="REFERENCE_BATCH is -1"):
        load(recipe, "SOLVER.REFERENCE_BATCH", "-1")
