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


def setup_logger(output: str | None = None, distributed_rank: int = 0, *, name: str = "fasegr") -> logging.Logger:
    """Send the records of logger `name` and below to stdout (rank 0) and to a file of every rank; returns the logger.

    output: a folder, which gets ``log.txt``; that of a rank above 0 is ``log.txt.rank1`` and so on.
    Called again, as by a second run in one process, it adds only what is missing.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False

    if distributed_rank == 0 and not any(type(h) is logging.StreamHandler for h in logger.handlers):
        terminal = logging.StreamHandler(sys.stdout)
        terminal.setFormatter(_ColoredFormatter())
        logger.addHandler(terminal)

    if output is not None:
        path = os.path.abspath(
            os.path.join(output, "log.txt" + (f".rank{distributed_rank}" if distributed_rank else ""))
        )
        if not any(isinstance(h, logging.FileHandler) and h.baseFilename == path for h in logger.handlers):
            os.makedirs(output, exist_ok=True)
            file = logging.FileHandler(path)
            file.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
            logger.addHandler(file)
    return logger
