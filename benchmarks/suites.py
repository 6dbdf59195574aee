"""Named lists of cases: those of the figures in the documentation, and all GPU measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks.case import Case
from benchmarks.measure import ROOT

ADE20K = ROOT / "configs/ade20k/semantic-segmentation"
QUICKSTART = ROOT / "configs/quickstart/faseg_scenes.yaml"
CITYSCAPES = ROOT / "configs/cityscapes/semantic-segmentation"


def cpu(base: Case) -> list[Case]:
    """Inference and training of R50, under both allocators; then what programs do, beside a busy process."""
    model = dataclasses.replace(base, config=str(ADE20K / "faseg_r50.yaml"))
    cases = []
    for allocator in ("default", "tuned"):
        case = dataclasses.replace(model, allocator=allocator)
        cases += [
            dataclasses.replace(case, kind="inference"),
            dataclasses.replace(case, kind="labels"),
            dataclasses.replace(case, kind="training", size=(256, 256), batch=2),
        ]
    training = dataclasses.replace(model, kind="training", batch=2)
    return [
        *cases,
        training,
        dataclasses.replace(training, kind="criterion", size=(256, 256)),
        *besides(dataclasses.replace(base, allocator="tuned", peer=None)),
    ]


def besides(base: Case) -> list[Case]:
    """Inference, training, evaluation and two trainings at once, in turn quiet and beside one busy process."""
    model = dataclasses.replace(base, config=str(ADE20K / "faseg_r50.yaml"), beside=1)
    quickstart = dataclasses.replace(base, config=str(QUICKSTART), size=(128, 128), beside=1)
    return [
        dataclasses.replace(model, kind="inference"),
        dataclasses.replace(model, kind="training", size=(256, 256), batch=2),
        dataclasses.replace(model, kind="testing", size=(512, 683), batch=4),
        dataclasses.replace(quickstart, kind="runs", batch=2, rounds=1, warmup=0),
    ]


def sizes(base: Case) -> list[Case]:
    """Inference at other sizes, batches and configs."""
    model = dataclasses.replace(base, kind="inference", config=str(ADE20K / "faseg_r50.yaml"))
    return [
        dataclasses.replace(model, size=(512, 683)),
        dataclasses.replace(model, batch=4),
        dataclasses.replace(model, config=str(ADE20K / "swin/faseg_swin_tiny.yaml")),
        dataclasses.replace(model, config=str(ADE20K / "maskformer2_R50_bs16_160k.yaml")),
        dataclasses.replace(model, config=str(CITYSCAPES / "faseg_r50.yaml"), size=(1024, 2048), rounds=3),
        dataclasses.replace(model, size=(2048, 2048), rounds=2),
    ]


def data(base: Case) -> list[Case]:
    """The mapper under the recipes of ADE20K and Cityscapes, and evaluation from scores and from labels; a whole
    one without and with TEST.REPORT."""
    ade20k = dataclasses.replace(base, config=str(ADE20K / "faseg_r50.yaml"), size=(512, 683), batch=8)
    cityscapes = dataclasses.replace(base, config=str(CITYSCAPES / "faseg_r50.yaml"), size=(1024, 2048), batch=4)
    return [
        dataclasses.replace(ade20k, kind="mapper"),
        dataclasses.replace(cityscapes, kind="mapper"),
        dataclasses.replace(ade20k, kind="evaluation", batch=4),
        dataclasses.replace(ade20k, kind="evaluation-labels", batch=4),
        *(
            dataclasses.replace(ade20k, kind="testing", batch=50, opts=(*base.opts, "TEST.REPORT", flag), peer=None)
            for flag in ("False", "True")
        ),
    ]


def forms(base: Case) -> list[Case]:
    """Each faster form on a CPU, on and off: whole steps that use it, with the allocator that the programs use."""
    model = dataclasses.replace(base, config=str(ADE20K / "faseg_r50.yaml"), allocator="tuned")
    training = dataclasses.replace(model, kind="training", batch=2)
    cases = [dataclasses.replace(model, kind="inference", peer="plain:embedding_bag")]
    for name in ("embedding_bag", "patch_products", "point_table"):
        case = dataclasses.replace(training, peer=f"plain:{name}")
        cases += [dataclasses.replace(case, size=(256, 256)), case]
    return cases


def launches(base: Case) -> list[Case]:
    """The operations that a GPU would be asked for: exact, and without one."""
    model = dataclasses.replace(base, config=str(ADE20K / "faseg_r50.yaml"), dtype="float16", peer=None)
    training = dataclasses.replace(model, kind="launches-training")
    inference = dataclasses.replace(model, kind="launches-inference")
    return [
        dataclasses.replace(training, batch=2),
        dataclasses.replace(training, batch=16),
        inference,
        dataclasses.replace(inference, batch=16),
    ]


def gpu(base: Case) -> list[Case]:
    """All GPU measurements, the most important first; takes less than ten minutes."""
    model = dataclasses.replace(base, config=str(ADE20K / "faseg_r50.yaml"), rounds=max(base.rounds, 10), warmup=3)
    inference = dataclasses.replace(model, kind="inference", dtype="float16")
    training = dataclasses.replace(model, kind="training", batch=16, dtype="bfloat16")
    table6 = dataclasses.replace(training, batch=4, dtype="float16", rounds=3, peer=None)
    operation = dataclasses.replace(model, kind="deformable", batch=4, peer="plain")
    return [
        inference,
        dataclasses.replace(inference, batch=16),
        training,
        dataclasses.replace(model, kind="synchronisation", batch=2, peer=None),
        dataclasses.replace(operation, dtype="float32"),
        dataclasses.replace(operation, dtype="bfloat16"),
        dataclasses.replace(operation, dtype="float16"),
        dataclasses.replace(training, dtype="float16"),
        dataclasses.replace(inference, dtype="float32"),
        dataclasses.replace(inference, dtype="bfloat16", batch=16, peer="plain"),
        *(
            dataclasses.replace(table6, opts=("MODEL.FASEG.HIGH_RES.ATTENTION", attention))
            for attention in ("hrca", "random", "rcda", "vanilla")
        ),
        dataclasses.replace(inference, kind="labels", batch=16),
        dataclasses.replace(training, opts=("SPEED.COMPILE", "True"), peer=None),
    ]


SUITES: dict[str, Callable[[Case], list[Case]]] = {
    "cpu": cpu,
    "beside": besides,
    "forms": forms,
    "sizes": sizes,
    "data": data,
    "launches": launches,
    "gpu": gpu,
}
