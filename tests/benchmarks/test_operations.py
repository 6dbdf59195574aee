import pytest

from benchmarks import operations


def test_deformable_attention_by_part(case):
    result = operations.times(case("deformable", peer="plain"))
    assert {name: list(rounds[0]) for name, rounds in result["seconds"].items()} == {
        "ours": ["whole", "backward", "forward"],
        "peer": ["whole", "backward", "forward"],
    }
    assert list(operations.times(case("deformable"))["seconds"]) == ["ours"]


def test_deformable_attention_agrees(case):
    found = operations.agreement(case("deformable", peer="plain", dtype="float64"))
    assert list(found) == ["result", "gradients"]
    assert max(found.values()) < 1e-12


def test_synchronisation_needs_a_gpu(case):
    with pytest.raises(ValueError, match="the device is cpu"):
        operations.times(case("synchronisation"))
