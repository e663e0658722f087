"""Pictures of targets and predictions: RGB uint8 arrays in, RGB uint8 arrays out."""

from visionkit.draw.compose import comparison, draw_prediction, overlay
from visionkit.draw.instances import draw_instances
from visionkit.draw.output import encode_image, visualization
from visionkit.draw.palette import class_colors, palette
from visionkit.draw.panoptic import draw_panoptic
from visionkit.draw.semantic import draw_semantic
from visionkit.draw.sheet import legend, sheet

__all__ = [
    "class_colors",
    "comparison",
    "draw_instances",
    "draw_panoptic",
    "draw_prediction",
    "draw_semantic",
    "encode_image",
    "legend",
    "overlay",
    "palette",
    "sheet",
    "visualization",
]
