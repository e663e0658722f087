"""Official metrics of every kind of prediction.

The names are loaded when they are first used: ``evaluate_coco`` needs no torch, so ``visionkit coco-eval`` starts at
once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "BoundaryEvaluator": "visionkit.evaluate.boundary",
    "ClassificationEvaluator": "visionkit.evaluate.classification",
    "Evaluator": "visionkit.evaluate.base",
    "evaluate_coco": "visionkit.evaluate.coco_metrics",
    "CocoBoxes": "visionkit.evaluate.coco",
    "CocoMasks": "visionkit.evaluate.coco",
    "CocoKeypoints": "visionkit.evaluate.coco",
    "PanopticEvaluator": "visionkit.evaluate.panoptic",
    "PckEvaluator": "visionkit.evaluate.keypoints",
    "PicturesEvaluator": "visionkit.evaluate.pictures",
    "SemanticEvaluator": "visionkit.evaluate.semantic",
    "evaluate_panoptic": "visionkit.evaluate.panoptic_files",
    "evaluate_model": "visionkit.evaluate.runner",
}

if TYPE_CHECKING:
    from visionkit.evaluate.base import Evaluator as Evaluator
    from visionkit.evaluate.boundary import BoundaryEvaluator as BoundaryEvaluator
    from visionkit.evaluate.classification import ClassificationEvaluator as ClassificationEvaluator
    from visionkit.evaluate.coco import CocoBoxes as CocoBoxes
    from visionkit.evaluate.coco import CocoKeypoints as CocoKeypoints
    from visionkit.evaluate.coco import CocoMasks as CocoMasks
    from visionkit.evaluate.coco_metrics import evaluate_coco as evaluate_coco
    from visionkit.evaluate.keypoints import PckEvaluator as PckEvaluator
    from visionkit.evaluate.panoptic import PanopticEvaluator as PanopticEvaluator
    from visionkit.evaluate.panoptic_files import evaluate_panoptic as evaluate_panoptic
    from visionkit.evaluate.pictures import PicturesEvaluator as PicturesEvaluator
    from visionkit.evaluate.runner import evaluate_model as evaluate_model
    from visionkit.evaluate.semantic import SemanticEvaluator as SemanticEvaluator

__all__ = [
    "BoundaryEvaluator",
    "ClassificationEvaluator",
    "CocoBoxes",
    "CocoKeypoints",
    "CocoMasks",
    "Evaluator",
    "PanopticEvaluator",
    "PckEvaluator",
    "PicturesEvaluator",
    "SemanticEvaluator",
    "evaluate_coco",
    "evaluate_model",
    "evaluate_panoptic",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'visionkit.evaluate' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
