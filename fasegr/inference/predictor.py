"""A trained model on single images, for notebooks and the demo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import fasegr.modeling  # noqa: F401  registers the architectures and backbones
from fasegr.checkpoint import load_checkpoint
from fasegr.d2 import DatasetCatalog, MetadataCatalog, build_model, configurable
from fasegr.data.augmentation import ResizeShortestEdge, ResizeTo
from fasegr.data.dataset_mappers.build import test_resize
from fasegr.data.datasets import register_from_config
from fasegr.data.image_io import open_image
from fasegr.data.transform import channels_first, height_and_width, resize_image
from fasegr.inference.sliding_window import with_sliding_window
from fasegr.inference.test_time_augmentation import SemanticSegmentorWithTTA, tta_cfg
from fasegr.visualization.objects import class_list, draw_result
from fasegr.visualization.overlays import palette

__all__ = ["Predictor"]

ImageLike = str | os.PathLike | Image.Image | np.ndarray  # a file, or RGB: uint8 (H, W, 3)

# PIL modes whose conversion to RGB keeps the picture; 16-bit ones would be clipped.
_MODES = ("RGB", "L", "P", "RGBA", "RGBX", "LA", "PA", "1", "CMYK", "YCbCr", "HSV", "LAB")


class Predictor:
    """Segments one image at a time, of any kind.

        predictor = Predictor(fasegr.load_cfg(config_file, ["MODEL.WEIGHTS", "model.pth"]))
        result = predictor("street.jpg")
        predictor.draw("street.jpg", result).save("street_overlay.png")

    Images are resized as for testing, and results have the size of the image.
    """

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        resize: ResizeShortestEdge | ResizeTo,
        class_names: Sequence[str],
        colors: Sequence[Sequence[int]] | np.ndarray | None = None,
    ):
        """model: a segmentor with its weights, which is put into evaluation mode; resize: to the size of its input;
        class_names and colors, (C, 3) RGB or None for `palette`, are for `draw`.
        """
        self.model = model.eval()
        self.resize = resize
        self.class_names = list(class_names)
        self.colors = palette(len(self.class_names)) if colors is None else np.asarray(colors, np.uint8)

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Build cfg's model and load MODEL.WEIGHTS, which must fit completely.

        TEST.SLIDING_WINDOW and TEST.AUG apply. Names and colours are those of the first dataset in DATASETS.TEST, or
        class_0, class_1, ... if there is none.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError(
                "MODEL.WEIGHTS is empty, so the weights would be random; "
                "name a checkpoint, e.g. MODEL.WEIGHTS output/model_best.pth"
            )
        if cfg.DATASETS.TEST and cfg.DATASETS.TEST[0] not in DatasetCatalog.list():
            register_from_config(cfg)  # fasegr.load_cfg did not read this config
        model = build_model(cfg)
        report = load_checkpoint(model, cfg.MODEL.WEIGHTS)
        if report.kind != "full":
            raise ValueError(
                f"{cfg.MODEL.WEIGHTS} fits only a part of the model ({report.kind}), and the rest would be random; "
                "name a checkpoint that was trained with this config\n" + report.differences()
            )
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else None
        names, colors = class_list(metadata) if metadata else (None, None)
        if cfg.TEST.AUG.ENABLED:
            model, cfg = SemanticSegmentorWithTTA(cfg, model), tta_cfg(cfg)
        else:
            model = with_sliding_window(cfg, model)
        return {
            "model": model,
            "resize": test_resize(cfg),
            "class_names": names or [f"class_{i}" for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)],
            "colors": colors if names else None,
        }

    def __call__(self, image: ImageLike) -> dict[str, Any]:
        """image: a file name (turned upright as its EXIF says), a PIL image, or uint8 (H, W, 3) RGB.

        Returns the model's result at the size of the image: "sem_seg" (C, H, W) scores or "sem_seg_labels" (H, W),
        "panoptic_seg" and "instances", those that the config switches on.
        Raises FileNotFoundError or BadFile for a file that cannot be read, ValueError for another kind of image.
        """
        return self.batch([image])[0]

    @torch.inference_mode()
    def batch(self, images: Sequence[ImageLike]) -> list[dict[str, Any]]:
        """The results of several images in one pass, such as frames of a video. Smaller ones are padded to the largest,
        which can change their results a little at the right and bottom. Memory grows with their number."""
        return self.model([self.sample(image) for image in images])

    def sample(self, image: ImageLike) -> dict[str, Any]:
        """What the model takes for an image: detectron2's dict, with the image resized as for testing."""
        image = _as_rgb(image)
        pixels = channels_first(resize_image(image, self.resize.output_size(height_and_width(image))))
        return {"image": torch.from_numpy(pixels), "height": image.height, "width": image.width}

    def draw(
        self,
        image: ImageLike,
        result: Mapping[str, Any],
        alpha: float = 0.5,
        min_score: float = 0.5,
        legend: bool = True,
    ) -> Image.Image:
        """The image with its result drawn over it, and the names of segments or classes; see
        `fasegr.visualization.objects`. legend: of the classes, below the image."""
        names, colors = self.class_names, self.colors
        return draw_result(_as_rgb(image), result, names, colors, alpha=alpha, min_score=min_score, legend=legend)


def _as_rgb(image: ImageLike) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise ValueError(
                f"the image has mode {image.mode}, whose values have no fixed range; expected {', '.join(_MODES)}, "
                "or the name of a file"
            )
        return image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"the image is {pixels.dtype} of shape {pixels.shape}; expected uint8 (H, W, 3), RGB")
    return Image.fromarray(pixels)
