"""Names of Mask2Former in Hugging Face's transformers (`Mask2FormerForUniversalSegmentation` on a Swin), and ours.

Queries, keys and values of one attention, which transformers keeps apart, are stacked. Both spellings of transformers'
Swin are known: the one of its files, and the one of state dicts since transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["from_transformers", "is_transformers"]

_MARK = re.compile(r"(?:.*\.)?pixel_level_module\.")
_RULES = [
    (re.compile(pattern), ours)
    for pattern, ours in (
        # the parts
        (r"^(?:.*\.)?pixel_level_module\.encoder\.(?:swin\.)?", "backbone."),
        (r"^(?:.*\.)?pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
        (r"^(?:.*\.)?transformer_module\.", "sem_seg_head.predictor."),
        (r"^(?:.*\.)?class_predictor\.", "sem_seg_head.predictor.class_embed."),
        (r"^(?:.*\.)?criterion\.", "criterion."),
        # Swin
        (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
        (r"^backbone\.embeddings\.norm\.", "backbone.patch_embed.norm."),
        (r"^backbone\.encoder\.", "backbone."),
        (r"^backbone\.layernorm\.", "backbone.norm."),
        (r"^backbone\.hidden_states_norms\.stage([1-4])\.", lambda match: f"backbone.norm{int(match[1]) - 1}."),
        (r"^(backbone\..*)\.layernorm_before\.", r"\1.norm1."),
        (r"^(backbone\..*)\.layernorm_after\.", r"\1.norm2."),
        (r"^(backbone\..*)\.attention\.(?:self\.)?(?:relative_position_bias\.)?relative", r"\1.attn.relative"),
        (r"^(backbone\..*)\.attention\.(?:self\.query|q_proj)\.", r"\1.attn.qkv.0."),
        (r"^(backbone\..*)\.attention\.(?:self\.key|k_proj)\.", r"\1.attn.qkv.1."),
        (r"^(backbone\..*)\.attention\.(?:self\.value|v_proj)\.", r"\1.attn.qkv.2."),
        (r"^(backbone\..*)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
        (r"^(backbone\..*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
        (r"^(backbone\..*)\.output\.dense\.", r"\1.mlp.fc2."),
        # pixel decoder
        (r"^(sem_seg_head\.\w+)\.input_projections\.", r"\1.input_proj."),
        (r"^(sem_seg_head\.pixel_decoder)\.(level_embed|encoder\.)", r"\1.transformer.\2"),
        (r"^(sem_seg_head\.pixel_decoder)\.mask_projection\.", r"\1.mask_features."),
        (r"^(sem_seg_head\.pixel_decoder\.(?:adapter|layer)_\d+)\.0\.", r"\1."),
        (r"^(sem_seg_head\.pixel_decoder\.(?:adapter|layer)_\d+)\.1\.", r"\1.norm."),
        (r"^(sem_seg_head\.pixel_decoder\.transformer\..*)\.fc([12])\.", r"\1.linear\2."),
        (r"^(sem_seg_head\.pixel_decoder\.transformer\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
        (r"^(sem_seg_head\.pixel_decoder\.transformer\..*)\.final_layer_norm\.", r"\1.norm2."),
        # transformer decoder
        (r"^(sem_seg_head\.predictor)\.queries_embedder\.", r"\1.query_embed."),
        (r"^(sem_seg_head\.predictor)\.queries_features\.", r"\1.query_feat."),
        (r"^(sem_seg_head\.predictor)\.decoder\.layernorm\.", r"\1.decoder_norm."),
        (r"^(sem_seg_head\.predictor)\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"\1.mask_embed.layers.\2."),
        (
            r"^(sem_seg_head\.predictor)\.decoder\.layers\.(\d+)\.cross_attn\.",
            r"\1.transformer_cross_attention_layers.\2.multihead_attn.",
        ),
        (
            r"^(sem_seg_head\.predictor)\.decoder\.layers\.(\d+)\.cross_attn_layer_norm\.",
            r"\1.transformer_cross_attention_layers.\2.norm.",
        ),
        (
            r"^(sem_seg_head\.predictor)\.decoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.",
            lambda match: (
                f"{match[1]}.transformer_self_attention_layers.{match[2]}.self_attn.in_proj_{'qkv'.index(match[3])}."
            ),
        ),
        (
            r"^(sem_seg_head\.predictor)\.decoder\.layers\.(\d+)\.self_attn\.out_proj\.",
            r"\1.transformer_self_attention_layers.\2.self_attn.out_proj.",
        ),
        (
            r"^(sem_seg_head\.predictor)\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.",
            r"\1.transformer_self_attention_layers.\2.norm.",
        ),
        (
            r"^(sem_seg_head\.predictor)\.decoder\.layers\.(\d+)\.fc([12])\.",
            r"\1.transformer_ffn_layers.\2.linear\3.",
        ),
        (
            r"^(sem_seg_head\.predictor)\.decoder\.layers\.(\d+)\.final_layer_norm\.",
            r"\1.transformer_ffn_layers.\2.norm.",
        ),
    )
]
# One of the three tensors that are stacked; ours is qkv.weight in Swin, in_proj_weight in the decoder.
_PART = re.compile(r"(.*\.(?:qkv\.|in_proj_))([012])\.(weight|bias)")


def is_transformers(names: Iterable[str]) -> bool:
    """Whether the names of a file are those of Mask2Former in transformers."""
    return any(map(_MARK.match, names))


def from_transformers(weights: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """The weights under our names; what has no name here keeps its own, and is refused when it is loaded.

    Raises ValueError if two names mean one entry, or if one of query, key and value is not there. path: for messages.
    """
    ours: dict[str, Tensor] = {}
    stacked: dict[str, dict[int, Tensor]] = {}
    origins: dict[str, str] = {}
    for name, value in weights.items():
        renamed = name
        for pattern, replacement in _RULES:
            renamed = pattern.sub(replacement, renamed)
        if renamed in origins:
            raise ValueError(f"{path}: {origins[renamed]!r} and {name!r} both mean {renamed!r}; remove one of them")
        origins[renamed] = name
        if match := _PART.fullmatch(renamed):
            stacked.setdefault(match[1] + match[3], {})[int(match[2])] = value
        else:
            ours[renamed] = value
    for name, parts in stacked.items():
        if len(parts) < 3 or len({value.shape for value in parts.values()}) > 1:
            found = ", ".join(f"{('query', 'key', 'value')[i]} {tuple(parts[i].shape)}" for i in sorted(parts))
            raise ValueError(
                f"{path}: of the projections of {name} there are {found}; expected query, key and value of one shape. "
                "The file is incomplete; get it again"
            )
        ours[name] = torch.cat([parts[i] for i in range(3)])
    return ours
