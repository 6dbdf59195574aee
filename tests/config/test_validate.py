from pathlib import Path

import pytest

import fasegr

R50 = Path(__file__).parents[2] / "configs/ade20k/semantic-segmentation/faseg_r50.yaml"
CPU = ["MODEL.DEVICE", "cpu"]
SWIN = ["MODEL.BACKBONE.NAME", "build_fasegr_swin_backbone"]
TIMM = ["MODEL.BACKBONE.NAME", "build_timm_backbone"]
WINDOW = ["TEST.SLIDING_WINDOW.ENABLED", True]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
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
        (["MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False], "INSTANCE_ON are all False"),
        (["MODEL.RESNETS.DEPTH", 42], "DEPTH is 42; it must be 18 or 34 or 50 or 101"),
        (["MODEL.RESNETS.NORM", "LN"], "NORM is 'LN'; it must be 'FrozenBN' or 'BN' or"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res7"]], r"RESNETS\.OUT_FEATURES is \['res7'\]"),
        (["MODEL.RESNETS.NUM_GROUPS", 32], "NUM_GROUPS is 32; it must be 1"),
        (["MODEL.RESNETS.RES5_MULTI_GRID", [1, 2, 4]], r"RES5_MULTI_GRID is \[1, 2, 4\]"),
        (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]], "DEFORM_ON_PER_STAGE is"),
        (["MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.RESNETS.NORM", "BN"], "FREEZE_AT is 2 with MODEL.RESNETS.NORM 'BN'"),
        ([*SWIN, "MODEL.BACKBONE.FREEZE_AT", 2], "FREEZE_AT is 2; it must be 0"),
        ([*TIMM, "MODEL.BACKBONE.FREEZE_AT", 1], "FREEZE_AT is 1; it must be 0"),
        ([*SWIN, "MODEL.SWIN.PATCH_SIZE", 2], "PATCH_SIZE is 2; it must be 4"),
        ([*SWIN, "MODEL.SWIN.OUT_FEATURES", ["res7"]], r"SWIN\.OUT_FEATURES is \['res7'\]"),
        ([*SWIN, "MODEL.SWIN.DROP_PATH_RATE", 1.0], r"DROP_PATH_RATE is 1\.0; it is a probability"),
        ([*SWIN, "MODEL.SWIN.PRETRAIN_IMG_SIZE", 3], "PRETRAIN_IMG_SIZE is 3; it must be an int >= 4"),
        ([*SWIN, "MODEL.SWIN.MLP_RATIO", 0.0], r"MLP_RATIO is 0\.0; it must be > 0"),
        (["INPUT.CROP.TYPE", "round"], "TYPE is 'round'; it must be 'absolute' or"),
        (["INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [0.5, 2.0]], r"two shares of the image in \(0, 1\]"),
        (["INPUT.CROP.SIZE", [512]], r"SIZE is \(512,\) with TYPE 'absolute'; it must be two sizes in pixels"),
        (["INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", [64, 32]], "takes the smaller size first"),
        (["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0], r"MAX_AREA is 0\.0; it must be in \(0, 1\]"),
        (["INPUT.IMAGE_SIZE", 0], "IMAGE_SIZE is 0"),
        (["INPUT.MIN_SCALE", 3.0], r"MIN_SCALE is 3\.0 and MAX_SCALE 2\.0"),
        (["SOLVER.WARMUP_METHOD", "burnin"], "WARMUP_METHOD is 'burnin'; it must be 'linear' or 'constant'"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "layer"], "CLIP_TYPE is 'layer'"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0], r"CLIP_VALUE is 0\.0; it must be > 0"),
        ([*WINDOW, "TEST.SLIDING_WINDOW.SIZE", [512]], r"SIZE is \[512\]; it must be height and width"),
        ([*WINDOW, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True], "cannot be merged across windows"),
        (
            ["TEST.AUG.ENABLED", True, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False],
            "only semantic scores are averaged",
        ),
        ([*WINDOW, "TEST.SLIDING_WINDOW.OVERLAP", 1.0], r"OVERLAP is 1\.0; .* below 1"),
        ([*WINDOW, "MODEL.MASK_FORMER.TEST.INSTANCE_ON", True], "cannot be merged across windows"),
    ],
)
def test_values_that_cannot_work(opts, message):
    with pytest.raises(ValueError, match=message):
        fasegr.load_cfg(R50, [*CPU, *opts])


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match=r"(?s)DEC_LAYERS is 1.*OMEGA is 0"):
        fasegr.load_cfg(R50, [*CPU, "MODEL.FASEG.HIGH_RES.OMEGA", 0, "MODEL.MASK_FORMER.DEC_LAYERS", 1])


def test_keys_of_a_backbone_are_checked_if_it_is_used():
    opts = [*CPU, "MODEL.SWIN.DEPTHS", [2, 2], "MODEL.SWIN.NUM_HEADS", [3, 5, 12, 24], "MODEL.SWIN.WINDOW_SIZE", 0]
    fasegr.load_cfg(R50, opts)
    with pytest.raises(ValueError, match=r"(?s)DEPTHS is \[2, 2\].*NUM_HEADS\[1\] is 5.*WINDOW_SIZE is 0"):
        fasegr.load_cfg(R50, [*opts, *SWIN])
