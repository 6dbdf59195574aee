"""The process of one measurement: reads what to call from standard input, and writes the result to a file."""

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    request = json.load(sys.stdin)
    module, _, name = request["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(**request["arguments"])
    Path(request["answer"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
