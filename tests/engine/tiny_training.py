"""A training that takes milliseconds a step, with real data files: for the tests of the engine."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from fasegr import add_fasegr_config, load_cfg
from fasegr.d2 import META_ARCH_REGISTRY, HookBase, get_cfg
from fasegr.data.datasets import register_from_config

CLASSES = ("sky", "road")


class TinySegmentor(nn.Module):
    """Classes of pixels by two convolutions. Dropout and noise make a step depend on the random state.

    `deterministic` turns both off. `break_at` names files whose losses are NaN.
    """

    deterministic = False
    break_at: tuple[str, ...] = ()

    def __init__(self, cfg):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.queries = nn.Embedding(4, 8)
        self.head = nn.Conv2d(8, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)
        self.to(cfg.MODEL.DEVICE)

    def forward(self, batch):
        images = torch.stack([sample["image"] for sample in batch]).float() / 128 - 1
        if self.training and not self.deterministic:
            images = images + 0.1 * torch.randn_like(images)
        features = self.backbone(images) + self.queries.weight.mean(0)[:, None, None]
        if not self.deterministic:
            features = nn.functional.dropout(features, 0.2, self.training)
        scores = self.head(features)
        if not self.training:
            return [{"sem_seg": s.softmax(0)} for s in scores]
        truth = torch.stack([(s["masks"] * s["labels"][:, None, None]).sum(0) for s in batch])
        loss = nn.functional.cross_entropy(scores.float(), truth)
        if any(Path(s["file_name"]).name in self.break_at for s in batch):
            loss = loss * float("nan")
        return {"loss_ce": loss, "loss_ce_0": 0.5 * loss}

    def score_tiles(self, batch):
        sizes = [(sample["height"], sample["width"]) for sample in batch]
        results = zip(self.forward(batch), sizes, strict=True)
        return [[(slice(None), nn.functional.interpolate(r["sem_seg"][None], size)[0])] for r, size in results]


class AsOnGPU(HookBase):
    """The results of a step are read during the next one."""

    def before_train(self) -> None:
        self.trainer._trainer.deferred = True


if "TinySegmentor" not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(TinySegmentor)


def write_dataset(root: Path, splits=(("train", 6), ("val", 3)), size: int = 16) -> None:
    """A folder dataset: the upper part of an image is bluish sky, the lower one grey road."""
    rng = np.random.default_rng(0)
    for split, number in splits:
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(number):
            horizon = rng.integers(4, size - 4)
            image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
            image[:horizon, :, 2] += 150
            image[horizon:] += 70
            labels = np.zeros((size, size), np.uint8)
            labels[horizon:] = 1
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            Image.fromarray(labels).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))


def tiny_cfg(root: Path, output_dir: Path, *opts):
    """A config of 6 iterations on the dataset in `root`, which is registered; `opts` (key, value, ...) override it."""
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "TinySegmentor", "MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2),
            *("DATASETS.FOLDER.NAME", "tiny", "DATASETS.FOLDER.ROOT", str(root)),
            *("DATASETS.FOLDER.CLASSES", str(root / "classes.txt")),
            *("DATASETS.TRAIN", ("tiny_train",), "DATASETS.TEST", ("tiny_val",)),
            *("INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TRAIN", (16,), "INPUT.MIN_SIZE_TEST", 16),
            *("INPUT.COLOR_AUG_SSD", True, "DATALOADER.NUM_WORKERS", 0),
            *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 6, "SOLVER.BASE_LR", 0.01, "SOLVER.WARMUP_ITERS", 0),
            *("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.CHECKPOINT_PERIOD", 2),
            *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
            *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0),
            *("OUTPUT_DIR", str(output_dir), "SEED", 7),
            *opts,
        ]
    )
    register_from_config(cfg)
    return cfg


def faseg_cfg(root: Path, output_dir: Path):
    """The quickstart's FASeg, smaller still, on the same dataset; images are as large as the coarsest map needs.

    Its norms know no batch: the statistics of BatchNorm are those of a process.
    """
    small = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.DEC_LAYERS": 5,
        "DATASETS.FOLDER.NAME": "tiny",
        "DATASETS.FOLDER.ROOT": str(root),
        "DATASETS.FOLDER.CLASSES": str(root / "classes.txt"),
        "DATASETS.TRAIN": ("tiny_train",),
        "DATASETS.TEST": (),
        "INPUT.MIN_SIZE_TRAIN": (192,),
        "INPUT.CROP.SIZE": (64, 64),
        "INPUT.SIZE_DIVISIBILITY": 64,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 3,
        "SOLVER.WARMUP_ITERS": 0,
        "SEED": 5,  # the images of two processes then have different numbers of masks in every step
        "OUTPUT_DIR": str(output_dir),
    }
    config = Path(__file__).parents[2] / "configs" / "quickstart" / "faseg_scenes.yaml"
    return load_cfg(config, [word for pair in small.items() for word in pair])


def even_points(images: int, points: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The same points in every image, spread evenly (a lattice of golden ratios): in place of random ones."""
    i = torch.arange(points, device=device, dtype=dtype)
    return torch.stack([(0.754877666 * i) % 1, (0.569840291 * i) % 1], -1).expand(images, -1, -1)
