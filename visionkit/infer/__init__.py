"""Predicting with a run: images in, predictions of every head out, and the files they are written to."""

from visionkit.infer.predictor import Predictor, Result, load, pick_device
from visionkit.infer.writers import PredictionWriter

__all__ = ["PredictionWriter", "Predictor", "Result", "load", "pick_device"]
