"""Pictures that a finished training leaves: how it went, and what the model sees now."""

import logging
import os

import torch
from torch import nn
from torch.utils.data import Dataset

from fasegr.d2 import DatasetCatalog, HookBase, MetadataCatalog, comm
from fasegr.data.image_io import read_image, read_label
from fasegr.evaluation import predicted_labels
from fasegr.sliding_window import windowed
from fasegr.visualization import plot_training, side_by_side

__all__ = ["Pictures", "draw_samples"]

logger = logging.getLogger(__name__)


def draw_samples(model: nn.Module, samples: Dataset, dataset_name: str, path: str, number: int = 4) -> None:
    """Draw image, truth and prediction of `number` of the `samples` of a dataset into the file `path`.

    They are spread evenly over it: neighbours are often frames of one film.
    """
    truth_files = {record["file_name"]: record["sem_seg_file_name"] for record in DatasetCatalog.get(dataset_name)}
    metadata = MetadataCatalog.get(dataset_name)
    rows = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for i in range(min(number, len(samples))):
                sample = samples[(2 * i + 1) * len(samples) // (2 * min(number, len(samples)))]
                file = sample["file_name"]
                labels = predicted_labels(model([sample])[0]).cpu().numpy()
                rows.append((read_image(file), read_label(truth_files[file]), labels))
    finally:
        model.train(training)
    colours = getattr(metadata, "stuff_colors", None)
    ignore_label = getattr(metadata, "ignore_label", 255)
    side_by_side(rows, metadata.stuff_classes, colours, ignore_label).save(path)


class Pictures(HookBase):
    """Leaves curves.png and, where there is a dataset to test on, samples.png in `output_dir`. Place it last."""

    def __init__(self, output_dir: str, build_loader=None, dataset_name: str = ""):
        """build_loader: called without arguments for the loader of `dataset_name`; None draws no samples."""
        self.output_dir = output_dir
        self.build_loader = build_loader
        self.dataset_name = dataset_name

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        plot_training(os.path.join(self.output_dir, "metrics.json"), os.path.join(self.output_dir, "curves.png"))
        if self.build_loader is not None:
            path = os.path.join(self.output_dir, "samples.png")
            model = windowed(self.trainer.cfg, self.trainer.unwrapped_model)
            draw_samples(model, self.build_loader().dataset, self.dataset_name, path)
        logger.info("Pictures of the training are in %s", self.output_dir)
