"""Every form of file reads to the same tensors, and none of them can run code."""

import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

from fasegr.checkpoint import read_checkpoint

WEIGHTS = {"conv.weight": torch.arange(6.0).view(2, 3), "conv.steps": torch.tensor(7)}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}


class Payload:
    """Unpickled carelessly, it makes the folder `path`."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(data, path, protocol=4):
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return str(path)


def saved(data, path, **kwargs):
    torch.save(data, path, **kwargs)
    return str(path)


FORMS = {
    "zip.pth": lambda path: saved(WEIGHTS, path),
    "legacy.pth": lambda path: saved(WEIGHTS, path, _use_new_zipfile_serialization=False),
    "ordered.pt": lambda path: saved(OrderedDict(WEIGHTS), path),
    "arrays2.pkl": lambda path: pickled(ARRAYS, path, 2),
    "arrays4.pkl": lambda path: pickled(OrderedDict(ARRAYS), path, 4),
    "arrays5.pkl": lambda path: pickled(ARRAYS, path, 5),
    "tensors2.pkl": lambda path: pickled(WEIGHTS, path, 2),  # what Mask2Former's converter for Swin writes
    "tensors4.pkl": lambda path: pickled(WEIGHTS, path, 4),
    "big_endian.pkl": lambda path: pickled({k: v.astype(v.dtype.newbyteorder(">")) for k, v in ARRAYS.items()}, path),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, tmp_path):
    contents = read_checkpoint(FORMS[form](tmp_path / form))
    assert_close(contents.weights, WEIGHTS)
    assert contents.rest == {}


def test_safetensors(tmp_path):
    safetensors.torch.save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert_close(read_checkpoint(str(tmp_path / "weights.safetensors")).weights, WEIGHTS)


def test_pickle_of_python_2(tmp_path):
    """Opcodes as Python 2 wrote them: text and raw bytes are both `str` there (BINSTRING)."""
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array = empty + b"(K\x01K\x02\x85" + dtype + b"\x89U\x08" + struct.pack("<2f", 0.5, -200.0) + b"tb"
    (tmp_path / "old.pkl").write_bytes(b"\x80\x02}U\x01w" + array + b"s.")
    assert_close(read_checkpoint(str(tmp_path / "old.pkl")).weights, {"w": torch.tensor([0.5, -200.0])})


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_nested_state_dict(key, tmp_path):
    contents = read_checkpoint(saved({key: WEIGHTS, "epoch": 3}, tmp_path / "nested.pth"))
    assert_close(contents.weights, WEIGHTS)
    assert contents.rest == {"epoch": 3}


def test_detectron2_zoo_file(tmp_path):
    file = {"model": ARRAYS, "__author__": "torchvision", "matching_heuristics": True}
    contents = read_checkpoint(pickled(file, tmp_path / "R-50.pkl"))
    assert_close(contents.weights, WEIGHTS)
    assert contents.rest == {"__author__": "torchvision", "matching_heuristics": True}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(wrapper, tmp_path):
    path = saved({wrapper + name: value for name, value in WEIGHTS.items()}, tmp_path / "wrapped.pth")
    assert_close(read_checkpoint(path).weights, WEIGHTS)


def test_a_prefix_of_some_names_stays(tmp_path):
    weights = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(read_checkpoint(saved(weights, tmp_path / "some.pth")).weights) == {"module.a", "b"}


def test_numpy_numbers_in_the_state_of_a_training(tmp_path):
    state = {
        "best": np.float64(0.5),
        "flag": np.bool_(True),
        "random": np.random.RandomState(0).get_state(),
        "half": np.ones(2, np.float16),
    }
    rest = read_checkpoint(saved({"model": WEIGHTS, **state}, tmp_path / "training.pth")).rest
    assert rest["best"] == 0.5
    assert rest["flag"]
    np.testing.assert_array_equal(rest["random"][1], state["random"][1])
    np.testing.assert_array_equal(rest["half"], state["half"])


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.pkl", "x.pickle", "legacy.pth"])
def test_code_is_refused_and_not_run(name, tmp_path):
    file = {"model": WEIGHTS, "hook": Payload(tmp_path / "made")}
    path = tmp_path / name
    if "pk" in name or "pickle" in name:
        pickled(file, path)
    else:
        torch.save(file, path, _use_new_zipfile_serialization="legacy" not in name)
    with pytest.raises(ValueError, match=rf"{name} was not read.*{os.name}\.mkdir.*could run code"):
        read_checkpoint(str(path))
    assert not (tmp_path / "made").exists()


def test_code_inside_a_pickled_tensor_is_refused_and_not_run(tmp_path):
    """torch's own function for the storage of a tensor reads the bytes it is given without a guard."""

    class Storage:
        def __reduce__(self):
            saved(Payload(tmp_path / "made"), tmp_path / "inner.pth")
            return torch.storage._load_from_bytes, ((tmp_path / "inner.pth").read_bytes(),)

    path = pickled({"model": {"w": Storage()}}, tmp_path / "outer.pkl")
    with pytest.raises(ValueError, match=r"outer\.pkl"):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "torch.load", "numpy.core.multiarray.fromfile"])
def test_only_listed_names_are_resolved(name, tmp_path):
    module, function = name.rsplit(".", 1)
    (tmp_path / "x.pkl").write_bytes(f"c{module}\n{function}\n(S'1'\ntR.".encode())
    with pytest.raises(ValueError, match=name):
        read_checkpoint(str(tmp_path / "x.pkl"))


def test_only_the_codec_of_pickled_bytes_is_admitted(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"c_codecs\nencode\n(S'a'\nS'zip'\ntR.")
    with pytest.raises(ValueError, match="to zip"):
        read_checkpoint(str(tmp_path / "x.pkl"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_cut_file_is_named(form, share, tmp_path):
    whole = Path(FORMS[form](tmp_path / "whole")).read_bytes()
    path = tmp_path / form
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"{form} \(\d+ bytes\) cannot be read.*damaged or incomplete"):
        read_checkpoint(str(path))


def test_cut_safetensors_is_named(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(safetensors.torch.save(WEIGHTS)[:-5])
    with pytest.raises(ValueError, match=r"cut\.safetensors.*damaged or incomplete"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("start", "what"),
    [(b"<!DOCTYPE html>", "web page"), (b"version https://git-lfs.github.com/spec/v1", "git lfs pull")],
)
def test_what_came_instead_of_weights_is_said(start, what, tmp_path):
    (tmp_path / "x.pth").write_bytes(start)
    with pytest.raises(ValueError, match=what):
        read_checkpoint(str(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "holds a list; expected a state dict"),
        ({}, "the file is an empty dict"),
        ({"model": {}}, "'model' is an empty dict"),
        ({"epoch": 3}, "'epoch' is a int, not a tensor"),
        ({"model": {"w": [1.0]}}, "'w' is a list, not a tensor"),
        ({0: torch.zeros(1)}, "0 is a Tensor"),
    ],
)
def test_no_state_dict(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(saved(data, tmp_path / "x.pth"))


def test_array_of_objects_is_no_weight(tmp_path):
    path = pickled({"w": np.array([None, {}], dtype=object)}, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="'w' is a ndarray"):
        read_checkpoint(path)


ODD = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "sparse or": lambda: torch.eye(2).to_sparse_csr(),
    "meta": lambda: torch.empty(2, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8),
    "or nested": lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_weights(kind, tmp_path):
    path = saved({"model": {**WEIGHTS, "odd": ODD[kind]()}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x\.pth: 'odd' is a .*{kind}.* tensor|x\.pth.*cannot be read"):
        read_checkpoint(path)


def test_a_changed_tensor_is_damage(tmp_path):
    path = tmp_path / "x.pth"
    weights = {"w": torch.full((64, 64), 1.5)}
    saved({"model": weights}, path)
    data = path.read_bytes()
    at = data.index(b"\x00\x00\xc0\x3f" * 64) + 1000
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert not torch.equal(torch.load(path)["model"]["w"], weights["w"]), "torch does not notice"
    with pytest.raises(ValueError, match=r"x\.pth.*damaged"):
        read_checkpoint(str(path))


def test_a_file_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(WEIGHTS, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_close(read_checkpoint(path).weights, WEIGHTS)


def test_missing_file_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize(
    "data",
    [
        {"ema": {"module": WEIGHTS, "updates": 7}},
        {"state_dict_ema": {f"module.{name}": value for name, value in WEIGHTS.items()}},
        {"model": {"state_dict": WEIGHTS}},
        {"state_dict": {f"model.module.{name}": value for name, value in WEIGHTS.items()}},
        {"teacher": {f"ema_teacher.{name}": value for name, value in WEIGHTS.items()}},
        {"state_dict": {f"teacher.{name}": value for name, value in WEIGHTS.items()}},
        {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in WEIGHTS.items()}},
    ],
)
def test_what_training_programs_wrap_around_weights(data, tmp_path):
    assert_close(read_checkpoint(saved(data, tmp_path / "wrapped.pth")).weights, WEIGHTS)


def test_a_model_that_is_there_twice(tmp_path, caplog):
    """The weights as trained are read, whether the copy is in the same state dict or beside it."""
    averaged = {name: value + 1 for name, value in WEIGHTS.items()}
    twice = {f"model.{name}": value for name, value in WEIGHTS.items()}
    twice |= {f"ema_model.{name}": value for name, value in averaged.items()} | {"ema_model.decay": torch.tensor(0.9)}
    with caplog.at_level("INFO", "fasegr"):
        assert_close(read_checkpoint(saved({"state_dict": twice}, tmp_path / "a.pth")).weights, WEIGHTS)
        assert "'ema_model.' are not read" in caplog.text
        assert_close(read_checkpoint(saved({"ema": averaged, "model": WEIGHTS}, tmp_path / "b.pth")).weights, WEIGHTS)
    assert "averaged weights, under ema" in caplog.text


def test_names_beside_a_wrapper_are_kept(tmp_path):
    """They may belong to the model: it is not guessed that they do not."""
    weights = {**{f"model.{name}": value for name, value in WEIGHTS.items()}, "loss.weight": torch.zeros(1)}
    assert set(read_checkpoint(saved(weights, tmp_path / "a.pth")).weights) == {*WEIGHTS, "loss.weight"}
