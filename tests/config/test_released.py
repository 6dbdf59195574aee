import textwrap

import pytest
import yaml

import fasegr

CPU = ["MODEL.DEVICE", "cpu"]


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return path


RELEASED_FASEG = """
    MODEL:
      META_ARCHITECTURE: "MaskFormer"
      BACKBONE: {FREEZE_AT: 0, NAME: "build_resnet_backbone"}
      RESNETS: {STEM_TYPE: "basic", RES5_MULTI_GRID: [1, 1, 1]}
      SEM_SEG_HEAD: {NUM_CLASSES: 150, CONVS_DIM: 256, NAME: "MaskFormerHeadFASeg",
                     PIXEL_DECODER_NAME: "MSDeformAttnPixelDecoder4ScalesFASeg"}
      MASK_FORMER: {TRANSFORMER_DECODER_NAME: "MultiScaleMaskedTransformerDecoderFASeg", ENC_LAYERS: 0,
                    PRE_NORM: False, TRANSFORMER_IN_FEATURE: "multi_scale_pixel_decoder"}
    DATASETS:
      TRAIN: ("ade20k_sem_seg_train",)
    INPUT:
      FORMAT: "RGB"
      MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 512) for x in range(5, 21)]"]
      CROP:
        SIZE: (512, 512)
    VERSION: 2
"""


def test_released_names_are_understood(tmp_path, caplog):
    cfg = fasegr.load_cfg(write(tmp_path / "released.yaml", RELEASED_FASEG), CPU)
    assert cfg.MODEL.BACKBONE.NAME == "build_fasegr_resnet_backbone"
    assert cfg.MODEL.SEM_SEG_HEAD.NAME == "FASegHead"
    assert cfg.MODEL.FASEG.POSITIONAL_QUERY == "dfpq"
    assert list(cfg.INPUT.MIN_SIZE_TRAIN)[:3] == [256, 307, 358]
    assert list(cfg.INPUT.MIN_SIZE_TRAIN)[-1] == 1024
    assert tuple(cfg.INPUT.CROP.SIZE) == (512, 512)
    assert tuple(cfg.DATASETS.TRAIN) == ("ade20k_sem_seg_train",)
    assert caplog.text == "", "no key of a released file is said to mean nothing"


def test_mask2former_is_a_setting(tmp_path):
    text = RELEASED_FASEG.replace("4ScalesFASeg", "").replace("DecoderFASeg", "Decoder").replace("HeadFASeg", "Head")
    faseg = fasegr.load_cfg(write(tmp_path / "released.yaml", text), CPU).MODEL.FASEG
    assert (faseg.POSITIONAL_QUERY, faseg.KEY_POSITION, faseg.HIGH_RES.ATTENTION) == ("learnable", "sinusoidal", "none")
    assert faseg.MASK_THRESHOLD == 0.5


RELEASED_BASELINE = """
    MODEL:
      BACKBONE: {NAME: "D2SwinTransformer"}
      SEM_SEG_HEAD: {NAME: "MaskFormerHead", PIXEL_DECODER_NAME: "MSDeformAttnPixelDecoder"}
      MASK_FORMER: {TRANSFORMER_DECODER_NAME: "MultiScaleMaskedTransformerDecoder", DEC_LAYERS: 10}
"""
RELEASED_PARTS_OF_FASEG = {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder4ScalesFASeg",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoderFASeg",
}


def is_faseg(faseg):
    return (faseg.POSITIONAL_QUERY, faseg.KEY_POSITION, faseg.HIGH_RES.ATTENTION, faseg.MASK_THRESHOLD) == (
        "dfpq",
        "conditional",
        "hrca",
        0.15,
    )


def test_released_leaf_replaces_the_parts_of_its_base(tmp_path):
    write(tmp_path / "base.yaml", RELEASED_BASELINE)
    sections = [key.split(".") for key in RELEASED_PARTS_OF_FASEG]
    parts = {section: {leaf: RELEASED_PARTS_OF_FASEG[f"MODEL.{section}.{leaf}"]} for _, section, leaf in sections}
    leaf = write(tmp_path / "leaf.yaml", yaml.safe_dump({"_BASE_": "base.yaml", "MODEL": parts}))
    cfg = fasegr.load_cfg(leaf, CPU)
    assert is_faseg(cfg.MODEL.FASEG)
    assert cfg.MODEL.BACKBONE.NAME == "build_fasegr_swin_backbone"


def test_released_names_on_the_command_line(tmp_path):
    path = write(tmp_path / "base.yaml", RELEASED_BASELINE)
    options = [part for pair in RELEASED_PARTS_OF_FASEG.items() for part in pair]
    cfg = fasegr.load_cfg(path, [*CPU, "MODEL.META_ARCHITECTURE", "MaskFormer", *options])
    assert is_faseg(cfg.MODEL.FASEG)
    cfg = fasegr.load_cfg(path, [*CPU, *options, "MODEL.FASEG.MASK_THRESHOLD", "0.3"])
    assert cfg.MODEL.FASEG.MASK_THRESHOLD == 0.3
    with pytest.raises(ValueError, match=r"command line: .*DECODER_NAME is 'PixelShuffler'; the released names"):
        fasegr.load_cfg(path, [*CPU, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "PixelShuffler"])


def test_released_swin_is_understood(tmp_path):
    swin = """{EMBED_DIM: 128, DEPTHS: [2, 2, 18, 2], NUM_HEADS: [4, 8, 16, 32], WINDOW_SIZE: 12, APE: False,
              DROP_PATH_RATE: 0.3, PATCH_NORM: True, PRETRAIN_IMG_SIZE: 384}"""
    write(tmp_path / "base.yaml", RELEASED_FASEG)
    text = f"_BASE_: base.yaml\nMODEL: {{BACKBONE: {{NAME: D2SwinTransformer}}, SWIN: {swin}}}\n"
    cfg = fasegr.load_cfg(write(tmp_path / "swin.yaml", text), CPU)
    assert cfg.MODEL.BACKBONE.NAME == "build_fasegr_swin_backbone"
    assert (cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.WINDOW_SIZE) == (128, 12)
