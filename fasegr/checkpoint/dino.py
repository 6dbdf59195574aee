"""Weights of DINOv2 and DINOv3 as their authors release them, as those of timm's networks.

Most names are the same. Source of the others: github.com/facebookresearch/dinov2 (dinov2/models/vision_transformer.py)
and github.com/facebookresearch/dinov3 (dinov3/models/vision_transformer.py, layers/attention.py).
"""

import logging
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_PREFIXES = ("timm.", "backbone.timm.")  # of timm's network in a backbone, and in a segmentor
# DINOv2, giant: SwiGLU with both halves of the first layer in one.
_DINOV2 = ((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2."))
# DINOv3: registers, layer scale, and a SwiGLU of three layers (S+, H+, 7B).
_DINOV3 = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
# What only pretraining reads, and what follows from the size of the network.
_NOT_NEEDED = re.compile(r"mask_token|rope_embed\.periods|local_cls_norm\..*|.*\.bias_mask")

_logger = logging.getLogger(__name__)


def as_timm(weights: Mapping[str, Tensor], expected: Collection[str], path: str) -> Mapping[str, Tensor]:
    """`weights` of the file `path` with timm's names and values, if they are those of a DINO release and the model,
    whose state dict has the names `expected`, has a plain ViT of timm; else as they are.

    Raises ValueError for a DINOv3 with biases of queries and values where timm's network has none.
    """
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}blocks.0.norm1.weight" in expected), None)
    if prefix is None or "mask_token" not in weights or "blocks.0.ls1.gamma" not in weights:
        return weights
    release = "DINOv3" if "storage_tokens" in weights else "DINOv2"
    _logger.info("%s has the names of %s's release; they are translated to timm's", path, release)
    values = {name: value for name, value in weights.items() if not _NOT_NEEDED.fullmatch(name)}
    values = _dinov3(values, prefix, expected, path) if release == "DINOv3" else _dinov2(values)
    rules = _DINOV3 if release == "DINOv3" else _DINOV2
    return {_spell(name, rules): value for name, value in values.items()}


def _dinov2(values: dict[str, Tensor]) -> dict[str, Tensor]:
    if "register_tokens" in values:
        # The table has a position of the class token, which timm adds to the token itself where there are registers.
        table = values["pos_embed"]
        values["cls_token"] = values["cls_token"] + table[:, :1]
        values["pos_embed"] = table[:, 1:]
        values["reg_token"] = values.pop("register_tokens")
    return values


def _dinov3(values: dict[str, Tensor], prefix: str, expected: Collection[str], path: str) -> dict[str, Tensor]:
    """Biases of queries, keys and values come as one vector, whose part of the keys is masked: it has no effect."""
    for name in [name for name in values if name.endswith(".attn.qkv.bias")]:
        queries, _, values_bias = values.pop(name).chunk(3)
        block = name.removesuffix("qkv.bias")
        if f"{prefix}{block}q_bias" in expected:
            values[f"{block}q_bias"], values[f"{block}v_bias"] = queries, values_bias
        elif torch.count_nonzero(queries) or torch.count_nonzero(values_bias):
            raise ValueError(
                f"{path}: {name} is not zero, and timm's network has no such bias; use the one whose name ends in "
                "_qkvb (MODEL.VIT.NAME, as vit_small_patch16_dinov3_qkvb). Nothing was loaded"
            )
    return values


def _spell(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, timms in rules:
        name = re.sub(pattern, timms, name)
    return name
