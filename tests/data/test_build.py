from itertools import chain, islice

import numpy as np
import pytest
import torch
from PIL import Image

from fasegr.d2 import RUNTIME, DatasetCatalog, comm
from fasegr.data.build import TrainingDataset, TrainingSampler, build_test_loader, build_train_loader
from fasegr.data.datasets import register_from_config
from fasegr.data.image_io import BadFile

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def data_cfg(cfg, make_folder):
    root = make_folder()
    cfg.DATASETS.FOLDER.NAME = "mine"
    cfg.DATASETS.FOLDER.ROOT = str(root)
    cfg.DATASETS.FOLDER.CLASSES = str(root / "classes.txt")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mine_train",), ("mine_val",)
    cfg.SOLVER.IMS_PER_BATCH = 4
    register_from_config(cfg)
    return cfg


def remember(record, rng):
    return record["id"], rng.random()


# the stream


def test_an_epoch_has_every_record_once():
    stream = TrainingDataset([{"id": i} for i in range(7)], remember, seed=5)
    assert len(stream) == 7
    epochs = [[stream[position][0] for position in range(e * 7, e * 7 + 7)] for e in range(20)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 15  # another order each time


def test_the_stream_is_a_function_of_seed_and_position():
    records = [{"id": i} for i in range(7)]
    stream = TrainingDataset(records, remember, seed=5)
    ahead = [stream[position] for position in range(40)]
    positions = np.random.default_rng(0).permutation(40)
    again = TrainingDataset(records, remember, seed=5)
    for position in positions.tolist():
        assert again[position] == ahead[position]
    assert len({drawn for _, drawn in ahead}) == 40  # every position has random numbers of its own
    other = TrainingDataset(records, remember, seed=6)
    assert [other[position][0] for position in range(40)] != [record for record, _ in ahead]
    assert records == [{"id": i} for i in range(7)]


def _shows(ids, times):
    """Whether each record is there floor or ceil of `times`."""
    return (np.abs(np.bincount(ids, minlength=len(times)) - times) < 1).all()


def test_repeated_records():
    """Each record comes as often as its factor says, to one time, after any number of epochs; all in every epoch."""
    repeats = np.array([1.0, 2.5, 1.3, 1.0, 4.0])
    stream = TrainingDataset([{"id": i} for i in range(5)], remember, seed=5, repeats=repeats)
    ids = [stream[position][0] for position in range(1000)]  # 102 epochs of 9.8
    end = 0
    for epochs in range(1, 100):
        start, end = end, next(n for n in range(end + 9, end + 12) if _shows(ids[:n], epochs * repeats))
        assert set(ids[start:end]) == set(range(5))
    positions = np.random.default_rng(0).permutation(1000)
    again = TrainingDataset([{"id": i} for i in range(5)], remember, seed=5, repeats=repeats)
    assert [again[position][0] for position in positions.tolist()] == [ids[position] for position in positions]


def test_repeats_of_one_change_nothing():
    records = [{"id": i} for i in range(7)]
    plain = TrainingDataset(records, remember, seed=5)
    ones = TrainingDataset(records, remember, seed=5, repeats=np.ones(7))
    assert [plain[i] for i in range(40)] == [ones[i] for i in range(40)]
    with pytest.raises(ValueError, match="at least 1"):
        TrainingDataset(records, remember, seed=5, repeats=np.full(7, 0.5))


# the sampler


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 3), (2, 1), (4, 1), (2, 3), (3, 2)])
def test_processes_share_every_micro_batch(world, accumulate):
    batch, iterations = 12, 5
    share = batch // world // accumulate
    ranks = [TrainingSampler(batch, accumulate, rank, world) for rank in range(world)]
    taken = [list(islice(sampler, iterations * batch // world)) for sampler in ranks]
    assert sorted(chain(*taken)) == list(range(iterations * batch))
    for micro_batch in range(iterations * accumulate):
        positions = list(chain(*(mine[micro_batch * share : (micro_batch + 1) * share] for mine in taken)))
        first = micro_batch * batch // accumulate
        assert positions == list(range(first, first + batch // accumulate))


def test_resuming_skips_what_was_seen():
    uninterrupted = list(islice(TrainingSampler(12, 2, 1, 3), 40))
    resumed = TrainingSampler(12, 2, 1, 3)
    resumed.start_iteration = 6
    assert list(islice(resumed, 40 - 24)) == uninterrupted[24:]


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(5, 1, 2), (4, 3, 1), (4, 2, 4), (0, 1, 1)])
def test_batches_that_cannot_be_shared_are_refused(batch, accumulate, world):
    message = rf"IMS_PER_BATCH is {batch}; .* = {world} x {accumulate}"
    with pytest.raises(ValueError, match=message):
        TrainingSampler(batch, accumulate, 0, world)


# loaders


def identity(samples):
    return [
        (sample["file_name"], sample["image"].sum().item(), tuple(sample["masks"].sum((1, 2)).tolist()))
        for sample in samples
    ]


def first_batches(cfg, count, start=0, seed=3):
    loader, sampler = build_train_loader(cfg, seed)
    sampler.start_iteration = start
    return [identity(batch) for batch in islice(loader, count)]


def test_training_batches(data_cfg):
    loader, _ = build_train_loader(data_cfg, seed=3)
    batch = next(iter(loader))
    assert len(batch) == 4
    for sample in batch:
        assert sample["image"].shape == (3, 24, 24) and sample["image"].dtype == torch.uint8
        assert sample["masks"].shape == (len(sample["labels"]), 24, 24)
        assert (sample["height"], sample["width"]) == (30, 40)


def test_workers_and_resuming_change_nothing(data_cfg):
    plain = first_batches(data_cfg, 8)
    assert first_batches(data_cfg, 8, seed=4) != plain
    assert first_batches(data_cfg, 5, start=3) == plain[3:]
    data_cfg.DATALOADER.NUM_WORKERS = 2
    assert first_batches(data_cfg, 8) == plain
    assert first_batches(data_cfg, 5, start=3) == plain[3:]


def test_processes_and_accumulation_change_nothing(data_cfg, monkeypatch):
    plain = list(chain(*first_batches(data_cfg, 4)))
    data_cfg.SOLVER.ACCUMULATE = 2
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    if RUNTIME == "detectron2":  # whose loader imported the function
        monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    shared = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shared.append(first_batches(data_cfg, 8))
    assert {len(batch) for batches in shared for batch in batches} == {1}
    assert [sample for batches in zip(*shared, strict=True) for sample in chain(*batches)] == plain


def test_several_training_sets(data_cfg):
    data_cfg.DATASETS.TRAIN = ("mine_train", "mine_val")
    loader, _ = build_train_loader(data_cfg, seed=0)
    files = [sample["file_name"] for batch in islice(loader, 7) for sample in batch]
    assert len(set(files)) == 7 and len(set(files[:7])) == 7


def test_test_loader(data_cfg):
    batches = list(build_test_loader(data_cfg, "mine_val"))
    assert [len(batch) for batch in batches] == [1, 1]
    files = [batch[0]["file_name"] for batch in batches]
    assert files == [record["file_name"] for record in DatasetCatalog.get("mine_val")]
    assert batches[0][0]["image"].shape == (3, 32, 43)
    assert "masks" not in batches[0][0]


def test_unknown_names_are_refused(data_cfg):
    data_cfg.DATASETS.TRAIN = ("mine_trian",)
    with pytest.raises(ValueError, match=r"registered as mine_trian\. There are: .*mine_train"):
        build_train_loader(data_cfg, 0)
    data_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="TRAIN is empty"):
        build_train_loader(data_cfg, 0)


def record_with(tmp_path, name, crowds):
    Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    outline = [[5, 5, 30, 5, 30, 25, 5, 25]]
    objects = [{"category_id": 0, "iscrowd": crowd, "bbox_mode": 1, "segmentation": outline} for crowd in crowds]
    return {"file_name": str(tmp_path / f"{name}.png"), "image_id": name, "annotations": objects}


def test_images_without_objects_are_left_out(data_cfg, tmp_path, caplog):
    """Crowds are no objects. Datasets that list none are not concerned."""
    records = [record_with(tmp_path, name, crowds) for name, crowds in enumerate([[0], [], [1], [1, 0], [0, 0]])]
    DatasetCatalog.register("some_objects", lambda: records)
    data_cfg.DATASETS.TRAIN = ("some_objects",)
    data_cfg.INPUT.DATASET_MAPPER_NAME = "coco_instance_lsj"
    data_cfg.INPUT.IMAGE_SIZE = 32

    def seen():
        loader, _ = build_train_loader(data_cfg, seed=0)
        samples = list(chain(*islice(loader, 5)))
        assert all(sample["image"].shape == (3, 32, 32) for sample in samples)
        return {sample["image_id"] for sample in samples}

    with caplog.at_level("INFO"):
        assert seen() == {0, 3, 4}
    assert "2 of 5 images have no object" in caplog.text
    data_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert seen() == {0, 1, 2, 3, 4}
    data_cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    records[:] = records[1:3]
    with pytest.raises(ValueError, match="no training image has an object"):
        build_train_loader(data_cfg, seed=0)


def test_predictions_carry_the_number_of_their_image(data_cfg, tmp_path):
    DatasetCatalog.register("some_objects", lambda: [record_with(tmp_path, 5, [0])])
    ((sample,),) = build_test_loader(data_cfg, "some_objects")
    assert sample["image_id"] == 5 and "annotations" not in sample


def test_images_are_tested_whatever_the_mapper_of_training(data_cfg):
    data_cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic_lsj"
    assert next(iter(build_test_loader(data_cfg, "mine_val")))[0]["image"].shape == (3, 32, 43)


# files of the test sets, before the training


def _path(cfg, kind):
    return f"{cfg.DATASETS.FOLDER.ROOT}/{kind}/val/1.png"


@pytest.mark.parametrize("kind", ["images", "annotations"])
def test_a_damaged_test_file_is_found_before_the_training(data_cfg, kind):
    path = _path(data_cfg, kind)
    with open(path, "rb+") as file:
        file.truncate(60)
    with pytest.raises(BadFile, match=rf"{kind}/val/1\.png"):
        build_train_loader(data_cfg, 0)


def test_a_missing_test_set_is_found_before_the_training(data_cfg):
    data_cfg.DATASETS.TEST = ("other_val",)
    with pytest.raises(ValueError, match="no dataset is registered as other_val"):
        build_train_loader(data_cfg, 0)


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name", "pan_seg_file_name"])
def test_sizes_that_records_state_are_compared(data_cfg, key):
    """As of COCO's files, which are not those of the images."""
    paths = {"file_name": _path(data_cfg, "images")}
    record = {**paths, "height": 30, "width": 40}
    if key == "file_name":
        record["width"] = 30
    else:
        record[key] = _path(data_cfg, "annotations")
        Image.new("L", (41, 30)).save(record[key])
    DatasetCatalog.register("stated", lambda: [record])
    data_cfg.DATASETS.TEST, data_cfg.TEST.SAVE_LABELS = ("stated",), True
    with pytest.raises(BadFile, match=r"is 4[01] x 30 \(width x height\), but its"):
        build_train_loader(data_cfg, 0)
    if key == "file_name":
        with pytest.raises(BadFile, match=r"images/val/1\.png: is 40 x 30 .* are for 30 x 30"):
            next(iter(build_test_loader(data_cfg, "stated")))


def test_a_test_set_without_labels_is_only_predicted_for(data_cfg):
    record = {"file_name": _path(data_cfg, "images")}
    DatasetCatalog.register("unlabelled", lambda: [record])
    data_cfg.DATASETS.TEST = ("unlabelled",)
    with pytest.raises(ValueError, match=r"unlabelled has no labels, .*TEST\.SAVE_LABELS True"):
        build_train_loader(data_cfg, 0)
    data_cfg.TEST.SAVE_LABELS = True
    build_train_loader(data_cfg, 0)
