"""What we compare with: a checkout of released FASeg or Mask2Former, Hugging Face's package, or our plain forms.

A checkout runs unmodified, except that without a GPU, or if its compiled deformable attention is missing, the plain
PyTorch form in the same checkout is called instead.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fasegr
from benchmarks.machine import commit_name
from benchmarks.measure import ROOT, Boundary
from benchmarks.sides import (
    BACKBONE,
    DECODER,
    OPTIMIZER,
    PIXEL_DECODER,
    Ours,
    autocast,
    loss_parts,
    network_parts,
    to_dtype,
)
from fasegr.modeling.ops import switches

HUGGING_FACE = "huggingface"
PLAIN = "plain"
_COMPILED = "MultiScaleDeformableAttention"  # the peers' extension


class Unusable(ValueError):
    """The peer cannot be run here; the message says what is missing."""


def find_config(config: str, peer: str, peer_config: str | None) -> str:
    """The peer's file for our `config`: `peer_config`, or the file at the same path in the peer's tree."""
    if peer_config:
        return peer_config
    with contextlib.suppress(ValueError):
        candidate = Path(peer, Path(config).resolve().relative_to(ROOT))
        if candidate.exists():
            return str(candidate)
    raise Unusable(f"{peer} has no file at the same path as our {config}; pass the peer's config: --peer-config YAML")


def build(
    peer: str, config: str, peer_config: str | None, opts: Sequence[str], device: str, dtype: str
) -> Checkout | HuggingFace | PlainForms:
    """The side that `peer` names: "huggingface", "plain", "plain:NAME,NAME" or the path of a checkout."""
    if peer == HUGGING_FACE:
        return HuggingFace(config, opts, device, dtype)
    if is_plain(peer):
        return PlainForms(peer, config, opts, device, dtype)
    return Checkout(peer, find_config(config, peer, peer_config), opts, device, dtype)


def is_plain(peer: str) -> bool:
    return peer.partition(":")[0] == PLAIN


def plain_names(peer: str) -> tuple[str, ...]:
    """The faster forms that "plain:NAME,NAME" turns off; empty for all."""
    return tuple(filter(None, peer.partition(":")[2].split(",")))


def load_checkout(path: str) -> types.ModuleType:
    """The `train_net` module of a checkout, which imports everything of the peer."""
    if not Path(path, "train_net.py").exists() or not Path(path, "mask2former").is_dir():
        raise Unusable(f"{path} is not a checkout of FASeg or Mask2Former: it has no train_net.py beside mask2former/")
    if importlib.util.find_spec("detectron2") is None:
        raise Unusable(
            f"the peer {path} needs detectron2, which {sys.executable} does not have; run the benchmark with a Python "
            "that has it (pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2)"
        )
    compiled = importlib.util.find_spec(_COMPILED) is not None
    if not compiled:
        sys.modules[_COMPILED] = types.ModuleType(_COMPILED)  # a stub for the import, never called
    if path not in sys.path:
        sys.path.insert(0, path)
    spec = importlib.util.spec_from_file_location("peer_train_net", Path(path, "train_net.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    attention = importlib.import_module("mask2former.modeling.pixel_decoder.ops.modules.ms_deform_attn")
    plain = attention.ms_deform_attn_core_pytorch

    class Plain:
        """The interface of the compiled function."""

        @staticmethod
        def apply(value, shapes, level_start, locations, weights, im2col_step):
            return plain(value, shapes, locations, weights)

    if not (compiled and torch.cuda.is_available()):
        attention.MSDeformAttnFunction = Plain
    return module


def load_peer_cfg(program: types.ModuleType, file: str, opts: Sequence[str], device: str):
    """The peer's configuration, with the `opts` whose keys it has; the others concern only our code."""
    cfg = program.get_cfg()
    program.add_deeplab_config(cfg)
    program.add_maskformer2_config(cfg)
    cfg.merge_from_file(file)  # the peer's own, unsafe reader: the peer is trusted
    pairs = zip(opts[::2], opts[1::2], strict=True)
    known = [word for key, value in pairs if _has(cfg, key) for word in (key, value)]
    cfg.merge_from_list([*known, "MODEL.DEVICE", device])
    return cfg


class Checkout:
    """Released FASeg or Mask2Former, from a local checkout."""

    methods = ("forward_features",)

    def __init__(self, path: str, config: str, opts: Sequence[str], device: str, dtype: str):
        self.name = Path(path).name
        self.program = load_checkout(path)
        self.commit = commit_name(path)
        self.cfg = load_peer_cfg(self.program, config, opts, device)
        with contextlib.redirect_stdout(sys.stderr):
            self.model = to_dtype(self.program.Trainer.build_model(self.cfg), dtype)

    def load(self, state: OrderedDict[str, Tensor]) -> None:
        """Load our weights, strictly: none missing, none left over."""
        # Into the dict itself: a copy would lose its metadata, where the peer looks for a version.
        state["criterion.empty_weight"] = self.model.criterion.empty_weight  # made from the config, not a weight
        self.model.load_state_dict(state, strict=True)

    def network(self) -> list[Boundary]:
        return network_parts(self.model)

    def losses(self) -> list[Boundary]:
        return loss_parts(self.model)

    def infer(self, samples: list[dict], labels: bool) -> list[Tensor]:
        scores = [result["sem_seg"] for result in self.model(samples)]
        return [s.argmax(0) for s in scores] if labels else scores  # as its evaluator does

    def trainer(self, samples: list[dict], dtype: str) -> tuple[Callable[[], Any], list[Boundary]]:
        with contextlib.redirect_stdout(sys.stderr):
            optimizer = self.program.Trainer.build_optimizer(self.cfg, self.model)
        device = self.model.device
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
        batch = [self._sample(sample) for sample in samples]
        self.model.train()

        def step() -> None:  # as detectron2's trainers do
            with autocast(device, dtype):
                losses = sum(self.model(batch).values())
            optimizer.zero_grad()
            scaler.scale(losses).backward()
            losses.item()
            scaler.step(optimizer)
            scaler.update()

        return step, [Boundary(OPTIMIZER, optimizer, "step")]

    def loss(self, samples: list[dict]) -> dict[str, Tensor]:
        return self.model([self._sample(sample) for sample in samples])

    def _sample(self, sample: dict) -> dict:
        """The sample as the peer's mapper returns it."""
        instances = sys.modules["mask2former.maskformer_model"].Instances(tuple(sample["image"].shape[-2:]))
        instances.gt_classes, instances.gt_masks = sample["labels"], sample["masks"]
        return {**sample, "instances": instances}


def _has(cfg, key: str) -> bool:
    for part in key.split("."):
        if part not in cfg:
            return False
        cfg = cfg[part]
    return True


class HuggingFace:
    """transformers' Mask2Former with a ResNet-50 and random weights, with the classes and queries of `config`.

    It has neither dynamic positional queries nor a high-resolution level, and its weights are not ours, so only time
    and memory are compared. Score maps are made as in Mask2Former: the package only has a function for labels, which
    works at 384 x 384.
    """

    methods = ()
    commit = None

    def __init__(self, config: str, opts: Sequence[str], device: str, dtype: str):
        try:
            import transformers
        except ImportError:
            raise Unusable(
                f"--peer huggingface needs the package transformers, which {sys.executable} does not have; "
                "pip install transformers"
            ) from None
        cfg = fasegr.load_cfg(config, [*opts, "MODEL.DEVICE", device])
        self.name = f"transformers {transformers.__version__}"
        self.cfg = cfg
        backbone = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        former = transformers.Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            num_queries=cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
        )
        torch.manual_seed(0)
        model = transformers.Mask2FormerForUniversalSegmentation(former).to(device)
        self.model = to_dtype(model, dtype)
        self._mean, self._std = (
            torch.tensor(v, device=device).view(-1, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )

    def network(self) -> list[Boundary]:
        level = self.model.model.pixel_level_module
        return [
            Boundary(BACKBONE, level, "encoder"),
            Boundary(PIXEL_DECODER, level, "decoder"),
            Boundary(DECODER, self.model.model, "transformer_module"),
        ]

    def losses(self) -> list[Boundary]:
        return loss_parts(self.model)

    def _pixels(self, samples: list[dict]) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        return torch.stack([(s["image"] - self._mean) / self._std for s in samples]).to(dtype)

    def infer(self, samples: list[dict], labels: bool) -> list[Tensor]:
        outputs = self.model(self._pixels(samples))
        results = []
        for classes, masks, sample in zip(
            outputs.class_queries_logits, outputs.masks_queries_logits, samples, strict=True
        ):
            size = (sample["height"], sample["width"])
            masks = F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
            scores = torch.einsum("qc,qhw->chw", classes.softmax(-1)[:, :-1], masks.sigmoid())
            results.append(scores.argmax(0) if labels else scores)
        return results

    def trainer(self, samples: list[dict], dtype: str) -> tuple[Callable[[], Any], list[Boundary]]:
        solver = self.cfg.SOLVER
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
        device = self._mean.device
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
        self.model.train()

        def step() -> None:
            optimizer.zero_grad()
            with autocast(device, dtype):
                loss = self._loss(samples)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), solver.CLIP_GRADIENTS.CLIP_VALUE)
            scaler.step(optimizer)
            scaler.update()

        return step, [Boundary(OPTIMIZER, optimizer, "step")]

    def _loss(self, samples: list[dict]) -> Tensor:
        return self.model(
            self._pixels(samples),
            mask_labels=[sample["masks"].float() for sample in samples],
            class_labels=[sample["labels"] for sample in samples],
        ).loss

    def loss(self, samples: list[dict]) -> dict[str, Tensor]:
        return {"loss": self._loss(samples)}


class PlainForms(Ours):
    """Our model with its faster forms turned off: all of them, or those listed in the name."""

    commit = None

    def __init__(self, name: str, config: str, opts: Sequence[str], device: str, dtype: str):
        self._off = plain_names(name)
        with switches.off(*self._off):
            super().__init__(config, opts, device, dtype)
        self.name = name

    def load(self, state: OrderedDict[str, Tensor]) -> None:
        self.model.load_state_dict(state, strict=True)

    def infer(self, samples: list[dict], labels: bool) -> list[Tensor]:
        with switches.off(*self._off):
            return super().infer(samples, labels)

    def trainer(self, samples: list[dict], dtype: str) -> tuple[Callable[[], Any], list[Boundary]]:
        step, boundaries = super().trainer(samples, dtype)

        def plain_step() -> None:
            with switches.off(*self._off):
                step()

        return plain_step, boundaries

    def loss(self, samples: list[dict]) -> dict[str, Tensor]:
        with switches.off(*self._off):
            return super().loss(samples)
