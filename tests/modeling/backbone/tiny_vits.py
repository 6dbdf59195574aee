"""timm's plain ViTs, a hundredth of their size."""

from functools import partial

SHAPE = {"embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "num_classes": 0}


def vit(depth=4, patch_size=16, **options):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=4 * patch_size, patch_size=patch_size, depth=depth, **SHAPE, **options)


def giant(**options):
    from timm.layers import SwiGLUPacked
    from torch import nn

    return vit(patch_size=14, init_values=0.5, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, **options)


def eva(depth=4, patch_size=16, **options):
    from timm.models.eva import Eva

    dinov3 = {
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_temperature": 100,
        "rope_rotate_half": True,
        "use_abs_pos_emb": False,
        "use_fc_norm": False,
        "num_reg_tokens": 2,
        "init_values": 0.5,
    }
    return Eva(img_size=4 * patch_size, patch_size=patch_size, depth=depth, **SHAPE, **dinov3, **options)


def sam(depth=4, patch_size=16, **options):
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    own = {"use_rel_pos": True, "window_size": 3, "neck_chans": 8, "global_attn_indexes": (1, 3)}
    return VisionTransformerSAM(img_size=4 * patch_size, patch_size=patch_size, depth=depth, **SHAPE, **own, **options)


def parallel(**options):
    from timm.models.vision_transformer import ParallelThingsBlock

    return vit(block_fn=ParallelThingsBlock, **options)


NETWORKS = {
    "vit_small_patch14_dinov2": partial(vit, patch_size=14, init_values=0.5),
    "vit_small_patch14_reg4_dinov2": partial(vit, patch_size=14, init_values=0.5, reg_tokens=4, no_embed_class=True),
    "vit_giant_patch14_dinov2": giant,
    "vit_small_patch16_dinov3": partial(eva, qkv_bias=False),
    "vit_small_patch16_dinov3_qkvb": eva,
    "vit_small_plus_patch16_dinov3_qkvb": partial(eva, swiglu_mlp=True, swiglu_align_to=8),
    "vit_small_patch8_224": partial(vit, patch_size=8),
    "vit_small_patch32_224": partial(vit, patch_size=32),
    "vit_base_patch16_siglip_224": partial(vit, class_token=False, global_pool="map"),
    "samvit_base_patch16": sam,
    "vit_small_patch16_18x2_224": parallel,
    "vit_base_patch16_siglip_256": partial(vit, depth=6, class_token=False, global_pool="map"),  # windows in two
    "vit_base_patch16_dinov3": partial(eva, depth=6, qkv_bias=False),
}


def tiny_networks(monkeypatch):
    """Has timm make these in place of its own of the same names, with random weights."""
    import timm

    real = timm.create_model

    def create(name, pretrained=False, **options):
        assert not pretrained
        if name not in NETWORKS:
            return real(name, **options)
        network = NETWORKS[name](**options)
        network.pretrained_cfg = {"architecture": name, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        for parameter in network.parameters():
            if not parameter.is_meta:
                parameter.data.normal_(std=0.2) if parameter.ndim > 1 else parameter.data.uniform_(0.3, 1)
        return network

    monkeypatch.setattr(timm, "create_model", create)
