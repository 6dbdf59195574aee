"""Loaders of training and test samples.

The stream of training samples is a function of the seed and the position only: the number of workers or processes, or
an interruption, does not change which image comes when, or how it is augmented.
"""

import bisect
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from fasegr.d2 import (
    CfgNode,
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    comm,
)
from fasegr.data.class_counts import ClassCounts, cached_counts, class_names, inverse_sqrt_weights, repeat_factors
from fasegr.data.class_presence import warn_of_missing_classes
from fasegr.data.dataset_mappers import build_mapper
from fasegr.data.dataset_mappers.dataset_mapper import stated_size
from fasegr.data.datasets.coco_json import without_crowds
from fasegr.data.datasets.label_map import record_label_size
from fasegr.data.image_io import (
    Reading,
    check_image_size,
    check_label_size,
    configure_reading,
    image_size,
    reading,
)
from fasegr.data.semantic_labels import label_source
from fasegr.data.serialized_list import SerializedList
from fasegr.data.workers import with_sturdy_workers

__all__ = ["TrainingDataset", "TrainingSampler", "build_test_loader", "build_train_loader", "with_class_weights"]


class TrainingDataset(Dataset):
    """Endless training samples by position, epoch after epoch, each in an order of its own.

    Positions go beyond `len`, the number of records. repeats: (n,) how often each record comes in an epoch, 1 or more,
    once if None. Of 1.3, the second comes in three epochs of ten: in the first e epochs, record i comes
    floor(e r_i + u_i) times, u_i being drawn once from [0, 1). (detectron2 draws anew in each epoch, with the same mean
    and more variance; here the epoch of a position follows without going through those before it.)
    """

    def __init__(
        self,
        records: list[dict],
        mapper: Callable[[dict, np.random.Generator], dict],
        seed: int,
        repeats: np.ndarray | None = None,
    ):
        self.records, self.mapper, self.seed = SerializedList(records), mapper, seed
        self._repeats = np.ones(len(records)) if repeats is None else np.asarray(repeats, np.float64)
        if self._repeats.shape != (len(records),) or not (self._repeats >= 1).all():
            raise ValueError(
                f"there are {self._repeats.shape} repeats, the least {self._repeats.min(initial=1)}, of "
                f"{len(records)} records; each needs one of at least 1"
            )
        self._offsets = np.random.default_rng((seed, 2)).random(len(records))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of an epoch: its first position, and its records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict:
        first, order = self._order_at(position)
        record = self.records[int(order[position - first])]
        return self.mapper(record, np.random.default_rng((self.seed, 1, position)))

    def _times(self, epochs: int) -> np.ndarray:
        """How often each record has come when `epochs` are over."""
        return np.floor(epochs * self._repeats + self._offsets).astype(np.int64)

    def _order_at(self, position: int) -> tuple[int, np.ndarray]:
        for first, order in self._orders.values():
            if first <= position < first + len(order):
                return first, order
        epochs = range(1, position // len(self.records) + 2)  # that may end after the position
        epoch = bisect.bisect_right(epochs, position, key=lambda epochs: int(self._times(epochs).sum()))
        before, after = self._times(epoch), self._times(epoch + 1)
        order = np.repeat(np.arange(len(self.records)), after - before)
        order = order[np.random.default_rng((self.seed, 0, epoch)).permutation(len(order))]
        # a batch may extend beyond the end of an epoch, so the order before is kept
        self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: (int(before.sum()), order)}
        return self._orders[epoch]


class TrainingSampler(Sampler):
    """This process's positions in the stream, without end.

    Iteration i takes positions i B .. (i + 1) B - 1 in `accumulate` micro-batches, each shared equally and in order by
    the processes. To resume, set `start_iteration` before iterating.
    """

    def __init__(self, batch_size: int, accumulate: int, rank: int, world_size: int):
        if batch_size < 1 or accumulate < 1 or batch_size % (world_size * accumulate):
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}; it must be a multiple of processes x SOLVER.ACCUMULATE "
                f"= {world_size} x {accumulate}, since each process takes an equal share of every micro-batch"
            )
        self.batch_size, self.accumulate, self.rank = batch_size, accumulate, rank
        self.share = batch_size // (world_size * accumulate)
        self.start_iteration = 0

    def __iter__(self) -> Iterator[int]:
        micro_batch = self.start_iteration * self.accumulate
        while True:
            first = micro_batch * (self.batch_size // self.accumulate) + self.rank * self.share
            yield from range(first, first + self.share)
            micro_batch += 1


def _records(names: tuple[str, ...]) -> list[dict]:
    unknown = [name for name in names if name not in DatasetCatalog.list()]
    if unknown:
        raise ValueError(
            f"no dataset is registered as {', '.join(unknown)}. There are: {', '.join(sorted(DatasetCatalog.list()))}; "
            "DATASETS.FOLDER and DATASETS.COCO describe further ones"
        )
    return [record for name in names for record in DatasetCatalog.get(name)]


def _without_empty(records: list[dict]) -> list[dict]:
    """The records that have an object which is not a crowd, or that list no objects at all, or whose pixels all have
    a class."""
    kept = [
        record
        for record in records
        if "annotations" not in record or label_source(record) or without_crowds(record["annotations"])
    ]
    if not kept:
        raise ValueError(
            "no training image has an object; set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train with such images"
        )
    if len(kept) < len(records):
        logging.getLogger(__name__).info(
            "%d of %d images have no object and are left out (DATALOADER.FILTER_EMPTY_ANNOTATIONS)",
            len(records) - len(kept),
            len(records),
        )
    return kept


def _check_headers(record: dict) -> None:
    path = record["file_name"]
    size = image_size(path)
    check_image_size(path, size, stated_size(record, size))
    if "sem_seg_file_name" in record:
        check_label_size(record["sem_seg_file_name"], record_label_size(record), path, size)
    if "pan_seg_file_name" in record:
        check_label_size(record["pan_seg_file_name"], image_size(record["pan_seg_file_name"]), path, size)


def check_test_files(cfg: CfgNode) -> None:
    """Raises, naming the file, where a record of DATASETS.TEST is wrong or the header of one of its images or label
    maps; the first evaluation, which may follow the whole training, would find it."""
    saved = cfg.TEST.SAVE_LABELS or cfg.TEST.SAVE_JSON or cfg.TEST.SAVE_SUBMISSION
    for name in cfg.DATASETS.TEST:
        if not saved and not any("annotations" in record or label_source(record) for record in _records((name,))):
            raise ValueError(
                f"{name} has no labels, so nothing can be scored; leave it out of DATASETS.TEST, or set "
                "TEST.SAVE_LABELS True to save predictions for it (DATASETS.FOLDER.LABELS says where labels are)"
            )
    with ThreadPoolExecutor(8) as pool:  # waits for the disk, not for the processor
        for _ in pool.map(_check_headers, _records(cfg.DATASETS.TEST)):
            pass


def _train_records(cfg: CfgNode) -> list[dict]:
    records = _records(cfg.DATASETS.TRAIN)
    return _without_empty(records) if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else records


def _train_counts(cfg: CfgNode, records: list[dict]) -> ClassCounts:
    return cached_counts(cfg, records, build_mapper(cfg, is_train=True))


def with_class_weights(cfg: CfgNode) -> CfgNode:
    """`cfg`, or a copy in which MODEL.MASK_FORMER.CLASS_WEIGHTS inverse_sqrt has become the weights of the training
    set, so that the config that a run leaves says what it was trained with."""
    if cfg.MODEL.MASK_FORMER.CLASS_WEIGHTS != "inverse_sqrt":
        return cfg
    weights = inverse_sqrt_weights(_train_counts(cfg, _train_records(cfg))).round(4)
    shown = sorted(zip(class_names(cfg), weights.tolist(), strict=True), key=lambda pair: -pair[1])
    logging.getLogger(__name__).info(
        "MODEL.MASK_FORMER.CLASS_WEIGHTS inverse_sqrt: %s", ", ".join(f"{name} {weight:g}" for name, weight in shown)
    )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.CLASS_WEIGHTS = weights.tolist()
    cfg.freeze()
    return cfg


def _repeats(cfg: CfgNode, counts: ClassCounts) -> np.ndarray:
    """DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler: (images,)."""
    repeats = repeat_factors(counts, cfg.DATALOADER.REPEAT_THRESHOLD)
    images = counts.pixels.shape[0]
    rare = np.flatnonzero((counts.images > 0) & (counts.images < cfg.DATALOADER.REPEAT_THRESHOLD * images))
    rare, names = rare[np.argsort(counts.images[rare], kind="stable")], class_names(cfg)
    logging.getLogger(__name__).info(
        "RepeatFactorTrainingSampler: an epoch has %.0f samples of %d images. Classes in fewer than %g of them: %s",
        *(repeats.sum(), images, cfg.DATALOADER.REPEAT_THRESHOLD),
        ", ".join(f"{names[c]} ({counts.images[c]} images)" for c in rare[:8]) or "none, so no image is repeated",
    )
    return repeats


def _check_classes(cfg: CfgNode, records: list[dict]) -> None:
    """Says which classes the training never shows."""
    semantic = cfg.INPUT.DATASET_MAPPER_NAME == "mask_former_semantic"
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    kind = "stuff" if semantic or cfg.INPUT.DATASET_MAPPER_NAME.endswith(("panoptic", "panoptic_lsj")) else "thing"
    names = metadata.get(f"{kind}_classes")
    if names is None or len(names) != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
        return
    warn_of_missing_classes(
        ", ".join(cfg.DATASETS.TRAIN),
        records,
        names,
        metadata.get(f"{kind}_colors") or (),
        metadata.get("ignore_label", cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
        semantic,
    )


def build_train_loader(cfg: CfgNode, seed: int) -> tuple[DataLoader, TrainingSampler]:
    """An endless loader of this process's micro-batches (lists of samples), and its sampler.

    seed: not negative. To resume a training, set the sampler's `start_iteration` before iterating over the loader.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; it must name at least one dataset")
    accumulate = cfg.SOLVER.ACCUMULATE
    sampler = TrainingSampler(cfg.SOLVER.IMS_PER_BATCH, accumulate, comm.get_rank(), comm.get_world_size())
    if comm.is_main_process():
        check_test_files(cfg)
    records, repeats, class_pixels = _train_records(cfg), None, None
    if comm.is_main_process():
        _check_classes(cfg, records)
    by_class = cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    if by_class or cfg.INPUT.CROP.RARE_CLASS_PROB > 0:
        counts = _train_counts(cfg, records)
        class_pixels = counts.pixels.sum(0)
        repeats = _repeats(cfg, counts) if by_class else None
    dataset = TrainingDataset(records, build_mapper(cfg, is_train=True, class_pixels=class_pixels), seed, repeats)
    loader = build_detection_train_loader(
        dataset,
        mapper=None,  # the dataset maps, since the position seeds the mapper
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH // accumulate,
        aspect_ratio_grouping=False,  # it would change the order, to save padding that crops do not need
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),  # so that copies to the GPU overlap with computation
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return _sturdy(loader, cfg), sampler


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """A loader of this process's share of a dataset, one image a batch, in order."""
    loader = build_detection_test_loader(
        _records((dataset_name,)), mapper=build_mapper(cfg, is_train=False), num_workers=cfg.DATALOADER.NUM_WORKERS
    )
    return _sturdy(loader, cfg)


def _sturdy(loader: DataLoader, cfg: CfgNode) -> DataLoader:
    loader.worker_init_fn = partial(_read_alike, loader.worker_init_fn, reading())
    return with_sturdy_workers(loader, cfg.DATALOADER.TIMEOUT)


def _read_alike(then: Callable[[int], None] | None, settings: Reading, worker_id: int) -> None:
    """Called in a worker, which may have been started without fork: it reads images as this process does."""
    configure_reading(settings)
    if then is not None:
        then(worker_id)
