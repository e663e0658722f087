"""What flows through a pipeline: images and targets in, outputs between heads, predictions out."""

from visionkit.types.batch import Batch, Crop, ImageInfo, MixedBatch
from visionkit.types.classes import ClassPictures, ClassPrediction, ClassTarget
from visionkit.types.features import Features, FeatureSpec, Level
from visionkit.types.labels import IGNORE, LabelSet
from visionkit.types.masks import InstanceMasks
from visionkit.types.mean import Mean
from visionkit.types.outputs import (
    Anchors,
    Detections,
    MaskOutput,
    Output,
    PyramidOutput,
    RegionMaskOutput,
    RegionOutput,
    RegionSamples,
    SemanticOutput,
)
from visionkit.types.panoptic import PanopticPrediction, PanopticTarget
from visionkit.types.pictures import PicturePrediction, PictureTarget
from visionkit.types.predictions import (
    BoxPrediction,
    KeypointPrediction,
    MaskPrediction,
    Prediction,
    SemanticPrediction,
)
from visionkit.types.targets import InstanceTarget, SemanticTarget, Target

__all__ = [
    "IGNORE",
    "Anchors",
    "Batch",
    "BoxPrediction",
    "ClassPictures",
    "ClassPrediction",
    "ClassTarget",
    "Crop",
    "Detections",
    "FeatureSpec",
    "Features",
    "ImageInfo",
    "InstanceMasks",
    "InstanceTarget",
    "KeypointPrediction",
    "LabelSet",
    "Level",
    "MaskOutput",
    "MaskPrediction",
    "Mean",
    "MixedBatch",
    "Output",
    "PanopticPrediction",
    "PanopticTarget",
    "PicturePrediction",
    "PictureTarget",
    "Prediction",
    "PyramidOutput",
    "RegionMaskOutput",
    "RegionOutput",
    "RegionSamples",
    "SemanticOutput",
    "SemanticPrediction",
    "SemanticTarget",
    "Target",
]
