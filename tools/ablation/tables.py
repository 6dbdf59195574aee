"""Tables 3 to 8 of the paper: their rows, the numbers printed there, and how to apply a row to another base config.

A row is defined by its config file `configs/ade20k/semantic-segmentation/ablations/TABLE_ROW.yaml`. Here are its name,
its label in the paper and the paper's results. A row on another base config, such as a small one for a CPU, is that
base with the changes that the row's file makes to the recipe of its table.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fasegr import load_cfg
from fasegr.config.packaged import packaged_configs
from fasegr.utils.nested import flatten, lookup

__all__ = [
    "CONFIGS",
    "TABLES",
    "PaperResult",
    "Row",
    "Table",
    "differences",
    "flat_config",
    "overrides",
    "overrides_on_base",
    "row_name",
    "row_of_file",
    "table",
]

CONFIGS = packaged_configs()
ADE20K = CONFIGS / "ade20k/semantic-segmentation"
LAYERS = "MODEL.MASK_FORMER.DEC_LAYERS"


class PaperResult(NamedTuple):
    """The paper's numbers: mIoU on ADE20K val and on Cityscapes val in %, parameters in M, multiply-adds of a
    512 x 512 image in G, memory of training with 4 such images in MB."""

    miou: float | None = None
    cityscapes: float | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    memory: int | None = None


class Row(NamedTuple):
    """name: of its file and of the folder of its runs. cells: its labels in the printed table, one for each entry of
    the table's header. column: where several rows share a printed line, the column of this one's score."""

    name: str
    cells: tuple[str, ...]
    paper: PaperResult = PaperResult()
    column: str = ""
    file: Path | None = None  # of a user's own row


class Table(NamedTuple):
    """name: as in file names. header: of the cells of its rows. recipe: the config that its rows change."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    recipe: Path = ADE20K / "faseg_r50.yaml"

    def file(self, row: Row, folder: Path = ADE20K / "ablations") -> Path:
        return row.file or folder / f"{self.name}_{row.name}.yaml"


TABLES = {
    "3": Table(
        "table3",
        "Effect of the key positions K_p",
        ("K_p",),
        tuple(
            Row(f"{model.lower()}_{name}", (cell,), PaperResult(score), column=model)
            for model, scores in (("Mask2Former", (47.2, 47.0, 47.3)), ("FASeg", (46.9, 47.5, 48.3)))
            for name, cell, score in zip(
                ("sinusoidal", "learnable", "conditional"),
                ("Sinusoidal", "Learnable absolute", "Conditional"),
                scores,
                strict=True,
            )
        ),
    ),
    "4": Table(
        "table4",
        "DFPQ and HRCA",
        ("DFPQ", "HRCA"),
        (
            Row("mask2former", ("", ""), PaperResult(47.2, 79.4, 44, 71)),
            Row("dfpq", ("✓", ""), PaperResult(47.7, 80.0, 44, 71)),
            Row("hrca", ("", "✓"), PaperResult(47.6, 79.8, 50, 72)),
            Row("dfpq_hrca", ("✓", "✓"), PaperResult(48.3, 80.5, 51, 72)),
        ),
    ),
    "5": Table(
        "table5",
        "DFPQ and other positional queries",
        ("Method",),
        (
            Row("learnable", ("Learnable positional queries",), PaperResult(46.9)),
            Row("grid_anchor", ("Pre-defined grid anchor positional queries",), PaperResult(46.6)),
            Row("dynamic_anchor", ("Dynamic anchor positional queries",), PaperResult(47.0)),
            Row("dynamic_foreground", ("Dynamic foreground positional queries",), PaperResult(47.8)),
            Row("dfpq", ("DFPQ",), PaperResult(48.3)),
        ),
    ),
    "6": Table(
        "table6",
        "HRCA and other efficient cross-attention",
        ("Method",),
        (
            Row("vanilla", ("Vanilla",), PaperResult(47.3, memory=7451, multiply_adds=83)),
            Row("random", ("Random Ω",), PaperResult(46.7, memory=6343, multiply_adds=72)),
            Row("rcda", ("RCDA",), PaperResult(47.5, memory=6082, multiply_adds=72)),
            Row("hrca", ("HRCA",), PaperResult(48.3, memory=6343, multiply_adds=72)),
        ),
    ),
    "7": Table(
        "table7",
        "Effect of the number of attended pixels",
        ("Size of Ω",),
        (
            Row("omega_1", ("HW",), PaperResult(47.3, memory=7451, multiply_adds=83)),
            Row("omega_16", ("⌊HW/16⌋",), PaperResult(47.7, memory=6381, multiply_adds=72)),
            Row("omega_32", ("⌊HW/32⌋",), PaperResult(48.3, memory=6343, multiply_adds=72)),
            Row("omega_64", ("⌊HW/64⌋",), PaperResult(48.0, memory=6317, multiply_adds=71)),
        ),
    ),
    "8": Table(
        "table8",
        "HRCA on other high-resolution levels, Swin-B",
        ("1/4", "1/8"),
        (
            Row("levels_4", ("✓", ""), PaperResult(55.0, memory=20418)),
            Row("levels_4_8", ("✓", "✓"), PaperResult(54.9, memory=19898)),
            Row("levels_8", ("", "✓"), PaperResult(54.8, memory=17817)),
        ),
        recipe=ADE20K / "swin/faseg_swin_base_IN21k_res640.yaml",
    ),
    "beyond": Table(
        "beyond",
        "Where the paper's text and the release differ, and the mask threshold",
        ("Method",),
        (
            Row("release", ("As released",), PaperResult(48.3)),
            Row("pixel", ("Ω of single pixels, bilinear (paper's text)",)),
            Row("foreground", ("First query from the foreground (paper's text)",)),
            Row("dynamic", ("DFPQ in the 1/4 block too (paper's text)",)),
            Row("paper_text", ("All three",)),
            Row("threshold_0.05", ("Mask threshold 0.05",)),
            Row("threshold_0.3", ("Mask threshold 0.3",)),
            Row("threshold_0.5", ("Mask threshold 0.5, as in Mask2Former",)),
        ),
    ),
}


def table(name: str) -> Table:
    """The table with that name on the command line. Raises ValueError if there is none."""
    if name not in TABLES:
        raise ValueError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
    return TABLES[name]


def row_of_file(path: Path) -> Row:
    """A user's own row: a config whose `_BASE_` is a table's recipe."""
    if not path.is_file():
        raise FileNotFoundError(f"the row {path} is neither a row of the table nor a config file that exists")
    return Row(path.stem, (path.stem,), file=path.resolve())


def row_name(table: Table, row: Row) -> str:
    """The row's name in one line, for plots."""
    if set(row.cells) <= {"", "✓"}:
        ticked = [name for name, cell in zip(table.header, row.cells, strict=True) if cell]
        return " and ".join(ticked) or "Neither"
    return " ".join(filter(None, (row.column, *row.cells)))


def flat_config(cfg: Mapping) -> dict[str, Any]:
    """{"A": {"B": 1}} to {"A.B": 1}, with tuples as lists, as in JSON and YAML."""
    return {key: _lists(value) for key, value in flatten(cfg).items()}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def differences(path: Path, recipe: Path) -> dict[str, Any]:
    """Keys in which the config `path` differs from `recipe`, with its values; without OUTPUT_DIR."""
    theirs, ours = _read(recipe), _read(path)
    return {key: value for key, value in ours.items() if value != theirs[key] and key != "OUTPUT_DIR"}


@functools.cache  # a study needs the same few files for each of its rows
def _read(path: Path) -> dict[str, Any]:
    return flat_config(load_cfg(path, ["MODEL.DEVICE", "cpu"]))


def overrides(table: Table, row: Row) -> dict[str, Any]:
    """What the row changes in the table's recipe."""
    return differences(table.file(row), table.recipe)


def overrides_on_base(table: Table, row: Row, base: Mapping) -> dict[str, Any]:
    """What the row changes in `base`, the config (a CfgNode) of another FASeg than the table's recipe.

    These are all keys that some row of the table changes, with this row's values, whatever the base has. Only the
    number of layers is not copied. A row without the 1/4 level has fewer layers: three instead of four in each round,
    and none after the last round. The number of rounds is the base's, so the recipe's 13 layers (three rounds of four,
    and one) become 9 (three rounds of three), and the 5 of a small model (one round of four, and one) become 3.
    """
    changed = {key for other in (*table.rows, row) for key in overrides(table, other)}
    own = _read(table.file(row))
    changes = {key: own[key] for key in sorted(changed)}
    if LAYERS in changes:
        changes[LAYERS] = _layers(changes[LAYERS], _read(table.recipe)[LAYERS], lookup(base, LAYERS))
    return changes


def _layers(row: int, recipe: int, base: int) -> int:
    """DEC_LAYERS of a row on a base. The key also counts the prediction from the learnable queries."""
    if row == recipe:
        return base
    levels = 4  # of FASeg, which recipe and base are
    rounds = (recipe - 1) // levels
    per_round, after = divmod(row - 1, rounds)
    base_rounds = (base - 1) // levels
    if base_rounds < 1:
        raise ValueError(
            f"{LAYERS} of the base config is {base}, less than one round of {levels} levels, which a row of {row - 1} "
            f"layers cannot be applied to; it must be at least {levels + 1}"
        )
    return 1 + base_rounds * per_round + after
