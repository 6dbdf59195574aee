"""Any timm network with feature maps of strides 4, 8, 16 and 32, e.g. ConvNeXt, with its pretrained weights.

timm is an optional requirement, imported on first use.
"""

from __future__ import annotations

import difflib
import importlib.util
import logging
import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor, nn

from fasegr.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from fasegr.modeling.backbone.place import Place
from fasegr.modeling.ops import channels_last

logger = logging.getLogger(__name__)

# A block within a stage: timm.stages_2.blocks.1., timm.layer2.0., timm.blocks.2.1. and timm.s1.b1.
_BLOCK = re.compile(r"timm\.(?:[a-z]+\.\d+|\w+)\.(?:blocks\.|b)?\d+\.")
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(Backbone):
    """The feature maps of the timm network `name`.

    pretrained: load timm's weights, which are downloaded once. drop_path_rate: stochastic depth; 0 for none.

    Input (B, 3, H, W), H and W multiples of 32; returns {"res2" .. "res5": (B, C, H/stride, W/stride)} of strides 4 to
    32, with the network's own channels. Raises ImportError if timm is not installed, and ValueError for an unknown
    name or a network without these maps.
    """

    def __init__(self, name: str, *, pretrained: bool = False, drop_path_rate: float = 0.0):
        super().__init__()
        require_timm("build_timm_backbone")
        self.timm = _feature_network(name, pretrained, drop_path_rate)
        info = self.timm.feature_info
        if info.reduction() != list(STRIDES.values()):
            raise ValueError(
                f"the feature maps of timm's {name!r} have strides {info.reduction()}; the model needs "
                f"{list(STRIDES.values())}, as in ConvNeXt and ResNet"
            )
        self._nhwc = str(getattr(self.timm, "output_fmt", "NCHW")).endswith("NHWC")
        self._out_features = list(STRIDES)
        self._out_feature_channels = dict(zip(STRIDES, info.channels(), strict=True))
        self._out_feature_strides = dict(STRIDES)
        self.network_name = name
        self._places = _places(name, [key for key, _ in self.named_parameters()], info.module_name())
        self.num_stages = 1 + len(STRIDES) if self._places else 0
        self.num_layers = 1 + max((place.layer for place in self._places.values()), default=-1)

    @property
    def size_divisibility(self) -> int:
        return 32

    def place(self, name: str) -> Place:
        return self._places[name]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.timm(channels_last(x))
        if self._nhwc:
            maps = [value.permute(0, 3, 1, 2) for value in maps]
        return dict(zip(STRIDES, maps, strict=True))


def require_timm(builder: str) -> None:
    """ImportError if timm is not installed, which the backbone `builder` needs."""
    if importlib.util.find_spec("timm") is None:
        raise ImportError(
            f"the backbone {builder} needs timm, which is not installed; run `pip install timm`, or use "
            "build_fasegr_resnet_backbone or build_fasegr_swin_backbone"
        )


def known_name(name: str, pretrained: bool) -> str:
    """The architecture of timm's network `name`, which may have a tag of weights. ValueError if timm does not know the
    name, or has no weights for it that are `pretrained`."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists its networks"
        raise ValueError(f"timm {timm.__version__} does not know {name!r}; {hint}")
    weights = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in weights:
        raise ValueError(f"timm has no weights {name!r}; those for {architecture} are {weights}")
    if pretrained and not weights:
        raise ValueError(f"pretrained is True, but timm has no weights for {architecture!r}; set it to False")
    return architecture


def create_network(name: str, pretrained: bool = False, **options) -> nn.Module:
    """timm's network. OSError, with the way out, if its pretrained weights cannot be downloaded."""
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OSError(
            f"timm could not get its weights of {name!r}: {reason} Download them where there is a network "
            f"(https://huggingface.co/timm) and set MODEL.WEIGHTS to the file, or copy the cache (HF_HOME)"
        ) from error


def warn_of_other_pixels(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """A warning if timm's `network` was trained on images normalised otherwise. mean, std: in units of 0..255."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    wanted = [[255 * value for value in cfg[key]] for key in ("mean", "std") if cfg.get(key)]
    given = [list(mean), list(std)]
    if len(wanted) == 2 and any(
        abs(a - b) > 0.5 for ours, theirs in zip(given, wanted, strict=True) for a, b in zip(ours, theirs, strict=True)
    ):
        mean, std = ([round(value, 3) for value in values] for values in wanted)
        logger.warning(
            "The weights of timm's %s were trained with MODEL.PIXEL_MEAN %s and MODEL.PIXEL_STD %s; the config has %s "
            "and %s",
            *(cfg.get("architecture", ""), mean, std, *given),
        )


def _feature_network(name: str, pretrained: bool, drop_path_rate: float) -> nn.Module:
    """timm's network `name` without its classifier, as a module that returns its last four maps."""
    import timm

    architecture = known_name(name, pretrained)
    options = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    if architecture.startswith("swin"):  # accepts any size only with this option
        options["strict_img_size"] = False
    elif timm.get_pretrained_cfg(name).fixed_input_size:
        size = timm.get_pretrained_cfg(name).input_size[1:]
        raise ValueError(
            f"timm's {name!r} only takes images of {size} pixels; segmentation needs a network that takes any size, as "
            "ConvNeXt, ResNet and Swin do; plain ViTs are for build_timm_vit_backbone"
        )
    try:
        return create_network(name, pretrained, features_only=True, out_indices=(-4, -3, -2, -1), **options)
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:  # timm raises any of these
        raise ValueError(
            f"timm cannot build a backbone with four maps from {name!r} with drop_path_rate {drop_path_rate}: {error}"
        ) from error


def _places(network: str, names: Sequence[str], map_modules: Sequence[str]) -> dict[str, Place]:
    """The place of each parameter of `names`, in the order in which timm defines them: that of a forward pass.

    map_modules: the modules that make the maps. What comes before the first is the stem, what comes between two belongs
    to the stage of the later one. A layer is a block; what stands before a stage's first block belongs to that one.
    Empty for a network in which maps are not made by one module after the other (HRNet).
    """
    # In a network that returns its maps, timm joins the names of a sequence and its parts: stages_0 for stages.0.
    prefixes = [(f"timm.{module}.", f"timm.{module.replace('.', '_')}.") for module in map_modules]
    inside = [[i for i, name in enumerate(names) if name.startswith(pair)] for pair in prefixes]
    if not all(inside):
        return {}
    last = [max(indices) for indices in inside]
    places: dict[str, Place] = {}
    block, blocks = "", [0] * (1 + len(last))  # of each stage, how many there are so far
    for i, name in enumerate(names):
        stage = min(1 + bisect_left(last, i), len(last)) if i >= inside[0][0] else 0
        numbered = _BLOCK.match(name)
        if stage and (blocks[stage] == 0 or (numbered and block not in ("", numbered[0]))):
            blocks[stage] += 1
            block = ""
        if numbered:
            block = numbered[0]
        places[name] = Place(stage, max(0, blocks[stage] - 1))  # for now, the place in its stage
    if "convnext" in network:  # as its authors count: three blocks of the long stage are a layer
        blocks = [blocks[0], 1, 1, math.ceil(blocks[3] / 3), 1]
        places = {name: Place(stage, block // 3 if stage == 3 else 0) for name, (stage, block) in places.items()}
    starts = [0, *accumulate(blocks[1:-1], initial=1)]
    return {name: Place(stage, starts[stage] + block) for name, (stage, block) in places.items()}


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """The network of MODEL.TIMM. Its pretrained weights are not downloaded if MODEL.WEIGHTS is set."""
    keys = cfg.MODEL.TIMM
    pretrained = keys.PRETRAINED and not cfg.MODEL.WEIGHTS
    return TimmBackbone(keys.NAME, pretrained=pretrained, drop_path_rate=keys.DROP_PATH_RATE)
