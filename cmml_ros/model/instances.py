"""From probability maps to single airholes."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.config import DetectionConfig
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.range_features import RANGE_STRIDE

# Pixels are partly covered this far to either side of the rim, no farther.
_BAND_PX = 2.0
# Rims that the network draws lie too far in: `settle_rims` starts here, and leaves them where no edge is seen. Of 0.2,
# 0.3 and 0.4 the one whose larger error of areas was least without it, of those in `cmml evaluate --measurement --masks
# network --seed 2` (3.2, 2.8, 2.4 %), where more was better, and on whole walls (`benchmarks/run.py --only accuracy`:
# 2.4, 3.1, 3.8 %), where less was.
_RIM_LOG_ODDS = 0.3
_MARGIN_PX = 3
# Between airholes that touch the rim is thin: a probability below one half has to do.
_RIM_THRESHOLD = 0.25
# Where no rim is seen between them either, a neck tells: a blob that is not convex and is this much narrower between
# two wide places than at the narrower of them, which is at least half as wide as the widest. Of ratios from 0.65 to
# 0.92 one of those with the best AP, with and without range, on 16 simulated walls kept for such choices.
_CONVEX_SHARE = 0.92
_NECK_RATIO = 0.9
_LEAST_WIDTH_RATIO = 0.5
_LEAST_HALF_WIDTH_PX = 1.5
_NECK_LEVELS = 10
# Range says what a rim or a neck is where so many cells of its maps have readings there, and these lie behind the
# surface by so many deviations of their mean, and deeper than what is parted by so many: what the picture shows stands
# until range is plain.
_LEAST_READINGS = 2.0
_PLAIN = 4.0
_DEEPER = 2.0
_NECK_KERNEL = np.ones((5, 5), np.uint8)
# Necks are looked for in the blob at this area: between the pixels of small ones, in no time in large ones.
_NECK_AREA_PX = 2000.0


def split_instances(
    mask: NDArray[np.float32],
    rim: NDArray[np.float32],
    config: DetectionConfig,
    range_maps: NDArray[np.float32] | None = None,
) -> list[InstanceMask]:
    """One InstanceMask per airhole, ordered by row and column of its box.

    mask, rim: (H, W) probabilities of "inside" and "on the rim". Airholes that touch are parted along their rims, and
    at necks: the cores (inside, not on the rim) grow over the mask, each to what is nearest to it. range_maps: those of
    `range_features`, where there are any; a rim or neck that is deeper than what it parts is none.
    """
    # Pixels that touch at a corner belong together. Outlines take a tenth of the time of labels for all pixels.
    above = np.asarray(mask >= config.mask_threshold).view(np.uint8)
    outlines, levels = cv2.findContours(above, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    masks: list[InstanceMask] = []
    least_area_px = np.pi / 4.0 * config.min_diameter_px**2
    # From the top; those of holes have a parent.
    for number in range(len(outlines) - 1, -1, -1):
        outline = outlines[number]
        # Noise makes thousands of specks: they are passed over before anything is computed for them.
        if (0.5 * len(outline) + 1.0) ** 2 < least_area_px or levels[0, number, 3] >= 0:
            continue
        left, top, width, height = cv2.boundingRect(outline)
        window = _grow(top, height, mask.shape[0]), _grow(left, width, mask.shape[1])
        blobs = cv2.connectedComponents(above[window], connectivity=8)[1]
        column, row = outline[0, 0] - (window[1].start, window[0].start)
        own = np.asarray(blobs == blobs[row, column])
        if np.count_nonzero(own) < least_area_px:
            continue
        probability = mask[window]
        owners = _part_touching(own, rim[window], range_maps, window)
        count = int(owners.max())
        owners[(blobs != 0) & (owners == 0)] = count + 1  # other blobs keep their pixels
        for owner in range(1, count + 1):
            core = owners == owner
            inside = probability[core]
            if not _is_airhole(inside, config):
                continue
            coverage = _soften_rim(core, core | (owners == 0), probability)
            confidence = float(inside.mean())
            touches = _touches_border(core, window, mask.shape)
            left, top = window[1].start, window[0].start
            masks.append(InstanceMask(coverage, left, top, confidence, touches_border=touches))
    return sorted(masks, key=lambda item: (item.top, item.left))


def _grow(start: int, extent: int, length: int) -> slice:
    return slice(max(start - _MARGIN_PX, 0), min(start + extent + _MARGIN_PX, length))


def _part_touching(
    own: NDArray[np.bool_],
    rim: NDArray[np.float32],
    range_maps: NDArray[np.float32] | None,
    window: tuple[slice, slice],
) -> NDArray[np.int32]:
    """Labels 1..n of the airholes in one blob, 0 outside it. own, rim: (h, w), in `window` of the picture."""
    owners = _part_along_rims(own, rim)
    if range_maps is not None and owners.max() > 1:
        owners = _join_dents(owners, range_maps, window)
    for owner in range(1, int(owners.max()) + 1):
        pieces = _part_at_necks(owners == owner)
        if range_maps is not None and pieces.max() > 1:
            pieces = _join_dents(pieces, range_maps, window)
        owners[pieces > 1] = int(owners.max()) - 1 + pieces[pieces > 1]
    return owners


def _part_along_rims(own: NDArray[np.bool_], rim: NDArray[np.float32]) -> NDArray[np.int32]:
    count, cores, boxes, _ = cv2.connectedComponentsWithStats(
        (own & (rim < _RIM_THRESHOLD)).view(np.uint8), connectivity=4
    )
    if count > 2:
        sizes = boxes[1:, cv2.CC_STAT_AREA]
        # A speck is no airhole: a real core is a good part of the largest.
        keep = np.flatnonzero(sizes >= max(4.0, 0.1 * sizes.max())) + 1
        if len(keep) > 1:
            return np.where(own, _grow_cores(np.asarray(cores, np.int32), keep), 0).astype(np.int32)
    return own.astype(np.int32)


def _part_at_necks(own: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The same of a blob in which no rim is seen, by its outline."""
    whole = own.astype(np.int32)
    contours, _ = cv2.findContours(own.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(max(contours, key=len))
    # Contours run through the middle of pixels: half of one all around is added.
    hull_px = cv2.contourArea(hull) + 0.5 * cv2.arcLength(hull, True) + 1.0
    area_px = int(own.sum())
    if area_px > _CONVEX_SHARE * hull_px:
        return whole
    scale = float(np.sqrt(_NECK_AREA_PX / area_px))
    smooth = cv2.INTER_LINEAR if scale > 1.0 else cv2.INTER_AREA
    scaled = cv2.resize(own.astype(np.float32), None, fx=scale, fy=scale, interpolation=smooth) >= 0.5
    padded = _frame(scaled, cv2.BORDER_CONSTANT)
    half_width_px = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1] / scale
    widest_px = float(half_width_px.max())
    parts, keep = whole, np.array([1])
    for level_px in np.linspace(_LEAST_WIDTH_RATIO, 0.95, _NECK_LEVELS) * _NECK_RATIO * widest_px:
        inside = half_width_px > level_px
        count, cores = cv2.connectedComponents(inside.view(np.uint8), connectivity=4)
        if count - 1 <= len(keep):
            continue
        widths_px = np.zeros(count - 1)
        np.maximum.at(widths_px, cores[inside] - 1, half_width_px[inside])
        wide = np.flatnonzero(widths_px >= max(level_px / _NECK_RATIO, _LEAST_HALF_WIDTH_PX)) + 1
        if len(wide) > len(keep):
            parts, keep = cores, wide
    if len(keep) < 2:
        return whole
    grown = cv2.resize(_grow_cores(parts, keep).astype(np.uint8), own.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.where(own, grown, 0).astype(np.int32)


def _join_dents(
    pieces: NDArray[np.int32], range_maps: NDArray[np.float32], window: tuple[slice, slice]
) -> NDArray[np.int32]:
    """`pieces`, (h, w), those joined between which range sees no wall: the neck is deeper than the median of either.

    The edge of a shadow in an airhole looks like a rim or a neck, too.
    """
    rows, columns = (np.arange(side.start, side.stop) // RANGE_STRIDE for side in window)
    behind, scatter, support = range_maps[:, rows[:, None], columns]
    count = int(pieces.max())
    numbers = np.arange(count + 1)
    for one in range(1, count):
        for other in range(one + 1, count + 1):
            first, second = pieces == one, pieces == other
            near_first, near_second = (cv2.dilate(part.view(np.uint8), _NECK_KERNEL) > 0 for part in (first, second))
            neck = (near_first & second) | (near_second & first)
            readings = int((neck & (support == 1.0)).sum()) / RANGE_STRIDE**2
            if readings < _LEAST_READINGS:
                continue
            std = np.sinh(scatter.max()) / np.sqrt(readings)  # as depths in the scale of the maps
            depth, *beside = (np.sinh(np.median(behind[part])) for part in (neck, first, second))
            if depth > max(_PLAIN * std, max(beside) + _DEEPER * std):
                numbers[numbers == numbers[other]] = numbers[one]
    return np.unique(numbers, return_inverse=True)[1].astype(np.int32)[pieces]


def _grow_cores(labels: NDArray[np.int32], keep: NDArray[np.intp]) -> NDArray[np.int32]:
    """Everywhere the number, from 1, of the nearest of the `keep` labels."""
    numbers = np.zeros(int(labels.max()) + 1, np.int32)
    numbers[keep] = np.arange(1, len(keep) + 1)
    markers = numbers[labels]
    nearest = ndimage.distance_transform_edt(markers == 0, return_distances=False, return_indices=True)
    return np.asarray(markers[tuple(nearest)], np.int32)


def _soften_rim(core: NDArray[np.bool_], allowed: NDArray[np.bool_], mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coverage: the probability beside the rim, 1 well inside it, 0 well outside.

    A faint doubt inside a large airhole or all around a small one would else add up to percents of its area. Beside the
    rim the log-odds are raised by what the network's rims lie too far in.
    """
    # A hole is what no path outside the core reaches from the border.
    _, outside = cv2.connectedComponents(_frame(~core, cv2.BORDER_CONSTANT, 1), connectivity=4)
    inside = (outside[1:-1, 1:-1] != outside[0, 0]) & allowed
    # The image's border is no rim.
    depth_px = cv2.distanceTransform(_frame(inside, cv2.BORDER_REPLICATE), cv2.DIST_L2, cv2.DIST_MASK_5)
    height_px = cv2.distanceTransform(_frame(~inside, cv2.BORDER_CONSTANT, 1), cv2.DIST_L2, cv2.DIST_MASK_5)
    raised = mask * np.float32(np.exp(_RIM_LOG_ODDS))
    coverage = np.where(allowed, raised / (1.0 - mask + raised), 0.0)
    coverage[depth_px[1:-1, 1:-1] > _BAND_PX] = 1.0
    coverage[height_px[1:-1, 1:-1] > _BAND_PX] = 0.0
    return np.asarray(coverage, np.float32)


def _is_airhole(probabilities: NDArray[np.float32], config: DetectionConfig) -> bool:
    diameter_px = 2.0 * float(np.sqrt(probabilities.sum() / np.pi))
    return diameter_px >= config.min_diameter_px and float(probabilities.mean()) >= config.confidence_threshold


def _touches_border(core: NDArray[np.bool_], window: tuple[slice, slice], shape: tuple[int, ...]) -> bool:
    """Whether the image may hide a part: nothing sound is seen between the core and its border."""
    left, top, width, height = cv2.boundingRect(core.view(np.uint8))
    left, top = left + window[1].start, top + window[0].start
    return bool(top <= 1 or left <= 1 or top + height >= shape[0] - 1 or left + width >= shape[1] - 1)


def _frame(area: NDArray[np.bool_], border: int, value: int = 0) -> NDArray[np.uint8]:
    """`area` as 0 and 1, with a pixel around it. np.pad would take longer than what it is for."""
    return np.asarray(cv2.copyMakeBorder(area.view(np.uint8), 1, 1, 1, 1, border, value=value), np.uint8)
