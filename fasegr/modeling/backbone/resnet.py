"""ResNet 18, 34, 50 and 101 with the state-dict names of detectron2 (`res2.0.conv1.norm.weight`).

Source: He et al., "Deep residual learning for image recognition", CVPR 2016; the stride is in the 3x3 convolution,
as in torchvision's weights, unless `stride_in_1x1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from fasegr.modeling.backbone.place import Place
from fasegr.modeling.layers import ConvNorm, build_norm
from fasegr.modeling.ops import channels_last

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def _conv(in_channels: int, out_channels: int, kernel: int, norm: str, *, stride: int = 1, relu: bool = False):
    layer = ConvNorm(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2,
        bias=norm == "",
        norm=build_norm(norm, out_channels),
        activation=F.relu_ if relu else None,
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class _Block(nn.Module):
    """Sum of a shortcut and a branch (`conv1`, `conv2`, ...), then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str):
        super().__init__()
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu_(self.branch(x).add_(shortcut))  # in place: the output of a convolution or norm


class BasicBlock(_Block):
    """Two 3x3 convolutions (ResNet 18 and 34)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str):
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride, relu=True)
        self.conv2 = _conv(out_channels, out_channels, 3, norm)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class BottleneckBlock(_Block):
    """1x1, 3x3, 1x1 convolutions (ResNet 50 and 101)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str, *, stride_in_1x1: bool):
        super().__init__(in_channels, out_channels, stride, norm)
        width = out_channels // 4
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, width, 1, norm, stride=first, relu=True)
        self.conv2 = _conv(width, width, 3, norm, stride=second, relu=True)
        self.conv3 = _conv(width, out_channels, 1, norm)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


class Stem(nn.Module):
    """7x7 convolution of stride 2 and 3x3 max pooling of stride 2: (B, 3, H, W) to (B, C, H/4, W/4)."""

    def __init__(self, out_channels: int, norm: str):
        super().__init__()
        self.conv1 = _conv(3, out_channels, 7, norm, stride=2, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """Feature maps of a ResNet.

    depth: 18, 34, 50 or 101. norm: FrozenBN, BN, SyncBN or GN. stem_channels: width of the stem (64).
    res2_channels: channels of res2 (256; 64 for depth 18 and 34), doubled at each later stage.
    out_features: among "res2" .. "res5" (strides 4 .. 32). freeze_at: number of frozen stages; the stem is the first.

    Input (B, 3, H, W), H and W multiples of 32; returns {name: (B, C, H/stride, W/stride)}.
    """

    def __init__(
        self,
        depth: int,
        *,
        norm: str = "FrozenBN",
        stem_channels: int = 64,
        res2_channels: int = 256,
        stride_in_1x1: bool = False,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        freeze_at: int = 0,
    ):
        super().__init__()
        if freeze_at and norm not in ("FrozenBN", "GN"):
            raise ValueError(
                f"freeze_at is {freeze_at} with norm {norm!r}, whose running statistics would still change; "
                "use FrozenBN, or freeze_at 0"
            )
        names = ["res2", "res3", "res4", "res5"]
        self.stem = Stem(stem_channels, norm)
        in_channels = stem_channels
        for i, blocks in enumerate(_BLOCKS[depth]):
            out_channels = res2_channels * 2**i
            stage = []
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                if depth >= 50:
                    block = BottleneckBlock(in_channels, out_channels, stride, norm, stride_in_1x1=stride_in_1x1)
                else:
                    block = BasicBlock(in_channels, out_channels, stride, norm)
                stage.append(block)
                in_channels = out_channels
            self.add_module(names[i], nn.Sequential(*stage))
        self._out_features = list(out_features)
        self._out_feature_channels = {name: res2_channels * 2**i for i, name in enumerate(names)}
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(names)}
        self._stages = [name for i, name in enumerate(names) if any(f in names[i:] for f in out_features)]
        self.network_name = str(depth)
        self._first_layers = dict(zip(names, accumulate(_BLOCKS[depth], initial=1), strict=False))
        self.num_stages, self.num_layers = 1 + len(names), 1 + sum(_BLOCKS[depth])
        for name in ["stem", *names][:freeze_at]:
            getattr(self, name).requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return 32

    def place(self, name: str) -> Place:
        """The stem is the first stage and layer; then each block is a layer."""
        stage, number, _ = name.split(".", 2)
        if stage == "stem":
            return Place(0, 0)
        return Place(int(stage[-1]) - 1, self._first_layers[stage] + int(number))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(channels_last(x))
        features = {}
        for name in self._stages:
            x = getattr(self, name)(x)
            if name in self._out_features:
                features[name] = x
        return features


@BACKBONE_REGISTRY.register()
def build_fasegr_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """The ResNet of MODEL.RESNETS; detectron2's keys for dilation, groups and deformable convolution have no effect."""
    keys = cfg.MODEL.RESNETS
    return ResNet(
        keys.DEPTH,
        norm=keys.NORM,
        stem_channels=keys.STEM_OUT_CHANNELS,
        res2_channels=keys.RES2_OUT_CHANNELS,
        stride_in_1x1=keys.STRIDE_IN_1X1,
        out_features=keys.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
