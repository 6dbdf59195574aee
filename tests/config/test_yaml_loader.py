"""YAML files from strangers: each is read, or refused in one sentence that names the file."""

import os
import time

import pytest

import fasegr
from fasegr.config.load import read_yaml
from fasegr.config.yaml_loader import load_mapping

CPU = ["MODEL.DEVICE", "cpu"]
LAUGHS = "".join(f"L{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
SECTIONS = "".join(f"S{i}: &m{i} {{A: *m{i - 1}, B: *m{i - 1}}}\n" for i in range(1, 18))
MERGES = "".join(f"M{i}: &k{i}\n  <<: [{', '.join([f'*k{i - 1}'] * 9)}]\n" for i in range(1, 8))
EXPRESSION = "INPUT: {{MIN_SIZE_TRAIN: !!python/object/apply:eval ['{}']}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds nothing; a config file is a mapping"),
        ("# nothing\n---\n", "holds nothing"),
        ("- 1\n", "holds a list"),
        ("false\n", "holds a bool"),
        ("''\n", "holds a str"),
        ("SEED: 1\nSEED: 2\n", "line 2: the key 'SEED' is stated twice"),
        ("SOLVER:\n  MAX_ITER: 1\n  MAX_ITER: 2\n", "line 3: the key 'MAX_ITER' is stated twice"),
        ("SOLVER: {MAX_ITER: 1}\nSOLVER.MAX_ITER: 2\n", "line 2: the key 'SOLVER.MAX_ITER' has a dot"),
        ("SEED: 1\n1: 2\n", "line 2: a key that is no text"),
        ("null: 2\n", "line 1: a key that is no text"),
        ("on: 2\n", "line 1: a key that is no text"),
        ("? [a, b]\n: 2\n", "line 1: a key that is no text"),
        ("? {a: b}\n: 2\n", "line 1: a key that is no text"),
        ("SEED:\n\t- 1\n", "line 2: .*cannot start any token"),
        ("SEED: [1\n", "line 2: .*expected"),
        ("SEED: 1\n---\nSEED: 2\n", "line 2: .*another document"),
        ("SEED: *a\n", "line 1: .*undefined alias"),
        ("SEED: &a [*a]\n", r"line 1: the alias \*a stands within its own value"),
        ("MODEL: &a {FASEG: *a}\n", r"line 1: the alias \*a stands within its own value"),
        ("L0: &a0 [1]\n" + LAUGHS, "levels or 20000 values"),
        ("S0: &m0 {A: 1}\n" + SECTIONS, "levels or 20000 values"),
        ("M0: &k0 {A: 1}\n" + MERGES, "levels or 20000 values"),
        ("SEED: " + "[" * 100000, "line 1: more than 20 levels"),
        ("SEED: " + "{a: " * 5000, "line 1: more than 20 levels"),
        ("- " * 5000 + "1\n", "line 1: more than 20 levels"),
        ("SEED: [" + "1," * 30000 + "]\n", "line 1: more than 20 levels or 20000 values"),
        ("#" * 2**20 + "\nSEED: 1\n", "has more than 1048576 bytes"),
        ("SEED: !!set {a}\n", "the tag tag:yaml.org,2002:set is not understood"),
        ("SEED: !!int ''\n", "the tag .*int is not understood"),
        ("SEED: !!binary x\n", "the tag .*binary is not understood"),
        ("SEED: !mine 1\n", "the tag !mine is not understood"),
        ("SEED: " + "9" * 5000 + "\n", "line 1: not an int"),
        ("SEED: 0x_\n", "line 1: not an int"),
        ("SEED: 0x" + "f" * 9000 + "\n", "line 1: not an int"),
        ("SEED: *" + "a" * 9000 + "\n", "line 1: .*undefined alias"),
        ("SEED: !" + "a" * 9000 + " 1\n", "line 1: the tag"),
        ("SEED: \x00\n", "special characters are not allowed"),
        ("SEED: \udcff\n", "invalid start byte"),
        (EXPRESSION.format("[int(x * 0.1 * 512) for x in range(0, 300000000)]"), "line 1: the expression .*not run"),
        (EXPRESSION.format("[int(x * 0.1 * 99999999) for x in range(0, 3)]"), "line 1: the expression .*not run"),
        (EXPRESSION.format("9**9**9"), "line 1: the expression .*not run"),
        ("SEED: !!python/object/apply:eval {a: 1}\n", r"line 1: the expression \[None\] is not run"),
        ("DATASETS: [1]\n", "DATASETS is a section, not a value; its keys are COCO, FOLDER"),
        ("DATASETS:\n", "DATASETS is a section, not a value"),
        ("MODEL: {FASEG: null}\n", "MODEL.FASEG is a section, not a value"),
        ("DATASETS: {FOLDER: {CLASSES: [1]}}\n", r"FOLDER.CLASSES is \[1\]; it must be a line of text or a list of"),
        (
            "DATASETS: {FOLDER: {CLASSES: [[a, [1, 2]]]}}\n",
            r"FOLDER.CLASSES is .*; it must be a line of text or a list",
        ),
        ("DATASETS: {FOLDER: {CLASSES: null}}\n", "FOLDER.CLASSES is None; it must be a line of text"),
        ('DATASETS: {FOLDER: {CLASSES: "a\\0b"}}\n', "FOLDER.CLASSES is .*; it must be a line of text"),
        ("DATASETS: {COCO: {CATEGORIES: 3}}\n", "COCO.CATEGORIES is 3; it must be a line of text"),
        ("MODEL: {SEM_SEG_HEAD: {PIXEL_DECODER_NAME: [a]}}\n", r"PIXEL_DECODER_NAME is \['a'\]; the released names"),
        ("MODEL: {BACKBONE: {NAME: [a]}}\n", r"BACKBONE.NAME is \['a'\]; it must be a line of text"),
        ("MODEL: {BACKBONE: {NAME: {A: 1}}}\n", "MODEL.BACKBONE.NAME.A does not exist"),
        ("SOLVER: {BASE_LR: {A: 1}}\n", "SOLVER.BASE_LR.A does not exist"),
        ("SEED: 2024-13-45\n", "SEED is '2024-13-45'; it must be an int"),
        ("SOLVER: {BASE_LR: .nan}\n", "BASE_LR is nan; it must be a number"),
        ("SOLVER: {BASE_LR: 1e999}\n", "BASE_LR is inf; it must be a number"),
        ("_BASE_: null\n", "_BASE_ is None; it must be a file or a list of files"),
        ("_BASE_: 3\n", "_BASE_ is 3; it must be"),
        ("_BASE_: [3]\n", r"_BASE_ is \[3\]; it must be"),
        ("_BASE_: {a: b}\n", "_BASE_ is .*; it must be"),
        ("_BASE_: bad.yaml\n", "bad.yaml: its _BASE_ leads back to a file"),
        ("_BASE_: [./bad.yaml]\n", "bad.yaml: its _BASE_ leads back to a file"),
    ],
    ids=lambda value: value[:40],
)
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        fasegr.load_cfg(path, CPU)
    assert time.process_time() - start < 20, "it was expanded"
    assert len(str(error.value)) < 2000
    assert "bad.yaml" in str(error.value) or "; it must be" in str(error.value)


def test_many_unknown_keys_are_not_all_compared_with_all_keys(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("".join(f"KEY{i}: 1\n" for i in range(9000)))
    with pytest.raises(ValueError, match=r"bad\.yaml: the key KEY0 does not exist"):
        fasegr.load_cfg(path, CPU)


@pytest.mark.parametrize("base", ["absent.yaml", ".", "", "a" * 3000, "~nobody/x.yaml", "a\\0b"])
def test_a_base_that_is_no_file_is_named_with_its_user(tmp_path, base):
    (tmp_path / "leaf.yaml").write_text(f'_BASE_: "{base}"\n')
    with pytest.raises(FileNotFoundError, match=r"_BASE_ of .*leaf\.yaml, (does not exist|is a folder)"):
        fasegr.load_cfg(tmp_path / "leaf.yaml", CPU)


def test_folders_and_pipes_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        fasegr.load_cfg(tmp_path, CPU)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(FileNotFoundError, match=r"pipe\.yaml does not exist"):
        fasegr.load_cfg(tmp_path / "pipe.yaml", CPU)


def test_loops_and_long_chains_of_bases(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: [c.yaml, a.yaml]\n")
    (tmp_path / "c.yaml").write_text("SEED: 3\n")
    with pytest.raises(ValueError, match=r"a\.yaml: its _BASE_ leads back .*a\.yaml, _BASE_ of .*b\.yaml"):
        fasegr.load_cfg(tmp_path / "a.yaml", CPU)
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "a.yaml").write_text("_BASE_: again/a.yaml\n")
    with pytest.raises(ValueError, match="through more than 35"):
        fasegr.load_cfg(tmp_path / "a.yaml", CPU)


def test_a_base_that_many_share_is_read_once(tmp_path):
    for i in range(30):  # read again for each user, the last would be read 2**30 times
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("SEED: 3\n")
    assert read_yaml(tmp_path / "0.yaml") == {"SEED": 3}


def test_what_is_unusual_but_clear(tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_bytes(
        "\ufeffOUTPUT_DIR: 2024-01-01\nMODEL: &m {MASK_ON: no}\nA: *m\nB: {<<: *m, GO: '東京　'}\n".encode()
    )
    model = {"MASK_ON": False}
    assert load_mapping(path) == {"OUTPUT_DIR": "2024-01-01", "MODEL": model, "A": model, "B": model | {"GO": "東京　"}}
    path.write_text("INPUT: {MIN_SIZE_TRAIN: [256, 512]}\nOUTPUT_DIR: 東京　\n", encoding="utf-8")
    assert fasegr.load_cfg(path, CPU).OUTPUT_DIR == "東京　"
    path.write_text("{}\n")
    fasegr.load_cfg(path, CPU)
