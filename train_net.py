#!/usr/bin/env python3
"""Train or evaluate FASeg, as a config file describes.

python train_net.py --config-file configs/quickstart/faseg_scenes.yaml
python train_net.py --config-file CONFIG --resume
python train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS model.pth
torchrun --nproc-per-node 8 train_net.py --config-file CONFIG
srun --ntasks-per-node 8 python train_net.py --config-file CONFIG
"""

import omp_policy  # noqa: F401 (before torch)

# isort: split

import logging

from fasegr import load_cfg
from fasegr.checkpoint import Checkpointer
from fasegr.d2 import default_argument_parser
from fasegr.data.datasets import register_from_config
from fasegr.engine.launch import launch, readable_errors, warnings_for_the_log
from fasegr.engine.trainer import Trainer, with_weights
from fasegr.utils.nested import flatten

logger = logging.getLogger("fasegr")


def main(args, cfg) -> None:
    register_from_config(cfg)  # again, since a spawned process has empty catalogs
    if args.eval_only:
        evaluate(args, cfg)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def evaluate(args, cfg) -> dict:
    """Scores of MODEL.WEIGHTS, or with --resume of the last checkpoint in OUTPUT_DIR, on DATASETS.TEST.

    If TEST.AUG.ENABLED, the scores of multi-scale testing are added as sem_seg_TTA.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only: DATASETS.TEST is empty; it must name at least one dataset")
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR)
    if not cfg.MODEL.WEIGHTS and not (args.resume and checkpointer.has_checkpoint()):
        raise ValueError(
            "--eval-only without weights would score a random model; add MODEL.WEIGHTS model.pth, "
            f"or --resume for the last checkpoint in OUTPUT_DIR ({cfg.OUTPUT_DIR})"
        )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    if checkpointer.report.kind != "full":
        raise ValueError(
            f"--eval-only: {checkpointer.report.path} fits only part of this model ({checkpointer.report.kind}), and "
            "the rest would be random; use the config that the weights were trained with, or train first"
        )
    cfg = with_weights(cfg, checkpointer.report.path)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        logger.info("Multi-scale testing: sizes %s, flip %s", list(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.FLIP)
        for name, scores in Trainer.test_with_TTA(cfg, model).items():
            results.setdefault(name, {}).update(scores)
        means = {name: score for name, score in flatten(results, "/").items() if name.endswith("/mIoU")}
        logger.info("mIoU: %s", ", ".join(f"{name[:-5]} {score:.2f}" for name, score in means.items()))
    return results


def run(arguments: list[str] | None = None) -> None:
    """The program, with the arguments of the command line by default. Raises SystemExit if it fails."""
    parser = default_argument_parser(epilog=__doc__)
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is required, for instance configs/quickstart/faseg_scenes.yaml")
    with readable_errors():
        with warnings_for_the_log() as notes:
            cfg = load_cfg(args.config_file, args.opts)
        launch(main, args, cfg, notes)


if __name__ == "__main__":
    run()
