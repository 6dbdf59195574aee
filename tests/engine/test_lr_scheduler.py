import math

import pytest
import torch

from fasegr.config import add_fasegr_config
from fasegr.d2 import get_cfg
from fasegr.engine.lr_scheduler import build_lr_scheduler, cosine, multi_step, poly, warmup


def make_cfg(*opts):
    cfg = get_cfg()
    add_fasegr_config(cfg)
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_ITERS", 0, *opts])
    return cfg


def make_optimizer():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])


def rates(scheduler, optimizer, steps):
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


def test_poly_of_every_group():
    optimizer = make_optimizer()
    scheduler = build_lr_scheduler(make_cfg("SOLVER.MAX_ITER", 8, "SOLVER.POLY_LR_POWER", 0.9), optimizer)
    expected = [[(1 - i / 8) ** 0.9, 0.1 * (1 - i / 8) ** 0.9] for i in range(8)]
    torch.testing.assert_close(rates(scheduler, optimizer, 8), expected)


def test_schedule_is_a_function_of_the_iteration():
    cfg = make_cfg("SOLVER.MAX_ITER", 8, "SOLVER.WARMUP_ITERS", 3, "SOLVER.WARMUP_FACTOR", 0.1)
    optimizer = make_optimizer()
    scheduler = build_lr_scheduler(cfg, optimizer)
    whole = rates(scheduler, optimizer, 8)

    optimizer = make_optimizer()
    scheduler = build_lr_scheduler(cfg, optimizer)
    first = rates(scheduler, optimizer, 4)
    state = scheduler.state_dict(), optimizer.state_dict()
    optimizer = make_optimizer()
    scheduler = build_lr_scheduler(cfg, optimizer)
    scheduler.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    assert first + rates(scheduler, optimizer, 4) == whole


def test_constant_ending():
    schedule = poly(10, power=1.0, constant_ending=0.25)
    assert [schedule(i) for i in (0, 5, 8, 9)] == [1.0, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(("method", "expected"), [("linear", [0.1, 0.4, 0.7, 1.0]), ("constant", [0.1, 0.1, 0.1, 1.0])])
def test_warmup(method, expected):
    schedule = warmup(lambda i: 1.0, iters=3, factor=0.1, method=method)
    assert [schedule(i) for i in range(4)] == pytest.approx(expected)


def test_no_warmup_does_not_divide_by_it():
    assert warmup(poly(10), iters=0, factor=0.001)(0) == 1.0


def test_multi_step_and_cosine():
    assert [multi_step([2, 4], 0.1)(i) for i in range(5)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert [cosine(4)(i) for i in range(5)] == pytest.approx([(1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)])


@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_other_schedules_start_at_the_base(name):
    optimizer = make_optimizer()
    build_lr_scheduler(make_cfg("SOLVER.LR_SCHEDULER_NAME", name), optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"LR_SCHEDULER_NAME is 'Step'; there are: WarmupPolyLR"):
        build_lr_scheduler(make_cfg("SOLVER.LR_SCHEDULER_NAME", "Step"), make_optimizer())
    with pytest.raises(ValueError, match=r"method is 'burnin'; it must be 'linear' or 'constant'"):
        warmup(poly(8), iters=3, factor=0.1, method="burnin")
