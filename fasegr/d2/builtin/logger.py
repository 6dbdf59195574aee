"""Log lines on the main process's terminal and in a file for every process."""

import logging
import os
import sys
from typing import ClassVar

from termcolor import colored

FORMAT = "[%(asctime)s %(name)s] %(levelname)s: %(message)s"
DATE_FORMAT = "%m/%d %H:%M:%S"


class _ColoredFormatter(logging.Formatter):
    """Origin in green; the level only where it is a warning or worse."""

    COLORS: ClassVar = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}

    def __init__(self):
        super().__init__(FORMAT, DATE_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        origin = colored(f"[{record.asctime} {record.name}]:", "green")
        if record.levelno in self.COLORS:
            origin += " " + colored(record.levelname, self.COLORS[record.levelno])
        return f"{origin} {record.message}"


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "fasegr",
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Send the records of logger `name` and below to stdout (rank 0) and to a file of every rank; returns the logger.

    output: a ``.txt`` or ``.log`` file, or a directory that gets ``log.txt``; ranks above 0 append ``.rank1`` and on.
    Called again, as by a second run in one process, it adds only what is not there yet.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation

    if (
        configure_stdout
        and distributed_rank == 0
        and not any(type(h) is logging.StreamHandler for h in logger.handlers)
    ):
        terminal = logging.StreamHandler(sys.stdout)
        terminal.setFormatter(_ColoredFormatter() if color else logging.Formatter(FORMAT, DATE_FORMAT))
        logger.addHandler(terminal)

    if output is not None:
        path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        path = os.path.abspath(path + (f".rank{distributed_rank}" if distributed_rank else ""))
        if not any(isinstance(h, logging.FileHandler) and h.baseFilename == path for h in logger.handlers):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = logging.FileHandler(path)
            file.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
            logger.addHandler(file)
    return logger
