"""Masks grown over what range shows and the picture does not.

Light that falls into an airhole can make a part of its wall or floor as bright as the concrete around, and the network,
which trusts the picture more than range, leaves that part out. A dense cloud shows it: it lies behind the surface, and
nothing in it lies on the surface. What touches a mask is added to it; nothing is found by range alone, since walls have
dents that are no airholes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled, select
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.range_features import RANGE_STRIDE, nearest_by_cell, read_residuals

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

# Where points lie farther apart, in cells of the range maps, they draw rims worse than the picture does.
_MAX_SPACING_CELLS = 1.5
# Means over about so many cells around must be so many of their deviations behind the surface.
_SMOOTHING_CELLS = 0.7
_PLAIN = 4.0
# The rim is where a dent has so much of the median depth of the mask, or where the nearest reading may lie on the
# surface: that of several is two deviations of one too near, of a surface and of a dent alike.
_RIM_SHARE = 0.05
_NEAREST_OF_SEVERAL = 2.0
_LEAST_CLEARANCE = 0.5
# A part reaches no farther than this share of the diameter of its mask, or as far as the network sees so much of an
# airhole, and has so many cells away from the old rim.
_REACH_RATIO = 0.75
_FAINT = 0.1
_LEAST_CELLS = 2
_LEAST_MASK_CELLS = 4
_INSIDE = 0.99
_NEIGHBOURS = np.ones((3, 3), np.uint8)
# What is left out of an airhole less deep than so many deviations of a reading may hide in noise: of six groups by
# depth over noise the two below have rims as far off as those without range, the others a third of that.
_SHOWN = 6.0


def grow_over_dents(
    mask: Floats, rim: Floats, range_maps: Floats, pixels: NDArray[np.float64], behind_m: NDArray[np.float64]
) -> None:
    """Add to `mask`, (H, W) probabilities of "inside", the parts of airholes that lie beside it.

    rim: (H, W) probabilities of "on the rim", taken back where a rim turns out to lie inside. range_maps, behind_m: as
    of `range_pyramid` for points that project to `pixels`, (N, 2). A mask at the border of the picture stays as it is:
    what is behind the end of a wall is no dent.
    """
    relief = _Relief.read(range_maps)
    if relief is None:
        return
    # A cell is about the pixel of twice its row and column.
    small = mask[::RANGE_STRIDE, ::RANGE_STRIDE]
    inside, faint = (small >= 0.5).view(np.uint8), small >= _FAINT
    beyond = relief.plain & (cv2.dilate(inside, relief.gap) == 0)
    count, owners, boxes, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    touched = [index for index in range(1, count) if _may_grow(boxes[index], beyond)]
    if not touched:
        return
    clearance_m = relief.clear(nearest_by_cell(pixels, behind_m, *mask.shape))
    _, wholes, whole_boxes, _ = cv2.connectedComponentsWithStats(faint.view(np.uint8), connectivity=8)
    for index in touched:
        window = _window(boxes[index], inside.shape)
        whole = wholes[window][owners[window] == index][0]
        window = _join(window, _window(whole_boxes[whole], inside.shape))
        own = owners[window] == index
        away = cv2.distanceTransform((~own).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
        free = (owners[window] == 0) & ((away <= _reach(own.sum())) | (wholes[window] == whole))
        part = _find_part(own, free, relief.depth_m[window], relief.plain[window], clearance_m[window], relief)
        if part is not None:
            _draw(own | part, part, window, mask, rim)


def would_show(mask: InstanceMask, range_maps: Floats) -> bool:
    """Whether range would have shown a part that `mask` leaves out: dense around it, and it is deeper than noise."""
    behind, scatter, support = range_maps
    return bool(_would_show(mask.coverage, mask.left, mask.top, behind, scatter, support))


@compiled
def _would_show(coverage: Floats, left: int, top: int, behind: Floats, scatter: Floats, support: Floats) -> bool:
    """All in the scale of the range maps, which keeps the order of medians."""
    height, width = coverage.shape
    rows, columns = support.shape
    depths = np.empty(coverage.size)
    cells, read, count, noise = 0, 0, 0, np.float32(0.0)
    for row in range(max(-(-top // RANGE_STRIDE), 0), min((top + height - 1) // RANGE_STRIDE + 1, rows)):
        for column in range(max(-(-left // RANGE_STRIDE), 0), min((left + width - 1) // RANGE_STRIDE + 1, columns)):
            cells += 1
            if support[row, column] == 1.0:
                read += 1
                noise = max(noise, scatter[row, column])
                if coverage[RANGE_STRIDE * row - top, RANGE_STRIDE * column - left] >= 0.5:
                    depths[count] = behind[row, column]
                    count += 1
    if count == 0 or read * _MAX_SPACING_CELLS**2 < cells:
        return False
    return math.sinh(select(depths[:count], count // 2)) > _SHOWN * math.sinh(noise)


@dataclass(frozen=True, eq=False)
class _Relief:
    """What a dense cloud says, in cells of the range maps.

    depth_m: behind the surface, smoothed. plain: where that is no noise. noise_m: deviation of a reading. gap: what is
    nearer to a rim than the points lie apart says nothing about it.
    """

    depth_m: Floats
    plain: Bools
    noise_m: float
    gap: NDArray[np.uint8]

    @classmethod
    def read(cls, range_maps: Floats) -> _Relief | None:
        """None where points are too sparse."""
        support = range_maps[2]
        read, covered = support == 1.0, int((support > 0.0).sum())
        spacing = math.sqrt(covered / max(int(read.sum()), 1))
        if not 0.0 < spacing <= _MAX_SPACING_CELLS:
            return None
        residual_m, noise_m = read_residuals(range_maps)
        if noise_m == 0.0:
            return None
        weights = read.astype(np.float32)
        total, weighted, squared = (
            np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)
            for values, sigma in (
                (weights, _SMOOTHING_CELLS),
                (weights * residual_m, _SMOOTHING_CELLS),
                # The square of a Gaussian is one of a width smaller by the root of two.
                (weights, _SMOOTHING_CELLS / math.sqrt(2.0)),
            )
        )
        std_m = np.sqrt(squared) * np.float32(noise_m / math.sqrt(4.0 * math.pi) / _SMOOTHING_CELLS)
        side = 2 * round(spacing) + 1
        depth_m = np.asarray(weighted / np.maximum(total, 1e-6), np.float32)
        return cls(depth_m, weighted > np.float32(_PLAIN) * std_m, noise_m, np.ones((side, side), np.uint8))

    def clear(self, nearest_m: Floats) -> Floats:
        """How far behind the surface all readings near a cell lie, those that may be near it as well as it: an opening.

        nearest_m: the nearest reading in each cell, infinite without one.
        """
        nearest = cv2.erode(nearest_m, self.gap)
        nearest[np.isinf(nearest)] = -np.inf
        return np.asarray(cv2.dilate(nearest, self.gap), np.float32)


def _may_grow(box: NDArray[np.int32], beyond: Bools) -> bool:
    left, top, width, height = box[: cv2.CC_STAT_AREA].tolist()
    rows, columns = beyond.shape
    if box[cv2.CC_STAT_AREA] < _LEAST_MASK_CELLS or min(left, top, columns - left - width, rows - top - height) == 0:
        return False
    return bool(beyond[_window(box, beyond.shape)].any())


def _window(box: NDArray[np.int32], shape: tuple[int, ...]) -> tuple[slice, slice]:
    left, top, width, height, area = box.tolist()
    margin = math.ceil(_reach(area)) + 2
    return (
        slice(max(top - margin, 0), min(top + height + margin, shape[0])),
        slice(max(left - margin, 0), min(left + width + margin, shape[1])),
    )


def _join(one: tuple[slice, slice], other: tuple[slice, slice]) -> tuple[slice, slice]:
    rows, columns = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return rows, columns


def _reach(area: float) -> float:
    return _REACH_RATIO * 2.0 * math.sqrt(area / math.pi)


def _find_part(
    own: Bools, free: Bools, depth_m: Floats, plain: Bools, clearance_m: Floats, relief: _Relief
) -> Bools | None:
    """Cells (h, w) of the dent that `own` is a part of, from `free`, None where these are too few."""
    level_m = _RIM_SHARE * float(np.median(depth_m[own]))
    noise_m = relief.noise_m
    clear = clearance_m > max(level_m - _NEAREST_OF_SEVERAL * noise_m, -_LEAST_CLEARANCE * noise_m)
    dent = own | (free & plain & clear & (depth_m > level_m))
    _, pieces = cv2.connectedComponents(dent.view(np.uint8), connectivity=4)
    extra = np.isin(pieces, np.unique(pieces[own])) & ~own
    core = extra & (cv2.dilate(own.view(np.uint8), relief.gap) == 0)
    if core.sum() < _LEAST_CELLS:
        return None
    # What is found at the rim itself counts only beside what is found away from it.
    side = relief.gap.shape[0] + 2
    part = extra & (cv2.dilate(core.view(np.uint8), np.ones((side, side), np.uint8)) > 0)
    closed = cv2.morphologyEx((own | part).view(np.uint8), cv2.MORPH_CLOSE, _NEIGHBOURS) > 0
    return np.asarray(closed & ~own)


def _draw(whole: Bools, part: Bools, window: tuple[slice, slice], mask: Floats, rim: Floats) -> None:
    """Put `part` of `whole`, both in cells, into the maps (H, W), and take the rims back that are inside now."""
    rows, columns = (
        slice(RANGE_STRIDE * side.start, min(RANGE_STRIDE * side.stop, length))
        for side, length in zip(window, mask.shape, strict=True)
    )
    size = columns.stop - columns.start, rows.stop - rows.start
    enlarge = np.array([[RANGE_STRIDE, 0.0, 0.0], [0.0, RANGE_STRIDE, 0.0]])
    drawn = cv2.warpAffine(whole.astype(np.float32), enlarge, size, borderMode=cv2.BORDER_REPLICATE)
    near = cv2.warpAffine(cv2.dilate(part.view(np.uint8), _NEIGHBOURS), enlarge, size, flags=cv2.INTER_NEAREST)
    mask[rows, columns] = np.where(
        near > 0, np.maximum(mask[rows, columns], np.float32(_INSIDE) * drawn), mask[rows, columns]
    )
    well_inside = cv2.erode((drawn >= 0.5).view(np.uint8), np.ones((5, 5), np.uint8))
    within = cv2.dilate(near, np.ones((9, 9), np.uint8))
    rim[rows, columns][(well_inside > 0) & (within > 0)] = 0.0
