import json
from types import SimpleNamespace

import pytest
import torch

from fasegr.analysis import faster_forms
from fasegr.analysis.faster_forms import DTYPES, Comparison, compare_form
from fasegr.modeling.ops.kernel_check import Deviation
from fasegr.modeling.ops.switches import FASTER_FORMS
from tools import check_machine as tool
from tools.check_machine import FAILED, NOT_HERE, OK

CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with a V100 and the torch of the registry, which has no kernels for it."""
    found = SimpleNamespace(name="V100", total_memory=16 * 2**30, major=7, minor=0)
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "get_arch_list": ["sm_75", "sm_80"],
        "get_device_capability": (7, 0),
        "get_device_name": "V100",
        "get_device_properties": found,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    monkeypatch.setattr(tool, "why_not", lambda index, dtype: "there is no C compiler. apt install gcc")


def test_a_gpu_without_kernels_is_said_and_not_tried(gpu, monkeypatch, capsys):
    monkeypatch.setattr(tool, "check_memory", lambda device: tool.Verdict("memory", OK))
    assert tool.main([]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "V100, 16.0 GiB, compute capability 7.0" in said
    assert "requirements-v100.txt" in said
    assert "apt install gcc" in said
    assert said.endswith("Failed: kernels of torch for GPU 0")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta", ""])
def test_a_device_that_is_not_there_is_one_message(device, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--device", device])
    assert stopped.value.code == 2
    assert f"--device is {device}" in capsys.readouterr().err


def test_every_form_is_compared_on_a_cpu(capsys):
    verdicts = {v.what: v for v in tool.check_forms(CPU)}
    assert set(verdicts) == set(FASTER_FORMS)
    assert verdicts["embedding_bag"].status == verdicts["point_table"].status == OK
    assert verdicts["triton_deformable_attention"].status == NOT_HERE
    table = capsys.readouterr().out
    assert all(table.count(f"\n{name} ") == len(DTYPES) for name in FASTER_FORMS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU, not in the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_are_compared_in_the_interpreter(dtype):
    pytest.importorskip("triton")
    found = compare_form("triton_deformable_attention", CPU, dtype).deviations
    assert len(found) == 5 and not any(d.too_large for d in found)


def test_a_form_that_is_wrong_or_breaks_fails_with_what_to_set(monkeypatch):
    def wrong(device, dtype):
        return Comparison("", [Deviation("the gradient of x", 0.5, 1e-5)])

    def breaks(device, dtype):
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setitem(faster_forms._CASES, "embedding_bag", wrong)
    monkeypatch.setitem(faster_forms._CASES, "point_table", breaks)
    verdicts = {v.what: v for v in tool.check_forms(CPU)}
    assert verdicts["embedding_bag"].status == verdicts["point_table"].status == FAILED
    assert "the gradient of x is off by 0.5" in verdicts["embedding_bag"].note
    assert "FASEGR_PLAIN=embedding_bag" in verdicts["embedding_bag"].note
    assert "no kernel image is available" in verdicts["point_table"].note


@pytest.mark.parametrize(
    ("losses", "expected", "status", "said"),
    [
        ([3.0, 2.0], None, OK, "3.000"),
        ([3.0, 2.0], [3.0, 2.0001], OK, "differ by 5.0e-05"),
        ([3.0, 2.0], [3.0, 2.1], FAILED, "differ by 4.8e-02"),
        ([3.0, float("nan")], [3.0, 2.1], FAILED, "nan"),
        ([3.0], [3.0, 2.1], FAILED, "1 losses, 2 expected"),
        ([], None, FAILED, "out of memory"),
    ],
)
def test_losses_are_compared(losses, expected, status, said):
    found, note = tool.compared(losses, expected, "out of memory", 1e-3)
    assert found == status and said in note


def test_the_batch_of_a_recipe_that_fits(monkeypatch, capsys):
    recipe = "quickstart/faseg_scenes.yaml"
    monkeypatch.setattr(tool, "total_memory", lambda device: 16.0)
    assert tool.check_memory(CPU, [recipe]).status == OK
    assert "6 as it is" in capsys.readouterr().out
    monkeypatch.setattr(tool, "total_memory", lambda device: 0.05)
    assert tool.check_memory(CPU, [recipe]).status == NOT_HERE
    assert "does not fit" in capsys.readouterr().out
    assert tool.advice(16, 7) == "16 with SOLVER.ACCUMULATE 4, or on 4 of these"


def test_the_memory_of_this_machine():
    assert 0.5 < tool.total_memory("cpu") < 2**14


@pytest.mark.slow
def test_trainings_on_one_device_and_on_all(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("the program itself tries the GPUs")
    verdicts = {v.what: v for v in tool.check_training(CPU, tmp_path)}
    assert [v.status for v in verdicts.values()] == [OK] * 4, verdicts
    assert "training in 2 processes (gloo)" in verdicts
    assert verdicts["resume"].note.startswith("losses differ by 0.0e+00")
    assert len(json.loads((tmp_path / "several.json").read_text())) == tool.ITERATIONS


@pytest.mark.slow
def test_a_training_that_fails_says_why(tmp_path):
    if torch.backends.mps.is_available():
        pytest.skip("needs a machine without mps")
    tool.paint(tmp_path)
    assert "mps is not available" in tool.run_training(tmp_path, torch.device("mps"), 1, ["whole"], 4)


def test_a_failure_is_the_exit_code(monkeypatch, capsys):
    for part in ("check_forms", "check_training"):
        monkeypatch.setattr(tool, part, lambda *args: [])
    for verdict, code in ((OK, 0), (NOT_HERE, 0), (FAILED, 1)):
        monkeypatch.setattr(tool, "check_memory", lambda device, v=verdict: tool.Verdict("memory", v, "a note"))
        assert tool.main(["--device", "cpu"]) == code
    assert "Failed: memory" in capsys.readouterr().out
