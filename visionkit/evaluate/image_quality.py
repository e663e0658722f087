"""How near a picture is to another: PSNR, SSIM and MS-SSIM, and how near a set of pictures is to another: Fréchet and
kernel distance of their features."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales of MS-SSIM, finest first (Wang et al., 2003)."""
SMALLEST = WINDOW
"""Least side of a picture of which SSIM can be said."""
SMALLEST_OF_SCALES = WINDOW * 2 ** (len(SCALES) - 1)
"""Least side of a picture of which MS-SSIM can be said."""


def psnr(one: Tensor, other: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels of two pictures of any one shape, in 0 ... 1; infinite for equal ones."""
    error = float((one.double() - other.double()).square().mean())
    return -10.0 * math.log10(error) if error else math.inf


def ssim(one: Tensor, other: Tensor) -> float:
    """Structural similarity of two pictures (C, H, W) in 0 ... 1, sides of 11 or more; a mean over all values.

    Wang et al., Image quality assessment, 2004: a Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03,
    only where the window lies within the picture; variances divide by the sum of weights.
    """
    luminance, contrast = _terms(one.double(), other.double())
    return float((luminance * contrast).mean())


def ms_ssim(one: Tensor, other: Tensor) -> float:
    """Structural similarity over five scales of two pictures (C, H, W) in 0 ... 1, sides of 176 or more.

    Wang et al., Multi-scale structural similarity, 2003. Contrast counts at every scale and luminance at the coarsest;
    a mean that is negative counts as 0.
    """
    one, other, total = one.double(), other.double(), torch.ones(len(one), dtype=torch.float64)
    for scale, weight in enumerate(SCALES):
        luminance, contrast = _terms(one, other)
        last = scale == len(SCALES) - 1
        value = (luminance * contrast if last else contrast).mean((1, 2)).clamp(min=0.0)
        total = total * value**weight
        one, other = (F.avg_pool2d(picture[None], 2)[0] for picture in (one, other))
    return float(total.mean())


def _terms(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast-structure terms, each (C, H - 10, W - 10)."""
    stacked = torch.stack((one, other, one * one, other * other, one * other))
    mean_a, mean_b, square_a, square_b, product = _blurred(stacked)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * (product - mean_a * mean_b) + c2) / (variance_a + variance_b + c2)


def _blurred(x: Tensor) -> Tensor:
    """Weighted means (N, C, H - 10, W - 10) over the window."""
    at = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    row = torch.exp(-(at**2) / (2 * SIGMA**2))
    row = row / row.sum()
    planes = x.flatten(0, 1)[:, None]
    planes = F.conv2d(F.conv2d(planes, row[None, None, None]), row[None, None, :, None])
    return planes.view(*x.shape[:2], *planes.shape[-2:])


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians through two sets of features (n, D), (m, D): FID for Inception's.

    Heusel et al., NIPS 2017, equation 6: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^0.5), with unbiased covariances.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (one, other))
    # The trace of the root of a product is the sum of the roots of its eigenvalues, which are not below 0.
    root = np.sqrt(np.linalg.eigvals(np.atleast_2d(cov_a) @ np.atleast_2d(cov_b)).real.clip(min=0.0)).sum()
    shift = float(((mean_a - mean_b) ** 2).sum())
    return max(0.0, shift + float(np.trace(np.atleast_2d(cov_a)) + np.trace(np.atleast_2d(cov_b)) - 2.0 * root))


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of two sets of features (n, D), (m, D): KID for Inception's.

    Bińkowski et al., ICLR 2018, with the kernel (x y / D + 1)^3, over all features at once and not over subsets.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    n, m = len(one), len(other)
    within_a, within_b = kernel(one, one), kernel(other, other)
    same = (within_a.sum() - np.trace(within_a)) / (n * (n - 1)) + (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(same - 2.0 * kernel(one, other).mean())
