"""The segmentor: images in, losses or results out."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.checkpoint.pretrained import push_to_hub, save_pretrained
from fasegr.d2 import (
    META_ARCH_REGISTRY,
    Backbone,
    CfgNode,
    MetadataCatalog,
    build_backbone,
    build_sem_seg_head,
    configurable,
)
from fasegr.modeling import ops
from fasegr.modeling.backbone.place import freeze
from fasegr.modeling.criterion import SetCriterion
from fasegr.modeling.gradient_checkpointing import checkpoint_blocks
from fasegr.modeling.mask_piloting import MaskPilot
from fasegr.modeling.matcher import HungarianMatcher, Match
from fasegr.modeling.meta_arch.image_prediction import ImagePrediction
from fasegr.modeling.meta_arch.instance_inference import instances
from fasegr.modeling.meta_arch.panoptic_inference import panoptic_segments
from fasegr.modeling.meta_arch.semantic_inference import score_tiles, semantic_result
from fasegr.modeling.transformer_decoder.feature_levels import masked_strides

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class FASeg(nn.Module):
    """Mask classification: a set of masks, each with a class.

    backbone: images to maps. sem_seg_head: maps to masks and classes. criterion: the set loss;
    None where it cannot be known, and training is then an error.
    loss_weights: {"loss_ce", "loss_mask", "loss_dice": weight}. deep_supervision: whether earlier layers are trained on
    their own predictions too. size_divisibility: images are padded to a multiple of it; below 1, the backbone's.
    pixel_mean, pixel_std: of the three channels, in units of 0..255.
    semantic_output: "scores" gives (C, H, W) floats, "labels" only the most likely class, in a fraction of the memory.
    semantic_on, panoptic_on, instance_on: which results are returned. resize_masks: compute semantic scores from
    masks at the output size, instead of resizing scores from the input size. things: classes of objects, which can
    have several panoptic segments each; with panoptic_on, only these classes have instances.
    object_mask_threshold, overlap_threshold: of `panoptic_segments`. max_instances: per image.
    frozen: modules of the backbone that stay in evaluation mode in training.
    channels_last: memory format of maps and convolution weights, the fastest on a GPU's tensor cores.
    mask_pilot: makes piloted queries for training, with losses of their own (loss_ce_mp, ...); None for none.
    gradient_checkpointing: training keeps only the inputs of the blocks of backbone and pixel decoder.
    compile: backbone and head with `torch.compile`, at their first call and for each new kind of input.
    config: what the model was built from, which `save_pretrained` writes.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion | None,
        loss_weights: dict[str, float],
        deep_supervision: bool,
        size_divisibility: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        ignore_label: int,
        semantic_output: str,
        semantic_on: bool = True,
        panoptic_on: bool = False,
        instance_on: bool = False,
        resize_masks: bool = False,
        things: Collection[int] = (),
        object_mask_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        max_instances: int = 100,
        frozen: Sequence[nn.Module] = (),
        channels_last: bool = False,
        mask_pilot: MaskPilot | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        config: CfgNode | None = None,
    ):
        super().__init__()
        if not (semantic_on or panoptic_on or instance_on):
            raise ValueError(
                "semantic_on, panoptic_on and instance_on are all False; set one of them, or there is no result"
            )
        if semantic_output not in ("scores", "labels"):
            raise ValueError(f"semantic_output is {semantic_output!r}; choose 'scores' or 'labels'")
        self.config = config
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.loss_weights = loss_weights
        self.deep_supervision = deep_supervision
        self.mask_pilot = mask_pilot
        self.size_divisibility = size_divisibility if size_divisibility > 0 else max(backbone.size_divisibility, 1)
        self.ignore_label = ignore_label
        self.semantic_output = semantic_output
        self.semantic_on, self.panoptic_on, self.instance_on = semantic_on, panoptic_on, instance_on
        self.resize_masks = resize_masks
        self.things = frozenset(things)
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.max_instances = max_instances
        self.frozen = list(frozen)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), False)
        self.dtype: torch.dtype | None = None  # in which backbone and head compute, where it is not that of images
        self.memory_format = torch.contiguous_format
        if channels_last:
            self.memory_format = torch.channels_last
            self.to(memory_format=self.memory_format)
        if gradient_checkpointing:
            checkpoint_blocks(backbone)
            checkpoint_blocks(sem_seg_head.pixel_decoder)
        if compile:
            backbone.compile()
            sem_seg_head.compile()

    @classmethod
    def from_config(cls, cfg) -> dict:
        former = cfg.MODEL.MASK_FORMER
        backbone = build_backbone(cfg)
        matcher = HungarianMatcher(
            class_weight=former.CLASS_WEIGHT,
            mask_weight=former.MASK_WEIGHT,
            dice_weight=former.DICE_WEIGHT,
            num_points=former.TRAIN_NUM_POINTS,
        )
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": None
            if former.CLASS_WEIGHTS == "inverse_sqrt"
            else SetCriterion(
                num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
                matcher=matcher,
                no_object_weight=former.NO_OBJECT_WEIGHT,
                num_points=former.TRAIN_NUM_POINTS,
                oversample_ratio=former.OVERSAMPLE_RATIO,
                importance_sample_ratio=former.IMPORTANCE_SAMPLE_RATIO,
                class_weights=former.CLASS_WEIGHTS,
            ),
            "loss_weights": {
                "loss_ce": former.CLASS_WEIGHT,
                "loss_mask": former.MASK_WEIGHT,
                "loss_dice": former.DICE_WEIGHT,
            },
            "deep_supervision": former.DEEP_SUPERVISION,
            "size_divisibility": former.SIZE_DIVISIBILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "semantic_output": former.TEST.SEMANTIC_OUTPUT,
            "semantic_on": former.TEST.SEMANTIC_ON,
            "panoptic_on": former.TEST.PANOPTIC_ON,
            "instance_on": former.TEST.INSTANCE_ON,
            # as in Mask2Former, where all results are made from the same masks
            "resize_masks": former.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE
            or former.TEST.PANOPTIC_ON
            or former.TEST.INSTANCE_ON,
            "things": _things(cfg) if former.TEST.PANOPTIC_ON else (),
            "object_mask_threshold": former.TEST.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": former.TEST.OVERLAP_THRESHOLD,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "frozen": _freeze(backbone, cfg),
            "channels_last": cfg.MODEL.DEVICE.startswith("cuda"),
            "mask_pilot": _mask_pilot(cfg) if former.MASK_PILOT.ENABLED else None,
            "gradient_checkpointing": cfg.SOLVER.GRADIENT_CHECKPOINTING,
            "compile": cfg.SPEED.COMPILE,
            "config": cfg.clone(),
        }

    def save_pretrained(self, folder: str | os.PathLike, **card: Any) -> None:
        """Write config.yaml, model.safetensors and a card to `folder`, which `fasegr.from_pretrained` and --config-file
        take; whole or not at all.

        card: license (as "apache-2.0"), run (the OUTPUT_DIR of the training or of an evaluation, whose command and
        scores the card tells; by default the folder of MODEL.WEIGHTS), and force (replace these files in a folder that
        is not empty). Raises FileExistsError and OSError.
        """
        save_pretrained(self, self._config(), folder, **card)

    def push_to_hub(self, name: str, **card: Any) -> str:
        """Upload what `save_pretrained` writes as the model OWNER/NAME of Hugging Face's hub; returns its address.

        card: license and run as there, and private. Raises ConnectionError, and ImportError without huggingface_hub.
        """
        return push_to_hub(self, self._config(), name, **card)

    def _config(self) -> CfgNode:
        if self.config is None:
            raise ValueError("this model was not built from a config, which would have to be saved with it")
        return self.config

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> FASeg:
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """batched_inputs: detectron2's dicts, `image` (3, H, W) RGB, and `height`, `width` of the result.

        Training also needs `labels` (K,) and `masks` (K, H, W), or `sem_seg` (H, W), and returns a dict of weighted
        losses. Otherwise returns a dict per image with the results that are on: `sem_seg`
        (C, height, width) scores or `sem_seg_labels` (height, width), `panoptic_seg` (a `PanopticSegmentation`) and
        `instances` (`Instances`).
        """
        if not self.training:
            return [self._results(prediction) for prediction in self._predictions(batched_inputs)]
        if self.criterion is None:
            raise ValueError(
                "MODEL.MASK_FORMER.CLASS_WEIGHTS is 'inverse_sqrt', and train_net.py puts in its place what it counts "
                "in the training set; build the model from fasegr.data.build.with_class_weights(cfg) to train it"
            )
        images, _ = self._batch([sample["image"] for sample in batched_inputs])
        # before the network runs, so that a sample without targets is reported first
        targets = [self._target(sample, tuple(images.shape[-2:])) for sample in batched_inputs]
        if self.mask_pilot is None:
            return self._losses(self.sem_seg_head(self.backbone(images)), targets)
        pilot = self.mask_pilot(targets)
        outputs = self.sem_seg_head(self.backbone(images), pilot)
        piloted = outputs.pop("piloted")
        losses = self._losses(outputs, targets)
        piloted = self._losses(piloted, targets, pilot.matches)
        return losses | {re.sub(r"(_\d+)?$", r"_mp\1", name, count=1): loss for name, loss in piloted.items()}

    def _losses(
        self, outputs: dict, targets: list[dict[str, Tensor]], matches: Sequence[Match] | None = None
    ) -> dict[str, Tensor]:
        """The losses of `SetCriterion`, weighted."""
        if not self.deep_supervision:
            outputs.pop("aux_outputs")
        losses = self.criterion(outputs, targets, matches)
        values = torch.stack(list(losses.values()))
        weights = [self.loss_weights[name.rstrip("0123456789_")] for name in losses]
        values = values * ops.to_device(torch.tensor(weights, dtype=values.dtype), values.device)
        return dict(zip(losses, values.unbind(), strict=True))

    def score_tiles(self, batched_inputs: list[dict]) -> list[Iterator[tuple[slice, Tensor]]]:
        """For each image, the `sem_seg` that `forward` returns, in tiles of rows that are computed lazily."""
        return [score_tiles(p, resize_masks=self.resize_masks) for p in self._predictions(batched_inputs)]

    def _predictions(self, batched_inputs: list[dict]) -> list[ImagePrediction]:
        images, sizes = self._batch([sample["image"] for sample in batched_inputs])
        if self.dtype is not None:
            images = images.to(self.dtype)
        outputs = self.sem_seg_head(self.backbone(images))
        if self.dtype is not None:  # scores are compared with one another, in float32
            outputs = {name: output.float() for name, output in outputs.items() if isinstance(output, Tensor)}
        padded_size = tuple(images.shape[-2:])
        return [
            ImagePrediction(
                *(outputs["pred_logits"][i], outputs["pred_masks"][i], padded_size, size),
                output_size=(sample.get("height", size[0]), sample.get("width", size[1])),
            )
            for i, (sample, size) in enumerate(zip(batched_inputs, sizes, strict=True))
        ]

    def _results(self, prediction: ImagePrediction) -> dict[str, Any]:
        results: dict[str, Any] = {}
        if self.semantic_on:
            tiles = score_tiles(prediction, resize_masks=self.resize_masks)
            results |= semantic_result(tiles, prediction.output_size, self.semantic_output)
        if self.panoptic_on:
            results["panoptic_seg"] = panoptic_segments(
                prediction,
                things=self.things,
                score_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        if self.instance_on:
            classes = self.things if self.panoptic_on else None
            results["instances"] = instances(prediction, limit=self.max_instances, classes=classes)
        return results

    def _batch(self, images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalised images in one tensor, zero-padded at the right and bottom, and their sizes."""
        for image in images:
            if image.ndim != 3 or image.shape[0] != len(self.pixel_mean):
                raise ValueError(
                    f"an image has the shape {tuple(image.shape)}; expected ({len(self.pixel_mean)}, height, width)"
                )
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        step = self.size_divisibility
        height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
        batch = self.pixel_mean.new_zeros(len(images), len(self.pixel_mean), height, width)
        batch = batch.contiguous(memory_format=self.memory_format)
        for slot, image, (h, w) in zip(batch, images, sizes, strict=True):
            slot[:, :h, :w] = (ops.to_device(image, self.device) - self.pixel_mean) / self.pixel_std
        return batch, sizes

    def _target(self, sample: dict, padded: tuple[int, int]) -> dict[str, Tensor]:
        """`labels` (K,) and `masks` (K, *padded) of a training sample."""
        if "masks" in sample and "labels" in sample:
            labels, masks = sample["labels"], sample["masks"]
        elif "sem_seg" in sample:
            segments = sample["sem_seg"]
            labels = segments.unique()
            labels = labels[labels != self.ignore_label]
            masks = segments == labels[:, None, None]
        else:
            raise ValueError(
                f"a training sample has the keys {sorted(sample)}; it needs 'labels' and 'masks', or 'sem_seg'. "
                "Use the mapper that INPUT.DATASET_MAPPER_NAME sets, or call model.eval() first"
            )
        labels, masks = ops.to_device(labels, self.device).to(torch.int64), ops.to_device(masks, self.device)
        masks = F.pad(masks, (0, padded[1] - masks.shape[2], 0, padded[0] - masks.shape[1]))
        return {"labels": labels, "masks": masks}


def _mask_pilot(cfg) -> MaskPilot:
    high_res, keys = cfg.MODEL.FASEG.HIGH_RES, cfg.MODEL.MASK_FORMER.MASK_PILOT
    masked = masked_strides(high_res.ATTENTION, high_res.LEVELS)
    return MaskPilot(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        num_queries=keys.NUM_QUERIES,
        label_noise=keys.LABEL_NOISE,
        mask_noise=keys.MASK_NOISE,
        strides=[masked[i % len(masked)] for i in range(cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1)],
    )


def _freeze(backbone: Backbone, cfg) -> list[nn.Module]:
    what, name = cfg.MODEL.BACKBONE.FREEZE, cfg.MODEL.BACKBONE.NAME
    timms = {"build_timm_backbone": cfg.MODEL.TIMM, "build_timm_vit_backbone": cfg.MODEL.VIT}
    if what != 0 and not cfg.MODEL.WEIGHTS and not (name in timms and timms[name].PRETRAINED):
        logger.warning(
            "MODEL.BACKBONE.FREEZE is %s, and there are no pretrained weights (MODEL.WEIGHTS, PRETRAINED): unless a "
            "training is resumed, random weights stay as they are",
            what,
        )
    return freeze(backbone, what)


def _things(cfg) -> list[int]:
    """Contiguous ids of the thing classes, from the metadata of the training set."""
    names = cfg.DATASETS.TRAIN
    ids = MetadataCatalog.get(names[0]).get("thing_dataset_id_to_contiguous_id") if names else None
    if ids is None:
        raise ValueError(
            f"MODEL.MASK_FORMER.TEST.PANOPTIC_ON is True with DATASETS.TRAIN {tuple(names)}, whose metadata does not "
            "define thing classes (thing_dataset_id_to_contiguous_id); name a panoptic dataset first, "
            "or set PANOPTIC_ON False"
        )
    return [int(i) for i in ids.values()]
