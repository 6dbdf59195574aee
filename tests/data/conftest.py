import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog, get_cfg


@pytest.fixture
def cfg():
    """A config with the keys that the data reads; nothing of the model is built from it."""
    from fasegr.config import add_fasegr_config

    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 32, 40)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = 100
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = (24, 24)
    cfg.INPUT.COLOR_AUG_SSD = True
    cfg.INPUT.MIN_SIZE_TEST = 32
    cfg.INPUT.MAX_SIZE_TEST = 48
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


@pytest.fixture
def catalogs():
    """Whatever a test registers is gone after it."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def make_folder(tmp_path):
    """make_folder(splits={"train": 5}) writes noise images of 30 x 40 and label maps of 3 classes; returns the root."""

    def make(splits=None, root=tmp_path / "mine", classes="one\ntwo\nthree\n"):
        rng = np.random.default_rng(0)
        for split, count in (splits or {"train": 5, "val": 2}).items():
            for kind in ("images", "annotations"):
                (root / kind / split).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                labels = rng.integers(0, 3, (5, 4)).repeat(6, 0).repeat(10, 1).astype(np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / f"{i}.png")
                Image.fromarray(labels).save(root / "annotations" / split / f"{i}.png")
        (root / "classes.txt").write_text(classes)
        return root

    return make


@pytest.fixture
def camvid():
    """(root, class list) of CamVid, from $DETECTRON2_DATASETS or from beside the repository; skips without it."""
    repository = Path(__file__).parents[2]
    roots = [Path(os.environ.get("DETECTRON2_DATASETS", "datasets")), repository.parent / "shared" / "data"]
    for root in roots:
        if (root / "camvid" / "images").is_dir():
            return root / "camvid", repository / "configs" / "camvid" / "classes.txt"
    pytest.skip(f"CamVid is in none of {', '.join(map(str, roots))}")
