"""detectron2's own functions with our registered names: what its users already have still works."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fasegr
from fasegr.data.datasets.scenes.semantic import generate_scenes, scenes_folder

pytest.importorskip("detectron2", reason="detectron2 is not installed")
if fasegr.d2.RUNTIME != "detectron2":
    pytest.skip("FASEGR_RUNTIME forces the built-in runtime", allow_module_level=True)

CONFIG = Path(__file__).parents[2] / "configs/quickstart/faseg_scenes.yaml"
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 6, "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 64,
    "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.SIZE", (64, 64), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2,
    # its trainer supports only "norm" and "value", and no poly schedule
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "TEST.EVAL_PERIOD", 0,
]  # fmt: skip


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    generate_scenes(scenes_folder(), {"train": 4, "val": 2}, size=64)
    return fasegr.load_cfg(CONFIG, [*SMALL, "OUTPUT_DIR", str(tmp_path / "out")])


def test_its_build_model(cfg):
    from detectron2.modeling import build_model

    assert type(build_model(cfg)).__name__ == "FASeg"


def test_its_trainer_and_predictor(cfg, tmp_path):
    from detectron2.engine import DefaultPredictor, DefaultTrainer

    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = DefaultTrainer(cfg)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))

    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    image = np.asarray(Image.open(scenes_folder() / "images/val/0000.png"))
    result = DefaultPredictor(cfg)(image[:, :, ::-1])  # it takes BGR, as OpenCV reads
    assert result["sem_seg"].shape == (12, 64, 64)
    ours = fasegr.Predictor(cfg)(image)["sem_seg"]
    torch.testing.assert_close(result["sem_seg"], ours, rtol=1e-3, atol=1e-3)
