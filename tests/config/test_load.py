import re
import textwrap
from pathlib import Path

import pytest
import yaml

import fasegr
from fasegr.config.load import read_yaml
from fasegr.d2 import MetadataCatalog

ROOT = Path(__file__).parents[2]
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
    values = read_yaml(leaf)
    assert [values[f"SOLVER.{key}"] for key in ("MAX_ITER", "IMS_PER_BATCH", "STEPS")] == [9, 4, [5]]


def test_steps_without_a_schedule_mean_that_of_detectron2(tmp_path):
    path = write(tmp_path / "coco.yaml", "SOLVER: {STEPS: [30, 40], MAX_ITER: 50}\n")
    assert fasegr.load_cfg(path, CPU).SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
    path = write(tmp_path / "poly.yaml", "SOLVER: {STEPS: [30, 40], LR_SCHEDULER_NAME: WarmupPolyLR}\n")
    assert fasegr.load_cfg(path, CPU).SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR"


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
    assert read_yaml(leaf)["DATASETS.FOLDER.CLASSES"] == str((tmp_path / "data" / "names.txt").resolve())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.FASEG.OMEGA", 3], r"MODEL\.FASEG\.OMEGA does not exist; did you mean MODEL\.FASEG\.HIGH_RES\.OMEGA"),
        (["MODEL.FASEG.HIGH_RES.OMEGAS", 3], r"did you mean MODEL\.FASEG\.HIGH_RES\.OMEGA"),
        (["Q", 3], r"the key Q does not exist; all keys are in fasegr/config/defaults\.py"),
        (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (["SOLVER.MAX_ITER", "soon"], "MAX_ITER"),
        (["MODEL.FASEG.HIGH_RES", 1], "HIGH_RES is a section, not a value; its keys are ATTENTION, LEVELS"),
    ],
)
def test_options_that_do_not_exist(opts, message):
    with pytest.raises(ValueError, match=message):
        fasegr.load_cfg(R50, [*CPU, *opts])


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"typo\.yaml: the key SOLVER\.MAX_ITERS .* did you mean SOLVER\.MAX_ITER"):
        fasegr.load_cfg(write(tmp_path / "typo.yaml", "SOLVER: {MAX_ITERS: 3}\n"))


def test_the_dataset_of_a_config_is_registered_and_its_classes_counted(tmp_path):
    write(tmp_path / "classes.txt", "tree\nroad\n")
    folder = "DATASETS: {FOLDER: {NAME: loaded, CLASSES: classes.txt}, TRAIN: [loaded_train]}\n"
    path = write(tmp_path / "mine.yaml", folder)
    fasegr.load_cfg(path, [*CPU, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2])
    assert MetadataCatalog.get("loaded_train").stuff_classes == ["tree", "road"]
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but loaded_train has 2 classes"):
        fasegr.load_cfg(path, [*CPU, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3])


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


def test_keys_of_detectors_are_said_to_mean_nothing_once(tmp_path, caplog):
    path = write(tmp_path / "detector.yaml", "MODEL: {MASK_ON: True, RPN: {NMS_THRESH: 0.7, IN_FEATURES: [p2]}}\n")
    fasegr.load_cfg(path, [*CPU, "SOLVER.BIAS_LR_FACTOR", "2", "SOLVER.BASE_LR", "0.1"])
    (record,) = [record for record in caplog.records if "mean nothing" in record.message]
    assert record.message.endswith("no effect: MODEL.MASK_ON, MODEL.RPN.IN_FEATURES, SOLVER.BIAS_LR_FACTOR")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configs_load_silently(path, caplog):
    fasegr.load_cfg(path, CPU)
    assert caplog.text == ""


def test_an_int_is_taken_for_a_float_and_a_list_for_a_tuple():
    cfg = fasegr.load_cfg(
        R50, [*CPU, "SOLVER.WARMUP_FACTOR", "1", "INPUT.MIN_SIZE_TRAIN", "[5]", "SOLVER.BASE_LR", "1e-3"]
    )
    assert repr((cfg.SOLVER.WARMUP_FACTOR, cfg.INPUT.MIN_SIZE_TRAIN, cfg.SOLVER.BASE_LR)) == "(1.0, (5,), 0.001)"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("SOLVER.BASE_LR", value)
            for value in ("abc", "", "True", "None", "[0.1]", "1e999", "nan", "{}", "b''", "0x")
        ),
        *(
            ("SOLVER.MAX_ITER", value)
            for value in ("1.5", "9" * 5000, "0x" + "f" * 9000, "1e3", "--", "(" * 300, "-" * 100000 + "1", "[" * 150)
        ),
        *(("DATASETS.TRAIN", value) for value in ("ade20k_sem_seg_train", "(3,)", "('',)", "('a'", "{'a'}")),
        *(("MODEL.WEIGHTS", value) for value in ("3", "None", "a\nb", "\0")),
        *(("TEST.AUG.FLIP", value) for value in ("1", "yes", "true")),
    ],
)
def test_options_of_the_wrong_type(key, value):
    with pytest.raises(ValueError, match=rf"{re.escape(key)} is .{{1,250}}; it must be"):
        fasegr.load_cfg(R50, [*CPU, key, value])


def test_missing_gpu_is_said_and_the_cpu_used(monkeypatch, caplog):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fasegr.load_cfg(R50).MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE is cuda" in caplog.text
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert fasegr.load_cfg(R50, ["MODEL.DEVICE", "mps"]).MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE is mps" in caplog.text
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert fasegr.load_cfg(R50, ["MODEL.DEVICE", "mps"]).MODEL.DEVICE == "mps"
