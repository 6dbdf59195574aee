import pytest

from tests.evaluation.processes import TwoProcesses


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    return TwoProcesses(tmp_path_factory.mktemp("two"))
