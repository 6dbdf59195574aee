"""The models of a benchmark, ours and others': built, loaded with the same weights, and run step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import fasegr
from benchmarks.measure import Boundary
from fasegr.engine.optimizer import build_gradient_clipper, build_optimizer
from fasegr.engine.train_step import TrainStep

AMP = ("bfloat16", "float16")  # by autocast, as in training; float32 and float64 are the dtype of the model itself

BACKBONE, PIXEL_DECODER, DECODER, HEAD = "backbone", "pixel decoder", "decoder", "head"
CRITERION, MATCHING, BACKWARD, OPTIMIZER = "criterion", "matching", "backward", "optimizer"


class Side(Protocol):
    """A model and how to run it. `methods`: names of methods that count as calls of a part, besides `__call__`."""

    name: str
    model: nn.Module
    methods: Sequence[str]

    def network(self) -> list[Boundary]:
        """Backbone, pixel decoder and decoder."""

    def losses(self) -> list[Boundary]:
        """Criterion and matching."""

    def infer(self, samples: list[dict], labels: bool) -> list[Tensor]:
        """Score maps (C, H, W) of the images, or their labels (H, W)."""

    def trainer(self, samples: list[dict], dtype: str) -> tuple[Callable[[], Any], list[Boundary]]:
        """A training step over `samples`, and the boundaries of its optimizer."""

    def loss(self, samples: list[dict]) -> dict[str, Tensor]:
        """The weighted losses."""


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    return torch.autocast(device.type, dtype=getattr(torch, dtype)) if dtype in AMP else nullcontext()


def to_dtype(model: nn.Module, dtype: str) -> nn.Module:
    return model if dtype in AMP else model.to(getattr(torch, dtype))


def images(size: tuple[int, int], batch: int, device: torch.device) -> list[dict]:
    """`batch` images of noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=generator).to(device)
    return [{"image": image, "height": size[0], "width": size[1]} for image in noise]


def labelled_images(
    size: tuple[int, int], batch: int, device: torch.device, num_classes: int, num_masks: int
) -> list[dict]:
    """The same images with `num_masks` masks each, of distinct classes: blocks of a coarse grid."""
    generator = torch.Generator().manual_seed(1)
    samples = images(size, batch, device)
    num_masks = min(num_masks, num_classes)
    for sample in samples:
        cells = torch.randperm(64, generator=generator).view(1, 1, 8, 8) % num_masks
        segments = nn.functional.interpolate(cells.double(), size=size).long()[0, 0].to(device)
        classes = torch.randperm(num_classes, generator=generator)[:num_masks].sort().values.to(device)
        sample["labels"] = classes
        sample["masks"] = segments == torch.arange(num_masks, device=device)[:, None, None]
    return samples


def network_parts(model: nn.Module) -> list[Boundary]:
    """The network of a segmentor in Mask2Former's layout, ours or a checkout's."""
    head = model.sem_seg_head
    return [
        Boundary(BACKBONE, model, "backbone"),
        Boundary(PIXEL_DECODER, head, "pixel_decoder"),
        Boundary(DECODER, head, "predictor"),
    ]


def loss_parts(model: nn.Module) -> list[Boundary]:
    """The criterion, and the matching within it."""
    return [Boundary(CRITERION, model, "criterion"), Boundary(MATCHING, model.criterion, "matcher")]


class Ours:
    """Our model."""

    methods = ()

    def __init__(self, config: str, opts: Sequence[str], device: str, dtype: str):
        self.name = "fasegr"
        self.cfg = fasegr.load_cfg(config, [*opts, "MODEL.DEVICE", device])
        torch.manual_seed(0)
        self.model = to_dtype(fasegr.build_model(self.cfg), dtype)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                # At initialisation all tokens sample the same offsets, exactly at pixel centres. Trained ones do not,
                # and the gradient of a bilinear sample at a pixel centre is not unique.
                if name.endswith("sampling_offsets.weight"):
                    parameter.normal_(std=0.05)

    @property
    def num_classes(self) -> int:
        return self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES

    def network(self) -> list[Boundary]:
        if self.cfg.SPEED.COMPILE:  # a clock inside what is compiled would split it, and slow it down
            return [Boundary(BACKBONE, self.model, "backbone"), Boundary(HEAD, self.model, "sem_seg_head")]
        return network_parts(self.model)

    def losses(self) -> list[Boundary]:
        return loss_parts(self.model)

    def infer(self, samples: list[dict], labels: bool) -> list[Tensor]:
        self.model.semantic_output = "labels" if labels else "scores"
        return [result["sem_seg_labels" if labels else "sem_seg"] for result in self.model(samples)]

    def trainer(self, samples: list[dict], dtype: str) -> tuple[Callable[[], Any], list[Boundary]]:
        optimizer = build_optimizer(self.cfg, self.model)
        amp = getattr(torch, dtype) if dtype in AMP else None
        step = TrainStep(self.model, [], optimizer, build_gradient_clipper(self.cfg), amp_dtype=amp)
        boundaries = [Boundary(OPTIMIZER, optimizer, "step"), Boundary(OPTIMIZER, step, "clip")]
        return lambda: step.run(0, [samples]), boundaries

    def loss(self, samples: list[dict]) -> dict[str, Tensor]:
        return self.model(samples)
