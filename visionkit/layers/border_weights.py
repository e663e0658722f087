"""U-Net's weight map, which makes a net learn the gaps between touching objects."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from visionkit.types import IGNORE


def border_weights(labels: Tensor, *, background: int = 0, w0: float = 10.0, sigma: float = 5.0) -> Tensor:
    """How much each pixel of a label map counts: ``w0 exp(-(d1 + d2)^2 / (2 sigma^2))`` on the background, 0 elsewhere.

    d1 and d2 are the distances to the nearest and the second nearest object (Ronneberger et al., MICCAI 2015, equation
    2, without the weights of the classes). Objects are what hangs together, 4-connected, of any class but the
    background; with fewer than two of them there is no gap to learn.

    Args:
        labels: (H, W) of classes; what nobody knows is no object.
        background: the class between objects.
        w0: the largest weight.
        sigma: of the gap, in pixels.

    Returns:
        (H, W) float32, on the device of ``labels``.
    """
    ground = labels.detach().cpu().numpy()
    objects = ((ground != background) & (ground != IGNORE)).astype(np.uint8)
    count, parts = cv2.connectedComponents(objects, connectivity=4)
    weights = np.zeros(ground.shape, np.float32)
    if count > 2:
        nearest, second = _two_nearest(parts, count, reach=int(np.ceil(6 * sigma)))
        weights = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2)).astype(np.float32)
        weights[ground != background] = 0.0
    return torch.from_numpy(weights).to(labels.device)


def _two_nearest(parts: np.ndarray, count: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (H, W) to the nearest and the second nearest of the parts 1 ... ``count`` - 1; infinite where a part is
    further away than ``reach`` pixels: that far, the weight is below a millionth of the largest."""
    nearest = np.full(parts.shape, np.inf, np.float32)
    second = nearest.copy()
    for part in range(1, count):
        mask = (parts == part).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        near = (
            slice(max(0, top - reach), top + height + reach),
            slice(max(0, left - reach), left + width + reach),
        )
        distance = cv2.distanceTransform(1 - mask[near], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        second[near] = np.minimum(second[near], np.maximum(nearest[near], distance))
        nearest[near] = np.minimum(nearest[near], distance)
    return nearest, second
