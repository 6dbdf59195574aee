from pathlib import Path

import pytest

from fasegr.checkpoint.zoo import RELEASED, released_url

CONFIGS = Path(__file__).parents[2] / "configs"


def test_names_are_those_of_the_configs():
    for name in RELEASED:
        dataset, leaf = name.split("/")
        assert list((CONFIGS / dataset / "semantic-segmentation").glob(f"**/{leaf}.yaml")), name


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"fasegr://ade20k/faseg_r18.*there are: fasegr://ade20k/faseg_r50, ") as error:
        released_url("fasegr://ade20k/faseg_r18")
    assert all(name in str(error.value) for name in RELEASED)
