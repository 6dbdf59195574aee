"""The names under which other programs keep the same weights, and ours for them.

Ours are those of the released FASeg and Mask2Former, with the backbone in detectron2's spelling. Known besides them are
torchvision's and timm's ResNet, detectron2's ImageNet files (no `backbone.` in front), and two older spellings of
Mask2Former's head.
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
_STEPS = ".num_batches_tracked"  # batch norm counts its steps; read only where its momentum is None, and never by us
# Entries that files hold and a model may do without: the loss's class weights and the image statistics, which the
# config sets; the ImageNet classifier; the steps of batch norm where the model's norm is frozen.
_EXTRA = re.compile(
    r"criterion\.empty_weight|pixel_(mean|std)|(backbone\.)?(stem\.)?fc\.(weight|bias)|.*" + re.escape(_STEPS)
)


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
    spellings = [_spelling(rules, prefix) for rules in (_RELEASED, _TORCHVISION) for prefix in ("", "backbone.")]
    translations = [[spell(name) for name in names] for spell in spellings]
    best = max(translations, key=lambda translation: sum(name in expected for name in translation))
    to_file: dict[str, str] = {}
    extras = []
    for name, ours in zip(names, best, strict=True):
        if ours not in expected and _EXTRA.fullmatch(ours):
            extras.append(name)
        elif ours in to_file:
            raise ValueError(f"{to_file[ours]!r} and {name!r} of the file both mean {ours!r}; remove one of them")
        else:
            to_file[ours] = name
    return Renaming(to_file, extras)


def may_be_missing(name: str) -> bool:
    """Whether a model does as well without the entry `name`: files made for a frozen norm lack the steps."""
    return name.endswith(_STEPS)


def _spelling(rules: tuple, prefix: str) -> Callable[[str], str]:
    def spell(name: str) -> str:
        for pattern, ours in rules:
            name = re.sub(pattern, ours, name)
        return prefix + name

    return spell
