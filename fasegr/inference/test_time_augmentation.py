"""Multi-scale testing: an image at several sizes, and mirrored, and the mean of what is seen in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fasegr.d2 import CfgNode, configurable
from fasegr.data.augmentation import Box, ShortestEdge, resize_image
from fasegr.inference.sliding_window import windowed
from fasegr.modeling.meta_arch.semantic_inference import semantic_result

__all__ = ["TestTimeAugmentation", "augmented_cfg"]


def augmented_cfg(cfg: CfgNode) -> CfgNode:
    """`cfg` for multi-scale testing: its results are semantic alone, and where TEST.AUG.FROM_ORIGINAL says so, images
    are read at their own size."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    if cfg.TEST.AUG.FROM_ORIGINAL:
        cfg.INPUT.MIN_SIZE_TEST = 0
    return cfg


class TestTimeAugmentation(nn.Module):
    """A segmentor that looks several times: called like one, and gives its semantic result, `sem_seg` or
    `sem_seg_labels`, of class scores averaged over sizes and mirror images.

    An image and its mirror image are one batch. Their scores are added to one map strip by strip, so beside that map,
    the largest size alone determines the memory. As in Mask2Former, sizes are made from the image that the model is
    given, which was resized for testing; TEST.AUG.FROM_ORIGINAL makes whoever reads the images leave them as they are.
    """

    __test__ = False  # no test class, whatever its name

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
        """model: has `score_strips`, as FASeg. min_sizes: lengths of the shorter side; max_size: bound of the longer.
        flip: mirror images too. semantic_output: as in FASeg.
        """
        super().__init__()
        self.model = model
        self.resize = ShortestEdge(tuple(min_sizes), max_size)
        self.flip = flip
        self.semantic_output = semantic_output
        self.training = model.training

    @classmethod
    def from_config(cls, cfg, model: nn.Module) -> dict:
        """model: the segmentor itself, which gets windows around it where TEST.SLIDING_WINDOW asks for them."""
        return {
            "model": windowed(cfg, model),
            "min_sizes": cfg.TEST.AUG.MIN_SIZES,
            "max_size": cfg.TEST.AUG.MAX_SIZE,
            "flip": cfg.TEST.AUG.FLIP,
            "semantic_output": cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """The segmentor's protocol at test time; images must be uint8, which they are resized in."""
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
            raise ValueError(f"an image is {image.dtype}; multi-scale testing resizes images of uint8")
        photo = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        output = {"height": sample.get("height", photo.height), "width": sample.get("width", photo.width)}
        total, count = None, 0
        for length in self.resize.lengths:
            size = self.resize.scaled((photo.height, photo.width), length)
            resized = torch.from_numpy(np.array(resize_image(photo, size, Box(0, 0, *size)))).permute(2, 0, 1)
            views = [resized, resized.flip(2)] if self.flip else [resized]
            for mirrored, strips in enumerate(self.model.score_strips([{"image": v, **output} for v in views])):
                count += 1
                for rows, scores in strips:
                    if total is None:
                        total = scores.new_zeros(len(scores), output["height"], output["width"])
                    total[:, rows] += scores.flip(2) if mirrored else scores
        return total.div_(count)
