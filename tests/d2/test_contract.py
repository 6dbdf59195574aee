"""What the program takes from `fasegr.d2` behaves the same on every runtime.

The tests run on the runtime in force; the last one runs this file once more on the other, if detectron2 is installed.
"""

import importlib.util
import logging
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset, Sampler

from fasegr import d2

NAMES = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "CfgNode",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "DefaultTrainer",
    "DetectionCheckpointer",
    "EventStorage",
    "HookBase",
    "META_ARCH_REGISTRY",
    "MetadataCatalog",
    "RUNTIME",
    "SEM_SEG_HEADS_REGISTRY",
    "ShapeSpec",
    "build_backbone",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "build_model",
    "build_sem_seg_head",
    "comm",
    "configurable",
    "default_argument_parser",
    "default_setup",
    "get_cfg",
    "get_event_storage",
    "inference_on_dataset",
    "launch",
    "setup_logger",
]


def test_names():
    assert sorted(d2.__all__) == NAMES
    assert all(hasattr(d2, name) for name in NAMES)


def test_objects_are_the_runtimes_own():
    package = "detectron2" if d2.RUNTIME == "detectron2" else "fasegr.d2.builtin"
    for name in ("CfgNode", "DefaultTrainer", "DetectionCheckpointer", "EventStorage", "HookBase", "get_cfg", "launch"):
        assert getattr(d2, name).__module__.startswith(package)
    assert d2.comm.__name__.startswith(package)


# ---- config

DEFAULTS = {
    "VERSION": 2,
    "MODEL.DEVICE": "cuda",
    "MODEL.WEIGHTS": "",
    "MODEL.MASK_ON": False,
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 128,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.FORMAT": "BGR",
    "INPUT.MASK_FORMAT": "polygon",
    "INPUT.CROP.ENABLED": False,
    "INPUT.CROP.TYPE": "relative_range",
    "INPUT.CROP.SIZE": [0.9, 0.9],
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 4,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "value",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": False,
    "TEST.EVAL_PERIOD": 0,
    "TEST.EXPECTED_RESULTS": [],
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
    "TEST.AUG.MAX_SIZE": 4000,
    "TEST.AUG.FLIP": True,
    "TEST.PRECISE_BN.ENABLED": False,
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",
    "VIS_PERIOD": 0,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_default(name):
    value = d2.get_cfg()
    for key in name.split("."):
        value = value[key]
    assert value == DEFAULTS[name]
    assert type(value) is type(DEFAULTS[name])


def test_get_cfg_is_a_fresh_copy():
    cfg = d2.get_cfg()
    cfg.MODEL.BACKBONE.NAME = "other"
    cfg.MODEL.PIXEL_MEAN[0] = 0.0
    assert d2.get_cfg().MODEL.BACKBONE.NAME == "build_resnet_backbone"
    assert d2.get_cfg().MODEL.PIXEL_MEAN[0] == 103.53


def test_yaml_overrides_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text("VERSION: 2\nSOLVER:\n  BASE_LR: 0.5\n  MAX_ITER: 10\n")
    (tmp_path / "sub").mkdir()
    leaf = tmp_path / "sub" / "leaf.yaml"
    leaf.write_text('_BASE_: ../base.yaml\nSOLVER:\n  MAX_ITER: 20\nDATASETS:\n  TRAIN: ("a", "b")\n')
    cfg = d2.get_cfg()
    cfg.merge_from_file(str(leaf), allow_unsafe=False)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.DATASETS.TRAIN) == (0.5, 20, ("a", "b"))


def test_several_bases(tmp_path):
    (tmp_path / "a.yaml").write_text("SEED: 1\nSOLVER:\n  MAX_ITER: 10\n")
    (tmp_path / "b.yaml").write_text("SEED: 2\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nVERSION: 2\n")
    cfg = d2.get_cfg()
    cfg.merge_from_file(str(tmp_path / "leaf.yaml"), allow_unsafe=False)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER) == (2, 10)


def test_yaml_does_not_run_code(tmp_path):
    file = tmp_path / "code.yaml"
    file.write_text(f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {tmp_path}/ran"]\n')
    with pytest.raises(yaml.constructor.ConstructorError):
        d2.get_cfg().merge_from_file(str(file), allow_unsafe=False)
    assert not (tmp_path / "ran").exists()


def test_merge_from_list():
    cfg = d2.get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "1e-4", "DATASETS.TRAIN", "('x',)", "INPUT.CROP.SIZE", "(4, 8)", "SEED", 3])
    assert (cfg.SOLVER.BASE_LR, cfg.DATASETS.TRAIN, cfg.INPUT.CROP.SIZE, cfg.SEED) == (1e-4, ("x",), [4, 8], 3)


@pytest.mark.parametrize(
    ("opts", "error"),
    [
        (["SOLVER.BASELR", "1"], (KeyError, AssertionError)),
        (["NOTHING", "1"], (KeyError, AssertionError)),
        (["SOLVER.MAX_ITER", "many"], ValueError),
        (["SOLVER.MAX_ITER"], AssertionError),
    ],
)
def test_bad_options(opts, error):
    with pytest.raises(error):
        d2.get_cfg().merge_from_list(opts)


def test_unknown_key_in_yaml(tmp_path):
    (tmp_path / "typo.yaml").write_text("VERSION: 2\nSOLVER:\n  BASELR: 1.0\n")
    with pytest.raises(KeyError, match=r"SOLVER\.BASELR"):
        d2.get_cfg().merge_from_file(str(tmp_path / "typo.yaml"), allow_unsafe=False)


def test_new_keys_freeze_clone_and_dump():
    cfg = d2.get_cfg()
    cfg.MODEL.OURS = d2.CfgNode({"WIDTH": 8})
    cfg.freeze()
    assert cfg.is_frozen()
    with pytest.raises(AttributeError):
        cfg.MODEL.OURS.WIDTH = 9
    copy = cfg.clone()
    copy.defrost()
    copy.MODEL.OURS.WIDTH = 9
    assert (cfg.MODEL.OURS.WIDTH, copy.MODEL.OURS.WIDTH) == (8, 9)
    dumped = yaml.safe_load(cfg.dump())
    assert dumped["MODEL"]["OURS"] == {"WIDTH": 8}
    other = copy.clone()
    other.merge_from_other_cfg(d2.CfgNode(dumped))
    assert yaml.safe_load(other.dump()) == dumped


class Configured:
    @d2.configurable
    def __init__(self, a, *, b=2, c=3):
        self.values = (a, b, c)

    @classmethod
    def from_config(cls, cfg, scale=1):
        return {"a": cfg.SEED * scale, "b": cfg.VERSION}


class TakesAnything(Configured):
    @classmethod
    def from_config(cls, cfg, *args, **kwargs):
        return {"a": args, "b": kwargs}


@d2.configurable(from_config=lambda cfg, b=0: {"a": cfg.SEED, "b": b})
def configured(a, b, c=3):
    return a, b, c


def test_configurable():
    cfg = d2.get_cfg()
    assert Configured(1).values == (1, 2, 3)
    assert Configured(1, b=5, c=6).values == (1, 5, 6)
    assert Configured(cfg).values == (-1, 2, 3)
    assert Configured(cfg=cfg).values == (-1, 2, 3)
    assert Configured(cfg, 4).values == (-4, 2, 3)
    assert Configured(cfg, scale=4, c=7).values == (-4, 2, 7)
    assert Configured(cfg, a=9).values == (9, 2, 3)
    assert TakesAnything(cfg, 1, x=2).values == ((1,), {"x": 2}, 3)
    assert configured(1, 2) == (1, 2, 3)
    assert configured(cfg) == (-1, 0, 3)
    assert configured(cfg, b=5, c=6) == (-1, 5, 6)


def test_configurable_mistakes():
    class NoBridge:
        @d2.configurable
        def __init__(self, a):
            pass

    class NotAClassmethod:
        @d2.configurable
        def __init__(self, a):
            pass

        def from_config(self, cfg):
            return {"a": 1}

    class WrongName:
        @d2.configurable
        def __init__(self, a):
            pass

        @classmethod
        def from_config(cls, config):
            return {"a": 1}

    cfg = d2.get_cfg()
    with pytest.raises(AttributeError, match="from_config"):
        NoBridge(cfg)
    with pytest.raises(TypeError, match="from_config"):
        NotAClassmethod(cfg)
    with pytest.raises(TypeError, match="'cfg'"):
        WrongName(cfg)


# ---- registries and builders


@pytest.fixture
def register():
    """Register objects for one test only."""
    added = []

    def add(registry, name, thing):
        thing.__name__ = name
        registry.register(thing)
        added.append((registry, name))

    yield add
    for registry, name in added:
        del registry._obj_map[name]


class TinyBackbone(d2.Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.conv = nn.Conv2d(input_shape.channels, 4, 3)
        self._out_features = ["res2"]
        self._out_feature_channels = {"res2": 4}
        self._out_feature_strides = {"res2": 1}

    def forward(self, x):
        return {"res2": self.conv(x)}


def test_registry(register):
    register(d2.META_ARCH_REGISTRY, "Once", lambda cfg: nn.Identity())
    assert "Once" in d2.META_ARCH_REGISTRY
    with pytest.raises(AssertionError, match="Once"):
        register(d2.META_ARCH_REGISTRY, "Once", lambda cfg: nn.Identity())
    with pytest.raises(KeyError, match="Never"):
        d2.META_ARCH_REGISTRY.get("Never")


def test_builders(register):
    register(d2.BACKBONE_REGISTRY, "build_tiny", lambda cfg, input_shape: TinyBackbone(cfg, input_shape))
    register(d2.SEM_SEG_HEADS_REGISTRY, "TinyHead", lambda cfg, shape: nn.Conv2d(shape["res2"].channels, 2, 1))
    register(d2.META_ARCH_REGISTRY, "TinyModel", lambda cfg: nn.Linear(2, 2))
    cfg = d2.get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_tiny"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "TinyHead"
    cfg.MODEL.META_ARCHITECTURE = "TinyModel"
    cfg.MODEL.DEVICE = "meta"

    backbone = d2.build_backbone(cfg)
    assert backbone.conv.in_channels == 3
    assert d2.build_backbone(cfg, d2.ShapeSpec(channels=5)).conv.in_channels == 5
    assert backbone.output_shape() == {"res2": d2.ShapeSpec(channels=4, stride=1)}
    assert (backbone.size_divisibility, backbone.padding_constraints) == (0, {})
    assert d2.build_sem_seg_head(cfg, backbone.output_shape()).in_channels == 4
    model = d2.build_model(cfg)
    assert model.weight.device.type == "meta"
    assert model.training


def test_backbone_is_abstract():
    class NoForward(d2.Backbone):
        pass

    with pytest.raises(TypeError, match="abstract"):
        NoForward()


def test_shape_spec_defaults():
    spec = d2.ShapeSpec()
    assert (spec.channels, spec.height, spec.width, spec.stride) == (None, None, None, None)


# ---- catalogs


def test_dataset_catalog():
    name = "contract_dataset"
    d2.DatasetCatalog.register(name, lambda: [{"file_name": "a"}])
    try:
        assert d2.DatasetCatalog.get(name) == [{"file_name": "a"}]
        assert name in d2.DatasetCatalog.list()
        assert name in d2.DatasetCatalog
        with pytest.raises(AssertionError, match=name):
            d2.DatasetCatalog.register(name, list)
        with pytest.raises(AssertionError):
            d2.DatasetCatalog.register("contract_not_callable", [])
    finally:
        d2.DatasetCatalog.remove(name)
    with pytest.raises(KeyError, match=name):
        d2.DatasetCatalog.get(name)


def test_metadata_catalog():
    name = "contract_metadata"
    meta = d2.MetadataCatalog.get(name)
    try:
        assert meta.name == name
        assert meta.set(stuff_classes=["a"], ignore_label=255) is meta
        assert d2.MetadataCatalog.get(name).stuff_classes == ["a"]
        meta.stuff_classes = ["a"]
        with pytest.raises(AssertionError, match="stuff_classes"):
            meta.stuff_classes = ["b"]
        assert meta.get("stuff_colors") is None
        assert meta.get("stuff_colors", 1) == 1
        assert not hasattr(meta, "stuff_colors")
        with pytest.raises(AttributeError, match=name):
            meta.stuff_colors  # noqa: B018
        assert meta.as_dict() == {"name": name, "stuff_classes": ["a"], "ignore_label": 255}
        assert name in d2.MetadataCatalog.list()
    finally:
        d2.MetadataCatalog.remove(name)
    assert name not in d2.MetadataCatalog.list()


# ---- loaders


class Positions(Dataset):
    """The index itself with a random number, so that samples tell who made them."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"index": index, "numpy": np.random.rand(), "python": random.random()}


class Forever(Sampler):
    """0, 1, 2 ... from a start that can be moved until iteration begins."""

    def __init__(self):
        self.start = 0

    def __iter__(self):
        position = self.start
        while True:
            yield position
            position += 1


def _take(loader, batches):
    iterator = iter(loader)
    return [next(iterator) for _ in range(batches)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_keeps_the_samplers_order(num_workers):
    sampler = Forever()
    loader = d2.build_detection_train_loader(
        Positions(),
        mapper=None,
        sampler=sampler,
        total_batch_size=3,
        aspect_ratio_grouping=False,
        num_workers=num_workers,
    )
    sampler.start = 6  # what a resumed training does
    batches = _take(loader, 4)
    assert [[sample["index"] for sample in batch] for batch in batches] == [
        [6, 7, 8],
        [9, 10, 11],
        [12, 13, 14],
        [15, 16, 17],
    ]
    for source in ("numpy", "python"):
        assert len({sample[source] for batch in batches for sample in batch}) == 12


def test_train_loader_over_records_shuffles_for_ever():
    records = [{"id": i} for i in range(4)]

    def mapper(record):
        record["mapped"] = record.pop("id")
        return record

    loader = d2.build_detection_train_loader(
        records, mapper=mapper, total_batch_size=2, aspect_ratio_grouping=False, num_workers=0
    )
    batches = _take(loader, 6)
    assert all(isinstance(batch, list) and len(batch) == 2 for batch in batches)
    ids = [sample["mapped"] for batch in batches for sample in batch]
    for epoch in (ids[:4], ids[4:8], ids[8:]):
        assert sorted(epoch) == [0, 1, 2, 3]
    assert records == [{"id": i} for i in range(4)]


def test_train_loader_refuses_what_is_not_a_sampler():
    with pytest.raises((AssertionError, TypeError), match="Sampler"):
        d2.build_detection_train_loader(
            Positions(), mapper=None, sampler=[0, 1], total_batch_size=2, aspect_ratio_grouping=False
        )


@pytest.mark.parametrize("dataset", [[{"id": i} for i in range(5)], Positions()], ids=["records", "dataset"])
def test_test_loader_yields_each_sample_once_in_order(dataset):
    loader = d2.build_detection_test_loader(dataset, mapper=lambda record: next(iter(record.values())))
    assert len(loader) == len(dataset)
    assert list(loader) == [[i] for i in range(len(dataset))]


def test_test_loader_batches():
    records = list(range(5))
    loader = d2.build_detection_test_loader(records, mapper=None, batch_size=2, num_workers=1)
    assert list(loader) == [[0, 1], [2, 3], [4]]
    summed = d2.build_detection_test_loader(records, mapper=None, batch_size=2, collate_fn=sum)
    assert list(summed) == [1, 5, 4]


# ---- evaluation


class Collect(d2.DatasetEvaluator):
    def __init__(self, task="count"):
        self.task = task

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += list(zip(inputs, outputs, strict=True))

    def evaluate(self):
        return {self.task: {"sum": float(sum(output for _, output in self.seen))}}


class Doubles(nn.Module):
    def forward(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        return [2 * sample for sample in batch]


def test_inference_on_dataset():
    model = Doubles()
    loader = d2.build_detection_test_loader(list(range(6)), mapper=None, batch_size=2)
    evaluator = Collect()
    assert d2.inference_on_dataset(model, loader, evaluator) == {"count": {"sum": 30.0}}
    assert evaluator.seen == [(i, 2 * i) for i in range(6)]
    assert model.training
    both = d2.inference_on_dataset(model.eval(), loader, d2.DatasetEvaluators([Collect("a"), Collect("b")]))
    assert both == {"a": {"sum": 30.0}, "b": {"sum": 30.0}}
    assert not model.training
    assert d2.inference_on_dataset(model, loader, [Collect("a")]) == {"a": {"sum": 30.0}}
    assert d2.inference_on_dataset(model, loader, None) == {}


def test_evaluators_with_one_task_twice():
    loader = d2.build_detection_test_loader([1], mapper=None)
    with pytest.raises(AssertionError, match="count"):
        d2.inference_on_dataset(Doubles(), loader, d2.DatasetEvaluators([Collect(), Collect()]))


# ---- events


def test_event_storage():
    with pytest.raises(AssertionError):
        d2.get_event_storage()
    with d2.EventStorage(5) as storage:
        assert d2.get_event_storage() is storage
        for value in (1.0, 9.0, 2.0):
            storage.put_scalar("loss", torch.tensor(value))
            storage.put_scalars(lr=value, smoothing_hint=False)
            storage.step()
        assert storage.iter == 8
        with storage.name_scope("val"):
            storage.put_scalar("mIoU", 50, cur_iter=7)
        assert storage.latest() == {"loss": (2.0, 7), "lr": (2.0, 7), "val/mIoU": (50.0, 7)}
        assert storage.smoothing_hints() == {"loss": True, "lr": False, "val/mIoU": True}
        assert storage.history("loss").values() == [(1.0, 5), (9.0, 6), (2.0, 7)]
        assert storage.histories()["loss"].avg(2) == 5.5
        with pytest.raises(KeyError, match="nothing"):
            storage.history("nothing")
        with pytest.raises(AssertionError, match="loss"):
            storage.put_scalar("loss", 1.0, smoothing_hint=False)
        storage.iter = 20
        with d2.EventStorage() as inner:
            assert d2.get_event_storage() is inner
        assert d2.get_event_storage() is storage


# ---- checkpoints


def test_checkpointer(tmp_path):
    torch.manual_seed(0)
    model, optimizer = nn.Linear(2, 2), SimpleNamespace(state_dict=lambda: {"x": 1}, load_state_dict=None)
    checkpointer = d2.DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert not checkpointer.has_checkpoint()
    checkpointer.save("model_a", iteration=3)
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_a.pth")

    loaded = []
    other = nn.Linear(2, 2)
    reader = d2.DetectionCheckpointer(
        other, str(tmp_path), optimizer=SimpleNamespace(state_dict=dict, load_state_dict=loaded.append)
    )
    assert reader.resume_or_load("", resume=True)["iteration"] == 3
    assert torch.equal(model.weight, other.weight)
    assert loaded == [{"x": 1}]
    reader.resume_or_load(str(tmp_path / "model_a.pth"), resume=False)
    assert loaded == [{"x": 1}]
    assert reader.load("") == {}
    with pytest.raises((AssertionError, OSError)):
        reader.load(str(tmp_path / "missing.pth"))


def test_checkpointer_takes_a_bare_state_dict(tmp_path):
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    d2.DetectionCheckpointer(other).load(str(tmp_path / "bare.pth"))
    assert torch.equal(model.weight, other.weight)


def test_checkpointer_that_must_not_write(tmp_path):
    d2.DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("model")
    assert not list(tmp_path.iterdir())


# ---- training


class Regression(nn.Module):
    """The loss is that of one weight against the sample's number."""

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        target = torch.tensor([float(sample["x"]) for sample in batch]).mean()
        return {"loss_a": (self.weight - target) ** 2, "loss_b": self.weight * 0}


class Note(d2.HookBase):
    """Notes what is called when, and keeps a count in the checkpoint."""

    def __init__(self):
        self.calls, self.count = [], 0

    def before_train(self):
        self.calls.append(("before_train", self.trainer.iter))

    def before_step(self):
        self.calls.append(("before_step", self.trainer.iter))
        assert self.trainer.storage.iter == self.trainer.iter

    def after_step(self):
        self.count += 1
        self.calls.append(("after_step", self.trainer.iter))

    def after_train(self):
        self.calls.append(("after_train", self.trainer.iter))

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Save(d2.HookBase):
    def after_step(self):
        if self.trainer.iter == 2:
            self.trainer.checkpointer.save("model_0000002")


class Numbers(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return {"x": index % 7}


class Trainer(d2.DefaultTrainer):
    """Overrides what fasegr's trainer overrides, with the shortest there is."""

    @classmethod
    def build_optimizer(cls, cfg, model):
        return torch.optim.SGD(model.parameters(), lr=cfg.SOLVER.BASE_LR, momentum=0.9)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))

    @classmethod
    def build_train_loader(cls, cfg):
        cls.sampler = Forever()
        return d2.build_detection_train_loader(
            Numbers(),
            mapper=None,
            sampler=cls.sampler,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            aspect_ratio_grouping=False,
            num_workers=0,
        )

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return d2.build_detection_test_loader([{"x": 1}, {"x": 2}], mapper=None)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CountImages(dataset_name)

    def build_hooks(self):
        self.note = Note()
        return [self.note, None, Save()]

    def train(self):
        self.sampler.start = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH
        return super().train()

    def run_step(self):
        losses = self.model(next(self._trainer._data_loader_iter))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self.optimizer.step()
        self.storage.put_scalar("loss", losses["loss_a"].item())
        if self.iter == getattr(self, "fail_at", None):
            raise FloatingPointError("as asked")


class CountImages(d2.DatasetEvaluator):
    def __init__(self, task):
        self.task = task

    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += len(inputs)

    def evaluate(self):
        return {self.task: {"images": self.images}}


@pytest.fixture
def train_cfg(tmp_path, register):
    register(d2.META_ARCH_REGISTRY, "ContractRegression", lambda cfg: Regression(cfg))
    return _train_cfg(str(tmp_path))


def _train_cfg(output_dir):
    cfg = d2.get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ContractRegression"
    cfg.OUTPUT_DIR = output_dir
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.1
    cfg.freeze()
    return cfg


def test_training_calls_hooks_in_order(train_cfg):
    trainer = Trainer(train_cfg)
    assert (trainer.start_iter, trainer.max_iter, trainer.cfg.SOLVER.MAX_ITER) == (0, 6, 6)
    assert isinstance(trainer.checkpointer, d2.DetectionCheckpointer)
    assert trainer.model.training
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert isinstance(trainer.scheduler, torch.optim.lr_scheduler.LambdaLR)
    assert trainer.data_loader is trainer._trainer.data_loader
    trainer.resume_or_load(resume=False)
    assert trainer.train() is None
    steps = [(name, i) for i in range(6) for name in ("before_step", "after_step")]
    assert trainer.note.calls == [("before_train", 0), *steps, ("after_train", 6)]
    assert trainer.storage.history("loss").values()[0] == (0.25, 0)
    assert trainer.model.weight.item() != 0


def test_resumed_training_equals_an_uninterrupted_one(train_cfg):
    whole = Trainer(train_cfg)
    whole.train()
    again = Trainer(train_cfg)
    again.resume_or_load(resume=True)
    assert (again.start_iter, again.note.count) == (3, 3)
    again.train()
    assert again.model.weight.item() == whole.model.weight.item()
    assert again.note.count == 6


def test_loading_without_resuming_takes_the_weights_alone(train_cfg, tmp_path):
    Trainer(train_cfg).train()
    cfg = train_cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000002.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert (trainer.start_iter, trainer.note.count) == (0, 0)
    assert trainer.model.weight.item() != 0


def test_checkpoint_layout(train_cfg, tmp_path):
    """A run goes on under the other runtime, so the file is laid out alike."""
    Trainer(train_cfg).train()
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert set(saved) == {"model", "trainer"}
    state = saved["trainer"]
    assert (state["iteration"], state["hooks"]) == (2, {"Note": {"count": 3}})
    assert {"iteration", "optimizer"} <= set(state["_trainer"])
    assert set(state["_trainer"]["optimizer"]) == {"state", "param_groups"}


def test_failed_training_still_ends_its_hooks(train_cfg):
    trainer = Trainer(train_cfg)
    trainer.fail_at = 1
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert trainer.note.calls[-1] == ("after_train", 1)


class OwnParts(Trainer):
    """Builds itself, as fasegr's trainer does, on the base that DefaultTrainer has."""

    def __init__(self, cfg):
        super(d2.DefaultTrainer, self).__init__()
        model = self.build_model(cfg)
        self._trainer = SimpleNamespace(
            model=model,
            optimizer=self.build_optimizer(cfg, model),
            state_dict=lambda: {"mine": 1},
            load_state_dict=None,
        )
        self.cfg, self.max_iter = cfg, 0
        self.register_hooks(self.build_hooks())


def test_trainer_with_parts_of_its_own(train_cfg):
    trainer = OwnParts(train_cfg)
    assert (trainer.iter, trainer.start_iter) == (0, 0)
    assert trainer.model is trainer._trainer.model
    assert trainer.optimizer is trainer._trainer.optimizer
    trainer.note.count = 4
    state = trainer.state_dict()
    assert (state["_trainer"], state["hooks"]) == ({"mine": 1}, {"Note": {"count": 4}})
    kept = []
    trainer._trainer.load_state_dict = kept.append
    trainer.note.count = 0
    trainer.load_state_dict({**state, "iteration": 9})
    assert (trainer.iter, trainer.note.count, kept) == (9, 4, [{"mine": 1}])


def test_only_hooks_are_registered(train_cfg):
    with pytest.raises((AssertionError, TypeError)):
        Trainer(train_cfg).register_hooks([object()])


class Sees(nn.Module):
    def forward(self, batch):
        return batch


def test_trainer_test(train_cfg):
    cfg = train_cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ("one",)
    assert Trainer.test(cfg, Sees()) == {"one": {"images": 2}}
    assert Trainer.test(cfg, Sees(), CountImages("given")) == {"given": {"images": 2}}
    cfg.DATASETS.TEST = ("one", "two")
    assert Trainer.test(cfg, Sees()) == {"one": {"one": {"images": 2}}, "two": {"two": {"images": 2}}}
    with pytest.raises((AssertionError, ValueError), match="2"):
        Trainer.test(cfg, Sees(), [CountImages("given")])


# ---- starting


@pytest.fixture
def clean_loggers():
    names = ("fvcore", "detectron2", "fasegr", "contract")
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate) for name in names}
    yield
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers[:] = handlers
        logging.getLogger(name).propagate = propagate


def test_argument_parser():
    parse = d2.default_argument_parser().parse_args
    args = parse([])
    assert (args.config_file, args.resume, args.eval_only, args.opts) == ("", False, False, [])
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert args.dist_url.startswith("tcp://127.0.0.1:")
    args = parse(
        [
            "--config-file",
            "a.yaml",
            "--resume",
            "--eval-only",
            "--num-gpus",
            "2",
            "--num-machines",
            "3",
            "--machine-rank",
            "1",
        ]
    )
    assert (args.config_file, args.resume, args.eval_only) == ("a.yaml", True, True)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (2, 3, 1)
    args = parse(["--num-gpus", "1", "--dist-url", "auto", "SOLVER.BASE_LR", "0.1", "MODEL.WEIGHTS", "x.pth"])
    assert args.opts == ["SOLVER.BASE_LR", "0.1", "MODEL.WEIGHTS", "x.pth"]


def test_default_setup(tmp_path, clean_loggers):
    cfg = d2.get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SEED = 7
    config_file = tmp_path / "given.yaml"
    config_file.write_text("SEED: 7\n")
    d2.default_setup(cfg, SimpleNamespace(config_file=str(config_file), eval_only=True))
    first = (random.random(), np.random.rand(), torch.rand(()).item())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["SEED"] == 7
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "given.yaml" in log
    d2.default_setup(cfg, SimpleNamespace(config_file="", eval_only=True))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == first


def test_setup_logger(tmp_path, clean_loggers, capsys):
    logger = d2.setup_logger(str(tmp_path), name="contract")
    assert logger is d2.setup_logger(str(tmp_path), name="contract")
    logging.getLogger("contract.part").info("said once")
    assert capsys.readouterr().out.count("said once") == 1
    assert (tmp_path / "log.txt").read_text().count("said once") == 1

    logger.handlers.clear()
    d2.setup_logger(str(tmp_path / "one.log"), 1, name="contract")
    logger.warning("from another rank")
    assert "another rank" not in capsys.readouterr().out
    assert "another rank" in (tmp_path / "one.log.rank1").read_text()


# ---- ranks


def test_comm_of_one_process():
    comm = d2.comm
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.gather("x") == comm.all_gather("x") == ["x"]
    assert isinstance(comm.shared_random_seed(), (int, np.integer))


def test_launch_of_one_process_is_a_call():
    called = []
    d2.launch(lambda *args: called.append(args), 1, args=(1, 2))
    assert called == [(1, 2)]


def _report(folder):
    """What each of two ranks sees; the parent reads the files."""
    comm = d2.comm
    rank = comm.get_rank()
    comm.synchronize()
    forever = d2.build_detection_train_loader(
        list(range(4)), mapper=None, total_batch_size=2, aspect_ratio_grouping=False, num_workers=0
    )
    loader = d2.build_detection_test_loader(list(range(5)), mapper=None)
    seen = {
        "ranks": (comm.get_world_size(), rank, comm.get_local_size(), comm.get_local_rank(), comm.is_main_process()),
        "gather": comm.gather({"rank": rank}),
        "gather_to_1": comm.gather(rank, dst=1),
        "all_gather": comm.all_gather([rank]),
        "seed": int(comm.shared_random_seed()),
        "train": [batch for batch, _ in zip(forever, range(2), strict=False)],
        "test": list(loader),
        "evaluated": d2.inference_on_dataset(Doubles(), loader, GatheredSum()),
    }
    d2.DetectionCheckpointer(nn.Linear(1, 1), folder).save(f"by_{rank}")
    torch.save(seen, os.path.join(folder, f"rank{rank}.pt"))


class GatheredSum(Collect):
    def evaluate(self):
        sums = d2.comm.gather(sum(output for _, output in self.seen))
        return {"sum": {"of all": sum(sums)}} if d2.comm.is_main_process() else None


@pytest.mark.skipif(torch.cuda.is_available(), reason="launch() uses a GPU for each process where there are GPUs")
def test_two_processes(tmp_path):
    d2.launch(_report, 2, dist_url="auto", args=(str(tmp_path),))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["ranks"] == (2, 0, 2, 0, True)
    assert second["ranks"] == (2, 1, 2, 1, False)
    assert (first["gather"], second["gather"]) == ([{"rank": 0}, {"rank": 1}], [])
    assert (first["gather_to_1"], second["gather_to_1"]) == ([], [0, 1])
    assert first["all_gather"] == second["all_gather"] == [[0], [1]]
    assert first["seed"] == second["seed"]
    assert (first["test"], second["test"]) == ([[0], [1], [2]], [[3], [4]])
    assert sorted(first["train"] + second["train"]) == [[0], [1], [2], [3]]
    assert (first["evaluated"], second["evaluated"]) == ({"sum": {"of all": 20}}, {})
    assert (tmp_path / "by_0.pth").exists()
    assert not (tmp_path / "by_1.pth").exists()


def test_other_runtime():
    """Everything above, on the runtime that is not in force here."""
    if importlib.util.find_spec("detectron2") is None:
        pytest.skip("detectron2 is not installed: the contract was tested on the built-in runtime alone")
    if "FASEGR_RUNTIME" in os.environ:
        pytest.skip(f"FASEGR_RUNTIME asks for {d2.RUNTIME}: the contract was tested on this runtime alone")
    other = "builtin" if d2.RUNTIME == "detectron2" else "detectron2"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "FASEGR_RUNTIME": other},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, f"on {other}:\n{run.stdout[-4000:]}{run.stderr[-2000:]}"
