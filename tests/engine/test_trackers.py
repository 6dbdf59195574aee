"""W&B and MLflow, by stand-ins for their packages: what they get, resumed runs, and failures."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from fasegr.engine.interruption import Interrupted
from tests.engine.test_trainer import SignalAt, metrics, run
from tests.engine.tiny_training import tiny_cfg

pytestmark = pytest.mark.usefixtures("no_pictures")
CLOCKS = ("time", "data_time", "eta_seconds", "memory")


@pytest.fixture
def servers(monkeypatch):
    """What the two packages would have sent, by run: {id: {"config", "state", (iteration, name): value}}."""
    runs = {"wandb": {}, "mlflow": {}}

    def init(*, project, name, id, resume, dir, config):
        assert resume == "allow"
        id = id or f"w{len(runs['wandb'])}"
        rows = runs["wandb"].setdefault(id, {"config": config})

        def log(scalars, step):
            rows.update({(step, key): value for key, value in scalars.items()})

        return SimpleNamespace(id=id, log=log, finish=lambda exit_code: rows.update(state=exit_code))

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "1"

        def create_run(self, experiment, run_name):
            run_id = f"m{len(runs['mlflow'])}"
            runs["mlflow"][run_id] = {"config": {}}
            return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

        def update_run(self, run_id, status):
            runs["mlflow"][run_id]["state"] = status

        set_terminated = update_run

        def log_batch(self, run_id, metrics=(), params=()):
            assert len(params) <= 100
            runs["mlflow"][run_id]["config"] |= dict(params)
            runs["mlflow"][run_id].update({(step, key): value for key, value, _, step in metrics})

    wandb, mlflow, entities = (ModuleType(name) for name in ("wandb", "mlflow", "mlflow.entities"))
    wandb.init, mlflow.MlflowClient = init, Client
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)
    entities.Param = lambda key, value: (key, value)
    for module in (wandb, mlflow, entities):
        module.__spec__ = ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return runs


def cfg(root, folder, *opts):
    return tiny_cfg(root, folder, "TRACKERS", ["wandb", "mlflow"], "TEST.EVAL_PERIOD", 3, *opts)


def test_both_get_what_metrics_json_gets(dataset_root, tmp_path, servers):
    with pytest.raises(Interrupted):
        run(cfg(dataset_root, tmp_path), hooks=[SignalAt(3)])
    assert servers["wandb"]["w0"]["state"] == 1
    assert servers["mlflow"]["m0"]["state"] == "KILLED"
    run(cfg(dataset_root, tmp_path), resume=True)
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "w0", "mlflow": "m0"}
    expected = {}
    for line in metrics(tmp_path):
        expected |= {(line["iteration"], name): value for name, value in line.items() if name != "iteration"}
    assert any("mIoU" in name for _, name in expected)
    for kind, end in (("wandb", 0), ("mlflow", "FINISHED")):
        (rows,) = servers[kind].values()
        assert rows.pop("state") == end
        assert str(rows.pop("config")["SOLVER.BASE_LR"]) == "0.01"
        assert {key: value for key, value in rows.items() if key[1] not in CLOCKS} == expected


def test_another_training_is_another_run(dataset_root, tmp_path, servers):
    for _ in range(2):
        run(cfg(dataset_root, tmp_path, "DATASETS.TEST", ()))
    assert list(servers["wandb"]) == ["w0", "w1"]
    assert json.loads((tmp_path / "trackers.1.json").read_text())["mlflow"] == "m0"


def test_a_server_that_goes_away_does_not_end_the_training(dataset_root, tmp_path, servers, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(
        sys.modules["mlflow"].MlflowClient, "log_batch", lambda self, run_id, params=(), **_: params or fail()
    )
    trainer = run(cfg(dataset_root, tmp_path, "TEST.EVAL_PERIOD", 2))
    assert trainer.iter == trainer.max_iter
    assert caplog.text.count("mlflow cannot be written (ConnectionError: no route to host)") == 1
    assert servers["wandb"]["w0"]["state"] == 0


def test_what_cannot_be_opened_is_an_error_at_start(dataset_root, tmp_path, servers, monkeypatch):
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: 1 / 0)
    with pytest.raises(ValueError, match=r"TRACKERS has 'wandb', which cannot be opened .*environment variables"):
        run(cfg(dataset_root, tmp_path))
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        run(cfg(dataset_root, tmp_path))
