import os
import signal
import threading
import time

import pytest
from tqdm import tqdm

from fasegr.engine.interruption import Interrupted
from tests.tools.ablation.study import finish, runs
from tools.ablation.execution import CONSOLE, command, execute
from tools.ablation.runs import iterations_done, locked, score

pytestmark = pytest.mark.slow


def run_all(planned, **keywords):
    said = []
    failures = execute(planned, interval=0.02, log=said.append, **keywords)
    return failures, said


def test_all_runs_come_to_their_end(tmp_path, fake_trainer):
    planned = runs(tmp_path)
    with tqdm(total=16, file=open(os.devnull, "w")) as bar:
        failures, said = run_all(planned, jobs=2, bar=bar)
        assert bar.n == 16
    assert failures == []
    assert len(said) == 4
    assert [score(run) for run in planned] == [51, 52, 52, 53]  # learnable, dfpq; 50 and the seed, and 1 for dfpq


def test_what_is_done_is_left_alone_and_what_was_begun_goes_on(tmp_path, fake_trainer):
    done, begun, *_ = planned = runs(tmp_path)
    finish(done, 12.0)
    begun.folder.mkdir(parents=True)
    (begun.folder / "metrics.json").write_text('{"iteration": 0}\n{"iteration": 1}\n')
    run_all(planned)
    assert score(done) == 12.0
    assert not (done.folder / CONSOLE).exists()
    assert (begun.folder / CONSOLE).read_text() == "starting at 2\n"


def test_failures_are_reported_and_the_others_go_on(tmp_path, fake_trainer):
    learnable, dfpq, *_ = planned = runs(tmp_path)
    for run, how in ((learnable, "fail"), (dfpq, "silent")):
        run.folder.parent.mkdir(parents=True)
        (run.folder.parent / how).touch()
    failures, said = run_all(planned[:3])
    assert [failure.run for failure in failures] == [learnable, dfpq, planned[2]]
    assert failures[0].reason == "exit code 1"
    assert "this row fails" in failures[0].log.read_text()
    assert failures[1].reason == "metrics.json has no sem_seg/mIoU of iteration 4"
    assert str(failures[0].log) in said[0]
    for how in ("fail", "silent"):
        for run in planned[:2]:
            (run.folder.parent / how).unlink(missing_ok=True)
    failures, _ = run_all(planned)  # the same again tries them again
    assert failures == []


def test_a_signal_stops_the_runs_and_the_next_time_they_go_on(tmp_path, fake_trainer):
    planned = runs(tmp_path)[:2]
    for run in planned:
        run.folder.parent.mkdir(parents=True)
        (run.folder.parent / "slow").touch()

    def interrupt():
        while any(iterations_done(run) < 2 for run in planned):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as interrupted:
        run_all(planned, jobs=2)
    thread.join()
    assert interrupted.value.exit_code == 143
    assert [score(run) for run in planned] == [None, None]
    for run in planned:
        (run.folder.parent / "slow").unlink()
        with locked(run) as lock:
            assert lock is not None  # nobody is left behind
    failures, _ = run_all(planned)
    assert failures == []
    assert all("starting at 2" in (run.folder / CONSOLE).read_text() for run in planned)


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path, fake_trainer):
    run = runs(tmp_path)[0]
    with locked(run):
        thread = threading.Timer(0.3, finish, (run, 33.0))
        thread.start()
        waited = threading.Timer(0.6, lambda: os.close(descriptor))
        descriptor = os.open(run.folder / "run.lock", os.O_RDWR)
        waited.start()
        release = threading.Thread(target=run_all, args=([run],))
        release.start()
        thread.join()
    release.join(timeout=10)
    waited.join()
    assert not release.is_alive()
    assert score(run) == 33.0
    assert not (run.folder / CONSOLE).exists()


def test_one_gpu_for_each_run(tmp_path, fake_trainer):
    fake_trainer.write_text("import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n" + fake_trainer.read_text())
    planned = runs(tmp_path)
    failures, _ = run_all(planned, jobs=4, gpus=["3", "5,6"])
    assert failures == []
    used = [(run.folder / CONSOLE).read_text().split()[0] for run in planned]
    assert set(used) == {"3", "5,6"}


def test_the_command(tmp_path):
    run = runs(tmp_path)[0]
    words = command(run, 0)
    assert words[1].endswith("train_net.py")
    assert words[2:7] == ["--config-file", str(run.config), "--num-gpus", "0", "--resume"]
    assert words[-2:] == ["OUTPUT_DIR", str(run.folder)]
    assert words[words.index("MODEL.FASEG.POSITIONAL_QUERY") + 1] == "learnable"
