"""visionkit: one shared backbone, many heads.

The public names are loaded when they are first used, so that ``import visionkit`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Component": "visionkit.hookspecs",
    "hookimpl": "visionkit.hookspecs",
    "UserError": "visionkit.errors",
    "Backbone": "visionkit.model",
    "Neck": "visionkit.model",
    "Head": "visionkit.model",
    "MultiTaskModel": "visionkit.model",
    "Source": "visionkit.data",
    "Sample": "visionkit.data",
    "Transform": "visionkit.data",
    "Evaluator": "visionkit.evaluate",
    "load": "visionkit.infer",
    "Predictor": "visionkit.infer",
    "load_pipeline": "visionkit.config",
}

if TYPE_CHECKING:
    from visionkit.config import load_pipeline as load_pipeline
    from visionkit.data import Sample as Sample
    from visionkit.data import Source as Source
    from visionkit.data import Transform as Transform
    from visionkit.errors import UserError as UserError
    from visionkit.evaluate import Evaluator as Evaluator
    from visionkit.hookspecs import Component as Component
    from visionkit.hookspecs import hookimpl as hookimpl
    from visionkit.infer import Predictor as Predictor
    from visionkit.infer import load as load
    from visionkit.model import Backbone as Backbone
    from visionkit.model import Head as Head
    from visionkit.model import MultiTaskModel as MultiTaskModel
    from visionkit.model import Neck as Neck

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'visionkit' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
