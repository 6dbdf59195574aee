"""Processes that end, are stopped or wait for one that is gone. Four of them, forked, so that none imports torch."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback

import pytest
import torch.distributed as dist

from fasegr.checkpoint.checkpointer import SAVING
from fasegr.d2 import comm
from fasegr.engine import watch
from fasegr.engine.interruption import Interrupted, Interruption
from fasegr.engine.launch import readable_errors
from fasegr.engine.watch import tell, watching

SIZE = 4
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have loaded torch")


def wait_for(path, seconds=20):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def be_killed(rank, folder):
    """Process 2 is killed; 0 sleeps, as if it hung in a collective of NCCL; 1 and 3 wait over gloo."""
    if rank == 2:
        if os.fork() == 0:  # a data worker, which holds open what it has inherited
            time.sleep(5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        with SAVING:  # in the middle of a checkpoint
            time.sleep(3)
            (folder / "saved").touch()
        time.sleep(60)
    comm.synchronize()


def be_signalled(rank, folder):
    """Process 3 gets a signal within its share of an evaluation; the others are in theirs, or wait for it."""
    with Interruption(tell=tell) as interruption:
        try:
            with interruption.at_once():
                if rank == 3:
                    time.sleep(0.2)
                    os.kill(os.getpid(), signal.SIGHUP)
                if rank == 1:
                    comm.gather(rank)
                time.sleep(60)
        except RuntimeError:
            if not interruption.arrives(seconds=2):
                raise
            raise Interrupted(interruption.signum) from None


def be_wrong(rank, folder):
    """Process 1 fails."""
    if rank == 1:
        raise ValueError("this is wrong")
    comm.synchronize()


def be_done(rank, folder):
    """Nothing happens; the first one ends a while before the others."""
    comm.synchronize()
    time.sleep(0.3 * (rank > 0))


def start(rank, main, folder, port):
    sys.stderr = open(folder / f"{rank}.txt", "w")  # noqa: SIM115 (to the end of the process)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    watch.GRACE = 1.0
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=SIZE)
    comm.create_local_process_group(SIZE)
    code = 0
    try:
        with watching("127.0.0.1" if rank % 2 else "localhost"), readable_errors():
            main(rank, folder)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stderr.flush()
    os._exit(code)


@pytest.fixture
def run(tmp_path):
    """A function that runs `main` in all processes; returns their exit codes, what they said, and the seconds."""

    def processes(main):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        forked = multiprocessing.get_context("fork")
        started = [forked.Process(target=start, args=(rank, main, tmp_path, port)) for rank in range(SIZE)]
        begin = time.monotonic()
        for process in started:
            process.start()
        for process in started:
            process.join(30)
        seconds = time.monotonic() - begin
        for process in started:
            process.kill()
        return [p.exitcode for p in started], [(tmp_path / f"{rank}.txt").read_text() for rank in range(SIZE)], seconds

    return processes


def test_a_killed_process_ends_all_with_the_reason_and_no_checkpoint_is_cut(run, tmp_path):
    codes, said, seconds = run(be_killed)
    assert codes == [2, 2, -signal.SIGKILL, 2], said
    assert seconds < 20
    assert "process 2 has ended; this one still waits" in said[0]
    assert (tmp_path / "saved").exists()
    for rank in (1, 3):
        assert "process 2 has ended" in said[rank]


def test_a_signal_to_one_process_stops_all_in_order(run):
    codes, said, _ = run(be_signalled)
    assert codes == [128 + signal.SIGHUP] * SIZE, said
    assert not any(said)


def test_a_process_that_fails_ends_all(run):
    codes, said, seconds = run(be_wrong)
    assert codes == [2] * SIZE, said
    assert "this is wrong" in said[1]
    assert all("process 1 has ended" in said[rank] for rank in (0, 2, 3)), "".join(said)
    assert seconds < 20


def test_the_end_of_a_run_is_no_loss(run):
    codes, said, _ = run(be_done)
    assert codes == [0] * SIZE, said
    assert not any(said)


def test_one_process_watches_nobody():
    with watching("127.0.0.1"):
        tell(signal.SIGTERM)
        assert watch.lost_process() is None
