import os
from itertools import chain, islice

import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from fasegr.d2 import DatasetCatalog, MetadataCatalog, comm
from fasegr.data.build import build_train_loader, with_class_weights
from fasegr.data.class_counts import ClassCounts, cached_counts, count_classes, inverse_sqrt_weights, repeat_factors
from fasegr.data.dataset_mappers import build_mapper
from fasegr.data.image_io import BadFile
from fasegr.data.panoptic_png import write_segment_ids

pytestmark = pytest.mark.usefixtures("catalogs")

# label maps of 4 x 5: class 1 is in one image, class 2 in none
MAPS = [
    np.array([[0] * 5] * 3 + [[1, 1, 255, 255, 255]]),
    np.zeros((4, 5)),
    np.full((4, 5), 255),
    np.zeros((4, 5)),
]


def write(folder, maps=MAPS):
    records = []
    for i, labels in enumerate(maps):
        height, width = labels.shape
        record = {"file_name": str(folder / f"{i}.jpg"), "sem_seg_file_name": str(folder / f"{i}.png")}
        Image.new("RGB", (width, height)).save(record["file_name"])
        Image.fromarray(labels.astype(np.uint8)).save(record["sem_seg_file_name"])
        records.append(record)  # without a size, as detectron2's own ADE20K has them
    return records


@pytest.fixture
def set_up(cfg, tmp_path):
    """A config and the records of MAPS, registered as its training set."""
    records = write(tmp_path)
    DatasetCatalog.register("rare", lambda: records)
    MetadataCatalog.get("rare").stuff_classes = ["common", "odd", "absent"]
    cfg.DATASETS.TRAIN = ("rare",)
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.DEVICE = 10, "cpu"
    return cfg, records


def counts_of(pixels, segments=None):
    pixels = np.array(pixels)
    return ClassCounts(sparse.csr_array(pixels), sparse.csr_array((pixels > 0) if segments is None else segments))


def test_label_maps_are_counted(set_up):
    cfg, records = set_up
    counts = count_classes(records, build_mapper(cfg, is_train=True))
    assert counts.pixels.toarray().tolist() == [[15, 2, 0], [20, 0, 0], [0, 0, 0], [20, 0, 0]]
    assert counts.segments.toarray().tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert counts.images.tolist() == [3, 1, 0]


def test_a_class_that_the_model_does_not_have_is_named(set_up, tmp_path):
    cfg, _ = set_up
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    with pytest.raises(BadFile, match=r"0\.png: holds the label 1; with 1 classes"):
        count_classes(write(tmp_path), build_mapper(cfg, is_train=True))


def test_objects_are_counted(cfg):
    """By the masks that training has of them, crowds left out."""
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    code = {"size": [10, 10], "counts": [10, 25, 65]}
    objects = [(0, square, 0), (2, code, 0), (0, [[0, 0, 3, 0, 3, 2, 0, 2]], 0), (1, square, 1)]
    record = {
        "file_name": "a.jpg",
        "height": 10,
        "width": 10,
        "annotations": [{"category_id": c, "segmentation": s, "iscrowd": crowd} for c, s, crowd in objects],
    }
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    counts = count_classes([record, {**record, "annotations": []}], build_mapper(cfg, is_train=True))
    assert counts.pixels.toarray().tolist() == [[16 + 6, 0, 25], [0, 0, 0]]
    assert counts.segments.toarray().tolist() == [[2, 0, 1], [0, 0, 0]]


def test_segments_are_counted(cfg, tmp_path):
    ids = np.zeros((4, 5), np.int64)
    ids[0], ids[1, :2], ids[2] = 7, 300, 9
    write_segment_ids(tmp_path / "a.png", ids)
    segments = [(7, 1, 0), (300, 1, 0), (9, 0, 1), (11, 2, 0)]  # the third is a crowd, the last has no pixel
    record = {
        "file_name": "a.jpg",
        "height": 4,
        "width": 5,
        "pan_seg_file_name": str(tmp_path / "a.png"),
        "segments_info": [{"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments],
    }
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    counts = count_classes([record], build_mapper(cfg, is_train=True))
    assert counts.pixels.toarray().tolist() == [[0, 7, 0]]
    assert counts.segments.toarray().tolist() == [[0, 2, 1]]
    assert counts.images.tolist() == [0, 1, 0]


# the file of counts


def test_counts_are_read_once(set_up, monkeypatch):
    cfg, records = set_up
    mapper = build_mapper(cfg, is_train=True)
    first = cached_counts(cfg, records, mapper)
    monkeypatch.setattr(mapper, "count", None)  # cannot be called
    again = cached_counts(cfg, records, mapper)
    for mine, other in zip(first, again, strict=True):
        assert (mine != other).nnz == 0 and mine.dtype == other.dtype


@pytest.mark.parametrize("change", ["labels", "records", "classes", "damage"])
def test_counts_of_other_data_are_not_taken(set_up, tmp_path, change):
    cfg, records = set_up
    cached_counts(cfg, records, build_mapper(cfg, is_train=True))
    expected = [[15, 2, 0], [20, 0, 0], [0, 0, 0], [20, 0, 0]]
    if change == "labels":
        Image.fromarray(np.full((4, 5), 2, np.uint8)).save(records[1]["sem_seg_file_name"])
        os.utime(records[1]["sem_seg_file_name"], (1, 1))
        expected[1] = [0, 0, 20]
    elif change == "records":
        records, expected = records[:1], expected[:1]
    elif change == "classes":
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
        expected = [row[:2] for row in expected]
    else:
        with open(tmp_path / "run/class_counts.npz", "rb+") as file:
            file.truncate(100)
    counts = cached_counts(cfg, records, build_mapper(cfg, is_train=True))
    assert counts.pixels.toarray().tolist() == expected


def test_only_the_main_process_counts(set_up, monkeypatch):
    cfg, records = set_up
    counts = count_classes(records, build_mapper(cfg, is_train=True))
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda mine: [counts, mine])
    assert cached_counts(cfg, records, None) is counts


# weights and factors


def test_inverse_square_root_weights():
    counts = counts_of([[90, 10, 0], [300, 0, 0], [0, 0, 0]])
    weights = inverse_sqrt_weights(counts)
    assert weights[1] / weights[0] == pytest.approx((390 / 10) ** 0.5)
    assert weights[2] == 1  # never a target
    segments = np.array([2, 1, 0])
    assert (weights * segments).sum() / segments.sum() == pytest.approx(1)
    assert inverse_sqrt_weights(counts_of([[0, 0]])).tolist() == [1, 1]


def test_weights_are_scaled_by_what_is_matched():
    """Ten objects of class 0 are ten targets."""
    weights = inverse_sqrt_weights(counts_of([[100, 100]], [[9, 1]]))
    assert weights.tolist() == pytest.approx([1, 1])
    weights = inverse_sqrt_weights(counts_of([[100, 400]], [[9, 1]]))
    assert weights[0] == pytest.approx(2 * weights[1]) and 9 * weights[0] + weights[1] == pytest.approx(10)


def test_repeat_factors_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 9, (40, 6)) * (rng.random((40, 6)) < [0.9, 0.4, 0.2, 0.1, 0.05, 0])
    factors = repeat_factors(counts_of(pixels), 0.3)
    for image, factor in zip(pixels, factors, strict=True):
        of_classes = [max(1, (0.3 / ((pixels[:, c] > 0).mean())) ** 0.5) for c in range(6) if image[c] > 0]
        assert factor == pytest.approx(max(of_classes, default=1))
    assert factors.max() > 1.5


# in a training


def test_weights_of_a_config_become_numbers(set_up, caplog):
    cfg, _ = set_up
    assert with_class_weights(cfg) is cfg
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHTS = "inverse_sqrt"
    with caplog.at_level("INFO"):
        weights = with_class_weights(cfg).MODEL.MASK_FORMER.CLASS_WEIGHTS
    assert weights[1] / weights[0] == pytest.approx((55 / 2) ** 0.5, rel=1e-3)
    assert "odd 2.5444, absent 1, common 0.4852" in caplog.text
    assert cfg.MODEL.MASK_FORMER.CLASS_WEIGHTS == "inverse_sqrt"  # the caller's stays


def _samples(cfg, batches, start=0):
    loader, sampler = build_train_loader(cfg, seed=0)
    sampler.start_iteration = start
    return list(chain(*islice(loader, batches)))


def _files(cfg, batches, start=0):
    return [sample["file_name"][-5:] for sample in _samples(cfg, batches, start)]


def test_images_of_rare_classes_are_repeated(set_up, caplog):
    cfg, _ = set_up
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 0.64
    with caplog.at_level("INFO"):
        files = _files(cfg, 46)  # 100 epochs of 1.6 + 3
    assert "an epoch has 5 samples of 4 images. Classes in fewer than 0.64 of them: odd (1 images)" in caplog.text
    assert {name: files.count(name) for name in sorted(set(files))} == {
        "0.jpg": pytest.approx(160, abs=1),
        **{f"{i}.jpg": pytest.approx(100, abs=1) for i in (1, 2, 3)},
    }
    assert _files(cfg, 3, start=40) == files[400:430]


def test_crops_go_where_the_rare_class_is(set_up):
    cfg, _ = set_up
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP.SIZE, cfg.INPUT.RANDOM_FLIP = (4,), (1, 1), "none"
    cfg.DATASETS.TRAIN = ("only",)
    DatasetCatalog.register("only", lambda: DatasetCatalog.get("rare")[:1])

    def seen(prob, start=0):
        cfg.INPUT.CROP.RARE_CLASS_PROB = prob
        return [sample["labels"].tolist() for sample in _samples(cfg, 20, start)]

    plain, drawn = seen(0.0), seen(1.0)
    assert plain.count([1]) < 40  # 2 of 20 pixels
    assert drawn.count([1]) == pytest.approx(200 * 15 / 17, abs=20)  # the classes have 15 and 2 pixels
    assert drawn.count([]) == 0  # ignored pixels are never looked for
    assert seen(0.5, start=10)[:100] == seen(0.5)[100:]
