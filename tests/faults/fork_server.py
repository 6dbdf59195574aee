"""A process that has imported everything and forks a new process for each program it is asked to run.

Importing takes seconds, a run of the smallest training one. A forked run is a process of its own, leads a session of
its own, and ends as the program on a command line does: by leaving the interpreter.

Each line on standard input is one request, a JSON object, and gets one line of JSON back:

    {"target": "MODULE:FUNCTION", "arguments": [...], "env": {...}, "faults": [...], "pictures": BOOL, "log": PATH}
        ->  its process id
    {"wait": PID, "seconds": S}  ->  its exit code, negative for a signal; null if it still runs after S seconds
"""

import importlib
import json
import os
import sys
import time

PRELOADED = ("train_net", "fasegr.engine.pictures", "fasegr.inference", "torch.utils.tensorboard", "matplotlib.pyplot")


def wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)


def serve() -> dict | None:
    """Answers requests. Returns None at the end of standard input, and in a forked process its request."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = wait(request["wait"], request["seconds"])
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    return None


def become(request: dict) -> None:
    """Run what was asked for, in the forked process."""
    from fasegr.d2 import HookBase
    from fasegr.engine.pictures import Pictures
    from tests.faults import injection

    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.update(request["env"])
    module, _, function = request["target"].partition(":")
    sys.argv = [f"{module}.py", *request["arguments"]]
    injection.install(request["faults"])
    if not request["pictures"]:  # a third of the time of such a run
        Pictures.after_train = HookBase.after_train
    getattr(importlib.import_module(module), function)(request["arguments"])


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    print(json.dumps("ready"), flush=True)
    asked = serve()
    if asked is not None:
        become(asked)
