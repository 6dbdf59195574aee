"""The released YAML files of FASeg and Mask2Former: their names for parts, and the one Python expression they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["Loader", "with_our_names"]

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
        if name not in PARTS[key]:
            raise ValueError(f"{source}: {key} is {name!r}; the released names known here are {sorted(PARTS[key])}")
        implied |= PARTS[key][name]
    return implied | values


class Loader(yaml.SafeLoader):
    """Safe YAML plus the one expression in the released files, which is parsed and not evaluated."""


SIZES = re.compile(r"\[int\(x \* 0\.1 \* (\d+)\) for x in range\((\d+), (\d+)\)\]")


def _sizes(loader: Loader, node: yaml.Node) -> list[int]:
    argument = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else [None]
    match = SIZES.fullmatch(str(argument[0])) if len(argument) == 1 else None
    if match is None:
        raise yaml.constructor.ConstructorError(
            problem=f"the expression {argument} is not run: the only Python understood is "
            "'[int(x * 0.1 * N) for x in range(A, B)]'; write the values out",
            problem_mark=node.start_mark,
        )
    size, start, stop = map(int, match.groups())
    return [int(x * 0.1 * size) for x in range(start, stop)]


Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _sizes)
