import re
from pathlib import Path

import pytest

import fasegr
from fasegr.config import add_fasegr_config
from fasegr.config.validate import BACKBONES, KEYS, problems
from fasegr.d2 import get_cfg
from fasegr.utils.nested import flatten, lookup

R50 = Path(__file__).parents[2] / "configs/ade20k/semantic-segmentation/faseg_r50.yaml"
CPU = ["MODEL.DEVICE", "cpu"]
SWIN = ["MODEL.BACKBONE.NAME", "build_fasegr_swin_backbone"]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone"]
VIT = ["MODEL.BACKBONE.NAME", "build_timm_vit_backbone", "MODEL.VIT.NAME", "vit_small_patch16_dinov3"]
ENCODER_MAPS = "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"
PANOPTIC_ONLY = ["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False, "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", True]
CHECKPOINTING = ["SOLVER.GRADIENT_CHECKPOINTING", True]
WINDOW = ["TEST.SLIDING_WINDOW.ENABLED", True]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.FASEG.HIGH_RES.OMEGA", 0], r"OMEGA is 0; it must be an int >= 1"),
        (["MODEL.FASEG.POSITIONAL_QUERY", "psychic"], "'dfpq' or 'learnable'"),
        (["MODEL.FASEG.MASK_THRESHOLD", 1.5], r"MASK_THRESHOLD is 1\.5; it must be a number in \(0, 1\)"),
        (["MODEL.FASEG.HIGH_RES.SELECTION", "pixel", "MODEL.FASEG.HIGH_RES.ATTENTION", "random"], "only hrca selects"),
        (["MODEL.FASEG.HIGH_RES.SELECTION", "pixel", "MODEL.FASEG.HIGH_RES.ATTENTION", "rcda"], "only hrca selects"),
        (["MODEL.FASEG.HIGH_RES.LEVELS", [8, 4]], r"LEVELS is \[8, 4\]; it must be \[4\] or \[8\] or \[4, 8\]"),
        (
            ["MODEL.FASEG.HIGH_RES.LEVELS", [8], "MODEL.FASEG.HIGH_RES.ATTENTION", "none"],
            "ATTENTION 'none'; LEVELS is not used",
        ),
        (["MODEL.FASEG.KEY_POSITION", "psychic"], "'conditional' or 'sinusoidal' or 'learnable'"),
        (["MODEL.MASK_FORMER.DEC_LAYERS", 1], "DEC_LAYERS is 1"),
        (["MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 48], "multiple of 32"),
        (["MODEL.MASK_FORMER.NHEADS", 7], "NHEADS is 7 with MODEL.MASK_FORMER.HIDDEN_DIM 256; the heads must divide"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", 100], "multiple of 32"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", 128], "must be equal"),
        (["MODEL.MASK_FORMER.PRE_NORM", True], "PRE_NORM is True"),
        (["SOLVER.ACCUMULATE", 3], "ACCUMULATE is 3 with SOLVER.IMS_PER_BATCH 16; it must divide"),
        (["SOLVER.AMP.DTYPE", "float8"], "'float16' or 'bfloat16'"),
        ([*SWIN, "MODEL.SWIN.USE_CHECKPOINT", True, *CHECKPOINTING], "set USE_CHECKPOINT False"),
        (["SOLVER.PATIENCE", 3, "TEST.EVAL_PERIOD", 0], "PATIENCE is 3 with TEST.EVAL_PERIOD 0 .*must be above 0"),
        (["SOLVER.PATIENCE", 3, "DATASETS.TEST", ()], "with a dataset in DATASETS.TEST"),
        (["TRACKERS", ["tensorboard"]], "TRACKERS is .*'wandb' or 'mlflow'"),
        (["SPEED.COMPILE", True, *CHECKPOINTING], "torch.compile cannot follow it"),
        (["INPUT.FORMAT", "BGR"], "'RGB'"),
        (["MODEL.DEVICE", "abacus"], "one of cuda, cpu"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0], "NUM_CLASSES is 0"),
        (["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False], "INSTANCE_ON False; set one of them to True"),
        (["MODEL.RESNETS.DEPTH", 42], "DEPTH is 42; it must be 18 or 34 or 50 or 101"),
        (["MODEL.RESNETS.NORM", "LN"], "NORM is 'LN'; it must be 'FrozenBN' or 'BN' or"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res7"]], r"RESNETS\.OUT_FEATURES is \['res7'\]"),
        (["MODEL.RESNETS.NUM_GROUPS", 32], "NUM_GROUPS is 32; it must be 1"),
        (["MODEL.RESNETS.RES5_MULTI_GRID", [1, 2, 4]], r"RES5_MULTI_GRID is \[1, 2, 4\]"),
        (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]], "DEFORM_ON_PER_STAGE is"),
        (["MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.RESNETS.NORM", "BN"], "FREEZE_AT is 2 with MODEL.RESNETS.NORM 'BN'"),
        ([*SWIN, "MODEL.BACKBONE.FREEZE_AT", 2], "FREEZE_AT is 2 with .*swin_backbone'; it must be 0"),
        ([*TIMM, "MODEL.BACKBONE.FREEZE_AT", 1], "FREEZE_AT is 1 with .*timm_backbone'; it must be 0"),
        ([*VIT, "MODEL.BACKBONE.FREEZE_AT", 1], "it must be 0 there; MODEL.BACKBONE.FREEZE freezes stages of any"),
        (["MODEL.BACKBONE.FREEZE", "norms"], "FREEZE is 'norms'; it must be an int .* or 'all' or 'all but norms'"),
        (["MODEL.BACKBONE.FREEZE", "all but norms"], "NORM 'FrozenBN'; there is no norm to train"),
        (["SOLVER.LAYER_DECAY", 0], r"LAYER_DECAY is 0.*; it must be a number in \(0, 1\]; 1 is none"),
        ([*VIT, "MODEL.VIT.NAME", " "], "VIT.NAME is ' '; it must be a line of text that is not empty"),
        ([*SWIN, "MODEL.SWIN.PATCH_SIZE", 2], "PATCH_SIZE is 2; it must be 4"),
        ([*SWIN, "MODEL.SWIN.OUT_FEATURES", ["res7"]], r"SWIN\.OUT_FEATURES is \['res7'\]"),
        ([*SWIN, "MODEL.SWIN.DROP_PATH_RATE", 1.0], r"DROP_PATH_RATE is 1\.0; it must be a number in \[0, 1\)"),
        ([*SWIN, "MODEL.SWIN.PRETRAIN_IMG_SIZE", 3], "PRETRAIN_IMG_SIZE is 3; it must be an int >= 4"),
        ([*SWIN, "MODEL.SWIN.MLP_RATIO", 0.0], r"MLP_RATIO is 0\.0; it must be a number in \(0, 100\]"),
        (["INPUT.CROP.TYPE", "round"], "TYPE is 'round'; it must be 'absolute' or"),
        (["INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [0.5, 2.0]], r"two shares of the image in \(0, 1\]"),
        (["INPUT.CROP.SIZE", [512]], r"SIZE is \[512\]; it must be a list of 2 values"),
        (["INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", [64, 32]], "absolute_range takes the smaller first"),
        (["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0], r"MAX_AREA is 0\.0; it must be a number in \(0, 1\]"),
        (["INPUT.IMAGE_SIZE", 0], "IMAGE_SIZE is 0"),
        (["INPUT.MIN_SCALE", 3.0], r"MIN_SCALE is 3\.0 with INPUT.MAX_SCALE 2\.0"),
        (["SOLVER.WARMUP_METHOD", "burnin"], "WARMUP_METHOD is 'burnin'; it must be 'linear' or 'constant'"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "layer"], "CLIP_TYPE is 'layer'"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0], r"CLIP_VALUE is 0\.0; it must be a number in \(0, "),
        ([*WINDOW, "TEST.SLIDING_WINDOW.SIZE", [512]], r"SIZE is \[512\]; it must be a list of 2 .*height and width"),
        ([*WINDOW, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True], "cannot be merged across windows"),
        (
            ["TEST.AUG.ENABLED", True, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False],
            "only semantic scores are averaged",
        ),
        (
            [*PANOPTIC_ONLY, *("TEST.AUG.ENABLED", True)],
            "AUG.ENABLED is True with MODEL.MASK_FORMER.TEST.SEMANTIC_ON False; only semantic scores",
        ),
        (["MODEL.BACKBONE.NAME", "build_abacus"], "'build_abacus'; no such backbone .* build_timm_backbone"),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4"]], r"\['res2', 'res3', 'res4'\]; it must be"),
        ([ENCODER_MAPS, ["res3", "res5"]], r"ENCODER_IN_FEATURES is \['res3', 'res5'\] with .*fewer of the coarsest"),
        ([ENCODER_MAPS, ["p5"]], r"ENCODER_IN_FEATURES is \['p5'\]"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"]], "they must name the same maps"),
        (["MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 48], "multiples of GN's 32 groups"),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 300], "IGNORE_VALUE is 255 .*must not be one of the classes"),
        (["DATASETS.FOLDER.SPLITS", ["a", "a"]], "each split must be named once"),
        (["INPUT.CROP.SIZE", [0.9, 0.9]], r"SIZE is \[0\.9, 0\.9\] .* whole pixels"),
        (["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"], "'range' takes two sizes"),
        (["SOLVER.NESTEROV", True, "SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0], "MOMENTUM must be above 0"),
        (
            [word for loss in ("CLASS", "DICE", "MASK") for word in (f"MODEL.MASK_FORMER.{loss}_WEIGHT", 0.0)],
            "one of them must be above 0",
        ),
        (["MODEL.MASK_FORMER.CLASS_WEIGHTS", [1, 2]], r"WEIGHTS is \[1, 2\] .*NUM_CLASSES 150; .* one number for each"),
        (["MODEL.MASK_FORMER.CLASS_WEIGHTS", "sqrt"], "CLASS_WEIGHTS is 'sqrt'; it must be 'inverse_sqrt' or a list"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], r"REPEAT_THRESHOLD is 0\.0 with .*LVIS 0\.001"),
        (["DATALOADER.REPEAT_THRESHOLD", 0.1], r"REPEAT_THRESHOLD is 0\.1 with DATALOADER\.SAMPLER_TRAIN 'TrainingS"),
        (["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"], "SAMPLER_TRAIN is 'RandomSubset"),
        (
            ["INPUT.CROP.RARE_CLASS_PROB", 0.5, "INPUT.CROP.ENABLED", False],
            r"PROB is 0\.5 with INPUT.CROP.ENABLED False",
        ),
        (
            ["INPUT.CROP.RARE_CLASS_PROB", 0.5, "INPUT.DATASET_MAPPER_NAME", "mask_former_instance"],
            r"'mask_former_instance'; only crops of mask_former_semantic",
        ),
        (["INPUT.AUGMENTATIONS", ["RandomRotation"]], r"AUGMENTATIONS is \['RandomRotation'\]; .*as \{RandomRotation"),
        # Each of these once trained.
        (["SOLVER.BASE_LR", -1e-4], r"BASE_LR is -0\.0001; it must be a number in \(0, "),
        (["SOLVER.WEIGHT_DECAY", -0.05], "WEIGHT_DECAY is -0"),
        (["SOLVER.BACKBONE_MULTIPLIER", -0.1], "BACKBONE_MULTIPLIER is -0"),
        (["MODEL.MASK_FORMER.DROPOUT", 1.0], r"DROPOUT is 1\.0; it must be a number in \[0, 1\)"),
        (["INPUT.MIN_SIZE_TRAIN", [0]], r"MIN_SIZE_TRAIN is \(0,\); it must be a list"),
        (["INPUT.MAX_SIZE_TEST", 0], "MAX_SIZE_TEST is 0; it must be an int >= 1"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", float("nan")], "CLIP_VALUE is nan"),
        (["SOLVER.POLY_LR_POWER", -1.0], r"POLY_LR_POWER is -1\.0"),
        (["MODEL.PIXEL_STD", [1.0, 0.0, 1.0]], r"PIXEL_STD is \[1\.0, 0\.0, 1\.0\]"),
        ([*WINDOW, "TEST.SLIDING_WINDOW.OVERLAP", 1.0], r"OVERLAP is 1\.0; it must be a number in \[0, 1\)"),
    ],
)
def test_values_that_cannot_work(opts, message):
    with pytest.raises(ValueError, match=message):
        fasegr.load_cfg(R50, [*CPU, *opts])


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match=r"(?s)DEC_LAYERS is 1.*OMEGA is 0"):
        fasegr.load_cfg(R50, [*CPU, "MODEL.FASEG.HIGH_RES.OMEGA", 0, "MODEL.MASK_FORMER.DEC_LAYERS", 1])


def test_keys_of_a_backbone_are_checked_if_it_is_used():
    opts = [*CPU, "MODEL.SWIN.DEPTHS", [2, 2], "MODEL.SWIN.NUM_HEADS", [3, 5, 12, 0], "MODEL.SWIN.WINDOW_SIZE", 0]
    fasegr.load_cfg(R50, opts)
    with pytest.raises(ValueError, match=r"(?s)DEPTHS is \[2, 2\].*NUM_HEADS is \[3, 5, 12, 0\].*WINDOW_SIZE is 0"):
        fasegr.load_cfg(R50, [*opts, *SWIN])


NAN, INF = float("nan"), float("inf")
NONSENSE = (
    *(NAN, INF, -INF, 10**30, -(10**30), 1e30, -1e30, None, True, False, "nonsense", "two\nlines", "byte \udcff", "\0"),
    *([], (), [NAN], [None], ["two\nlines"], [[1]], [-(10**30)] * 2, [10**30] * 3, [1e30] * 4, {}, {"a": 1}, b"", 1j),
)
# Sections and keys of detectron2 that are not read here.
NOT_READ = (
    "MODEL.(PROPOSAL_GENERATOR|ANCHOR_GENERATOR|RPN|ROI_.*|RETINANET|FPN|PANOPTIC_FPN)[.].*",
    "MODEL.(LOAD_PROPOSALS|MASK_ON|KEYPOINT_ON|SEM_SEG_HEAD.LOSS_WEIGHT|RESNETS.DEFORM_(MODULATED|NUM_GROUPS))",
    "INPUT.MASK_FORMAT|DATASETS.(PRECOMPUTED_)?PROPOSAL_.*|DATALOADER.ASPECT_RATIO_GROUPING",
    "SOLVER.(WEIGHT_DECAY_BIAS|BIAS_LR_FACTOR|NUM_DECAYS|RESCALE_INTERVAL)|TEST.(KEYPOINT_OKS_SIGMAS|PRECISE_BN.NUM_ITER)",
    "VERSION|VIS_PERIOD|GLOBAL.HACK",
)


@pytest.fixture(scope="module")
def defaults():
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.MODEL.TIMM.NAME = "convnext_tiny"
    cfg.MODEL.VIT.NAME = "vit_small_patch16_dinov3"
    return cfg


def test_every_key_is_checked_or_known_to_mean_nothing(defaults):
    every = set(flatten(defaults))
    not_read = {key for key in every if any(re.fullmatch(pattern, key) for pattern in NOT_READ)}
    assert every - not_read == set(KEYS)


def test_every_default_is_accepted(defaults):
    assert list(problems(defaults)) == []
    assert [key for key, allowed in KEYS.items() if not allowed.accepts(lookup(defaults, key))] == []


def is_sensible(default, value):
    """What may be accepted of NONSENSE for a key with this default."""
    if isinstance(default, bool):
        return value in (True, False) and isinstance(value, bool)
    if isinstance(default, str):
        return value == "nonsense"
    return value in ((), []) if isinstance(default, (tuple, list)) else default is value is None


@pytest.mark.parametrize("key", KEYS)
def test_nonsense_in_a_key_is_refused_with_its_name(defaults, key):
    cfg = defaults.clone()
    for start, backbone in BACKBONES.items():
        if key.startswith(start):
            cfg.MODEL.BACKBONE.NAME = backbone
    section, _, name = key.rpartition(".")
    section, default = lookup(cfg, section) if section else cfg, lookup(cfg, key)
    for value in NONSENSE:
        section[name] = value
        found = [problem for problem in problems(cfg) if key in problem]
        assert found or is_sensible(default, value), value
        assert all(re.search("must|there (are|is)", problem) for problem in found), "says what is allowed"


def test_problems_of_all_sources_and_kinds_are_named_at_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("SOLVER: {MAX_ITERS: 3, BASE_LR: fast}\nMODEL: {RPN: {NMS_THRESH: [1]}}\n")
    with pytest.raises(ValueError, match="cannot work") as error:
        fasegr.load_cfg(path, ["SOLVER.ACCUMULATE", "3", "SEED", "x", "SED", 3])
    for part in (
        "mine.yaml: the key SOLVER.MAX_ITERS does not exist; did you mean SOLVER.MAX_ITER?",
        "SOLVER.BASE_LR is 'fast'; it must be a number in (0, 1000] (0.0001 in the paper)",
        "mine.yaml: MODEL.RPN.NMS_THRESH is [1]; it must be of the type float, as 0.7",
        "SOLVER.ACCUMULATE is 3 with SOLVER.IMS_PER_BATCH 16; it must divide the batch",
        "SEED is 'x'; it must be an int >= -1",
        "command line: the key SED does not exist; did you mean SEED?",
    ):
        assert part in str(error.value)
