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

from cmml_ros.geometry.compiled import compiled
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.dents import would_show

# The edge is looked for so far from the network's rim, in steps; no farther, lest it be another one.
_REACH_PX = 2.0
_STEP_PX = 0.25
_MARGIN_PX = 3
# No more places than that are looked at: evenly chosen along a longer rim.
_MAX_PLACES = 4000
# Brightness inside and outside: means over these distances from the edge.
_NEAR_PX, _FAR_PX = 1.0, 2.0
_STEPS = round((_REACH_PX + _FAR_PX) / _STEP_PX)  # to either side
_REACH_STEPS, _NEAR_STEPS, _FAR_STEPS = _REACH_PX / _STEP_PX, _NEAR_PX / _STEP_PX, _FAR_PX / _STEP_PX
_ITERATIONS = 4
_CONVERGED = 0.02  # steps
# The side walls of an airhole reflect less than this share of what the wall around does; paint and splashes need not.
_MAX_INSIDE_RATIO = 0.9
# Dark places outside a rim are stains, or a part of the airhole that was missed, which is as wide as that: deviation of
# a rim in an even picture, and of one where the brightness outside deviates by as much as it is, times the root of its
# diameter in pixels, where range would have shown that part and where it would not. With them 95 % of the intervals
# hold in airholes of every size in `cmml evaluate --measurement --masks network`, seeds 11 to 16 and, with --full, 17
# and 18; they go with the weights.
_EVEN_STD_PX = 0.19
_SHOWN_UNEVEN_STD = 0.38
_UNEVEN_STD = 1.26
# Where the picture shows no edge, one rim in a hundred: deviation over the diameter, with range that would have shown a
# missed part and without. Of those in the same runs 15 of 16 airholes lie within two of them.
_SHOWN_UNSETTLED_STD = 0.02
_UNSETTLED_STD = 0.25
# Cameras encode light by about this curve (IEC 61966-2-1).
_CODE = np.arange(256) / 255.0
_LINEAR = np.where(_CODE <= 0.04045, _CODE / 12.92, ((_CODE + 0.055) / 1.055) ** 2.4).astype(np.float32)


def settle_rims(
    masks: Sequence[InstanceMask], image: NDArray[np.uint8], range_maps: NDArray[np.float32] | None = None
) -> list[InstanceMask]:
    """`masks`, each rim as far out as the edge in `image`, (H, W, 3) uint8 BGR; as it was where that shows none.

    range_maps: those of `range_features`, where there are any, after which masks were grown over dents.
    """
    return [mask if mask.touches_border else _crop(_settle(mask, image, range_maps), image.shape) for mask in masks]


def _crop(mask: InstanceMask, shape: tuple[int, ...]) -> InstanceMask:
    """The same without what lies beside a picture of this shape (H, W, 3)."""
    left, top, width, height = mask.roi
    if left >= 0 and top >= 0 and left + width <= shape[1] and top + height <= shape[0]:
        return mask
    rows = slice(max(-top, 0), max(min(height, shape[0] - top), 0))
    columns = slice(max(-left, 0), max(min(width, shape[1] - left), 0))
    return replace(mask, coverage=mask.coverage[rows, columns], left=left + columns.start, top=top + rows.start)


def _settle(mask: InstanceMask, image: NDArray[np.uint8], range_maps: NDArray[np.float32] | None) -> InstanceMask:
    margin = _MARGIN_PX
    padded = cv2.copyMakeBorder(mask.coverage, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    coverage = np.asarray(padded, np.float32)
    left, top = mask.left - _MARGIN_PX, mask.top - _MARGIN_PX
    out_x, out_y = _point_outwards(coverage)
    offset_px, unevenness = _find_edge(coverage, left, top, image, out_x, out_y)
    diameter_px = mask.equivalent_diameter_px
    shown = range_maps is not None and would_show(mask, range_maps)
    if not np.isfinite(offset_px):
        return replace(mask, boundary_std_px=(_SHOWN_UNSETTLED_STD if shown else _UNSETTLED_STD) * diameter_px)
    uneven_px = (_SHOWN_UNEVEN_STD if shown else _UNEVEN_STD) * unevenness * math.sqrt(diameter_px)
    # Bilinear interpolation would soften the rim.
    moved = cv2.remap(coverage, *_step_back(offset_px, out_x, out_y), cv2.INTER_CUBIC)
    return replace(
        mask,
        coverage=np.clip(moved, 0.0, 1.0, dtype=np.float32),
        left=left,
        top=top,
        boundary_std_px=math.hypot(_EVEN_STD_PX, uneven_px),
    )


@compiled
def _step_back(
    offset_px: float, out_x: NDArray[np.float32], out_y: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where what each pixel shows lay before it was moved outwards: x and y, each (h, w)."""
    from_x, from_y = np.empty_like(out_x), np.empty_like(out_y)
    for row in range(out_x.shape[0]):
        for column in range(out_x.shape[1]):
            from_x[row, column] = column - offset_px * out_x[row, column]
            from_y[row, column] = row - offset_px * out_y[row, column]
    return from_x, from_y


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
    image: NDArray[np.uint8],
    out_x: NDArray[np.float32],
    out_y: NDArray[np.float32],
) -> tuple[float, float]:
    """How far outside the rim the mean brightness is half-way from inside to outside, pixels; NaN where it is not.

    And the relative deviation of the brightness outside, along the rim.
    """
    places = _cross_rim(coverage, out_x, out_y)
    if len(places) == 0:
        return math.nan, math.nan
    places = places[:: len(places) // _MAX_PLACES + 1]
    # Only what is looked at is converted, with its neighbours.
    around = math.ceil(_REACH_PX + _FAR_PX) + 1
    first_row, first_column = max(top - around, 0), max(left - around, 0)
    height, width = coverage.shape
    window = image[first_row : top + height + around, first_column : left + width + around]
    brightness = cv2.LUT(cv2.cvtColor(window, cv2.COLOR_BGR2GRAY), _LINEAR)
    at_x, at_y = _step_across(places, left - first_column, top - first_row)
    sampled = cv2.remap(brightness, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # A rim crosses rows and columns of pixels |cos| + |sin| times per pixel of its length.
    weights = 1.0 / np.maximum(np.abs(places[:, 2:]).sum(axis=1), 0.5)
    profile = weights @ sampled / weights.sum()
    edge = _find_step(profile)
    if not np.isfinite(edge):
        return math.nan, math.nan
    beyond = sampled[:, math.ceil(edge + _NEAR_STEPS) : math.floor(edge + _FAR_STEPS) + 1].mean(axis=1)
    return _STEP_PX * (edge - _STEPS), float(beyond.std() / beyond.mean())


@compiled
def _find_step(profile: NDArray[np.float32]) -> float:
    """Where `profile`, (2 _STEPS + 1,), passes half-way between its means on both sides of that place; NaN: nowhere."""
    edge = float(_STEPS)
    for _ in range(_ITERATIONS):
        inside = profile[math.ceil(edge - _FAR_STEPS) : math.floor(edge - _NEAR_STEPS) + 1].mean()
        outside = profile[math.ceil(edge + _NEAR_STEPS) : math.floor(edge + _FAR_STEPS) + 1].mean()
        if inside > _MAX_INSIDE_RATIO * outside:
            return math.nan
        half = 0.5 * (inside + outside)
        nearest = math.inf
        for index in range(len(profile) - 1):
            before, after = profile[index], profile[index + 1]
            if before < half <= after:
                place = index + (half - before) / (after - before)
                if abs(place - edge) < abs(nearest - edge):
                    nearest = place
        if abs(nearest - _STEPS) > _REACH_STEPS:
            return math.nan
        last, edge = edge, nearest
        if abs(edge - last) < _CONVERGED:
            break
    return edge


@compiled
def _step_across(places: NDArray[np.float32], left: int, top: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where the profiles across the rim are read: x and y, each (N, 2 _STEPS + 1), from its inside outwards."""
    at_x = np.empty((len(places), 2 * _STEPS + 1), np.float32)
    at_y = np.empty_like(at_x)
    for place in range(len(places)):
        for step in range(2 * _STEPS + 1):
            distance = np.float32(_STEP_PX * (step - _STEPS))
            at_x[place, step] = left + places[place, 0] + distance * places[place, 2]
            at_y[place, step] = top + places[place, 1] + distance * places[place, 3]
    return at_x, at_y


@compiled
def _cross_rim(
    coverage: NDArray[np.float32], out_x: NDArray[np.float32], out_y: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Where the coverage passes one half between the centres of neighbouring pixels, and which way is out there.

    (N, 4): x, y, and the unit vector's x and y.
    """
    height, width = coverage.shape
    half = np.float32(0.5)
    places = np.empty((2 * coverage.size, 4), np.float32)
    count = 0
    for down in range(2):  # to the right first
        for row in range(height - down):
            for column in range(width - 1 + down):
                before = coverage[row, column] - half
                after = coverage[row + down, column + 1 - down] - half
                if (before < 0.0) != (after < 0.0):
                    share = before / (before - after)
                    nearer = 0 if share <= half else 1
                    at_row, at_column = row + down * nearer, column + (1 - down) * nearer
                    places[count, 0] = column + (1 - down) * share
                    places[count, 1] = row + down * share
                    places[count, 2] = out_x[at_row, at_column]
                    places[count, 3] = out_y[at_row, at_column]
                    count += 1
    return places[:count].copy()
