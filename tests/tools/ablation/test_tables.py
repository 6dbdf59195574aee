"""The tables against the paper, and their config files against the tables."""

import pytest

from fasegr import load_cfg
from tools.ablation.tables import (
    ADE20K,
    CONFIGS,
    TABLES,
    differences,
    flat_config,
    overrides,
    overrides_on_base,
    row_of_file,
    table,
)

pytestmark = pytest.mark.slow

FASEG = "MODEL.FASEG."
MASK2FORMER = {
    "MODEL.MASK_FORMER.DEC_LAYERS": 10,
    FASEG + "POSITIONAL_QUERY": "learnable",
    FASEG + "KEY_POSITION": "sinusoidal",
    FASEG + "MASK_THRESHOLD": 0.5,
    FASEG + "HIGH_RES.ATTENTION": "none",
}


def without(changes, *keys):
    return {key: value for key, value in changes.items() if key not in keys}


# What each row has otherwise than FASeg as released.
EXPECTED = {
    "table3": {
        "mask2former_sinusoidal": MASK2FORMER,
        "mask2former_learnable": MASK2FORMER | {FASEG + "KEY_POSITION": "learnable"},
        "mask2former_conditional": without(MASK2FORMER, FASEG + "KEY_POSITION"),
        "faseg_sinusoidal": {FASEG + "KEY_POSITION": "sinusoidal"},
        "faseg_learnable": {FASEG + "KEY_POSITION": "learnable"},
        "faseg_conditional": {},
    },
    "table4": {
        "mask2former": MASK2FORMER,
        "dfpq": without(MASK2FORMER, FASEG + "POSITIONAL_QUERY", FASEG + "KEY_POSITION"),
        "hrca": without(MASK2FORMER, FASEG + "HIGH_RES.ATTENTION", "MODEL.MASK_FORMER.DEC_LAYERS"),
        "dfpq_hrca": {},
    },
    "table5": {
        "learnable": {FASEG + "POSITIONAL_QUERY": "learnable"},
        "grid_anchor": {FASEG + "POSITIONAL_QUERY": "grid_anchor"},
        "dynamic_anchor": {FASEG + "POSITIONAL_QUERY": "dynamic_anchor"},
        "dynamic_foreground": {FASEG + "POSITIONAL_QUERY": "dynamic_foreground"},
        "dfpq": {},
    },
    "table6": {
        "vanilla": {FASEG + "HIGH_RES.ATTENTION": "vanilla"},
        "random": {FASEG + "HIGH_RES.ATTENTION": "random"},
        "rcda": {FASEG + "HIGH_RES.ATTENTION": "rcda"},
        "hrca": {},
    },
    "table7": {
        "omega_1": {FASEG + "HIGH_RES.ATTENTION": "vanilla"},
        "omega_16": {FASEG + "HIGH_RES.OMEGA": 16},
        "omega_32": {},
        "omega_64": {FASEG + "HIGH_RES.OMEGA": 64},
    },
    "table8": {
        "levels_4": {},
        "levels_4_8": {FASEG + "HIGH_RES.LEVELS": [4, 8]},
        "levels_8": {FASEG + "HIGH_RES.LEVELS": [8], "MODEL.MASK_FORMER.DEC_LAYERS": 10},
    },
    "beyond": {
        "release": {},
        "pixel": {FASEG + "HIGH_RES.SELECTION": "pixel"},
        "foreground": {FASEG + "FIRST_QUERY_REGION": "foreground"},
        "dynamic": {FASEG + "HIGH_RES.QUERY": "dynamic"},
        "paper_text": {
            FASEG + "HIGH_RES.SELECTION": "pixel",
            FASEG + "FIRST_QUERY_REGION": "foreground",
            FASEG + "HIGH_RES.QUERY": "dynamic",
        },
        "threshold_0.05": {FASEG + "MASK_THRESHOLD": 0.05},
        "threshold_0.3": {FASEG + "MASK_THRESHOLD": 0.3},
        "threshold_0.5": {FASEG + "MASK_THRESHOLD": 0.5},
    },
}
ROWS = [(each, row) for each in TABLES.values() for row in each.rows]
NAMES = [f"{each.name}-{row.name}" for each, row in ROWS]


@pytest.mark.parametrize(("each", "row"), ROWS, ids=NAMES)
def test_what_a_row_is(each, row):
    assert overrides(each, row) == EXPECTED[each.name][row.name]


def test_every_row_has_one_file_and_every_file_a_row():
    assert {each.file(row).name for each, row in ROWS} == {path.name for path in (ADE20K / "ablations").iterdir()}
    folders = [load_cfg(each.file(row), ["MODEL.DEVICE", "cpu"]).OUTPUT_DIR for each, row in ROWS]
    assert len(set(folders)) == len(folders)


def test_cityscapes_has_the_rows_of_table_4():
    cityscapes = CONFIGS / "cityscapes/semantic-segmentation"
    folder = cityscapes / "ablations"
    assert {path.name for path in folder.iterdir()} == {TABLES["4"].file(row).name for row in TABLES["4"].rows}
    for row in TABLES["4"].rows:
        changes = differences(TABLES["4"].file(row, folder), cityscapes / "faseg_r50.yaml")
        assert changes == overrides(TABLES["4"], row)


@pytest.mark.parametrize(("each", "row"), ROWS, ids=NAMES)
def test_a_row_carried_to_its_own_recipe_is_its_file(each, row):
    recipe = load_cfg(each.recipe, ["MODEL.DEVICE", "cpu"])
    options = [word for pair in overrides_on_base(each, row, recipe).items() for word in pair]
    carried = flat_config(load_cfg(each.recipe, ["MODEL.DEVICE", "cpu", *options]))
    own = flat_config(load_cfg(each.file(row), ["MODEL.DEVICE", "cpu"]))
    assert without(carried, "OUTPUT_DIR") == without(own, "OUTPUT_DIR")


def test_on_a_small_base_rounds_are_kept_and_omega_is_the_rows():
    small = load_cfg(CONFIGS / "quickstart/faseg_scenes.yaml", ["MODEL.DEVICE", "cpu"])  # one round of four, and one
    layers = "MODEL.MASK_FORMER.DEC_LAYERS"
    rows = {row.name: overrides_on_base(TABLES["4"], row, small)[layers] for row in TABLES["4"].rows}
    assert rows == {"mask2former": 4, "dfpq": 4, "hrca": 6, "dfpq_hrca": 6}
    small.MODEL.MASK_FORMER.DEC_LAYERS = 10  # two rounds of four, and one
    assert overrides_on_base(TABLES["4"], TABLES["4"].rows[0], small)[layers] == 1 + 2 * 3
    omegas = {
        row.name: overrides_on_base(TABLES["7"], row, small)[FASEG + "HIGH_RES.OMEGA"] for row in TABLES["7"].rows
    }
    assert omegas["omega_32"] == 32  # though the base has 8, and the row's file does not say it
    small.MODEL.MASK_FORMER.DEC_LAYERS = 4
    with pytest.raises(ValueError, match="DEC_LAYERS of the base config is 4"):
        overrides_on_base(TABLES["4"], TABLES["4"].rows[0], small)


def test_a_row_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {TABLES['5'].recipe}\nMODEL:\n  FASEG:\n    MASK_THRESHOLD: 0.2\n")
    small = load_cfg(CONFIGS / "quickstart/faseg_scenes.yaml", ["MODEL.DEVICE", "cpu"])
    changes = overrides_on_base(TABLES["5"], row_of_file(path), small)
    assert changes == {FASEG + "MASK_THRESHOLD": 0.2, FASEG + "POSITIONAL_QUERY": "dfpq"}
    with pytest.raises(FileNotFoundError, match="neither a row"):
        row_of_file(tmp_path / "nobody.yaml")


def test_unknown_table():
    with pytest.raises(ValueError, match="no table '9'; there are 3, 4"):
        table("9")
