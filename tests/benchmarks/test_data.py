import numpy as np
import pytest
from PIL import Image

from benchmarks import data, peers


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_have_labels_of_their_size(tmp_path, suffix):
    records = data.write_images(str(tmp_path), (48, 64), 2, num_classes=20, suffix=suffix)
    assert len(records) == 2
    for record in records:
        image, labels = (np.asarray(Image.open(record[f"{kind}file_name"])) for kind in ("", "sem_seg_"))
        assert image.shape == (48, 64, 3)
        assert image.std() > 20
        assert labels.shape == (48, 64)
        present = set(np.unique(labels)) - {255}
        assert len(present) > 3
        assert max(present) < 20


def test_predictions_have_nine_classes():
    scores = data._score_map(np.random.default_rng(0), (40, 60), 150)
    assert scores.shape == (150, 40, 60)
    assert 4 < np.unique(scores.argmax(0)).size <= 9


@pytest.mark.parametrize("kind", ["mapper", "evaluation", "evaluation-labels"])
def test_a_round_covers_all_images(case, kind):
    result = data.times(case(kind, batch=2))
    assert [list(reading) for reading in result["seconds"]["ours"]] == [["whole"]] * 2
    assert result["names"] == {"ours": "ours"}


def test_other_peers_than_checkouts_are_refused(case):
    with pytest.raises(peers.Unusable, match="--peer is plain"):
        data.times(case("mapper", peer="plain"))
