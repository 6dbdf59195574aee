import pytest

from fasegr.data.serialized_list import SerializedList


def test_items_come_out_as_they_went_in():
    items = [{"a": [1, 2.5, "x"]}, [], {"b": {3: b"y"}}, None, list(range(300))]
    serialized = SerializedList(items)
    assert len(serialized) == 5 and list(serialized) == items
    serialized[0]["a"].append("changed")
    assert serialized[0] == {"a": [1, 2.5, "x"]}
    assert list(SerializedList([])) == []


@pytest.mark.parametrize("index", [-1, 2, 5])
def test_indices_out_of_range(index):
    with pytest.raises(IndexError, match=f"item {index} of 2"):
        SerializedList([1, 2])[index]
