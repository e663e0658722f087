"""Keypoints of one person or object: heatmaps and coordinates."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component(
            "head",
            "keypoint_heatmap",
            "visionkit_keypoints.heatmap:KeypointHeatmap",
            "keypoints as peaks of heatmaps (Simple Baselines, hourglasses), of crops or of boxes that a head finds",
        ),
        Component(
            "head",
            "keypoint_regression",
            "visionkit_keypoints.regression:KeypointRegression",
            "keypoints as coordinates: L1, L2, wing, residual log-likelihood",
        ),
    ]
