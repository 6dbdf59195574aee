"""The names that the released YAML files of FASeg and Mask2Former have for parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fasegr.config.validate import shown

__all__ = ["with_our_names"]

NAMES = {
    "MODEL.META_ARCHITECTURE": {"MaskFormer": "FASeg"},
    "MODEL.BACKBONE.NAME": {
        "build_resnet_backbone": "build_fasegr_resnet_backbone",
        "D2SwinTransformer": "build_fasegr_swin_backbone",
    },
    "MODEL.SEM_SEG_HEAD.NAME": {"MaskFormerHeadFASeg": "FASegHead", "MaskFormerHead": "FASegHead"},
}

# Released classes that are settings of MODEL.FASEG here.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": {
        "MSDeformAttnPixelDecoder4ScalesFASeg": {"MODEL.FASEG.KEY_POSITION": "conditional"},
        "MSDeformAttnPixelDecoder": {"MODEL.FASEG.KEY_POSITION": "sinusoidal"},
    },
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": {
        "MultiScaleMaskedTransformerDecoderFASeg": {
            "MODEL.FASEG.POSITIONAL_QUERY": "dfpq",
            "MODEL.FASEG.MASK_THRESHOLD": 0.15,
            "MODEL.FASEG.HIGH_RES.ATTENTION": "hrca",
        },
        "MultiScaleMaskedTransformerDecoder": {
            "MODEL.FASEG.POSITIONAL_QUERY": "learnable",
            "MODEL.FASEG.MASK_THRESHOLD": 0.5,
            "MODEL.FASEG.HIGH_RES.ATTENTION": "none",
        },
    },
}


def with_our_names(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`values` by dotted key, of one file or command line, with released names replaced by ours.

    Explicit values take precedence over those that a released part implies. Raises ValueError for an unknown part.
    """
    values, implied = dict(values), {}
    for key, names in NAMES.items():
        if isinstance(values.get(key), str):
            values[key] = names.get(values[key], values[key])
    for key in PARTS.keys() & values.keys():
        name = values.pop(key)
        if not isinstance(name, str) or name not in PARTS[key]:
            raise ValueError(f"{source}: {key} is {shown(name)}; the released names known here are {list(PARTS[key])}")
        implied |= PARTS[key][name]
    return implied | values
