import importlib
import json

import pytest

import fasegr
from benchmarks import run
from benchmarks.case import KINDS, Case
from benchmarks.measure import Failed
from benchmarks.suites import SUITES


def _here(function, arguments, timeout=None):
    """`in_fresh_process` without the process."""
    module, _, name = function.partition(":")
    return json.loads(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))))


@pytest.fixture
def small(case):
    values = case("inference")
    return ["--config-file", values["config"], "--opts", *values["opts"], "--size", "64", "64", "--rounds", "2"]


def test_table_and_json(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "in_fresh_process", _here)
    monkeypatch.setattr(run, "AGREEMENT_SIZE", (64, 64))
    file = tmp_path / "results.json"
    run.main(["labels", *small, "--peer", "plain", "--no-roofline", "--device", "cpu", "--json", str(file)])
    said = capsys.readouterr().out
    assert "labels: faseg_scenes, 64 x 64, batch 1, float32, cpu, default allocator" in said
    assert "the two differ by: scores" in said
    assert "semantic output" in said
    written = json.loads(file.read_text())
    (result,) = written["results"]
    assert set(result) >= {"case", "seconds", "memory", "work", "agreement", "names"}
    assert result["failed"] == {}
    assert set(written["machine"]) >= {"date", "commit", "cpu", "threads", "torch"}
    assert "labels" in written["command"]


def test_failures_are_reported_and_the_rest_goes_on(small, capsys, monkeypatch):
    def fails_once(function, arguments, timeout=None):
        if arguments["case"]["batch"] == 1:
            raise Failed("its process ended with -9:\nout of memory")
        return _here(function, arguments)

    monkeypatch.setattr(run, "in_fresh_process", fails_once)
    with pytest.raises(SystemExit) as stopped:
        run.main(["inference", *small, "--batch", "1", "2", "--no-roofline", "--no-memory", "--device", "cpu"])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert "time: its process ended with -9:\nout of memory" in said
    assert "batch 2" in said
    assert "semantic output" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inferense"], "inferense cannot be measured"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--opts", "A"], "'A' has no value"),
        (["--peer", "/nowhere"], "/nowhere, not a folder"),
        (["inference", "--suite", "cpu"], "defines its own cases"),
        (["--suite", "gpu", "--device", "cpu"], "--suite gpu needs a GPU"),
    ],
)
def test_invalid_arguments_are_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", SUITES)
def test_suites_can_be_run(name):
    cases = SUITES[name](Case("inference", "", device="cpu", rounds=1))
    assert len(set(cases)) == len(cases) > 3
    for one in cases:
        assert hasattr(importlib.import_module(f"benchmarks.{KINDS[one.kind]}"), "times")
        fasegr.load_cfg(one.config, one.opts)
