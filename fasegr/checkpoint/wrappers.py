"""Where files keep the weights of a model, and what training programs put before their names."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["AVERAGED_KEYS", "MODEL_KEYS", "Names", "find_state_dict", "without_wrappers"]

logger = logging.getLogger(__name__)

# Keys of a state dict: detectron2 and Swin; timm and Lightning; the PyTorch tutorials; DeepSpeed; distillation.
MODEL_KEYS = ("model", "state_dict", "model_state_dict", "module", "network", "net", "student")
# The same of weights averaged over a training. They are read where there are no others.
AVERAGED_KEYS = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "teacher")
_DEPTH = 4  # {"ema": {"module": {"state_dict": ...}}}

_PLAIN = ("model", "module", "_orig_mod", "network", "net", "online_model", "student")
_AVERAGED = ("ema", "ema_model", "model_ema", "averaged_model", "swa_model", "teacher", "ema_teacher")
_CHAIN = re.compile(rf"(?:(?:{'|'.join(_PLAIN + _AVERAGED)})\.)*")
# What averaging keeps beside the weights.
_COUNTERS = re.compile(r"(.*\.)?(n_averaged|num_updates|decay|initted|step|updates)")


class Names(NamedTuple):
    """ours: name -> the file's name, without the prefixes of wrappers. left_out: a sentence on other weights, or ""."""

    ours: dict[str, str]
    left_out: str


def find_state_dict(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The innermost mapping below the known keys, and the first of these keys, "" if there is none."""
    outermost, found = "", data
    for _ in range(_DEPTH):
        key = next((key for key in (*MODEL_KEYS, *AVERAGED_KEYS) if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        if key in MODEL_KEYS and (averaged := [k for k in AVERAGED_KEYS if isinstance(found.get(k), Mapping)]):
            logger.info("The file also holds averaged weights, under %s, which are not read", " and ".join(averaged))
        outermost, found = outermost or key, found[key]
    return found, outermost


def without_wrappers(names: Iterable[str]) -> Names:
    """Takes off what DistributedDataParallel, torch.compile, Lightning modules and averaging put before every name.

    Where a file has a model twice, as trained and averaged, or as student and teacher, it is the one as trained.
    """
    names = list(names)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_CHAIN.match(name)[0]].append(name)
    enough = max(map(len, groups.values()), default=0) / 2
    large = [chain for chain, group in groups.items() if len(group) >= enough]
    chosen = min(large, key=lambda chain: (_is_averaged(chain), -len(groups[chain]), chain != ""), default="")
    if not chosen:
        return Names({name: name for name in names}, "")
    copies = [chain for chain in large if chain not in ("", chosen)]
    others = [name for chain in groups if chain != chosen for name in groups[chain]]
    dropped = {name for chain in copies for name in groups[chain]} | {n for n in others if _COUNTERS.fullmatch(n)}
    ours = {name.removeprefix(chosen): name for name in names if name not in dropped}
    prefixes = " and ".join(map(repr, copies))
    left_out = f"the names begin with {chosen!r}; those that begin with {prefixes} are not read" if copies else ""
    return Names(ours, left_out)


def _is_averaged(chain: str) -> bool:
    return any(part in _AVERAGED for part in chain.split("."))
