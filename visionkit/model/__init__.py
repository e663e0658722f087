"""The modules of a pipeline: backbone, neck, heads, and the graph that runs them as one."""

from visionkit.model.base import Backbone, Head, Neck
from visionkit.model.graph import MultiTaskModel, Step

__all__ = ["Backbone", "Head", "MultiTaskModel", "Neck", "Step"]
