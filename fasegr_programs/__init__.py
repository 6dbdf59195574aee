"""The program `fasegr`: one command for each script of a checkout.

fasegr train --config-file quickstart/faseg_scenes.yaml
python -m fasegr_programs train ...                             the same, without the installed program
torchrun --nproc-per-node 8 -m fasegr_programs train ...

In a checkout the scripts are run from where they lie. In a wheel they lie in this package (setup.py copies them), laid
out as in the checkout, so that both run the same files. Nothing here imports torch: `fasegr --help` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["COMMANDS", "ROOT", "Command", "main"]

_HERE = Path(__file__).resolve().parent
ROOT = _HERE if (_HERE / "train_net.py").is_file() else _HERE.parent
"""Where train_net.py, demo/ and tools/ are."""


class Command(NamedTuple):
    """module, function: what runs it, called with the arguments. summary: for the help. arguments: put first."""

    module: str
    function: str
    summary: str
    arguments: tuple[str, ...] = ()


COMMANDS = {
    "train": Command("train_net", "run", "train a model, on one CPU or many GPUs"),
    "eval": Command("train_net", "run", "score a model on DATASETS.TEST", ("--eval-only",)),
    "predict": Command("demo.demo", "main", "draw the predictions of a model over pictures and videos"),
    "serve": Command("demo.serve", "main", "show models as a page in the browser"),
    "inspect": Command("tools.inspect_dataset", "main", "look at a dataset before training: a page of what is in it"),
    "export": Command("tools.export_model", "main", "write a model to an ONNX file, or torch.export's"),
    "attention": Command("tools.visualize_attention", "main", "draw where the queries of a model look"),
    "compare": Command("tools.compare_predictions", "main", "draw the predictions of several models side by side"),
    "report": Command(
        "tools.evaluate_report", "main", "write a page on how good a model is, or on which of two is better"
    ),
    "ablation": Command("tools.run_ablation", "main", "train the rows of the paper's tables and compare them"),
    "fit": Command("tools.fit_memory", "main", "fit a recipe into a memory: images at once, checkpointing, crop"),
    "check": Command("tools.check_machine", "main", "try everything that depends on this machine, in a minute"),
}

HELP = """\
usage: fasegr COMMAND ...

FASeg: dynamic focus-aware positional queries for semantic segmentation.

{commands}

`fasegr COMMAND --help` shows its options. A --config-file is a file, or one of the configs that come with fasegr, such
as quickstart/faseg_scenes.yaml.
"""


def main(arguments: Sequence[str] | None = None) -> int | None:
    """The program. arguments: of the command line by default. Returns the exit code, None for 0."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<11}{c.summary}" for name, c in COMMANDS.items())), end="")
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(COMMANDS)}"
        print(f"fasegr: error: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    sys.path.insert(0, str(ROOT))
    sys.argv[0] = f"fasegr {name}"  # what the messages and the help of a script call it
    function = getattr(importlib.import_module(command.module), command.function)
    return function([*command.arguments, *rest])
