"""Training: the loop, balancers, schedules, checkpoints."""

from visionkit.train.balance import Balancer
from visionkit.train.loop import Run, train

__all__ = ["Balancer", "Run", "train"]
