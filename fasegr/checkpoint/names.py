"""Other programs' names for the same weights, and ours.

Ours are those of the released FASeg and Mask2Former: a ResNet with detectron2's names, a Swin with the original's. Also
known are torchvision's and timm's ResNet, timm's Swin, detectron2's and Swin's ImageNet files (no `backbone.` prefix),
timm's own names for a network of timm, DINOv2's and DINOv3's (`dino`), and two older versions of Mask2Former's head.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

# Mask2Former's first checkpoints kept the pixel decoder directly in the head, and called the query features static.
_RELEASED = (
    (r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)", "sem_seg_head.pixel_decoder."),
    (r"^(sem_seg_head\.predictor\.)static_query\.", r"\1query_feat."),
)
_TORCHVISION = (
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
)
# timm downsamples at the start of a stage, the original Swin at the end of the one before.
_TIMM_SWIN = ((r"^layers\.([1-9])\.downsample\.", lambda match: f"layers.{int(match[1]) - 1}.downsample."),)
# In a network that returns its feature maps, timm joins the names of a sequence and its parts: stages.0 is stages_0.
_TIMM_MAPS = ((r"^(\w+)\.(\d+)\.", r"\1_\2."),)
_IN_TIMM = re.compile(r"(?:backbone\.)?timm\.([^.]+)")  # what `TimmBackbone` calls timm's network, and a part of it
_SPELLINGS = (
    *((rules, prefix) for rules in (_RELEASED, _TORCHVISION, _TIMM_SWIN) for prefix in ("", "backbone.")),
    *((rules, prefix) for rules in ((), _TIMM_MAPS) for prefix in ("timm.", "backbone.timm.")),
)
_PILOT = "sem_seg_head.predictor.label_enc.weight"  # of MP-Former
_STEPS = ".num_batches_tracked"  # batch norm's step count; used only if its momentum is None, which ours never is
# Entries of files that a model does not need: the loss's class weights and the image statistics, which the config
# sets; the ImageNet classifier, and Swin's norm before it; the step count of batch norm if the model's norm is frozen;
# Swin's masks for the one size that it was trained with; the classes of piloted queries, which only training reads.
_EXTRA = re.compile(
    r"criterion\.empty_weight|pixel_(mean|std)|(backbone\.)?((stem\.)?fc|head|head\.fc|norm)\.(weight|bias)"
    r"|.*\.attn_mask|.*" + re.escape(_STEPS) + "|" + re.escape(_PILOT)
)
_OFFSETS = ".relative_position_index"  # the row of Swin's table for a pair of tokens: follows from the window size
# What no pretrained backbone has: Swin's norms on the feature maps that it returns; the pyramid on a plain ViT.
_ON_TOP = re.compile(r"(backbone\.)?(norm\d\.(weight|bias)|pyramid\..*)")


class Renaming(NamedTuple):
    """to_file: our name -> the file's name, without known extras; extras: names in the file that are ignored."""

    to_file: dict[str, str]
    extras: list[str]


def to_our_names(names: Iterable[str], expected: Collection[str]) -> Renaming:
    """Translate the `names` of a file to those of the model, whose state dict has the names `expected`.

    The one convention that matches most of them is used for the whole file, so that no two names are translated by
    different ones. Raises ValueError if two names of the file mean the same entry.
    """
    names, expected = list(names), set(expected)
    translations = [[spell(name) for name in names] for spell in (_spelling(*spelling) for spelling in _SPELLINGS)]
    best = max(translations, key=lambda translation: sum(name in expected for name in translation))
    timm_parts = {match[1] for match in map(_IN_TIMM.match, expected) if match}
    to_file: dict[str, str] = {}
    extras = []
    for name, ours in zip(names, best, strict=True):
        part = _IN_TIMM.match(ours)
        classifier = part is not None and bool(timm_parts) and part[1] not in timm_parts
        if ours not in expected and (classifier or _EXTRA.fullmatch(ours)):
            extras.append(name)
        elif ours in to_file:
            raise ValueError(f"{to_file[ours]!r} and {name!r} of the file both mean {ours!r}; remove one of them")
        else:
            to_file[ours] = name
    return Renaming(to_file, extras)


def may_be_missing(name: str) -> bool:
    """Whether a file may lack the entry `name`: one made with a frozen norm has no step counts, newer ones of Swin
    have no offsets, and of a training without piloted queries none has their classes."""
    return name.endswith((_STEPS, _OFFSETS, _PILOT))


def is_derived(name: str) -> bool:
    """Whether a value of another shape does not matter: the model computes it itself, or only training reads it."""
    return name.endswith((_OFFSETS, _PILOT))


def is_on_top(name: str) -> bool:
    """Whether `name` belongs to what a backbone has on top of the pretrained network: norms on a Swin's feature maps,
    the feature pyramid on a plain ViT."""
    return _ON_TOP.fullmatch(name) is not None


def _spelling(rules: tuple, prefix: str) -> Callable[[str], str]:
    def spell(name: str) -> str:
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        return prefix + name

    return spell
