import os
import signal
import threading
import time

import pytest

from fasegr.engine import interruption
from fasegr.engine.interruption import Interrupted, Interruption


def send(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)
    time.sleep(0)  # handlers run between bytecodes


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_noted_and_nothing_else(signum, code, capfd):
    with Interruption("Stopping.") as noted:
        send(signum)
        assert noted.signum == signum
    assert "Stopping." in capfd.readouterr().err
    assert Interrupted(signum).exit_code == code


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as noted:
            send(signal.SIGHUP)
            assert noted.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_stops_nothing(monkeypatch):
    def write(descriptor, text):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "write", write)
    with Interruption("Stopping.") as noted:
        send(signal.SIGHUP)
        assert noted.signum == signal.SIGHUP


@pytest.fixture
def torch_handler():
    def as_torch_does(signum, frame):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. ")

    before = signal.getsignal(signal.SIGCHLD)
    yield as_torch_does
    signal.signal(signal.SIGCHLD, before)


def test_the_death_of_a_data_worker_waits_until_batches_are_waited_for(torch_handler):
    with Interruption() as noted:
        with noted.waiting_for_workers():
            signal.signal(signal.SIGCHLD, torch_handler)  # when a loader starts
        send(signal.SIGCHLD)  # in the middle of a step
        with pytest.raises(RuntimeError, match="Killed"), noted.waiting_for_workers():
            pytest.fail("it had died already")
    with Interruption() as noted, pytest.raises(RuntimeError, match="Killed"), noted.waiting_for_workers():
        send(signal.SIGCHLD)
    assert signal.getsignal(signal.SIGCHLD) == torch_handler


def test_the_death_of_a_data_worker_is_not_lost_in_a_finalizer(torch_handler, capsys):
    class Collected:
        def __del__(self):
            send(signal.SIGCHLD)

    with Interruption() as noted:
        with noted.waiting_for_workers():
            signal.signal(signal.SIGCHLD, torch_handler)
        with pytest.raises(RuntimeError, match="Killed"), noted.waiting_for_workers():
            Collected()
            raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")  # as the loader does a little later
        with pytest.raises(RuntimeError, match="Killed"), noted.waiting_for_workers():
            pytest.fail("it had died already")
    assert "Traceback" not in capsys.readouterr().err


def test_at_once_raises_for_signals_now_and_before():
    with Interruption() as noted:
        with pytest.raises(Interrupted) as stopped, noted.at_once():
            send(signal.SIGTERM)
        assert stopped.value.signum == signal.SIGTERM
        with pytest.raises(Interrupted), noted.at_once():
            pytest.fail("the signal had come already")


def test_a_second_ctrl_c_ends_at_once_unless_it_is_the_same_one(monkeypatch):
    with Interruption() as noted:
        send()
        send()  # the terminal and torchrun both pass it on
        monkeypatch.setattr(interruption, "DEAD_TIME", 0.0)
        with pytest.raises(KeyboardInterrupt) as stopped:
            send()
        assert not isinstance(stopped.value, Interrupted)
        assert noted.signum == signal.SIGINT


@pytest.mark.parametrize(("signum", "survives"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_forked_data_workers(signum, survives):
    """They finish the batches that the current step needs, and still end when their loader ends them."""
    with Interruption():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signum)
            time.sleep(0)
            os._exit(7)
        _, status = os.waitpid(child, 0)
    assert (os.waitstatus_to_exitcode(status) == 7) == survives


def test_other_threads_are_left_alone():
    problems = []

    def work():
        try:
            with Interruption() as noted:
                assert noted.signum is None
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not problems
