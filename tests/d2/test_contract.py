"""What the program takes from `fasegr.d2` behaves the same on every runtime.

The tests run on the chosen runtime; the last one runs this file again on the other, if detectron2 is installed.
"""

import hashlib
import importlib.util
import itertools
import logging
import os
import random
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import Dataset, Sampler

from fasegr import d2
from fasegr.utils.nested import flatten


def test_names():
    assert all(hasattr(d2, name) for name in d2.__all__)


# ---- config

# Keys and values are detectron2's, so that a YAML file is valid on both runtimes or on neither.
DEFAULTS = "39712ea021a1ba77b12575ae11d62a25bbd7fa699a6fd77c1be853abd8c423b2"


def test_defaults():
    flat = sorted(flatten(d2.get_cfg()).items())
    assert hashlib.sha256(repr(flat).encode()).hexdigest() == DEFAULTS


def test_get_cfg_is_a_fresh_copy():
    cfg = d2.get_cfg()
    cfg.MODEL.BACKBONE.NAME = "other"
    cfg.MODEL.PIXEL_MEAN[0] = 0.0
    assert d2.get_cfg().MODEL.BACKBONE.NAME == "build_resnet_backbone"
    assert d2.get_cfg().MODEL.PIXEL_MEAN[0] == 103.53


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


def test_configurable():
    cfg = d2.get_cfg()
    assert Configured(1).values == (1, 2, 3)
    assert Configured(1, b=5, c=6).values == (1, 5, 6)
    assert Configured(cfg).values == (-1, 2, 3)
    assert Configured(cfg=cfg).values == (-1, 2, 3)
    assert Configured(cfg, 4).values == (-4, 2, 3)
    assert Configured(cfg, scale=4, c=7).values == (-4, 2, 7)
    assert Configured(cfg, a=9).values == (9, 2, 3)


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
    assert backbone.output_shape() == {"res2": d2.ShapeSpec(channels=4, stride=1)}
    assert backbone.size_divisibility == 0
    assert d2.build_sem_seg_head(cfg, backbone.output_shape()).in_channels == 4
    model = d2.build_model(cfg)
    assert model.weight.device.type == "meta"
    assert model.training


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
        assert name in d2.MetadataCatalog.list()
    finally:
        d2.MetadataCatalog.remove(name)
    assert name not in d2.MetadataCatalog.list()


# ---- loaders


class Positions(Dataset):
    """The index itself, with random numbers that tell workers apart."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"index": index, "numpy": np.random.rand(), "python": random.random()}


class Forever(Sampler):
    """0, 1, 2 ... from a start that can be moved until iteration begins."""

    def __init__(self):
        self.start = 0

    def __iter__(self):
        yield from itertools.count(self.start)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_loader_keeps_the_samplers_order(num_workers):
    sampler = Forever()
    options = {"mapper": None, "sampler": sampler, "total_batch_size": 3, "aspect_ratio_grouping": False}
    loader = d2.build_detection_train_loader(Positions(), num_workers=num_workers, **options)
    sampler.start = 6  # as a resumed training does
    batches = list(itertools.islice(loader, 4))
    assert [[sample["index"] for sample in batch] for batch in batches] == [
        *([6, 7, 8], [9, 10, 11]),
        *([12, 13, 14], [15, 16, 17]),
    ]
    for source in ("numpy", "python"):
        assert len({sample[source] for batch in batches for sample in batch}) == 12


@pytest.mark.parametrize("num_workers", [0, 1])
def test_test_loader_maps_each_record_once_in_order(num_workers):
    records = [{"id": i} for i in range(5)]
    loader = d2.build_detection_test_loader(records, mapper=lambda record: record.pop("id"), num_workers=num_workers)
    assert len(loader) == 5
    assert list(loader) == [[i] for i in range(5)]
    assert records == [{"id": i} for i in range(5)], "the mapper gets copies"


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
    loader = d2.build_detection_test_loader(list(range(6)), mapper=int)
    evaluator = Collect()
    assert d2.inference_on_dataset(model, loader, evaluator) == {"count": {"sum": 30.0}}
    assert evaluator.seen == [(i, 2 * i) for i in range(6)]
    assert model.training
    both = d2.inference_on_dataset(model.eval(), loader, d2.DatasetEvaluators([Collect("a"), Collect("b")]))
    assert both == {"a": {"sum": 30.0}, "b": {"sum": 30.0}}
    assert not model.training


def test_evaluators_with_one_task_twice():
    loader = d2.build_detection_test_loader([1], mapper=int)
    with pytest.raises(AssertionError, match="count"):
        d2.inference_on_dataset(Doubles(), loader, d2.DatasetEvaluators([Collect(), Collect()]))


# ---- events


def test_event_storage():
    with pytest.raises(AssertionError):
        d2.get_event_storage()
    with d2.EventStorage(5) as storage:
        assert d2.get_event_storage() is storage
        for storage.iter in (5, 6, 7):
            storage.put_scalar("loss", torch.tensor(float(storage.iter)))
            storage.put_scalars(lr=2.0, smoothing_hint=False)
        storage.put_scalars(smoothing_hint=False, cur_iter=6, **{"sem_seg/mIoU": 50})
        assert storage.latest() == {"loss": (7.0, 7), "lr": (2.0, 7), "sem_seg/mIoU": (50.0, 6)}
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
        return (self.weight - target) ** 2


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
    """Overrides what fasegr's trainer overrides, as briefly as possible."""

    def __init__(self, cfg):
        super(d2.DefaultTrainer, self).__init__()
        model = d2.build_model(cfg)
        self.sampler = Forever()
        options = {"mapper": None, "sampler": self.sampler, "total_batch_size": 2, "aspect_ratio_grouping": False}
        self._trainer = Step(
            model=model.train(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            data_loader=d2.build_detection_train_loader(Numbers(), num_workers=0, **options),
        )
        self.checkpointer = d2.DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.cfg, self.max_iter = cfg, cfg.SOLVER.MAX_ITER
        self.note = Note()
        self.register_hooks([self.note, Save()])

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return d2.build_detection_test_loader([{"x": 1}, {"x": 2}], mapper=dict)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CountImages(dataset_name)

    def train(self):
        self.sampler.start = self.start_iter * 2
        batches = iter(self.data_loader)
        with d2.EventStorage(self.start_iter) as self.storage:
            self.before_train()
            for self.iter in range(self.start_iter, self.max_iter):  # noqa: B020
                self.before_step()
                loss = self.model(next(batches))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.after_step()
            self.iter += 1
            self.after_train()


class Step(SimpleNamespace):
    def state_dict(self):
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state["optimizer"])


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
    cfg = d2.get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "ContractRegression"
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SOLVER.MAX_ITER = 6
    return cfg


def test_training_calls_hooks_in_order(train_cfg):
    trainer = Trainer(train_cfg)
    assert (trainer.iter, trainer.start_iter) == (0, 0)
    trainer.resume_or_load(resume=False)
    trainer.train()
    steps = [(name, i) for i in range(6) for name in ("before_step", "after_step")]
    assert trainer.note.calls == [("before_train", 0), *steps, ("after_train", 6)]
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


def test_loading_without_resuming_takes_only_the_weights(train_cfg, tmp_path):
    Trainer(train_cfg).train()
    train_cfg.MODEL.WEIGHTS = str(tmp_path / "model_0000002.pth")
    trainer = Trainer(train_cfg)
    trainer.resume_or_load(resume=False)
    assert (trainer.start_iter, trainer.note.count) == (0, 0)
    assert trainer.model.weight.item() != 0


def test_checkpoint_layout(train_cfg, tmp_path):
    """A run can be resumed on the other runtime, so the layout is the same."""
    Trainer(train_cfg).train()
    saved = torch.load(tmp_path / "model_0000002.pth", weights_only=True)
    assert set(saved) == {"model", "trainer"}
    state = saved["trainer"]
    assert (state["iteration"], state["hooks"]) == (2, {"Note": {"count": 3}})
    assert set(state["_trainer"]) == {"optimizer"}


class Sees(nn.Module):
    def forward(self, batch):
        return batch


def test_trainer_test(train_cfg):
    cfg = train_cfg
    cfg.DATASETS.TEST = ("one",)
    assert Trainer.test(cfg, Sees()) == {"one": {"images": 2}}
    assert Trainer.test(cfg, Sees(), [CountImages("given")]) == {"given": {"images": 2}}
    cfg.DATASETS.TEST = ("one", "two")
    assert Trainer.test(cfg, Sees()) == {"one": {"one": {"images": 2}}, "two": {"two": {"images": 2}}}


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
    switches = "--config-file a.yaml --resume --eval-only --num-gpus 2 --num-machines 3 --machine-rank 1"
    args = parse(switches.split())
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
    d2.setup_logger(str(tmp_path), 1, name="contract")
    logger.warning("from another rank")
    assert "another rank" not in capsys.readouterr().out
    assert "another rank" in (tmp_path / "log.txt.rank1").read_text()


# ---- ranks


def test_comm_of_one_process():
    comm = d2.comm
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank()) == (1, 0, 0)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.gather("x") == comm.all_gather("x") == ["x"]


def test_launch_of_one_process_is_a_call():
    called = []
    d2.launch(lambda *args: called.append(args), 1, args=(1, 2))
    assert called == [(1, 2)]


def _report(folder):
    """What each of two ranks sees; the parent reads the files."""
    comm = d2.comm
    rank = comm.get_rank()
    comm.synchronize()
    loader = d2.build_detection_test_loader(list(range(5)), mapper=int)
    options = {"mapper": None, "sampler": Forever(), "total_batch_size": 2, "aspect_ratio_grouping": False}
    (first_batch,) = itertools.islice(d2.build_detection_train_loader(Numbers(), num_workers=0, **options), 1)
    seen = {
        "ranks": (comm.get_world_size(), rank, comm.get_local_rank(), comm.is_main_process()),
        "gather": comm.gather({"rank": rank}),
        "all_gather": comm.all_gather([rank]),
        "train": len(first_batch),
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
    assert first["ranks"] == (2, 0, 0, True)
    assert second["ranks"] == (2, 1, 1, False)
    assert (first["gather"], second["gather"]) == ([{"rank": 0}, {"rank": 1}], [])
    assert first["all_gather"] == second["all_gather"] == [[0], [1]]
    assert (first["test"], second["test"]) == ([[0], [1], [2]], [[3], [4]])
    assert first["train"] == second["train"] == 1
    assert (first["evaluated"], second["evaluated"]) == ({"sum": {"of all": 20}}, {})
    assert (tmp_path / "by_0.pth").exists()
    assert not (tmp_path / "by_1.pth").exists()


def test_other_runtime():
    """Everything above, on the runtime that is not in force here."""
    if importlib.util.find_spec("detectron2") is None:
        pytest.skip("detectron2 is not installed: the contract was tested only on the built-in runtime")
    if "FASEGR_RUNTIME" in os.environ:
        pytest.skip(f"FASEGR_RUNTIME asks for {d2.RUNTIME}: the contract was tested only on this runtime")
    other = "builtin" if d2.RUNTIME == "detectron2" else "detectron2"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "FASEGR_RUNTIME": other},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, f"on {other}:\n{run.stdout[-4000:]}{run.stderr[-2000:]}"
