import textwrap
from pathlib import Path

import pytest
import yaml

import fasegr
from fasegr.config import read_yaml

ROOT = Path(__file__).parents[1]
R50 = ROOT / "configs/ade20k/semantic-segmentation/faseg_r50.yaml"
CPU = ["MODEL.DEVICE", "cpu"]


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_config_loads(path):
    cfg = fasegr.load_cfg(path, CPU)
    assert cfg.MODEL.META_ARCHITECTURE == "FASeg"


def test_leaf_goes_before_base_and_options_before_both(tmp_path):
    write(tmp_path / "base.yaml", "SOLVER: {MAX_ITER: 7, IMS_PER_BATCH: 3}\n")
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\n")
    cfg = fasegr.load_cfg(leaf, [*CPU, "SOLVER.IMS_PER_BATCH", "5"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (8, 5)


def test_bases_are_merged_in_order_and_the_leaf_last(tmp_path):
    write(tmp_path / "a.yaml", "SOLVER: {MAX_ITER: 7, IMS_PER_BATCH: 3, STEPS: [5]}\n")
    write(tmp_path / "b.yaml", "SOLVER: {MAX_ITER: 8, IMS_PER_BATCH: 4}\n")
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: [a.yaml, b.yaml]\nSOLVER: {MAX_ITER: 9}\n")
    solver = read_yaml(leaf)["SOLVER"]
    assert (solver["MAX_ITER"], solver["IMS_PER_BATCH"], solver["STEPS"]) == (9, 4, [5])


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


def test_released_names_are_understood(tmp_path):
    cfg = fasegr.load_cfg(write(tmp_path / "released.yaml", RELEASED_FASEG), CPU)
    assert cfg.MODEL.BACKBONE.NAME == "build_fasegr_resnet_backbone"
    assert cfg.MODEL.SEM_SEG_HEAD.NAME == "FASegHead"
    assert cfg.MODEL.FASEG.POSITIONAL_QUERY == "dfpq"
    assert list(cfg.INPUT.MIN_SIZE_TRAIN)[:3] == [256, 307, 358]
    assert list(cfg.INPUT.MIN_SIZE_TRAIN)[-1] == 1024
    assert tuple(cfg.INPUT.CROP.SIZE) == (512, 512)
    assert tuple(cfg.DATASETS.TRAIN) == ("ade20k_sem_seg_train",)


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
    with pytest.raises(ValueError, match=r"command line: .*DECODER_NAME is 'PixelShuffler'; of the released names"):
        fasegr.load_cfg(path, [*CPU, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "PixelShuffler"])


def test_steps_without_a_schedule_mean_that_of_detectron2(tmp_path):
    path = write(tmp_path / "coco.yaml", "SOLVER: {STEPS: [30, 40], MAX_ITER: 50}\n")
    assert fasegr.load_cfg(path, CPU).SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
    path = write(tmp_path / "poly.yaml", "SOLVER: {STEPS: [30, 40], LR_SCHEDULER_NAME: WarmupPolyLR}\n")
    assert fasegr.load_cfg(path, CPU).SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR"


def test_released_swin_is_understood(tmp_path):
    swin = """{EMBED_DIM: 128, DEPTHS: [2, 2, 18, 2], NUM_HEADS: [4, 8, 16, 32], WINDOW_SIZE: 12, APE: False,
              DROP_PATH_RATE: 0.3, PATCH_NORM: True, PRETRAIN_IMG_SIZE: 384}"""
    write(tmp_path / "base.yaml", RELEASED_FASEG)
    text = f"_BASE_: base.yaml\nMODEL: {{BACKBONE: {{NAME: D2SwinTransformer}}, SWIN: {swin}}}\n"
    cfg = fasegr.load_cfg(write(tmp_path / "swin.yaml", text), CPU)
    assert cfg.MODEL.BACKBONE.NAME == "build_fasegr_swin_backbone"
    assert (cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.WINDOW_SIZE) == (128, 12)


def test_swin_keys_are_checked_where_they_are_used():
    opts = [*CPU, "MODEL.SWIN.DEPTHS", [2, 2], "MODEL.SWIN.NUM_HEADS", [3, 5, 12, 24], "MODEL.SWIN.WINDOW_SIZE", 0]
    fasegr.load_cfg(R50, opts)
    with pytest.raises(ValueError, match=r"(?s)DEPTHS is \[2, 2\].*NUM_HEADS\[1\] is 5.*WINDOW_SIZE is 0"):
        fasegr.load_cfg(R50, [*opts, "MODEL.BACKBONE.NAME", "build_fasegr_swin_backbone"])
    with pytest.raises(ValueError, match=r"PATCH_SIZE is 2; it must be 4"):
        fasegr.load_cfg(R50, [*CPU, "MODEL.SWIN.PATCH_SIZE", 2])


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:eval [\"__import__('os').system('touch {witness}')\"]",
        "!!python/object/apply:os.system ['touch {witness}']",
        "!!python/name:os.system",
    ],
)
def test_yaml_never_runs_code(tmp_path, value):
    witness = tmp_path / "witness"
    path = write(tmp_path / "evil.yaml", f"INPUT:\n  MIN_SIZE_TRAIN: {value.format(witness=witness)}\n")
    with pytest.raises(ValueError, match=r"evil\.yaml is not YAML that can be read safely"):
        fasegr.load_cfg(path)
    assert not witness.exists()


def test_class_file_is_relative_to_the_yaml_that_names_it(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "base.yaml", "DATASETS: {FOLDER: {NAME: x, CLASSES: names.txt}}\n")
    leaf = write(tmp_path / "leaf.yaml", "_BASE_: data/base.yaml\n")
    assert read_yaml(leaf)["DATASETS"]["FOLDER"]["CLASSES"] == str((tmp_path / "data" / "names.txt").resolve())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.FASEG.OMEGA", 3], r"MODEL\.FASEG\.OMEGA does not exist"),
        (["MODEL.FASEG.HIGH_RES.OMEGAS", 3], r"did you mean MODEL\.FASEG\.HIGH_RES\.OMEGA\?"),
        (["SOLVER.MAX_ITER"], "no partner"),
        (["SOLVER.MAX_ITER", "soon"], "MAX_ITER"),
        (["MODEL.FASEG.HIGH_RES.OMEGA", 0], r"OMEGA is 0; it must be an int >= 1"),
        (["MODEL.FASEG.POSITIONAL_QUERY", "psychic"], "'dfpq' or 'learnable'"),
        (["MODEL.FASEG.MASK_THRESHOLD", 1.5], "between 0 and 1"),
        (["MODEL.FASEG.HIGH_RES.SELECTION", "pixel", "MODEL.FASEG.HIGH_RES.ATTENTION", "random"], "only hrca selects"),
        (["MODEL.FASEG.HIGH_RES.SELECTION", "pixel", "MODEL.FASEG.HIGH_RES.ATTENTION", "rcda"], "only hrca selects"),
        (["MODEL.FASEG.HIGH_RES.LEVELS", [8, 4]], r"LEVELS is \[8, 4\]; it must be \[4\] or \[8\] or \[4, 8\]"),
        (["MODEL.FASEG.HIGH_RES.LEVELS", [8], "MODEL.FASEG.HIGH_RES.ATTENTION", "none"], "with ATTENTION 'none'"),
        (["MODEL.FASEG.KEY_POSITION", "psychic"], "'conditional' or 'sinusoidal' or 'learnable'"),
        (["MODEL.MASK_FORMER.DEC_LAYERS", 1], "DEC_LAYERS is 1"),
        (["MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 48], "multiple of 32"),
        (["MODEL.MASK_FORMER.NHEADS", 7], "must divide the 256 channels"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", 100], "multiple of 32"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", 128], "must be equal"),
        (["MODEL.MASK_FORMER.PRE_NORM", True], "PRE_NORM is True"),
        (["SOLVER.ACCUMULATE", 3], "must divide SOLVER.IMS_PER_BATCH, which is 16"),
        (["SOLVER.AMP.DTYPE", "float8"], "'float16' or 'bfloat16'"),
        (["INPUT.FORMAT", "BGR"], "'RGB'"),
        (["MODEL.DEVICE", "abacus"], "one of cuda, cpu"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0], "NUM_CLASSES is 0"),
    ],
)
def test_values_that_cannot_work(opts, message):
    with pytest.raises(ValueError, match=message):
        fasegr.load_cfg(R50, [*CPU, *opts])


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match=r"(?s)OMEGA is 0.*DEC_LAYERS is 1"):
        fasegr.load_cfg(R50, [*CPU, "MODEL.FASEG.HIGH_RES.OMEGA", 0, "MODEL.MASK_FORMER.DEC_LAYERS", 1])


def test_files_that_are_not_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        fasegr.load_cfg(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="is a mapping"):
        fasegr.load_cfg(write(tmp_path / "list.yaml", "- 1\n"))
    with pytest.raises(ValueError, match=r"MODEL\.FASEG is a section, not a value"):
        fasegr.load_cfg(write(tmp_path / "flat.yaml", "MODEL: {FASEG: 3}\n"))
    with pytest.raises(ValueError, match="read safely"):
        fasegr.load_cfg(write(tmp_path / "torn.yaml", "MODEL: {FASEG: [3\n"))


def test_a_dump_loads_again(tmp_path):
    cfg = fasegr.load_cfg(R50, [*CPU, "SEED", 3])
    again = fasegr.load_cfg(write(tmp_path / "config.yaml", cfg.dump()))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_missing_gpu_is_said_and_the_cpu_used(monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fasegr.load_cfg(R50).MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE is cuda" in caplog.text
