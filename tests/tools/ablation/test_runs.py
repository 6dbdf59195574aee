import json

import pytest

from tests.tools.ablation.study import ROWS, TABLE, cells, finish, runs
from tools.ablation.runs import iterations_done, locked, plan, resolve_base, score, write_identity
from tools.ablation.tables import CONFIGS, TABLES

pytestmark = pytest.mark.slow

QUICKSTART = CONFIGS / "quickstart/faseg_scenes.yaml"


def test_a_run_for_each_row_and_seed_the_first_seed_first(tmp_path):
    planned = runs(tmp_path)
    names = [str(run.folder.relative_to(tmp_path)) for run in planned]
    assert names == [f"table5/{row}/seed{seed}" for seed in (1, 2) for row in ("learnable", "dfpq")]
    assert [run.identity["SEED"] for run in planned] == [1, 1, 2, 2]
    assert {run.max_iter for run in planned} == {4}
    learnable = planned[0]
    assert learnable.identity["MODEL.FASEG.POSITIONAL_QUERY"] == "learnable"
    assert learnable.options[-2:] == ["SEED", 1]


def test_tables_share_runs_of_the_same_config(tmp_path):
    base = resolve_base("scenes", None)
    tables = [(TABLES["4"], TABLES["4"].rows), (TABLES["5"], TABLES["5"].rows)]
    planned = plan(tables, [1], base, tmp_path)
    folder = {(cell.table.name, cell.row.name): cell.run.folder for cell in planned}
    assert len(planned) == 9
    assert len(set(folder.values())) == 8
    assert folder["table5", "dfpq"] == folder["table4", "dfpq_hrca"]
    assert folder["table5", "learnable"] != folder["table4", "hrca"]  # K_p and threshold differ


def test_a_finished_run_of_another_table_is_found(tmp_path):
    (earlier,) = [cell.run for cell in cells(tmp_path, [1], rows=ROWS[1:])]
    write_identity(earlier)
    base = resolve_base("scenes", None, ["SOLVER.MAX_ITER", 4])
    (cell,) = plan([(TABLES["4"], TABLES["4"].rows[3:])], [1], base, tmp_path)
    assert cell.run.folder == earlier.folder
    (cell,) = plan([(TABLES["4"], TABLES["4"].rows[3:])], [2], base, tmp_path)
    assert cell.run.folder == tmp_path / "table4/dfpq_hrca/seed2"


def test_a_folder_with_a_run_of_another_config_is_refused(tmp_path):
    write_identity(runs(tmp_path)[0])
    runs(tmp_path)  # the same again is fine
    with pytest.raises(ValueError, match=r"seed1 has a run of another config \(SOLVER.BASE_LR 0.004, now 0.1\)"):
        cells(tmp_path, (1,), "SOLVER.BASE_LR", 0.1)


def test_a_key_that_came_later_counts_as_at_its_default(tmp_path):
    run = runs(tmp_path)[0]
    write_identity(run)
    file = run.folder / "run.json"
    content = json.loads(file.read_text())
    del content["identity"]["MODEL.FASEG.HIGH_RES.LEVELS"]
    file.write_text(json.dumps(content))
    assert runs(tmp_path)[0].folder == run.folder
    with pytest.raises(ValueError, match="LEVELS None, now"):
        cells(tmp_path, (1,), "MODEL.FASEG.HIGH_RES.LEVELS", [4, 8])


def test_options_cannot_undo_the_rows(tmp_path):
    for key, value in (("MODEL.FASEG.POSITIONAL_QUERY", "dfpq"), ("SEED", 1), ("OUTPUT_DIR", "here")):
        with pytest.raises(ValueError, match=f"{key} cannot be an option of all runs of table5"):
            cells(tmp_path, (1,), key, value)


def test_the_score_is_that_of_the_last_iteration(tmp_path):
    run = runs(tmp_path)[0]
    assert score(run) is None
    assert iterations_done(run) == 0
    run.folder.mkdir(parents=True)
    file = run.folder / "metrics.json"
    file.write_text('{"iteration": 1, "sem_seg/mIoU": 30.0}\n{"iteration": 2, "total_loss": 1.0}\n{"iteration": 3, "to')
    assert score(run) is None
    assert iterations_done(run) == 3
    file.write_text(file.read_text() + 'tal_loss": 1.0}\n')
    finish(run, 41.5)
    assert score(run) == 41.5
    assert iterations_done(run) == 4


def test_a_long_metrics_file(tmp_path):
    run = runs(tmp_path)[0]
    run.folder.mkdir(parents=True)
    with open(run.folder / "metrics.json", "w") as file:
        file.writelines(json.dumps({"iteration": i, "total_loss": 1.0}) + "\n" for i in range(20000))
    assert iterations_done(run) == 20000


def test_a_lock_is_held_by_one(tmp_path):
    run = runs(tmp_path)[0]
    with locked(run) as first:
        assert first is not None
        with locked(run) as second:
            assert second is None
    with locked(run) as again:
        assert again is not None


def test_bases():
    assert resolve_base("ade20k", None).file is None  # each table's recipe
    assert resolve_base("scenes", None).file == QUICKSTART
    assert resolve_base(None, QUICKSTART, ["SEED", 3]).options == ["SEED", 3]
    other = resolve_base("scenes", CONFIGS / "camvid/faseg_r18_cpu.yaml")
    assert other.options == [
        *("DATASETS.TRAIN", ["scenes_train"], "DATASETS.TEST", ["scenes_val"]),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 12),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, None), ValueError, "--dataset"),
        (("nobody", None), ValueError, "has no config of its own"),
        (("nobody", QUICKSTART), ValueError, "needs nobody_train and nobody_val, not registered; registered are"),
        ((None, "nobody.yaml"), FileNotFoundError, r"nobody\.yaml does not exist"),
    ],
)
def test_bases_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        resolve_base(*arguments)


def test_a_base_without_a_test_set(tmp_path):
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        plan([(TABLE, ROWS)], [1], resolve_base("scenes", None, ["DATASETS.TEST", []]), tmp_path)
