"""Rims moved to where the picture says they are.

The network knows where an airhole is; where its rim runs, to a tenth of a pixel, the picture knows better. A pixel that
the rim cuts mixes the light of both sides in proportion to what it sees of them, so the brightness, averaged all around
and linear in light, is half-way between both at the rim. Only the mean distance is taken from it: single places are
as often edges of stains, shadows and stones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.mask import InstanceMask

# The edge is looked for so far from the network's rim, in steps; no farther, lest it be another one.
_REACH_PX = 2.0
_STEP_PX = 0.25
_MARGIN_PX = 3
# No more places than that are looked at: evenly chosen along a longer rim.
_MAX_PLACES = 4000
# Brightness inside and outside: means over these distances from the edge.
_NEAR_PX, _FAR_PX = 1.0, 2.0
_ITERATIONS = 4
_CONVERGED = 0.02  # steps
# The side walls of an airhole reflect less than this share of what the wall around does; paint and splashes need not.
_MAX_INSIDE_RATIO = 0.9
# Dark places outside a rim are stains, or a part of the airhole that was missed: deviation of a rim in an even picture,
# and of one where the brightness outside deviates by as much as it is. With them 95 % of the intervals hold in `cmml
# evaluate --measurement --masks network`, seeds 11 to 13; they go with the weights.
_EVEN_STD_PX = 0.1
_UNEVEN_STD_PX = 4.0
# Cameras encode light by about this curve (IEC 61966-2-1).
_CODE = np.arange(256) / 255.0
_LINEAR = np.where(_CODE <= 0.04045, _CODE / 12.92, ((_CODE + 0.055) / 1.055) ** 2.4).astype(np.float32)


def settle_rims(masks: Sequence[InstanceMask], image: NDArray[np.uint8]) -> list[InstanceMask]:
    """`masks`, each rim as far out as the edge in `image`, (H, W, 3) uint8 BGR; as it was where that shows none."""
    if not masks:
        return []
    brightness = np.asarray(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), _LINEAR), np.float32)
    return [mask if mask.touches_border else _crop(_settle(mask, brightness), brightness.shape) for mask in masks]


def _crop(mask: InstanceMask, shape: tuple[int, ...]) -> InstanceMask:
    """The same without what lies beside a picture of this shape (H, W)."""
    left, top, width, height = mask.roi
    if left >= 0 and top >= 0 and left + width <= shape[1] and top + height <= shape[0]:
        return mask
    rows = slice(max(-top, 0), max(min(height, shape[0] - top), 0))
    columns = slice(max(-left, 0), max(min(width, shape[1] - left), 0))
    return replace(mask, coverage=mask.coverage[rows, columns], left=left + columns.start, top=top + rows.start)


def _settle(mask: InstanceMask, brightness: NDArray[np.float32]) -> InstanceMask:
    coverage = np.pad(mask.coverage, _MARGIN_PX)
    left, top = mask.left - _MARGIN_PX, mask.top - _MARGIN_PX
    out_x, out_y = _point_outwards(coverage)
    offset_px, unevenness = _find_edge(coverage, left, top, brightness, out_x, out_y)
    if not np.isfinite(offset_px):
        return mask
    y, x = np.indices(coverage.shape, np.float32)
    offset = np.float32(offset_px)
    std_px = math.hypot(_EVEN_STD_PX, _UNEVEN_STD_PX * unevenness)
    # Bilinear interpolation would soften the rim.
    moved = np.clip(cv2.remap(coverage, x - offset * out_x, y - offset * out_y, cv2.INTER_CUBIC), 0.0, 1.0)
    return replace(mask, coverage=moved.astype(np.float32), left=left, top=top, boundary_std_px=std_px)


def _point_outwards(coverage: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors across the rim, x and y, each (h, w); shorter where no rim is near."""
    inside = (coverage >= 0.5).view(np.uint8)
    outside_px, inside_px = (cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_5) for part in (1 - inside, inside))
    distance = cv2.GaussianBlur(np.subtract(outside_px, inside_px), (0, 0), 1.0)
    out_x = np.asarray(cv2.Sobel(distance, cv2.CV_32F, 1, 0, ksize=3, scale=0.125), np.float32)
    out_y = np.asarray(cv2.Sobel(distance, cv2.CV_32F, 0, 1, ksize=3, scale=0.125), np.float32)
    length = np.maximum(np.hypot(out_x, out_y), np.float32(0.5))
    return np.asarray(out_x / length, np.float32), np.asarray(out_y / length, np.float32)


def _find_edge(
    coverage: NDArray[np.float32],
    left: int,
    top: int,
    brightness: NDArray[np.float32],
    out_x: NDArray[np.float32],
    out_y: NDArray[np.float32],
) -> tuple[float, float]:
    """How far outside the rim the mean brightness is half-way from inside to outside, pixels; NaN where it is not.

    And the relative deviation of the brightness outside, along the rim.
    """
    x, y = _cross_rim(coverage)
    if len(x) == 0:
        return math.nan, math.nan
    every = len(x) // _MAX_PLACES + 1
    x, y = x[::every], y[::every]
    row, column = np.rint(y).astype(int), np.rint(x).astype(int)
    across_x, across_y = out_x[row, column], out_y[row, column]
    reach = round((_REACH_PX + _FAR_PX) / _STEP_PX)
    steps = np.float32(_STEP_PX) * np.arange(-reach, reach + 1, dtype=np.float32)
    sampled = cv2.remap(
        brightness,
        np.float32(left) + x[:, None] + steps * across_x[:, None],
        np.float32(top) + y[:, None] + steps * across_y[:, None],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # A rim crosses rows and columns of pixels |cos| + |sin| times per pixel of its length.
    weights = 1.0 / np.maximum(np.abs(across_x) + np.abs(across_y), 0.5)
    profile = weights @ sampled / weights.sum()
    near, far = _NEAR_PX / _STEP_PX, _FAR_PX / _STEP_PX
    edge = float(reach)  # in steps from the first
    for _ in range(_ITERATIONS):
        inside = profile[math.ceil(edge - far) : math.floor(edge - near) + 1].mean()
        outside = profile[math.ceil(edge + near) : math.floor(edge + far) + 1].mean()
        bright = profile >= 0.5 * (inside + outside)
        passed = np.flatnonzero(bright[1:] > bright[:-1])
        if inside > _MAX_INSIDE_RATIO * outside or len(passed) == 0:
            return math.nan, math.nan
        before, after = profile[passed], profile[passed + 1]
        places = passed + (0.5 * (inside + outside) - before) / (after - before)
        last, edge = edge, float(places[np.argmin(np.abs(places - edge))])
        if abs(edge - reach) > _REACH_PX / _STEP_PX:
            return math.nan, math.nan
        if abs(edge - last) < _CONVERGED:
            break
    beyond = sampled[:, math.ceil(edge + near) : math.floor(edge + far) + 1].mean(axis=1)
    return _STEP_PX * (edge - reach), float(beyond.std() / beyond.mean())


def _cross_rim(coverage: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the coverage passes one half between the centres of neighbouring pixels: x and y, each (N,)."""
    excess = coverage - np.float32(0.5)
    found = []
    for axis in (1, 0):
        before, after = (excess[:, :-1], excess[:, 1:]) if axis == 1 else (excess[:-1], excess[1:])
        row, column = np.nonzero((before < 0.0) != (after < 0.0))
        share = before[row, column] / (before[row, column] - after[row, column])
        found.append((column + share, row.astype(np.float32)) if axis == 1 else (column, row + share))
    (x_across, y_across), (x_down, y_down) = found
    return np.concatenate([x_across, x_down]).astype(np.float32), np.concatenate([y_across, y_down]).astype(np.float32)
