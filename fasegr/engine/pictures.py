"""Pictures of a finished training: curves, and predictions on a few test images."""

import logging
import os

import torch
from torch import nn
from torch.utils.data import Dataset

from fasegr.d2 import DatasetCatalog, HookBase, MetadataCatalog, comm
from fasegr.data.image_io import read_image
from fasegr.evaluation import predicted_labels
from fasegr.evaluation.ground_truth import ground_truth_result
from fasegr.inference.sliding_window import with_sliding_window
from fasegr.visualization.curves import plot_training
from fasegr.visualization.objects import class_list, drawn_kind, object_table
from fasegr.visualization.overlays import side_by_side

__all__ = ["Pictures", "draw_samples"]

logger = logging.getLogger(__name__)


def draw_samples(model: nn.Module, samples: Dataset, dataset_name: str, path: str, number: int = 4) -> None:
    """Draw image, ground truth and prediction of `number` of the `samples` of a dataset into the file `path`.

    They are spread evenly over it, since neighbours are often frames of one video.
    """
    records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
    metadata = MetadataCatalog.get(dataset_name)
    ignore_label = getattr(metadata, "ignore_label", 255)
    names, colours = class_list(metadata)
    rows = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for i in range(min(number, len(samples))):
                sample = samples[(2 * i + 1) * len(samples) // (2 * min(number, len(samples)))]
                file = sample["file_name"]
                photo, result = read_image(file), model([sample])[0]
                kind = drawn_kind(result)
                rows.append((photo, ground_truth_result(records[file], kind, photo.shape[:2], ignore_label), result))
    finally:
        model.train(training)
    if any(truth is None for _, truth, _ in rows):
        rows, titles = [(photo, result) for photo, _, result in rows], ("Image", "Prediction")
    else:
        titles = ("Image", "Truth", "Prediction")
    if kind == "sem_seg_labels":
        maps = [(photo, *(predicted_labels(result).cpu().numpy() for result in results)) for photo, *results in rows]
        page = side_by_side(maps, names, colours, ignore_label, titles=titles)
    else:
        page = object_table(rows, names, colours, titles=titles)
    page.save(path)


class Pictures(HookBase):
    """Writes curves.png and, if there is a test dataset, samples.png to `output_dir`. Place it last."""

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
            model = with_sliding_window(self.trainer.cfg, self.trainer.unwrapped_model)
            draw_samples(model, self.build_loader().dataset, self.dataset_name, path)
        logger.info("Pictures of the training are in %s", self.output_dir)
