import pytest

from fasegr.engine import slurm
from fasegr.engine.slurm import Task, slurm_task

# Task 9 of `srun --nodes 2 --ntasks-per-node 8`, as SLURM describes it.
STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[017-018]",
    "SLURM_JOB_NODELIST": "gpu[017-019]",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets the SLURM variables of this process to `names`, without those that are None."""

    def set_to(**names):
        for name in [*STEP, "SLURM_TASKS_PER_NODE", "MASTER_ADDR", "MASTER_PORT"]:
            monkeypatch.delenv(name, raising=False)
        for name, value in names.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return set_to


def test_a_task_of_several(environment):
    environment(**STEP)
    assert slurm_task() == Task(rank=9, world_size=16, local_rank=1, local_size=8, url="tcp://gpu017:18456")
    environment(**STEP, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    assert slurm_task().url == "tcp://10.0.0.1:29500"


def test_one_node_needs_no_name(environment):
    environment(**{**STEP, "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_PROCID": "1"})
    assert slurm_task().url == "tcp://127.0.0.1:18456"


def test_neighbours_meet_elsewhere(environment):
    urls = set()
    for job, step in (("123456", "0"), ("123456", "1"), ("123457", "0")):
        environment(**{**STEP, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step})
        urls.add(slurm_task().url)
    assert len(urls) == 3


@pytest.mark.parametrize(
    "changes",
    [
        dict.fromkeys(STEP),  # no SLURM
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},  # srun --pty bash, or the shell of salloc
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_STEP_ID": None, "SLURM_PROCID": "0"},  # a batch script
    ],
)
def test_a_process_alone(environment, changes):
    environment(**{**STEP, **changes})
    assert slurm_task() is None


def test_srun_of_older_slurm(environment):
    without = {name: None for name in STEP if name.startswith("SLURM_STEP_")}
    environment(**{**STEP, **without, "SLURM_TASKS_PER_NODE": "8(x2)"})
    assert slurm_task() == Task(rank=9, world_size=16, local_rank=1, local_size=8, url="tcp://gpu017:18456")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "8,4(x2)"}, "srun started 8, 4, 4 tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "'many'; expected tasks of each node"),
        ({"SLURM_LOCALID": None}, "SLURM_LOCALID"),
        ({"SLURM_JOB_ID": "x"}, "'x'"),
    ],
)
def test_what_cannot_be_understood(environment, changes, said):
    environment(**{**STEP, **changes})
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        slurm_task()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login1", "login1"),
        ("a,b", "a"),
        ("node[007-010,012],login1", "node007"),
        ("rack[1-2]-node[03,05]", "rack1-node03"),
        ("gpu[1].cluster,x", "gpu1.cluster"),
    ],
)
def test_the_first_host(nodes, first):
    assert slurm._first_host(nodes) == first
