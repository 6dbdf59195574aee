"""Test-time augmentation: the mean of the scores of an image at several sizes, and of its mirror images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fasegr.d2 import CfgNode, configurable
from fasegr.data.augmentation import ResizeShortestEdge
from fasegr.data.transform import channels_first, height_and_width, resize_image
from fasegr.inference.sliding_window import with_sliding_window
from fasegr.modeling.meta_arch.semantic_inference import semantic_result

__all__ = ["SemanticSegmentorWithTTA", "tta_cfg"]


def tta_cfg(cfg: CfgNode) -> CfgNode:
    """`cfg` for test-time augmentation: only semantic results, and with TEST.AUG.FROM_ORIGINAL, images are read at
    their own size."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    if cfg.TEST.AUG.FROM_ORIGINAL:
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.FIXED_SIZE_TEST, cfg.INPUT.SIZE_MULTIPLE_TEST = 0, [], 1
    return cfg


class SemanticSegmentorWithTTA(nn.Module):
    """A segmentor with test-time augmentation: its semantic result, `sem_seg` or `sem_seg_labels`, is that of class
    scores averaged over sizes and mirror images.

    An image and its mirror image are one batch. Their scores are added to one map tile by tile, so apart from that
    map, memory depends only on the largest size. As in Mask2Former, the image has already been resized for testing when
    it gets these sizes; with TEST.AUG.FROM_ORIGINAL (`tta_cfg`), it has not.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        min_sizes: Sequence[int],
        max_size: int,
        flip: bool,
        semantic_output: str = "scores",
    ):
        """model: has `score_tiles`, like FASeg. min_sizes: lengths of the shorter side; max_size: limit of the longer.
        flip: add mirror images. semantic_output: as in FASeg.
        """
        super().__init__()
        self.model = model
        self.resize = ResizeShortestEdge(tuple(min_sizes), max_size)
        self.flip = flip
        self.semantic_output = semantic_output
        self.training = model.training

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> dict:
        """model: the segmentor itself; TEST.SLIDING_WINDOW applies to it."""
        return {
            "model": with_sliding_window(cfg, model),
            "min_sizes": cfg.TEST.AUG.MIN_SIZES,
            "max_size": cfg.TEST.AUG.MAX_SIZE,
            "flip": cfg.TEST.AUG.FLIP,
            "semantic_output": cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """The segmentor's protocol at test time; images must be uint8."""
        results = []
        for sample in batched_inputs:
            scores = self._mean_scores(sample)
            results.append(
                semantic_result([(slice(None), scores)], tuple(scores.shape[1:]), "labels")
                if self.semantic_output == "labels"
                else {"sem_seg": scores}
            )
        return results

    def _mean_scores(self, sample: dict) -> Tensor:
        """(C, height, width)"""
        image = sample["image"]
        if image.dtype != torch.uint8:
            raise ValueError(f"an image is {image.dtype}; test-time augmentation resizes images of uint8")
        image = image.permute(1, 2, 0).cpu().numpy()
        height, width = sample.get("height", len(image)), sample.get("width", image.shape[1])
        total = None
        for length in self.resize.short_edge_length:
            resized = resize_image(image, self.resize.output_size(height_and_width(image), length))
            resized = torch.from_numpy(channels_first(resized))
            images = [resized, resized.flip(2)] if self.flip else [resized]
            batch = [{"image": x, "height": height, "width": width} for x in images]
            for flipped, tiles in enumerate(self.model.score_tiles(batch)):
                for rows, scores in tiles:
                    if total is None:
                        total = scores.new_zeros(len(scores), height, width)
                    total[:, rows] += scores.flip(2) if flipped else scores
        return total.div_(len(self.resize.short_edge_length) * (1 + self.flip))
