"""Every recipe against the tables it was published with, value by value."""

from pathlib import Path

import pytest

import fasegr
from fasegr.utils.nested import lookup

ROOT = Path(__file__).parents[2] / "configs"
ADE20K = ROOT / "ade20k/semantic-segmentation"
CITYSCAPES = ROOT / "cityscapes/semantic-segmentation"
COCO_INSTANCE = ROOT / "coco/instance-segmentation"
COCO_PANOPTIC = ROOT / "coco/panoptic-segmentation"

R50 = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
R101 = "https://download.pytorch.org/models/resnet101-63fe2227.pth"
SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/{}.pth"

EVERYWHERE = {
    "MODEL.META_ARCHITECTURE": "FASeg",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SEM_SEG_HEAD.NAME": "FASegHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 1024,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.REFERENCE_BATCH": 16,
    "SOLVER.AMP.ENABLED": True,
    "INPUT.FORMAT": "RGB",
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.COLOR_AUG_SSD": True,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "TEST.EVAL_PERIOD": 5000,
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.FLIP": True,
}


def short_sides(size):
    return [int(x * 0.1 * size) for x in range(5, 21)]


ADE20K_DATA = {
    "DATASETS.TRAIN": ["ade20k_sem_seg_train"],
    "DATASETS.TEST": ["ade20k_sem_seg_val"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
    "SOLVER.MAX_ITER": 160000,
}
ADE20K_512 = ADE20K_DATA | {
    "INPUT.MIN_SIZE_TRAIN": short_sides(512),
    "INPUT.MAX_SIZE_TRAIN": 2048,
    "INPUT.CROP.SIZE": [512, 512],
    "INPUT.SIZE_DIVISIBILITY": 512,
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 2048,
    "TEST.AUG.MIN_SIZES": list(range(256, 897, 128)),
    "TEST.AUG.MAX_SIZE": 3584,
}
ADE20K_640 = ADE20K_DATA | {
    "INPUT.MIN_SIZE_TRAIN": short_sides(640),
    "INPUT.MAX_SIZE_TRAIN": 2560,
    "INPUT.CROP.SIZE": [640, 640],
    "INPUT.SIZE_DIVISIBILITY": 640,
    "INPUT.MIN_SIZE_TEST": 640,
    "INPUT.MAX_SIZE_TEST": 2560,
    "TEST.AUG.MIN_SIZES": list(range(320, 1121, 160)),
    "TEST.AUG.MAX_SIZE": 4480,
}
CITYSCAPES_DATA = {
    "DATASETS.TRAIN": ["cityscapes_fine_sem_seg_train"],
    "DATASETS.TEST": ["cityscapes_fine_sem_seg_val"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
    "SOLVER.MAX_ITER": 90000,
    "INPUT.MIN_SIZE_TRAIN": short_sides(1024),
    "INPUT.MAX_SIZE_TRAIN": 4096,
    "INPUT.CROP.SIZE": [512, 1024],
    "INPUT.SIZE_DIVISIBILITY": -1,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "TEST.AUG.MIN_SIZES": list(range(512, 1793, 256)),
    "TEST.AUG.MAX_SIZE": 4096,
}

COCO = {  # 50 epochs, large-scale jittering
    "SOLVER.MAX_ITER": 368750,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.STEPS": [327778, 355092],
    "SOLVER.GAMMA": 0.1,
    "INPUT.IMAGE_SIZE": 1024,
    "INPUT.MIN_SCALE": 0.1,
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.CROP.ENABLED": False,
    "INPUT.CROP.TYPE": "relative_range",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
COCO_INSTANCE_DATA = COCO | {
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 80,
    "INPUT.DATASET_MAPPER_NAME": "coco_instance_lsj",
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
}
COCO_PANOPTIC_DATA = COCO | {
    "DATASETS.TRAIN": ["coco_2017_train_panoptic"],
    "DATASETS.TEST": ["coco_2017_val_panoptic_with_sem_seg"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
    "INPUT.DATASET_MAPPER_NAME": "coco_panoptic_lsj",
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
}
COCO_100_EPOCHS = {
    "SOLVER.MAX_ITER": 737500,
    "SOLVER.STEPS": [655556, 710184],
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 200,
}

FASEG = {
    "MODEL.MASK_FORMER.DEC_LAYERS": 14,
    "MODEL.FASEG.POSITIONAL_QUERY": "dfpq",
    "MODEL.FASEG.KEY_POSITION": "conditional",
    "MODEL.FASEG.FIRST_QUERY_REGION": "background",
    "MODEL.FASEG.MASK_THRESHOLD": 0.15,
    "MODEL.FASEG.HIGH_RES.ATTENTION": "hrca",
    "MODEL.FASEG.HIGH_RES.OMEGA": 32,
    "MODEL.FASEG.HIGH_RES.SELECTION": "window",
    "MODEL.FASEG.HIGH_RES.QUERY": "static",
}
MASK2FORMER = {
    "MODEL.MASK_FORMER.DEC_LAYERS": 10,
    "MODEL.FASEG.POSITIONAL_QUERY": "learnable",
    "MODEL.FASEG.KEY_POSITION": "sinusoidal",
    "MODEL.FASEG.MASK_THRESHOLD": 0.5,
    "MODEL.FASEG.HIGH_RES.ATTENTION": "none",
}


def resnet(depth, norm, weights):
    return {
        "MODEL.BACKBONE.NAME": "build_fasegr_resnet_backbone",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NORM": norm,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.WEIGHTS": weights,
    }


def swin(embed, depths, heads, window, pretrain_size, weights):
    return {
        "MODEL.BACKBONE.NAME": "build_fasegr_swin_backbone",
        "MODEL.SWIN.EMBED_DIM": embed,
        "MODEL.SWIN.DEPTHS": depths,
        "MODEL.SWIN.NUM_HEADS": heads,
        "MODEL.SWIN.WINDOW_SIZE": window,
        "MODEL.SWIN.PRETRAIN_IMG_SIZE": pretrain_size,
        "MODEL.SWIN.PATCH_SIZE": 4,
        "MODEL.SWIN.DROP_PATH_RATE": 0.3,
        "MODEL.SWIN.PATCH_NORM": True,
        "MODEL.SWIN.APE": False,
        "MODEL.WEIGHTS": SWIN.format(weights),
    }


SWIN_T = swin(96, [2, 2, 6, 2], [3, 6, 12, 24], 7, 224, "swin_tiny_patch4_window7_224")
SWIN_S = swin(96, [2, 2, 18, 2], [3, 6, 12, 24], 7, 224, "swin_small_patch4_window7_224")
SWIN_B = swin(128, [2, 2, 18, 2], [4, 8, 16, 32], 12, 384, "swin_base_patch4_window12_384_22k")
SWIN_B_1K = SWIN_B | {"MODEL.WEIGHTS": SWIN.format("swin_base_patch4_window12_384")}
SWIN_L = swin(192, [2, 2, 18, 2], [6, 12, 24, 48], 12, 384, "swin_large_patch4_window12_384_22k")


def vit(name, lr, decay, multiplier, warmup, path, checkpointing=False):
    """Rates of EoMT, drop path of ViT-Adapter."""
    return {
        "MODEL.BACKBONE.NAME": "build_timm_vit_backbone",
        "MODEL.BACKBONE.FREEZE": 0,
        "MODEL.VIT.NAME": name,
        "MODEL.VIT.PRETRAINED": True,
        "MODEL.VIT.DROP_PATH_RATE": path,
        "MODEL.VIT.WINDOW_SIZE": 0,
        "MODEL.WEIGHTS": "",
        "SOLVER.BASE_LR": lr,
        "SOLVER.LAYER_DECAY": decay,
        "SOLVER.BACKBONE_MULTIPLIER": multiplier,
        "SOLVER.WARMUP_ITERS": warmup,
        "SOLVER.WARMUP_FACTOR": 1e-6,
        "SOLVER.GRADIENT_CHECKPOINTING": checkpointing,
    }


def convnext(name):
    """ConvNeXt's own values."""
    return {
        "MODEL.BACKBONE.NAME": "build_timm_backbone",
        "MODEL.BACKBONE.FREEZE": 0,
        "MODEL.TIMM.NAME": name,
        "MODEL.TIMM.PRETRAINED": True,
        "MODEL.TIMM.DROP_PATH_RATE": 0.4,
        "MODEL.WEIGHTS": "",
        "SOLVER.LAYER_DECAY": 0.9,
        "SOLVER.BACKBONE_MULTIPLIER": 1.0,
        "SOLVER.WARMUP_ITERS": 1500,
        "SOLVER.WARMUP_FACTOR": 1e-6,
    }


VITS = {
    "dinov3_small": vit("vit_small_patch16_dinov3.lvd1689m", 2e-4, 0.8, 1.0, 2000, 0.2),
    "dinov3_base": vit("vit_base_patch16_dinov3.lvd1689m", 2e-4, 0.8, 1.0, 2000, 0.3),
    "dinov3_large": vit("vit_large_patch16_dinov3.lvd1689m", 2e-4, 1.0, 0.1, 2000, 0.3, True),
    "dinov2_base": vit("vit_base_patch14_reg4_dinov2.lvd142m", 1e-4, 0.8, 1.0, 500, 0.3),
}
CONVNEXTS = {
    "convnext_tiny": convnext("convnext_tiny.fb_in1k"),
    "convnext_base": convnext("convnext_base.fb_in22k"),
}
FROZEN = {
    "MODEL.BACKBONE.FREEZE": "all",
    "MODEL.VIT.DROP_PATH_RATE": 0.0,
    "MODEL.TIMM.DROP_PATH_RATE": 0.0,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.GRADIENT_CHECKPOINTING": False,
}
CITYSCAPES_VIT = CITYSCAPES_DATA | {"INPUT.CROP.SIZE": [1024, 1024], "SOLVER.MAX_ITER": 80000}

RECIPES = {
    ADE20K / "faseg_r50.yaml": (ADE20K_512, FASEG, resnet(50, "FrozenBN", R50)),
    ADE20K / "swin/faseg_swin_tiny.yaml": (ADE20K_512, FASEG, SWIN_T),
    ADE20K / "swin/faseg_swin_base_IN21k_res640.yaml": (ADE20K_640, FASEG, SWIN_B),
    ADE20K / "swin/faseg_swin_large_IN21k_res640.yaml": (ADE20K_640, FASEG, SWIN_L),
    ADE20K / "maskformer2_R50_bs16_160k.yaml": (ADE20K_512, MASK2FORMER, resnet(50, "FrozenBN", R50)),
    ADE20K / "maskformer2_R101_bs16_90k.yaml": (ADE20K_512, MASK2FORMER, resnet(101, "SyncBN", R101)),
    ADE20K / "swin/maskformer2_swin_tiny_bs16_160k.yaml": (ADE20K_512, MASK2FORMER, SWIN_T),
    ADE20K / "swin/maskformer2_swin_small_bs16_160k.yaml": (ADE20K_512, MASK2FORMER, SWIN_S),
    ADE20K / "swin/maskformer2_swin_base_384_bs16_160k_res640.yaml": (ADE20K_640, MASK2FORMER, SWIN_B_1K),
    ADE20K / "swin/maskformer2_swin_base_IN21k_384_bs16_160k_res640.yaml": (ADE20K_640, MASK2FORMER, SWIN_B),
    ADE20K / "swin/maskformer2_swin_large_IN21k_384_bs16_160k_res640.yaml": (ADE20K_640, MASK2FORMER, SWIN_L),
    CITYSCAPES / "faseg_r50.yaml": (CITYSCAPES_DATA, FASEG, resnet(50, "SyncBN", R50)),
    CITYSCAPES / "maskformer2_R50_bs16_90k.yaml": (CITYSCAPES_DATA, MASK2FORMER, resnet(50, "SyncBN", R50)),
    CITYSCAPES / "maskformer2_R101_bs16_90k.yaml": (CITYSCAPES_DATA, MASK2FORMER, resnet(101, "SyncBN", R101)),
    CITYSCAPES / "swin/maskformer2_swin_tiny_bs16_90k.yaml": (CITYSCAPES_DATA, MASK2FORMER, SWIN_T),
    CITYSCAPES / "swin/maskformer2_swin_small_bs16_90k.yaml": (CITYSCAPES_DATA, MASK2FORMER, SWIN_S),
    CITYSCAPES / "swin/maskformer2_swin_base_IN21k_384_bs16_90k.yaml": (CITYSCAPES_DATA, MASK2FORMER, SWIN_B),
    CITYSCAPES / "swin/maskformer2_swin_large_IN21k_384_bs16_90k.yaml": (CITYSCAPES_DATA, MASK2FORMER, SWIN_L),
}
for name, values in (VITS | CONVNEXTS).items():
    folder = "vit" if name in VITS else "convnext"
    ade20k = ADE20K_640 if name == "convnext_base" else ADE20K_512
    cityscapes = CITYSCAPES_VIT if name in VITS else CITYSCAPES_DATA
    for root, data in ((ADE20K, ade20k), (CITYSCAPES, cityscapes)):
        RECIPES[root / f"{folder}/faseg_{name}.yaml"] = (data, FASEG, values)
        RECIPES[root / f"{folder}/faseg_{name}_frozen.yaml"] = (data, FASEG, values, FROZEN)
for folder, data in ((COCO_INSTANCE, COCO_INSTANCE_DATA), (COCO_PANOPTIC, COCO_PANOPTIC_DATA)):
    RECIPES |= {
        folder / "faseg_r50.yaml": (data, FASEG, resnet(50, "FrozenBN", R50)),
        folder / "swin/faseg_swin_tiny.yaml": (data, FASEG, SWIN_T),
        folder / "swin/faseg_swin_small.yaml": (data, FASEG, SWIN_S),
        folder / "swin/faseg_swin_base_IN21k.yaml": (data, FASEG, SWIN_B),
        folder / "swin/faseg_swin_large_IN21k.yaml": (data, COCO_100_EPOCHS, FASEG, SWIN_L),
        folder / "maskformer2_R50_bs16_50ep.yaml": (data, MASK2FORMER, resnet(50, "FrozenBN", R50)),
        folder / "maskformer2_R101_bs16_50ep.yaml": (data, MASK2FORMER, resnet(101, "FrozenBN", R101)),
        folder / "swin/maskformer2_swin_tiny_bs16_50ep.yaml": (data, MASK2FORMER, SWIN_T),
        folder / "swin/maskformer2_swin_small_bs16_50ep.yaml": (data, MASK2FORMER, SWIN_S),
        folder / "swin/maskformer2_swin_base_384_bs16_50ep.yaml": (data, MASK2FORMER, SWIN_B_1K),
        folder / "swin/maskformer2_swin_base_IN21k_384_bs16_50ep.yaml": (data, MASK2FORMER, SWIN_B),
        folder / "swin/maskformer2_swin_large_IN21k_384_bs16_100ep.yaml": (
            *(data, COCO_100_EPOCHS),
            *(MASK2FORMER, SWIN_L),
        ),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe(path):
    cfg = fasegr.load_cfg(path, ["MODEL.DEVICE", "cpu"])
    expected = {key: wanted for table in (EVERYWHERE, *RECIPES[path]) for key, wanted in table.items()}
    values = {key: lookup(cfg, key) for key in expected}
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()} == expected


def test_every_recipe_has_its_tables():
    folders = (ADE20K, CITYSCAPES, COCO_INSTANCE, COCO_PANOPTIC)
    leaves = [path for folder in folders for path in folder.rglob("*.yaml") if path.parent.name != "ablations"]
    assert {path for path in leaves if not path.name.startswith("Base-")} == set(RECIPES)


def test_recipes_do_not_write_into_one_folder():
    folders = [fasegr.load_cfg(path, ["MODEL.DEVICE", "cpu"]).OUTPUT_DIR for path in RECIPES]
    assert len(set(folders)) == len(folders)
