"""Official metrics of every kind of prediction."""

from visionkit.evaluate.base import Evaluator

__all__ = ["Evaluator"]
