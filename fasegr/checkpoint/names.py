"""The names under which other programs keep the same weights, and ours for them.

Ours are those of the released FASeg and Mask2Former: a ResNet in detectron2's spelling, a Swin in the original's. Known
besides them are torchvision's and timm's ResNet, timm's Swin, detectron2's and Swin's ImageNet files (no `backbone.` in
front), timm's own for a network of timm, and two older spellings of Mask2Former's head.
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
# timm puts what leads from stage to stage at the start of the later one, the original at the end of the earlier one.
_TIMM_SWIN = ((r"^layers\.([1-9])\.downsample\.", lambda match: f"layers.{int(match[1]) - 1}.downsample."),)
# In a network that hands out its maps, timm joins the names of a sequence and its parts: stages.0 becomes stages_0.
_TIMM_MAPS = ((r"^(\w+)\.(\d+)\.", r"\1_\2."),)
_IN_TIMM = re.compile(r"(?:backbone\.)?timm\.([^.]+)")  # what `TimmBackbone` calls timm's network, and a part of it
_SPELLINGS = (
    *((rules, prefix) for rules in (_RELEASED, _TORCHVISION, _TIMM_SWIN) for prefix in ("", "backbone.")),
    *((rules, prefix) for rules in ((), _TIMM_MAPS) for prefix in ("timm.", "backbone.timm.")),
)
_STEPS = ".num_batches_tracked"  # batch norm counts its steps; read only where its momentum is None, and never by us
# Entries that files hold and a model may do without: the loss's class weights and the image statistics, which the
# config sets; the ImageNet classifier, and Swin's norm before it; the steps of batch norm where the model's norm is
# frozen; Swin's masks for the one size that it was trained with.
_EXTRA = re.compile(
    r"criterion\.empty_weight|pixel_(mean|std)|(backbone\.)?((stem\.)?fc|head|head\.fc|norm)\.(weight|bias)"
    r"|.*\.attn_mask|.*" + re.escape(_STEPS)
)
_OFFSETS = ".relative_position_index"  # where in its table Swin finds a pair of tokens: the window's size tells
_MAP_NORM = re.compile(r"(backbone\.)?norm\d\.(weight|bias)")  # of Swin, on each map that it hands out


class Renaming(NamedTuple):
    """to_file: our name -> the file's name, without known extras; extras: names in the file that are left out."""

    to_file: dict[str, str]
    extras: list[str]


def to_our_names(names: Iterable[str], expected: Collection[str]) -> Renaming:
    """Bring the `names` of a file to those of the model, whose state dict has the names `expected`.

    The spelling that hits most of them is taken for the whole file, so that no name is translated by one and its
    neighbour by another. Raises ValueError where two names of the file mean the same entry.
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
    """Whether a model does as well without the entry `name`: files made for a frozen norm lack the steps, and newer
    ones of Swin the offsets."""
    return name.endswith((_STEPS, _OFFSETS))


def is_derived(name: str) -> bool:
    """Whether the model's own value of `name` is the only right one, whatever a file says."""
    return name.endswith(_OFFSETS)


def is_map_norm(name: str) -> bool:
    """Whether `name` is of a norm that a Swin backbone has on its maps and an ImageNet classifier has not."""
    return _MAP_NORM.fullmatch(name) is not None


def _spelling(rules: tuple, prefix: str) -> Callable[[str], str]:
    def spell(name: str) -> str:
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        return prefix + name

    return spell
