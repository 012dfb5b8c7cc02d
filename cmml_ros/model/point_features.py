"""Points as the network sees them: laid on the view in which they are looked for."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.model.range_features import RANGE_CHANNELS, bin_points, range_features

# Range features, intensity, and where intensity is known.
POINT_CHANNELS = RANGE_CHANNELS + 2
# Reflectance is compared with its surroundings within so many cells: light and distance change it slowly.
_SURROUNDINGS = 31
_LEAST_CONTRAST = 0.02
_CLIP = 4.0


def point_features(
    pixels: NDArray[np.float64],
    depths_m: NDArray[np.float64],
    intensity: NDArray[np.float32] | None,
    height: int,
    width: int,
) -> NDArray[np.float32]:
    """Maps (5, ceil(height / 2), ceil(width / 2)) float32 of x, y, z and intensity as one view shows them.

    pixels: (N, 2) in the view. depths_m: (N,) along its optical axis, metres. intensity: (N,) in any unit, or None.
    Channels: the three of `range_features`; the logarithm of the intensity, less its mean and over its deviation in the
    surroundings; 1 where there is intensity. All zero where nothing is known.
    """
    ranges = range_features(pixels, depths_m, height, width)
    maps = np.zeros((POINT_CHANNELS, *ranges.shape[1:]), np.float32)
    maps[:RANGE_CHANNELS] = ranges
    if intensity is None or len(intensity) == 0:
        return maps
    signal = np.maximum(np.nan_to_num(intensity, posinf=0.0, neginf=0.0), 0.0).astype(np.float64)
    typical = float(np.median(signal))
    if typical <= 0.0:
        return maps
    logarithm, support = bin_points(pixels, np.log(signal / typical + 0.03), height, width)
    known: NDArray[np.float32] = (support > 0.0).astype(np.float32)
    share = np.maximum(_box(known), 1e-3)
    mean = _box(logarithm * known) / share
    deviation = np.sqrt(np.maximum(_box((logarithm - mean) ** 2 * known) / share, 0.0))
    maps[RANGE_CHANNELS] = np.clip((logarithm - mean) / (deviation + _LEAST_CONTRAST), -_CLIP, _CLIP) * known
    maps[RANGE_CHANNELS + 1] = known
    return maps


def _box(grid: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(cv2.blur(grid, (_SURROUNDINGS, _SURROUNDINGS), borderType=cv2.BORDER_REFLECT), np.float32)
