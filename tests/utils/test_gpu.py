import pytest
import torch

import fasegr
from fasegr.engine.launch import adapt_to_machine
from fasegr.utils import gpu
from fasegr.utils.gpu import bfloat16_problem, kernels_for, no_gpu_reason, unusable_gpu

CONFIG = "configs/quickstart/faseg_scenes.yaml"
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # torch 2.11.0 of the registry
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]  # torch 2.7.1


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 0), CUDA_13, False),
        ((7, 0), CUDA_12_6, True),
        ((7, 2), ["sm_70"], True),  # the same major version, a later minor one
        ((7, 0), ["sm_75"], False),
        ((8, 9), CUDA_13, True),  # as sm_86
        ((10, 3), CUDA_13, True),
        ((12, 0), CUDA_12_6, False),
        ((12, 0), [*CUDA_12_6, "compute_90"], True),  # compiled by the driver
        ((7, 0), ["sm_75", "compute_75"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["compute_100f"], False),
        ((9, 0), [], True),  # nothing is known
        ((9, 4), ["gfx942"], True),  # AMD
    ],
)
def test_which_gpus_run_which_code(capability, architectures, runs):
    assert kernels_for(capability, architectures) is runs


@pytest.fixture
def machine(monkeypatch):
    """machine(capability, architectures) is one with such a GPU and such a torch."""

    def claim(capability, architectures=CUDA_13):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.version, "hip", None)
        for name, value in {
            "is_available": True,
            "device_count": 2,
            "get_device_capability": capability,
            "get_device_name": "Tesla X",
            "get_arch_list": architectures,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)

    return claim


@pytest.mark.parametrize(
    ("capability", "architectures", "file"),
    [((7, 0), CUDA_13, "requirements-v100.txt"), ((12, 0), CUDA_12_6, "requirements-newest.txt")],
)
def test_a_gpu_without_kernels_names_what_to_install(machine, capability, architectures, file):
    machine(capability, architectures)
    assert file in unusable_gpu(0)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match=rf"no kernels for Tesla X.* {capability[0]}\.0; .*sm_75.*-r {file}"):
            fasegr.load_cfg(CONFIG, ["MODEL.DEVICE", device])
    assert fasegr.load_cfg(CONFIG, ["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"
    machine((8, 0))
    assert unusable_gpu(0) == ""
    assert fasegr.load_cfg(CONFIG, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cuda"


def test_each_gpu_is_asked_for_itself(machine, monkeypatch):
    machine((8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0) if index == 1 else (8, 0))
    assert fasegr.load_cfg(CONFIG, ["MODEL.DEVICE", "cuda:0"])
    with pytest.raises(ValueError, match="no kernels"):
        fasegr.load_cfg(CONFIG, ["MODEL.DEVICE", "cuda:1"])
    with pytest.raises(ValueError, match="GPUs count from 0, and there are 2"):
        fasegr.load_cfg(CONFIG, ["MODEL.DEVICE", "cuda:2"])


def test_bfloat16_where_it_is_emulated(machine):
    machine((7, 0), CUDA_12_6)
    options = ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE"]
    (note,) = adapt_to_machine(fasegr.load_cfg(CONFIG, [*options, "bfloat16"]), num_gpus=1)
    assert "SOLVER.AMP.DTYPE is bfloat16" in note and "emulated" in note and "float16 uses" in note
    assert adapt_to_machine(fasegr.load_cfg(CONFIG, [*options, "float16"]), num_gpus=1) == []
    off = [*options, "bfloat16", "SOLVER.AMP.ENABLED", "False"]
    assert adapt_to_machine(fasegr.load_cfg(CONFIG, off), num_gpus=1) == []
    machine((8, 0))
    assert bfloat16_problem(0) == ""
    assert adapt_to_machine(fasegr.load_cfg(CONFIG, [*options, "bfloat16"]), num_gpus=1) == []


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [("535.183.01", "13.0", True), ("580.65.06", "13.0", False), ("535.183.01", "12.6", False)],
)
def test_a_driver_that_is_too_old(monkeypatch, caplog, tmp_path, driver, cuda, said):
    file = tmp_path / "version"
    file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Wed May  1 2024\nGCC version: 12.2.0\n")
    monkeypatch.setattr(gpu, "_DRIVER", file)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (f"this machine has {driver}" in no_gpu_reason()) is said
    assert fasegr.load_cfg(CONFIG, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cpu"
    assert ("requirements-v100.txt" in caplog.text) is said
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path / "none")
    assert no_gpu_reason() == ""
