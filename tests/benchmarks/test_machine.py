from benchmarks import machine


def test_description_says_what_and_when():
    found = machine.describe("cpu")
    assert set(found) >= {"date", "commit", "cpu", "cpus", "threads", "system", "python", "torch"}
    assert found["threads"] >= 1


def test_a_folder_that_is_not_a_checkout_has_no_commit(tmp_path):
    assert machine.commit_name(tmp_path) is None


def test_peaks_are_those_of_the_fastest_runs(monkeypatch):
    monkeypatch.setattr(machine, "tune_allocator", lambda: None)  # a setting of the process, which other tests share
    monkeypatch.setattr(machine, "_best", lambda run, device: run() is not None and 0.5)
    found = machine.peaks("cpu", "float32")
    assert found["flops"] == 2 * max(1024**3, 4096 * 256 * 1024) / 0.5
    assert found["bytes"] == 3 * 4 * 2**24 / 0.5
