"""Swin Transformer with the state-dict names of the original (`layers.0.blocks.1.attn.qkv.weight`).

Source: Liu et al., "Swin Transformer: Hierarchical vision transformer using shifted windows", ICCV 2021. As in its
detection and segmentation code, a map is padded to whole windows and then shifted, so that images can have any size,
and every output map has its own norm (`norm0` .. `norm3`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fasegr.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec
from fasegr.modeling import ops
from fasegr.modeling.backbone.place import Place

_NAMES = ("res2", "res3", "res4", "res5")
_PATCH = 4  # side of the patch that becomes one token, in pixels: the stride of res2


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), H and W multiples of `window`, to (B * nW, window * window, C), row by row of windows."""
    _, height, width, channels = x.shape
    x = x.reshape(-1, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`: (B * nW, window * window, C) to (B, height, width, C)."""
    channels = windows.shape[-1]
    x = windows.reshape(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shift_mask(height: int, width: int, window: int, shift: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Attention mask between tokens that a cyclic shift brought into one window from opposite edges of the map.

    height, width: of the padded map. Returns (nW, 1, window**2, window**2): 0 where tokens may attend, else -inf.
    """

    def part(size: int) -> Tensor:
        # 0: windows without a seam; 1 and 2: before and after the seam in the last window
        position = torch.arange(size, device=device)
        return (position >= size - window).int() + (position >= size - shift).int()

    parts = to_windows((3 * part(height)[:, None] + part(width))[None, :, :, None], window).squeeze(-1)
    apart = parts[:, None, :, None] != parts[:, None, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill_(apart, float("-inf"))


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: in training, `branch` (B, ...) is zeroed for a sample with probability `rate`.

    The other samples are scaled to keep the expectation. Source: Huang et al., "Deep networks with stochastic depth",
    ECCV 2016.
    """
    if rate == 0.0 or not training:
        return branch
    keep = branch.new_empty((branch.shape[0], *(1,) * (branch.ndim - 1))).bernoulli_(1 - rate)
    return branch * (keep / (1 - rate))


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) to tokens (B, H/4, W/4, C): a linear map of each 4 x 4 patch, then a norm if `norm`."""

    def __init__(self, dim: int, *, norm: bool):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, _PATCH, stride=_PATCH)
        self.norm = nn.LayerNorm(dim) if norm else None

    def forward(self, image: Tensor) -> Tensor:
        bottom, right = -image.shape[2] % _PATCH, -image.shape[3] % _PATCH
        if bottom or right:
            image = F.pad(image, (0, right, 0, bottom))
        x = self.proj(image).permute(0, 2, 3, 1)
        return x.contiguous() if self.norm is None else self.norm(x)


class PatchMerging(nn.Module):
    """Half the resolution, twice the channels: (B, H, W, C) to (B, H/2, W/2, 2C), rounded up."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = ops.pad_to_multiple(x, 2)
        # the original goes down a column first: (0, 0), (1, 0), (0, 1), (1, 1)
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))


class WindowAttention(nn.Module):
    """Self-attention within a window, with a learned bias for every relative position.

    scale: of the scores; None is 1 / sqrt(channels per head).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        *,
        qkv_bias: bool,
        scale: float | None,
        drop: float,
        attn_drop: float,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)
        # one row for each offset (dy, dx), dy and dx from 1 - window to window - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = place[:, None] - place[None, :] + window - 1
        self.register_buffer("relative_position_index", offset[..., 0] * (2 * window - 1) + offset[..., 1])

    def bias(self) -> Tensor:
        """(1, M, n, n), added to the scores of queries and keys."""
        n = self.relative_position_index.shape[0]
        rows = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return rows.view(n, n, self.num_heads).permute(2, 0, 1).contiguous()[None]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B * nW, n, C), image by image. mask: (nW, 1, n, n), added to the scores."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias()
        if mask is not None:
            bias = bias + mask
            images = x.shape[0] // bias.shape[0]
            bias = bias.expand(images, *bias.shape).flatten(0, 1)  # no copy for one image
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias.to(q.dtype),  # fused kernels want one dtype; under autocast the table is float32
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Linear, GELU, linear, with dropout after both linear layers: (..., C) to (..., C)."""

    def __init__(self, dim: int, hidden_dim: int, drop: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Window attention, then an MLP, each a residual branch with a norm before it: (B, H, W, C) to the same.

    shift: of the windows, in tokens; 0 for none.
    """

    def __init__(
        self, dim: int, num_heads: int, *, window: int, shift: int, mlp_ratio: float, path: float, **attention
    ):
        super().__init__()
        self.window, self.shift, self.path = window, shift, path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window, **attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), attention["drop"])

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, H, W, C) to the same. Padding tokens are attended to as well, as in the original."""
        height, width = x.shape[1:3]
        x = ops.pad_to_multiple(x, self.window)
        padded = x.shape[1:3]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = from_windows(self.attn(to_windows(x, self.window), mask), self.window, *padded)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask: (nW, 1, n, n) of `shift_mask`, None where the windows are not shifted."""
        x = x + drop_path(self.attend(self.norm1(x), mask), self.path, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.path, self.training)


class Stage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows; `downsample` leads to the next stage.

    paths: drop path rate of each block. checkpointing: recompute blocks in the backward pass instead of storing them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: int,
        paths: Sequence[float],
        downsample: bool,
        checkpointing: bool,
        **block,
    ):
        super().__init__()
        self.window, self.shift = window, window // 2
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, window=window, shift=self.shift if i % 2 else 0, path=path, **block)
            for i, path in enumerate(paths)
        )
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        mask = None
        if self.shift and len(self.blocks) > 1:
            height, width = (ops.round_up(size, self.window) for size in x.shape[1:3])
            mask = shift_mask(height, width, self.window, self.shift, device=x.device, dtype=x.dtype)
        for block in self.blocks:
            arguments = x, mask if block.shift else None
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        return x


class SwinTransformer(Backbone):
    """Feature maps of a Swin Transformer.

    embed_dim: channels of res2, doubled at each later stage. depths, num_heads: one int for each of the four stages.
    window_size: side of a window, in tokens. qk_scale: of the scores; None is 1 / sqrt(channels per head).
    drop_path_rate: of the last block; it grows linearly from 0. drop_rate, attn_drop_rate: dropout of tokens and of
    attention weights. patch_norm: a norm after the patch embedding. ape: absolute position embedding, resized from
    images of pretrain_img_size. out_features: among "res2" .. "res5" (strides 4 .. 32).
    use_checkpoint: recompute blocks in the backward pass, which saves memory and takes longer.

    Input (B, 3, H, W); returns {name: (B, C, H/stride, W/stride)}, rounded up, channels last in memory.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        pretrain_img_size: int = 224,
        patch_norm: bool = True,
        out_features: Sequence[str] = _NAMES,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        channels = [embed_dim * 2**i for i in range(len(_NAMES))]
        self.patch_embed = PatchEmbed(embed_dim, norm=patch_norm)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // _PATCH
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        paths = [drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]
        starts = [sum(depths[:i]) for i in range(len(depths) + 1)]
        self.layers = nn.ModuleList(
            Stage(
                channels[i],
                num_heads[i],
                window=window_size,
                paths=paths[start:end],
                downsample=i + 1 < len(depths),
                checkpointing=use_checkpoint,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
            )
            for i, (start, end) in enumerate(pairwise(starts))
        )
        self._starts = starts
        self.num_stages, self.num_layers = 1 + len(depths), 1 + sum(depths)
        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(_NAMES, channels, strict=True))
        self._out_feature_strides = {name: _PATCH * 2**i for i, name in enumerate(_NAMES)}
        for i, name in enumerate(_NAMES):
            if name in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(channels[i]))
        self.apply(_initialise)
        # Stages after the last output stay in the state dict, as in pretrained weights, but do not run, so they
        # must not be trained: DistributedDataParallel would wait for their gradients.
        self._last_stage = max(_NAMES.index(name) for name in out_features)
        for i, stage in enumerate(self.layers):
            unused = stage if i > self._last_stage else stage.downsample if i == self._last_stage else None
            if unused is not None:
                unused.requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return 32

    def place(self, name: str) -> Place:
        """The patch embedding is the first stage and layer; then each block is a layer, to the last of which in a stage
        its downsampling and the norm of its map belong."""
        part, _, rest = name.partition(".")
        if part in ("patch_embed", "absolute_pos_embed"):
            return Place(0, 0)
        if part == "layers":
            stage, kind, number = rest.split(".")[:3]
            if kind == "blocks":
                return Place(int(stage) + 1, self._starts[int(stage)] + int(number) + 1)
        else:
            stage = part.removeprefix("norm")
        return Place(int(stage) + 1, self._starts[int(stage) + 1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic", align_corners=False)
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        features = {}
        for i, name in enumerate(_NAMES[: self._last_stage + 1]):
            stage = self.layers[i]
            x = stage(x)
            if name in self._out_features:
                features[name] = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
            if i < self._last_stage:
                x = stage.downsample(x)
        return features


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@BACKBONE_REGISTRY.register()
def build_fasegr_swin_backbone(cfg, input_shape: ShapeSpec) -> SwinTransformer:
    """The Swin Transformer of MODEL.SWIN, whose keys are the arguments of the class; PATCH_SIZE is always 4."""
    return SwinTransformer(**{key.lower(): value for key, value in cfg.MODEL.SWIN.items() if key != "PATCH_SIZE"})
