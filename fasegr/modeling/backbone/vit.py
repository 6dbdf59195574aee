"""Any plain Vision Transformer of timm (DINOv2, DINOv3, EVA, SigLIP, SAM, ...) with maps of strides 4 to 32.

A plain ViT has one map, of the stride of its patches. The other maps are made from its last one alone, by the simple
feature pyramid of Li et al., "Exploring plain vision transformer backbones for object detection" (ViTDet), ECCV 2022,
Sec. 3. timm is an optional requirement, imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from fasegr.modeling.backbone.place import Place
from fasegr.modeling.backbone.swin import from_windows, to_windows
from fasegr.modeling.backbone.timm import STRIDES, create_network, known_name, require_timm, warn_of_other_pixels
from fasegr.modeling.ops import pad_to_multiple, round_up

_SUBSETS = 4  # of the blocks, with window attention: the last block of each attends to the whole map (ViTDet, Sec. 3)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (B, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleFeaturePyramid(nn.Module):
    """Maps of strides 4 to 32 from one of another stride: (B, in_channels, H/stride, W/stride) to
    {"res2" .. "res5": (B, out_channels, H/4 .. H/32, ...)}.

    A finer map is made by transposed convolutions, each of twice the resolution and half the channels, a coarser one by
    max pooling; then each by a 1x1 and a 3x3 convolution.
    """

    def __init__(self, in_channels: int, stride: int, out_channels: int):
        super().__init__()
        for name, wanted in STRIDES.items():
            layers: list[nn.Module] = []
            channels = in_channels
            doublings = round(math.log2(stride / wanted))
            for i in range(doublings):
                if i:
                    layers += [ChannelNorm(channels, eps=1e-6), nn.GELU()]
                layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
                channels //= 2
            if doublings < 0:
                layers.append(nn.MaxPool2d(wanted // stride))
            layers += [
                nn.Conv2d(channels, out_channels, 1, bias=False),
                ChannelNorm(out_channels, eps=1e-6),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelNorm(out_channels, eps=1e-6),
            ]
            self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, name)(x) for name in STRIDES}


class PlainViT(Backbone):
    """Feature maps of the plain ViT that timm calls `name`, and of a simple feature pyramid.

    pretrained: load timm's weights, which are downloaded once. drop_path_rate: stochastic depth of the last block; it
    grows linearly from 0. out_channels: of each map. window_size: side, in tokens, of the windows that tokens attend
    within, in all but four blocks, which are spread evenly; 0: every token attends to all.

    Input (B, 3, H, W), H and W multiples of 32; returns {"res2" .. "res5": (B, out_channels, H/stride, W/stride)}.
    Where the side of a patch is no power of two (14), the image is resized first, so that the stride of a token is the
    nearest one (16). Absolute positions are resized to the image's tokens as timm does, and rotary ones made for them.
    Class and register tokens take part in the attention and are dropped at the end; with windows, each has a copy of
    them, and what they attended to is the mean of the copies. Raises ImportError if timm is not installed, ValueError
    for a network that is no plain ViT or takes only images of one size.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        out_channels: int = 256,
        window_size: int = 0,
    ):
        super().__init__()
        require_timm("build_timm_vit_backbone")
        self.timm = _plain_vit(name, pretrained, drop_path_rate)
        self.has_own_windows = hasattr(self.timm, "neck")  # SAM, whose last norm is part of a neck for its own decoder
        if window_size and (self.has_own_windows or not all(hasattr(block, "attn") for block in self.timm.blocks)):
            why = "has windows of its own" if self.has_own_windows else "has blocks of another kind"
            raise ValueError(f"window_size is {window_size} with {name!r}, which {why}; it must be 0 there")
        self.timm.prune_intermediate_layers(1, prune_norm=self.has_own_windows, prune_head=True)
        self.window_size = window_size
        self.patch_size = self.timm.patch_embed.patch_size[0]
        self.token_stride = _nearest_stride(self.patch_size)
        depth = len(self.timm.blocks)
        self.global_blocks = {(i + 1) * depth // _SUBSETS - 1 for i in range(_SUBSETS)}
        if window_size:
            for i in sorted(set(range(depth)) - self.global_blocks):
                _attend_in_windows(self.timm.blocks[i].attn)
        self.pyramid = SimpleFeaturePyramid(self.timm.embed_dim, self.token_stride, out_channels)
        self._out_features = list(STRIDES)
        self._out_feature_channels = dict.fromkeys(STRIDES, out_channels)
        self._out_feature_strides = dict(STRIDES)
        self.network_name = name
        self.num_stages = self.num_layers = 1 + depth

    @property
    def size_divisibility(self) -> int:
        return 32

    def place(self, name: str) -> Place | None:
        """The embedding is the first stage, and each block is one; the last norm belongs to the last block's."""
        part, _, rest = name.removeprefix("timm.").partition(".")
        if name.startswith("pyramid."):
            return None
        if part == "blocks":
            at = int(rest.partition(".")[0]) + 1
            return Place(at, at)
        if part == "norm":
            return Place(self.num_stages - 1, self.num_layers)
        return Place(0, 0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.patch_size != self.token_stride:
            size = [side // self.token_stride * self.patch_size for side in x.shape[2:]]
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=size[0] < x.shape[2])
        return self.pyramid(self.tokens(x))

    def tokens(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W), H and W multiples of the patch, to the last map (B, C, H/patch, W/patch)."""
        if self.window_size:
            return self._tokens_by_windows(x)
        norm = not self.has_own_windows
        return self.timm.forward_intermediates(x, indices=1, norm=norm, output_fmt="NCHW", intermediates_only=True)[-1]

    def _tokens_by_windows(self, x: Tensor) -> Tensor:
        vit = self.timm
        x = vit.patch_embed(x)  # (B, h, w, C)
        size = x.shape[1:3]
        x = vit._pos_embed(x)
        x, rope = x if isinstance(x, tuple) else (x, None)  # timm's Eva returns both
        x = vit.norm_pre(x)
        windows = Windows(self.window_size, size, vit.num_prefix_tokens)
        for i, block in enumerate(vit.blocks):
            options = {"attn_mask": None if i in self.global_blocks else windows}
            if rope is not None:
                options["rope"] = rope[i] if vit.rope_mixed else rope  # mixed: of each block its own
            x = block(x, **options)
        x = vit.norm(x)[:, vit.num_prefix_tokens :]
        return x.unflatten(1, size).permute(0, 3, 1, 2)


class Windows:
    """Tokens (B, prefix + height * width, C), the first of which have no place in the map, and windows of the others.

    window: side of one, in tokens; size: height and width of the map; prefix: number of tokens before those of the map.
    Maps are padded to whole windows at the right and bottom.
    """

    def __init__(self, window: int, size: Sequence[int], prefix: int):
        self.window, self.size, self.prefix = window, tuple(size), prefix
        self.padded = tuple(round_up(side, window) for side in size)
        self.count = math.prod(self.padded) // window**2

    def split(self, x: Tensor) -> Tensor:
        """To windows (B * count, prefix + window**2, C), image by image; each has a copy of the first tokens."""
        first, x = x[:, : self.prefix], x[:, self.prefix :]
        x = self._split_map(x)
        return torch.cat([first.repeat_interleave(self.count, 0), x], dim=1) if self.prefix else x

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`; the first tokens are the mean of their copies."""
        first, x = x[:, : self.prefix], x[:, self.prefix :]
        x = from_windows(x, self.window, *self.padded)[:, : self.size[0], : self.size[1]].flatten(1, 2)
        return torch.cat([first.unflatten(0, (-1, self.count)).mean(1), x], dim=1) if self.prefix else x

    def split_rope(self, rope: Tensor, batch: int) -> Tensor:
        """Rotary embeddings of the map's tokens, (height * width, D) or (heads, height * width, D), to those of all
        windows of `batch` images, (batch * count, 1 or heads, window**2, D)."""
        rope = rope.reshape(-1, *rope.shape[-2:])
        windows = self._split_map(rope).unflatten(0, (-1, self.count)).transpose(0, 1)
        return windows.repeat(batch, 1, 1, 1)

    def mask(self, batch: int, device: torch.device) -> Tensor | None:
        """(batch * count, 1, 1, prefix + window**2): False for padding, which no token attends to; None without any."""
        if self.padded == self.size:
            return None
        inside = torch.ones(1, math.prod(self.size), 1, dtype=torch.bool, device=device)
        inside = F.pad(self._split_map(inside).squeeze(-1), (self.prefix, 0), value=True)
        return inside[:, None, None].repeat(batch, 1, 1, 1)

    def _split_map(self, x: Tensor) -> Tensor:
        return to_windows(pad_to_multiple(x.unflatten(1, self.size), self.window), self.window)


class _InWindows:
    """Before a class of timm's attention: attends within the `Windows` that come in the place of its mask."""

    def forward(self, x: Tensor, attn_mask: Windows | None = None, rope: Tensor | None = None, **options) -> Tensor:
        windows, batch = attn_mask, x.shape[0]
        if rope is not None:
            options["rope"] = windows.split_rope(rope, batch)
        return windows.join(super().forward(windows.split(x), attn_mask=windows.mask(batch, x.device), **options))


def _attend_in_windows(attention: nn.Module) -> None:
    """Make timm's `attention` an `_InWindows`, in place: its norm, MLP and drop path stay those of whole images, and
    the names of its parameters what they are."""
    kind = type(attention)
    attention.__class__ = type(f"Windowed{kind.__name__}", (_InWindows, kind), {})


def _nearest_stride(patch_size: int) -> int:
    """The stride among those of the maps that is nearest to the side of a patch: 16 for 14."""
    return min(STRIDES.values(), key=lambda stride: abs(math.log2(patch_size / stride)))


def _plain_vit(name: str, pretrained: bool, drop_path_rate: float) -> nn.Module:
    """timm's network `name` for images of any size. ValueError for one that is no plain ViT."""
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    known_name(name, pretrained)
    with torch.device("meta"):  # without memory, and before anything is downloaded
        sketch = create_network(name)
    if (
        not isinstance(sketch, VisionTransformer | Eva | VisionTransformerSAM)
        or type(sketch.patch_embed) is not PatchEmbed
    ):
        raise ValueError(
            f"timm's {name!r} ({type(sketch).__name__}) is no plain ViT that takes images of any size, as DINOv2, "
            "DINOv3, EVA, SigLIP, DeiT and SAM are; networks with maps of strides 4 to 32 are for build_timm_backbone"
        )
    # SAM resizes its positions without being asked
    any_size = {} if isinstance(sketch, VisionTransformerSAM) else {"dynamic_img_size": True}
    return create_network(name, pretrained, drop_path_rate=drop_path_rate, **any_size)


@BACKBONE_REGISTRY.register()
def build_timm_vit_backbone(cfg, input_shape: ShapeSpec) -> PlainViT:
    """The network of MODEL.VIT. Its pretrained weights are not downloaded if MODEL.WEIGHTS is set."""
    keys = cfg.MODEL.VIT
    backbone = PlainViT(
        keys.NAME,
        pretrained=keys.PRETRAINED and not cfg.MODEL.WEIGHTS,
        drop_path_rate=keys.DROP_PATH_RATE,
        out_channels=keys.OUT_CHANNELS,
        window_size=keys.WINDOW_SIZE,
    )
    if keys.PRETRAINED:
        warn_of_other_pixels(backbone.timm, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    return backbone
