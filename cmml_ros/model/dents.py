"""Masks grown over what range shows and the picture does not.

Light that falls into an airhole can make a part of its wall or floor as bright as the concrete around, and the network,
which trusts the picture more than range, leaves that part out. A dense cloud shows it: it lies behind the surface, and
nothing in it lies on the surface. What touches a mask is added to it; nothing is found by range alone, since walls have
dents that are no airholes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled, select
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.model.range_features import RANGE_STRIDE, nearest_by_cell, read_residuals

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]
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
# A mask grows so often, as long as what was added has this share of its depth.
_MAX_ROUNDS = 4
_AS_DEEP = 0.4
# So much of what is around an opening has to have readings: beside its points a surface is guessed.
_LEAST_AROUND = 0.9
_AROUND = np.ones((5, 5), np.uint8)
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
    relief = _Relief.of(range_maps)
    if relief is None:
        return
    # A cell is about the pixel of twice its row and column.
    small = mask[::RANGE_STRIDE, ::RANGE_STRIDE]
    inside = (small >= 0.5).view(np.uint8)
    beyond = relief.plain & (cv2.dilate(inside, relief.gap) == 0)
    count, found, boxes, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    touched = [index for index in range(1, count) if _may_grow(boxes[index], beyond)]
    if not touched:
        return
    clearance_m = relief.clear(nearest_by_cell(pixels, behind_m, *mask.shape))
    faint = _Faint.of(small)
    owners = np.array(found, np.int32)
    for index in touched:
        box = _follow(index, np.asarray(boxes[index], np.int32), owners, relief, clearance_m, faint)
        window = _window(box, inside.shape)
        own = (owners[window] == index).view(np.uint8)
        if own.sum() > boxes[index, cv2.CC_STAT_AREA]:
            closed = cv2.morphologyEx(own, cv2.MORPH_CLOSE, _NEIGHBOURS) > 0
            _draw(closed, closed & (found[window] != index), window, mask, rim)


def _follow(
    index: int,
    box: Ints,
    owners: Ints,
    relief: _Relief,
    clearance_m: Floats,
    faint: _Faint,
) -> Ints:
    """Put number `index` in `owners`, (rows, columns), on the dent that its cells are a part of; its new box.

    A mask that has grown by what is as deep as it was reaches farther than before, as long as that ends at a rim all
    around: a step in a wall does not.
    """
    grown: list[tuple[tuple[slice, slice], Bools, Ints]] = []
    for _ in range(_MAX_ROUNDS):
        window = _window(box, owners.shape)
        number = faint.numbers[window][owners[window] == index][0]
        window = _join(window, _window(faint.boxes[number], owners.shape))
        own = owners[window] == index
        away = cv2.distanceTransform((~own).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
        free = (owners[window] == 0) & ((away <= _reach(own.sum())) | (faint.numbers[window] == number))
        its_relief = relief.cut(window)
        part = _find_part(own, free, its_relief, clearance_m[window])
        if part is None:
            return box
        owners[window][part] = index
        box = _bound(own | part, window)
        if its_relief.middle_depth(part) < _AS_DEEP * its_relief.middle_depth(own):
            return box
        grown.append((window, part, box))
        if _is_at_border(box, owners.shape):
            break
    for window, part, _ in grown[1:]:
        owners[window][part] = 0
    return grown[0][2]


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

    depth_m: behind the surface, smoothed. read: where readings are near. plain: where the depth is no noise. noise_m:
    deviation of a reading. gap: what is nearer to a rim than the points lie apart says nothing about it.
    """

    depth_m: Floats
    read: Bools
    plain: Bools
    noise_m: float
    gap: NDArray[np.uint8]

    @classmethod
    def of(cls, range_maps: Floats) -> _Relief | None:
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
        gap = np.ones((side, side), np.uint8)
        depth_m = np.asarray(weighted / np.maximum(total, 1e-6), np.float32)
        plain = weighted > np.float32(_PLAIN) * std_m
        return cls(depth_m, cv2.dilate(read.view(np.uint8), gap) > 0, plain, noise_m, gap)

    def cut(self, window: tuple[slice, slice]) -> _Relief:
        """The same of a part of the cells."""
        return replace(self, depth_m=self.depth_m[window], read=self.read[window], plain=self.plain[window])

    def middle_depth(self, cells: Bools) -> float:
        """The median of those of `cells` that have readings near them, metres."""
        return float(np.median(self.depth_m[cells & self.read]))

    def clear(self, nearest_m: Floats) -> Floats:
        """How far behind the surface all readings near a cell lie, those that may be near it as well as it: an opening.

        nearest_m: the nearest reading in each cell, infinite without one.
        """
        nearest = cv2.erode(nearest_m, self.gap)
        nearest[np.isinf(nearest)] = -np.inf
        return np.asarray(cv2.dilate(nearest, self.gap), np.float32)


class _Faint(NamedTuple):
    """Blobs that the network sees at least faintly: the number of each in its cells, and its box as OpenCV has it."""

    numbers: Ints
    boxes: Ints

    @classmethod
    def of(cls, probability: Floats) -> _Faint:
        seen = (probability >= _FAINT).view(np.uint8)
        _, numbers, boxes, _ = cv2.connectedComponentsWithStats(seen, connectivity=8)
        return cls(np.asarray(numbers, np.int32), np.asarray(boxes, np.int32))


def _may_grow(box: Ints, beyond: Bools) -> bool:
    if box[cv2.CC_STAT_AREA] < _LEAST_MASK_CELLS or _is_at_border(box, beyond.shape):
        return False
    return bool(beyond[_window(box, beyond.shape)].any())


def _is_at_border(box: Ints, shape: tuple[int, ...]) -> bool:
    left, top, width, height = box[: cv2.CC_STAT_AREA].tolist()
    return bool(min(left, top, shape[1] - left - width, shape[0] - top - height) == 0)


def _window(box: Ints, shape: tuple[int, ...]) -> tuple[slice, slice]:
    left, top, width, height, area = box.tolist()
    margin = math.ceil(_reach(area)) + 2
    return (
        slice(max(top - margin, 0), min(top + height + margin, shape[0])),
        slice(max(left - margin, 0), min(left + width + margin, shape[1])),
    )


def _bound(own: Bools, window: tuple[slice, slice]) -> Ints:
    """Left, top, width, height and area, as OpenCV has them, of `own` in its window."""
    left, top, width, height = cv2.boundingRect(own.view(np.uint8))
    return np.array([left + window[1].start, top + window[0].start, width, height, int(own.sum())], np.int32)


def _join(one: tuple[slice, slice], other: tuple[slice, slice]) -> tuple[slice, slice]:
    rows, columns = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return rows, columns


def _reach(area: float) -> float:
    return _REACH_RATIO * 2.0 * math.sqrt(area / math.pi)


def _find_part(own: Bools, free: Bools, relief: _Relief, clearance_m: Floats) -> Bools | None:
    """Cells (h, w) of the dent that `own` is a part of, from `free`, None where these are too few."""
    if (own & relief.read).sum() < _LEAST_MASK_CELLS:
        return None
    level_m, noise_m = _RIM_SHARE * relief.middle_depth(own), relief.noise_m
    clear = clearance_m > max(level_m - _NEAREST_OF_SEVERAL * noise_m, -_LEAST_CLEARANCE * noise_m)
    dent = own | (free & relief.plain & clear & (relief.depth_m > level_m))
    _, pieces = cv2.connectedComponents(dent.view(np.uint8), connectivity=4)
    extra = np.isin(pieces, np.unique(pieces[own])) & ~own
    core = extra & (cv2.dilate(own.view(np.uint8), relief.gap) == 0)
    if core.sum() < _LEAST_CELLS:
        return None
    # What is found at the rim itself counts only beside what is found away from it.
    side = relief.gap.shape[0] + 2
    part = extra & (cv2.dilate(core.view(np.uint8), np.ones((side, side), np.uint8)) > 0)
    whole = own | part
    around = (cv2.dilate(whole.view(np.uint8), _AROUND) > 0) & ~whole
    return np.asarray(part) if relief.read[around].mean() > _LEAST_AROUND else None


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
