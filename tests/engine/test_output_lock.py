import os
import signal
import subprocess
import sys
import textwrap

import pytest

from fasegr.engine import output_lock
from fasegr.engine.output_lock import locked


@pytest.fixture
def holder(tmp_path):
    """Another process, with a forked worker that outlives it, that has `tmp_path`/out."""
    program = f"""
        import os, time
        from fasegr.engine.output_lock import locked
        with locked({str(tmp_path / "out")!r}):
            if os.fork():
                print("locked", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_folder_has_one_training_until_its_process_is_gone(holder, tmp_path):
    with pytest.raises(OSError, match=rf"out is in use by another training \(process {holder.pid} on "):
        locked(str(tmp_path / "out")).__enter__()
    with locked(str(tmp_path / "another")):
        pass
    holder.kill()
    holder.wait()
    with locked(str(tmp_path / "out")):
        assert str(os.getpid()) in (tmp_path / "out" / ".lock").read_text()


def test_blocks_are_nested_and_leave_nothing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with locked(str(tmp_path / "out")):
        with locked(str(tmp_path / "link")):
            pass
        assert (tmp_path / "out" / ".lock").exists()
    assert os.listdir(tmp_path / "out") == []


def test_other_processes_of_the_run_end_without_a_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(output_lock.comm, "is_main_process", lambda: False)
    with locked(str(tmp_path)):
        assert os.listdir(tmp_path) == []
    monkeypatch.setattr(output_lock.comm, "all_gather", lambda failed: [True, failed])
    with pytest.raises(SystemExit) as stopped:
        locked(str(tmp_path)).__enter__()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ""


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(output_lock.fcntl, "flock", refuse)
    with locked(str(tmp_path)):
        assert "cannot be locked" in caplog.text
