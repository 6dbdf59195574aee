"""A study that costs nothing: two rows of Table 5 on the quickstart, and a trainer that only writes what one leaves."""

import json
from pathlib import Path

from tools.ablation.runs import Run, plan, resolve_base
from tools.ablation.tables import TABLES

TABLE = TABLES["5"]
ROWS = [row for row in TABLE.rows if row.name in ("learnable", "dfpq")]

# Writes a line of metrics.json for each iteration, in the folder and of the length that the options say, from where it
# finds itself. A file "fail", "slow" or "silent" in the folder of the row changes what it does.
TRAINER = """
import json, pathlib, signal, sys, time
options = sys.argv[sys.argv.index("--resume") + 1 :]
options = dict(zip(options[0::2], options[1::2]))
folder = pathlib.Path(options["OUTPUT_DIR"])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
file = folder / "metrics.json"
start = len(file.read_text().splitlines()) if file.exists() else 0
total = int(options["SOLVER.MAX_ITER"])
print("starting at", start, flush=True)
if (folder.parent / "fail").exists():
    sys.exit("this row fails")
for iteration in range(start, total):
    with open(file, "a") as out:
        out.write(json.dumps({"iteration": iteration, "total_loss": 1.0}) + "\\n")
    while (folder.parent / "slow").exists() and iteration == 1 and not stop:
        time.sleep(0.02)
    if stop:
        sys.exit(143)
if not (folder.parent / "silent").exists():
    score = 50 + int(options["SEED"]) + (options["MODEL.FASEG.POSITIONAL_QUERY"] == "dfpq")
    with open(file, "a") as out:
        out.write(json.dumps({"iteration": total - 1, "sem_seg/mIoU": score}) + "\\n")
"""


def cells(output: Path, seeds=(1, 2), *options, rows=ROWS):
    base = resolve_base("scenes", None, ["SOLVER.MAX_ITER", 4, *options])
    return plan([(TABLE, rows)], seeds, base, output)


def runs(output: Path, *args) -> list[Run]:
    return [cell.run for cell in cells(output, *args)]


def finish(run: Run, value: float) -> None:
    """As if the run were done."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": run.max_iter - 1, run.score: value}) + "\n")
