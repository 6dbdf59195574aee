"""Trainings of FASeg on a plain ViT: what is frozen stays as it was, and a resumed run equals an uninterrupted one."""

import pytest
import torch

from fasegr.engine.trainer import Trainer
from tests.engine.tiny_training import faseg_cfg
from tests.modeling.backbone.tiny_vits import tiny_networks

pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def networks(monkeypatch, no_pictures):
    tiny_networks(monkeypatch)


def vit_cfg(root, out, **changes):
    cfg = faseg_cfg(root, out)
    values = {
        "MODEL.BACKBONE.NAME": "build_timm_vit_backbone",
        "MODEL.VIT.NAME": "vit_small_patch14_reg4_dinov2",
        "MODEL.VIT.OUT_CHANNELS": 8,
        "MODEL.VIT.DROP_PATH_RATE": 0.5,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "SOLVER.LAYER_DECAY": 0.5,
        "SOLVER.BASE_LR": 0.01,
        **changes,
    }
    cfg.merge_from_list([word for pair in values.items() for word in pair])
    return cfg


def run(cfg, resume=False):
    trainer = Trainer(cfg)
    start = {name: value.clone() for name, value in trainer.unwrapped_model.named_parameters()}
    trainer.resume_or_load(resume=resume)
    trainer.train()
    after = dict(trainer.unwrapped_model.named_parameters())
    return trainer, {name for name, value in start.items() if not value.equal(after[name])}


@pytest.mark.parametrize("freeze", [3, "all", "all but norms"])
def test_frozen_weights_do_not_change_and_all_others_do(dataset_root, tmp_path, freeze, caplog):
    cfg = vit_cfg(dataset_root, tmp_path, **{"SOLVER.MAX_ITER": 1, "MODEL.VIT.DROP_PATH_RATE": 0.0})
    cfg.MODEL.BACKBONE.FREEZE = freeze
    trainer, changed = run(cfg)
    names = {name for name, _ in trainer.unwrapped_model.named_parameters()}
    network = {name for name in names if name.startswith("backbone.timm.")}
    trained = {
        3: {
            name
            for name in network
            if name.startswith(("backbone.timm.blocks.2.", "backbone.timm.blocks.3.", "backbone.timm.norm."))
        },
        "all": set(),
        "all but norms": {name for name in network if "norm" in name},
    }
    assert changed == (names - network) | trained[freeze]
    assert f"FREEZE is {freeze}, and there are no pretrained weights" in caplog.text


def test_a_resumed_run_equals_an_uninterrupted_one(dataset_root, tmp_path):
    """With drop path, layer-wise rates and frozen stages."""
    changes = {"MODEL.BACKBONE.FREEZE": 1}
    whole, _ = run(vit_cfg(dataset_root, tmp_path / "whole", **changes))
    parts = vit_cfg(dataset_root, tmp_path / "whole", **changes)
    (tmp_path / "whole" / "last_checkpoint").write_text("model_0000000.pth")
    state = {name: value.clone() for name, value in whole.unwrapped_model.state_dict().items()}
    resumed, _ = run(parts, resume=True)
    assert resumed.start_iter == 1
    torch.testing.assert_close(resumed.unwrapped_model.state_dict(), state, rtol=0, atol=0)
    frozen = resumed.unwrapped_model.frozen
    assert frozen and not any(module.training for module in frozen) and resumed.unwrapped_model.training


def test_rates_by_layer(dataset_root, tmp_path):
    trainer = Trainer(vit_cfg(dataset_root, tmp_path, **{"SOLVER.BACKBONE_MULTIPLIER": 0.1}))
    names = {parameter: name for name, parameter in trainer.unwrapped_model.named_parameters()}
    rates = {names[p]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert rates["backbone.timm.patch_embed.proj.weight"] == pytest.approx(0.01 * 0.1 * 0.5**5)
    assert rates["backbone.timm.blocks.3.norm1.weight"] == pytest.approx(0.01 * 0.1 * 0.5)
    assert rates["backbone.pyramid.res2.0.weight"] == rates["sem_seg_head.predictor.query_feat.weight"] == 0.01
