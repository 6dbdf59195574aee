"""A process that reads a range of spoilt inputs of one kind and prints a line before and after each.

    python -m tests.fuzz.batch KIND SEED FIRST LAST FOLDER

Before: its number. After: {"number", "outcome", "input"}, and "fault" with what should not have happened. KIND is a
module of this folder, with

    prepare(folder)             makes what all inputs share, and returns it
    make(shared, rng, folder)   writes an input; returns what it is (a few words) and the names of which its error must
                                have one
    read(shared, folder)        reads it; returns a word for its result, or raises
"""

import importlib
import json
import logging
import os
import random
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path

from fasegr.engine.launch import USER_ERRORS

MEMORY = 12 << 30  # bytes of addresses: a file that asks for more gets an error, and not the machine's memory
LONGEST_MESSAGE = 1500


def outcome(kind, shared, names: list[str], folder: Path) -> dict[str, str]:
    try:
        return {"outcome": kind.read(shared, folder)}
    except USER_ERRORS as error:
        message = str(error)
        result = {"outcome": type(error).__name__}
        if not any(name in message for name in names):
            result["fault"] = f"the error names none of {', '.join(names)}: {message[:LONGEST_MESSAGE]}"
        elif len(message) > LONGEST_MESSAGE or "Traceback" in message:
            result["fault"] = f"a message of {len(message)} characters: {message[:LONGEST_MESSAGE]}"
        return result
    except BaseException:
        return {"outcome": "trace", "fault": traceback.format_exc()[-3000:]}


def main(name: str, seed: str, first: int, last: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    logging.disable()
    report = os.fdopen(os.dup(1), "w", buffering=1)  # readers may print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    kind = importlib.import_module(f"tests.fuzz.{name}")
    shared = kind.prepare(folder)
    for number in range(first, last):
        print(number, file=report)
        work = folder / "input"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        what, names = kind.make(shared, random.Random(f"{name} {seed} {number}"), work)
        result = {"number": number, "input": what, **outcome(kind, shared, names, work)}
        executed = [file.name for file in folder.glob("executed*")]
        if executed:
            result["fault"] = f"code of the file ran: {executed}"
        print(json.dumps(result), file=report)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
