"""Training: the trainer, its step, optimizer, schedule and hooks, and how the program starts."""

from .lr_scheduler import build_lr_scheduler
from .optimizer import build_optimizer
from .trainer import Trainer

__all__ = ["Trainer", "build_lr_scheduler", "build_optimizer"]
