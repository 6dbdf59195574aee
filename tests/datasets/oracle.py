"""A segmentor that is told the truth."""

import torch
from torch import nn

from fasegr.config import add_fasegr_config
from fasegr.d2 import DatasetCatalog, get_cfg
from fasegr.data.image_io import read_label
from fasegr.engine import Trainer


class Oracle(nn.Module):
    """Of ignored pixels, and of images without truth, it says class 3."""

    def __init__(self, dataset_name: str):
        super().__init__()
        self.truth = {r["file_name"]: r.get("sem_seg_file_name") for r in DatasetCatalog.get(dataset_name)}

    def forward(self, samples):
        results = []
        for sample in samples:
            truth = self.truth[sample["file_name"]]
            labels = torch.full((sample["height"], sample["width"]), 3, dtype=torch.uint8)
            if truth is not None:
                known = torch.from_numpy(read_label(truth))
                labels = torch.where(known == 255, labels, known)
            results.append({"sem_seg_labels": labels})
        return results


def evaluate(dataset_name: str, num_classes: int, output_dir) -> dict:
    """What the program makes of the oracle's answers, which are written for the benchmark's server."""
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(
        [
            *("DATASETS.TEST", (dataset_name,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes, "MODEL.DEVICE", "cpu"),
            *("INPUT.MIN_SIZE_TEST", 16, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(output_dir)),
            *("TEST.SAVE_SUBMISSION", True),
        ]
    )
    return Trainer.test(cfg, Oracle(dataset_name))
