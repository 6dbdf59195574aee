"""Any timm network with feature maps of strides 4, 8, 16 and 32, e.g. ConvNeXt, with its pretrained weights.

timm is an optional requirement, imported on first use.
"""

from __future__ import annotations

import difflib
import importlib.util

from torch import Tensor, nn

from fasegr.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from fasegr.modeling.ops import channels_last

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(Backbone):
    """The feature maps of the timm network `name`.

    pretrained: load timm's weights, which are downloaded once. drop_path_rate: stochastic depth; 0 for none.

    Input (B, 3, H, W), H and W multiples of 32; returns {"res2" .. "res5": (B, C, H/stride, W/stride)} of strides 4 to
    32, with the network's own channels. Raises ImportError if timm is not installed, and ValueError for an unknown
    name or a network without these maps.
    """

    def __init__(self, name: str, *, pretrained: bool = False, drop_path_rate: float = 0.0):
        super().__init__()
        if importlib.util.find_spec("timm") is None:
            raise ImportError(
                "the backbone build_timm_backbone needs timm, which is not installed; run `pip install timm`, or use "
                "build_fasegr_resnet_backbone or build_fasegr_swin_backbone"
            )
        self.timm = _feature_network(name, pretrained, drop_path_rate)
        info = self.timm.feature_info
        if info.reduction() != list(_STRIDES.values()):
            raise ValueError(
                f"the feature maps of timm's {name!r} have strides {info.reduction()}; the model needs "
                f"{list(_STRIDES.values())}, as in ConvNeXt and ResNet"
            )
        self._nhwc = str(getattr(self.timm, "output_fmt", "NCHW")).endswith("NHWC")
        self._out_features = list(_STRIDES)
        self._out_feature_channels = dict(zip(_STRIDES, info.channels(), strict=True))
        self._out_feature_strides = dict(_STRIDES)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.timm(channels_last(x))
        if self._nhwc:
            maps = [value.permute(0, 3, 1, 2) for value in maps]
        return dict(zip(_STRIDES, maps, strict=True))


def _feature_network(name: str, pretrained: bool, drop_path_rate: float) -> nn.Module:
    """timm's network `name` without its classifier, as a module that returns its last four maps."""
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
    options = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    if architecture.startswith("swin"):  # accepts any size only with this option
        options["strict_img_size"] = False
    elif timm.get_pretrained_cfg(name).fixed_input_size:
        size = timm.get_pretrained_cfg(name).input_size[1:]
        raise ValueError(
            f"timm's {name!r} only takes images of {size} pixels; segmentation needs a network that takes any size, as "
            "ConvNeXt, ResNet and Swin do"
        )
    try:
        return timm.create_model(
            name, features_only=True, out_indices=(-4, -3, -2, -1), pretrained=pretrained, **options
        )
    except (AssertionError, IndexError, RuntimeError, TypeError) as error:  # timm raises any of these
        raise ValueError(
            f"timm cannot build a backbone with four maps from {name!r} with drop_path_rate {drop_path_rate}: {error}"
        ) from error


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """The network of MODEL.TIMM. Its pretrained weights are not downloaded if MODEL.WEIGHTS is set."""
    keys = cfg.MODEL.TIMM
    pretrained = keys.PRETRAINED and not cfg.MODEL.WEIGHTS
    return TimmBackbone(keys.NAME, pretrained=pretrained, drop_path_rate=keys.DROP_PATH_RATE)
