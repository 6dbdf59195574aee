"""Reading a checkpoint file without running code from it.

A pickle is a program: whoever wrote the file decides what runs when it is read. Here it can only build numbers.
`.safetensors` holds nothing else by design; a torch file is read with `weights_only=True`; the `.pkl` of model zoos
goes through an unpickler that knows numpy arrays, torch tensors and plain containers and refuses every other name.
"""

import codecs
import collections
import io
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from .transformers_names import from_transformers, is_transformers
from .wrappers import MODEL_KEYS, find_state_dict, without_wrappers

logger = logging.getLogger(__name__)

INDEX = ".index.json"
_EXPECTED = f"expected a state dict (names to tensors), by itself or under one of {', '.join(MODEL_KEYS)}"


class Contents(NamedTuple):
    """What a checkpoint file holds.

    weights: name -> tensor on the CPU, without the prefixes of wrappers; rest: what was saved with them (optimizer,
    iteration, ...).
    """

    weights: dict[str, Tensor]
    rest: dict[str, Any]


def read_checkpoint(path: str, *, mmap: bool = False) -> Contents:
    """Read the local file `path`: `.safetensors`, `.pkl`, `.index.json` (Hugging Face's list of several files), and
    anything else as a file of `torch.save`. Names of Mask2Former in transformers become ours.

    mmap: only map the tensors of a file of `torch.save`, which is fast, and does not find damage in them. Raises
    OSError if it cannot be opened, and ValueError naming it if it is damaged, holds more than data, or has no weights.
    """
    data = _read_parts(path, mmap) if path.endswith(INDEX) else _read_file(path, mmap)
    return _unnest(data, path)


def _read_parts(path: str, mmap: bool) -> dict[str, Any]:
    """The entries of all files that the index `path` names, which are beside it."""
    try:
        with open(path, "rb") as file:
            parts = json.load(file)["weight_map"]
        names = {name: str(part) for name, part in parts.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not an index of weights; expected JSON with 'weight_map', from names of tensors to files "
            f"[{type(error).__name__}]"
        ) from error
    folder = os.path.dirname(path)
    read: dict[str, Any] = {}
    for part in sorted(set(names.values())):
        if os.path.basename(part) != part or not part.endswith((".safetensors", ".bin")):
            raise ValueError(f"{path} names {part!r}; expected files in its own folder, .safetensors or .bin")
        whole = os.path.join(folder, part)
        if not os.path.isfile(whole):
            raise FileNotFoundError(f"{whole} is missing, which {path} names; get all the files of the model")
        content = _read_file(whole, mmap)
        if not isinstance(content, Mapping):
            raise ValueError(f"{whole} holds a {type(content).__name__}; {_EXPECTED}")
        read |= content
    missing = [name for name in names if name not in read]
    if missing:
        raise ValueError(
            f"{os.path.join(folder, names[missing[0]])} has no {missing[0]!r}, which {path} says it has"
            f"{f' (and {len(missing) - 1} more)' if missing[1:] else ''}; get the files again"
        )
    return read


def _read_file(path: str, mmap: bool) -> Any:
    with open(path, "rb") as file:  # so that a missing or locked file is not mistaken for a damaged one below
        start = file.read(64)
    if path.endswith(".safetensors"):
        read = safetensors.torch.load_file
    elif path.endswith((".pkl", ".pickle")):
        read = _read_pickle
    else:
        read = partial(_read_torch, mmap=mmap)
    try:
        return read(path)
    except ForbiddenGlobal as error:
        raise ValueError(
            f"{path} was not read: it holds {error}, which could run code. If you trust its origin, "
            "load it with the program that wrote it and save only the state dict, with torch.save or as .safetensors"
        ) from error
    except Exception as error:  # a cut or foreign file makes the readers raise anything from KeyError to OSError
        message = str(error).strip() or "no further message"
        raise ValueError(
            f"{path} ({os.path.getsize(path)} bytes) cannot be read as a checkpoint: {_suspicion(start)} "
            f"[{type(error).__name__}: {message.splitlines()[0]}]"
        ) from error


def _suspicion(start: bytes) -> str:
    """What a file that is not a checkpoint may be, from its first bytes."""
    if start.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer, not the file itself; run `git lfs pull`."
    if start.lstrip()[:1] == b"<":
        return "it is a web page, not weights; the link it came from is not a direct download."
    return "it is damaged or incomplete, or not a checkpoint; copy or download it again, or use an earlier one."


def _unnest(data: Any, path: str) -> Contents:
    if not isinstance(data, Mapping):
        raise ValueError(f"{path} holds a {type(data).__name__}; {_EXPECTED}")
    named, key = find_state_dict(data)
    rest = {name: data[name] for name in data if name != key} if key else {}
    if not named:
        raise ValueError(f"{path} holds no weights: {repr(key) if key else 'the file'} is an empty dict")
    weights = {}
    for name, value in named.items():
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
            # a copy, since torch supports neither other byte orders nor read-only memory
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor; {_EXPECTED}")
        if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.is_meta:
            kind = "meta" if value.is_meta else "quantized" if value.is_quantized else "sparse or nested"
            raise ValueError(
                f"{path}: {name!r} is a {kind} tensor; weights must be dense, with their numbers in the file"
            )
        weights[name] = value.detach()
    ours, left_out = without_wrappers(weights)
    if left_out:
        logger.info("%s: %s", path, left_out)
    found = {name: weights[in_file] for name, in_file in ours.items()}
    if is_transformers(found):
        logger.info("%s: weights of Hugging Face's transformers; their names become ours", path)
        found = from_transformers(found, path)
    return Contents(found, rest)


class ForbiddenGlobal(pickle.UnpicklingError):
    """A pickle asks for a name that is not allowed. The message is the name."""


def _latin1(text: str, encoding: str) -> bytes:
    """How a protocol-2 pickle stores bytes; it uses no other codec."""
    if encoding != "latin1":
        raise ForbiddenGlobal(f"_codecs.encode to {encoding}")
    return codecs.encode(text, "latin1")


def _tensor_storage(data: bytes) -> Any:
    """The storage of a pickled tensor, itself a torch file; torch's function of this name reads it unsafely."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


# Functions that rebuild arrays and scalars, taken from numpy itself: their module has moved (core, _core).
_NUMPY_BUILDERS = {
    "multiarray._reconstruct": np.empty(1).__reduce__()[0],
    "multiarray.scalar": np.float64(0).__reduce__()[0],
    "numeric._frombuffer": np.empty(1).__reduce_ex__(5)[0],
}
_NUMPY_GLOBALS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.{name}": build for name, build in _NUMPY_BUILDERS.items() for core in ("core", "_core")},
    "_codecs.encode": _latin1,
}
_PICKLE_GLOBALS = {
    **_NUMPY_GLOBALS,
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.storage._load_from_bytes": _tensor_storage,
}


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that resolves the names of _PICKLE_GLOBALS and no other."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLE_GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise ForbiddenGlobal(f"{module}.{name}") from None


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _DataUnpickler(file, encoding="latin1").load()  # Python 2 wrote the older zoo files


def check_readable(path: str) -> None:
    """ValueError if `read_checkpoint` would refuse the torch file `path`. Memory-mapped, so tensors cost nothing."""
    try:
        _read_torch(path, mmap=True)
    except ForbiddenGlobal as error:
        raise ValueError(
            f"the state to save holds {error}, which could not be read back without running code; use only tensors, "
            "numpy arrays, numbers, strings, and lists and dicts of them"
        ) from error


def _check_sums(path: str) -> None:
    """zipfile.BadZipFile if a part of the torch file `path` has changed since it was written.

    torch.save writes a checksum (CRC-32) with every tensor; torch.load compares none.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":
            return  # the form before torch 1.6, which has none
    with zipfile.ZipFile(path) as file:
        for part in file.infolist():
            if part.CRC:  # 0 where it was turned off (torch.serialization.set_crc32_options)
                with file.open(part) as content:
                    while content.read(2**20):
                        pass


def _read_torch(path: str, mmap: bool = False) -> Any:
    if not mmap:
        _check_sums(path)
    # Training states hold a few numpy numbers (a best score, a random state), which weights_only refuses by default.
    dtypes = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
    admitted = [*((value, name) for name, value in _NUMPY_GLOBALS.items()), *dtypes]
    with torch.serialization.safe_globals(admitted):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            # torch's message is a page of advice to read the file unsafely; it also has the name or the reason.
            forbidden = re.search(r"GLOBAL (\S+)", str(error))
            if forbidden:
                raise ForbiddenGlobal(forbidden[1]) from error
            reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
            raise pickle.UnpicklingError(reason[1] if reason else "not a file of torch.save") from error
