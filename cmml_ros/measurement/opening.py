"""An opening in the surface, the depth readings that pass it, and the cap of an ellipsoid nearest to them.

The rim is warped radially to a circle, on whose grid area and readings are condensed. Derivations are in
docs/measurement.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled, select

Array = NDArray[np.float64]

# Readings and area are condensed on a grid of so many cells a side over the circle that the rim is warped to.
CELLS = 12
# The slope of half an ellipsoid is infinite at its rim: no place is nearer to it, in squared radii.
RIM_MARGIN = 0.02
# The area within a rim polygon is summed up over so many turns of it, ever nearer to the centre.
_TURNS = 16
# A rim that is not seen from its centre in every direction is drawn out to this.
_MIN_STRETCH = 0.2
# Readings beyond so many radii lie under an undercut rim, outside the rim polygon.
_UNDERCUT = 1.1
# Readings beyond so many radii, or so much of the farthest where none are, tell how deep it is at the rim.
_RIM_ZONE = 0.9
_NEWTON_STEPS = 8
_OUTLIER = 6.0
_MAD_TO_STD = 1.4826


class Opening(NamedTuple):
    """The rim and what lies within, along the surface, from the centroid, metres.

    radius: of the circle of the same area. rim_angles: (n,) ascending, and rim_stretch: (n,) how much further than on
    that circle the rim is from the centre in their directions. cell_areas: (CELLS^2,) area in each cell of the grid
    over the circle.
    """

    radius: float
    rim_angles: Array
    rim_stretch: Array
    cell_areas: Array

    @classmethod
    def from_pixels(cls, pixels: Array, rim: Array, centre: tuple[float, float], to_circle: Array) -> Opening:
        """From the pixels within the rim, (3, N) rows x, y and covered area, and the rim polygon, (n, 2).

        centre and to_circle, (2, 2): that map the rim nearest to a circle around the origin.
        """
        return cls(*_open(pixels, rim, *centre, to_circle))

    @classmethod
    def from_rim(cls, rim: Array) -> tuple[Opening, tuple[float, float], Array]:
        """From the rim polygon alone, (n, 2) counter-clockwise; with the centre and the to_circle that it finds."""
        radius, angles, stretch, cells, centre, to_circle = _open_rim(rim)
        return cls(radius, angles, stretch, cells), centre, to_circle

    def read(
        self,
        entries: Array,
        drifts: Array,
        depths: Array,
        std: float,
        centre: tuple[float, float],
        to_circle: Array,
    ) -> Readings:
        """Readings as of `Surface.enter`, mapped like the rim, without those that end beyond it, under an overhang."""
        places, ways, kept, mean, rim_mean = _read(
            entries, drifts, depths, std, *centre, to_circle, self.radius, self.rim_angles, self.rim_stretch
        )
        return Readings(places, ways, kept, std, mean, rim_mean)

    def fit_cap(
        self, readings: Readings, noise: float, lateral_std: float, prior_depth: float, prior_std: float, places: Array
    ) -> CapFit:
        """The cap through the rim that is nearest to the readings, or most probable; prior_std: infinite for no prior.

        noise: white, of one depth, and lateral_std, of the place in the cavity that each belongs to, metres. places:
        (2, F) in radii, where the depth of the cap is wanted.
        """
        return CapFit(
            *_fit_cap(
                readings.entries,
                readings.drifts,
                readings.depths,
                noise,
                lateral_std,
                self.radius,
                self.rim_angles,
                self.rim_stretch,
                prior_depth,
                prior_std,
                places,
            )
        )


class Readings(NamedTuple):
    """Depth readings inside one rim.

    entries: (N, 2) where their rays pass the opening. drifts: (N, 2) how far a ray goes sideways per metre of depth.
    depths: (N,) below the surface. std: white noise of one depth, metres. All on the plane of an `Opening`.
    mean: of the depths without gross outliers. rim_mean: of those that end nearest to the rim. NaN without any.
    """

    entries: Array
    drifts: Array
    depths: Array
    std: float
    mean: float = math.nan
    rim_mean: float = math.nan

    @property
    def number(self) -> int:
        """How many."""
        return len(self.depths)


class CapFit(NamedTuple):
    """The cap nearest to the readings, and how these deviate from it in the M cells of the grid that hold any.

    depth: metres, volume: m3, and its derivative by the depth, of the cap. reading_count: without outliers. floor:
    (2, F) how deep the cap is below the places asked for, and the derivatives. numbers: (M,) of the cells. cells:
    (4, M) deviations from the cap, along its normal; derivatives of its depth there by its greatest depth; variances of
    the deviations, and the part of them that is white noise.
    """

    depth: float
    volume: float
    volume_by_depth: float
    reading_count: int
    floor: Array
    numbers: NDArray[np.int64]
    cells: Array


class EllipsoidCap(NamedTuple):
    """Cap of a sphere (stretched with its rim: of an ellipsoid) through a rim of `radius`, `depth` deep.

    Deeper than its radius it is half an ellipsoid: a sphere would bulge out below the rim.
    """

    radius: float
    depth: float

    @property
    def volume(self) -> float:
        """Of the cap of a sphere pi h (3 a^2 + h^2) / 6, of half an ellipsoid 2/3 pi a^2 h."""
        return _cap_volume(self.radius, self.depth)[0]

    @property
    def curvature(self) -> float:
        """Of its floor at the deepest point, 1/m."""
        if self.depth < self.radius:
            return 2.0 * self.depth / (self.radius**2 + self.depth**2)
        return self.depth / self.radius**2

    def trace(self, entries: Array, drifts: Array) -> tuple[Array, Array]:
        """Depths at which rays meet the cap, and their derivative by the cap's depth, each (N,)."""
        depths, by_depth = np.empty(len(entries)), np.empty(len(entries))
        rays = np.vstack([entries.T, drifts.T])
        _trace_all(rays, self.radius, _quadric(self.radius, self.depth), depths, by_depth)
        return depths, by_depth


@compiled
def _sort_by_angle(rim: Array, radius: float) -> tuple[Array, Array]:
    """`rim_angles` and `rim_stretch` of an `Opening`."""
    count = len(rim)
    angles, stretch, own = np.empty(count), np.empty(count), np.empty(count)
    for i in range(count):
        own[i] = math.atan2(rim[i, 1], rim[i, 0])
    first = int(np.argmin(own))
    # From there the angles of a polygon hardly need sorting, once they ascend: insertion.
    turn = 0.0
    for i in range(count):
        turn += rim[i - 1, 0] * rim[i, 1] - rim[i, 0] * rim[i - 1, 1]
    step = 1 if turn > 0.0 else -1
    for i in range(count):
        number = (first + step * i) % count
        x, y = rim[number]
        angle = own[number]
        j = i
        while j > 0 and angles[j - 1] > angle:
            angles[j], stretch[j] = angles[j - 1], stretch[j - 1]
            j -= 1
        angles[j], stretch[j] = angle, math.sqrt(x * x + y * y) / radius
    return angles, stretch


@compiled
def _stretch(x: float, y: float, angles: Array, stretch: Array) -> float:
    """How much further than on the circle the rim is from the centre in the direction of (x, y)."""
    count, angle = len(angles), math.atan2(y, x)
    # The first of the angles beyond is near where it is when they are evenly spread.
    expected = (angle + math.pi) * (0.5 / math.pi) * count
    first = int(expected) if expected < count else 0
    while first > 0 and angles[first - 1] >= angle:
        first -= 1
    while first < count and angles[first] < angle:
        first += 1
    after = first if first < count else 0
    span, beyond = angles[after] - angles[after - 1], angle - angles[after - 1]
    if after == 0:  # across the turn from pi to -pi
        span += 2.0 * math.pi
        beyond += 2.0 * math.pi if first == 0 else 0.0
    share = beyond / span if span > 0.0 else 0.0
    there: float = stretch[after - 1] + share * (stretch[after] - stretch[after - 1])
    return max(there, _MIN_STRETCH)


@compiled
def _cell_number(x: float, y: float) -> int:
    """Of a place in radii."""
    column = min(max(int((x + 1.0) * (0.5 * CELLS)), 0), CELLS - 1)
    row = min(max(int((y + 1.0) * (0.5 * CELLS)), 0), CELLS - 1)
    return column * CELLS + row


@compiled
def _open(
    pixels: Array, rim: Array, centre_x: float, centre_y: float, to_circle: Array
) -> tuple[float, Array, Array, Array]:
    """The fields of an `Opening`."""
    area, areas = 0.0, pixels[2]
    for i in range(len(areas)):
        area += areas[i]
    radius = math.sqrt(area / math.pi)
    (xx, xy), (yx, yy) = to_circle
    polygon = np.empty_like(rim)
    for i in range(len(rim)):
        x, y = rim[i, 0] - centre_x, rim[i, 1] - centre_y
        polygon[i, 0], polygon[i, 1] = xx * x + xy * y, yx * x + yy * y
    angles, stretch = _sort_by_angle(polygon, radius)
    cells = np.zeros(CELLS * CELLS)
    least, most = 1.0 / (radius * max(stretch.min(), _MIN_STRETCH)), 1.0 / (radius * max(stretch.max(), _MIN_STRETCH))
    for i in range(len(areas)):
        if areas[i] == 0.0:
            continue
        x, y = pixels[0, i] - centre_x, pixels[1, i] - centre_y
        x, y = xx * x + xy * y, yx * x + yy * y
        cell = _cell_number(x * least, y * least)
        if cell != _cell_number(x * most, y * most):  # else its direction does not matter
            circle = radius * _stretch(x, y, angles, stretch)
            cell = _cell_number(x / circle, y / circle)
        cells[cell] += areas[i]
    return radius, angles, stretch, cells


@compiled
def _open_rim(rim: Array) -> tuple[float, Array, Array, Array, tuple[float, float], Array]:
    """The fields of an `Opening`, its centre and its to_circle, from a polygon that winds counter-clockwise."""
    area, x_sum, y_sum, xx, xy, yy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(rim)):
        ax, ay, bx, by = rim[i - 1, 0], rim[i - 1, 1], rim[i, 0], rim[i, 1]
        cross = ax * by - bx * ay
        area += cross / 2.0
        x_sum += cross * (ax + bx) / 6.0
        y_sum += cross * (ay + by) / 6.0
        xx += cross * (ax * ax + ax * bx + bx * bx) / 12.0
        xy += cross * (2.0 * (ax * ay + bx * by) + ax * by + bx * ay) / 24.0
        yy += cross * (ay * ay + ay * by + by * by) / 12.0
    centre_x, centre_y = x_sum / area, y_sum / area
    xx, xy, yy = xx / area - centre_x**2, xy / area - centre_x * centre_y, yy / area - centre_y**2
    middle, half = 0.5 * (xx + yy), math.hypot(0.5 * (xx - yy), xy)
    shrink = max((middle - half) / (middle + half), _MIN_STRETCH**4) ** 0.25
    angle = 0.5 * math.atan2(2.0 * xy, xx - yy)
    c, s = math.cos(angle), math.sin(angle)
    to_circle = np.empty((2, 2))
    to_circle[0, 0] = shrink * c * c + s * s / shrink
    to_circle[1, 1] = shrink * s * s + c * c / shrink
    to_circle[0, 1] = to_circle[1, 0] = (shrink - 1.0 / shrink) * c * s
    polygon = np.empty_like(rim)
    for i in range(len(rim)):
        x, y = rim[i, 0] - centre_x, rim[i, 1] - centre_y
        polygon[i, 0], polygon[i, 1] = (
            to_circle[0, 0] * x + to_circle[0, 1] * y,
            to_circle[1, 0] * x + to_circle[1, 1] * y,
        )
    radius = math.sqrt(area / math.pi)
    angles, stretch = _sort_by_angle(polygon, radius)
    # The triangle of each side and the centre, in strips; what lies outside counts against what covers it twice.
    cells = np.zeros(CELLS * CELLS)
    for i in range(len(polygon)):
        ax, ay, bx, by = polygon[i - 1, 0], polygon[i - 1, 1], polygon[i, 0], polygon[i, 1]
        x, y = 0.5 * (ax + bx), 0.5 * (ay + by)
        circle = radius * _stretch(x, y, angles, stretch)
        x, y, triangle = x / circle, y / circle, 0.5 * (ax * by - bx * ay)
        for turn in range(_TURNS):
            inner, outer = turn / _TURNS, (turn + 1) / _TURNS
            share = outer * outer - inner * inner
            reach = 2.0 / 3.0 * (outer**3 - inner**3) / share  # of the strip's centroid
            cells[_cell_number(reach * x, reach * y)] += share * triangle
    return radius, angles, stretch, cells, (centre_x, centre_y), to_circle


@compiled
def _read(
    entries: Array,
    drifts: Array,
    depths: Array,
    std: float,
    centre_x: float,
    centre_y: float,
    to_circle: Array,
    radius: float,
    angles: Array,
    stretch: Array,
) -> tuple[Array, Array, Array, float, float]:
    """Entries, drifts, depths and the means of the `Readings` that end within the rim, to three deviations."""
    places, ways, kept = np.empty_like(entries), np.empty_like(drifts), np.empty_like(depths)
    squares = np.empty_like(depths)  # of the places in radii
    count, farthest = 0, 0.0
    for i in range(len(depths)):
        x, y = entries[i, 0] - centre_x, entries[i, 1] - centre_y
        dx, dy = drifts[i]
        x, y = to_circle[0, 0] * x + to_circle[0, 1] * y, to_circle[1, 0] * x + to_circle[1, 1] * y
        dx, dy = to_circle[0, 0] * dx + to_circle[0, 1] * dy, to_circle[1, 0] * dx + to_circle[1, 1] * dy
        end_x, end_y = x + dx * depths[i], y + dy * depths[i]
        play = 3.0 * std / radius * math.sqrt(dx * dx + dy * dy)
        circle, squared = radius * _stretch(end_x, end_y, angles, stretch), end_x * end_x + end_y * end_y
        if squared < ((_UNDERCUT + play) * circle) ** 2:
            places[count, 0], places[count, 1] = x, y
            ways[count, 0], ways[count, 1] = dx, dy
            kept[count], squares[count] = depths[i], squared / (circle * circle)
            farthest = max(farthest, squares[count])
            count += 1
    limit = _RIM_ZONE**2 * (1.0 if farthest > _RIM_ZONE**2 else farthest)
    rim_count, rim_total = 0, 0.0
    for i in range(count):
        if squares[i] >= limit:
            rim_count += 1
            rim_total += kept[i]
    rim_mean = rim_total / rim_count if rim_count > 0 else math.nan
    return places[:count], ways[:count], kept[:count], _robust_mean(kept[:count]), rim_mean


@compiled
def _median(values: Array) -> float:
    half = len(values) // 2
    ordered = values.copy()
    upper = select(ordered, half)
    if len(values) % 2 == 1:
        return upper
    lower: float = ordered[0]  # what is left of the upper one is no larger
    for i in range(half):
        lower = max(lower, ordered[i])
    return 0.5 * (lower + upper)


@compiled
def _robust_mean(values: Array) -> float:
    if len(values) == 0:
        return math.nan
    middle = _median(values)
    offsets = np.empty_like(values)
    for i in range(len(values)):
        offsets[i] = abs(values[i] - middle)
    limit = _OUTLIER * _MAD_TO_STD * _median(offsets)
    total, count = 0.0, 0
    for i in range(len(values)):
        if offsets[i] <= limit:
            total += values[i]
            count += 1
    return total / count


@compiled
def _cap_volume(radius: float, depth: float) -> tuple[float, float]:
    """Volume of an `EllipsoidCap`, and its derivative by the depth."""
    area = math.pi * radius * radius
    if depth < radius:
        squared = (depth / radius) ** 2
        return area * depth / 2.0 * (1.0 + squared / 3.0), area / 2.0 * (1.0 + squared)
    return area * depth * 2.0 / 3.0, area * 2.0 / 3.0


@compiled
def _quadric(radius: float, depth: float) -> tuple[float, float, float, float]:
    """s and c of |place|^2 + s depth^2 + 2 c depth = radius^2, and their derivatives by the cap's depth."""
    if depth < radius:
        squared = radius * radius
        return 1.0, (squared - depth * depth) / (2.0 * depth), 0.0, -(squared / (depth * depth) + 1.0) / 2.0
    ratio = radius / depth
    return ratio * ratio, 0.0, -2.0 * ratio * ratio / depth, 0.0


@compiled
def _trace_ray(
    x: float, y: float, drift_x: float, drift_y: float, radius: float, quadric: tuple[float, float, float, float]
) -> tuple[float, float]:
    """Depth at which a ray meets the cap, and its derivative by the cap's depth."""
    stretch, center, stretch_by_h, center_by_h = quadric
    # |entry + drift d|^2 + stretch d^2 + 2 center d = radius^2
    quadratic = stretch + drift_x * drift_x + drift_y * drift_y
    linear = center + x * drift_x + y * drift_y
    constant = min(x * x + y * y, (1.0 - RIM_MARGIN) * radius * radius) - radius * radius
    root = math.sqrt(linear * linear - quadratic * constant)
    depth = -constant / (root + linear)
    return depth, -(0.5 * stretch_by_h * depth + center_by_h) * depth / root


@compiled
def _warp(entries: Array, drifts: Array, rim_angles: Array, rim_stretch: Array) -> Array:
    """Entries and drifts on the circle that the rim is warped to, rows x, y, drift x and y. (4, N)."""
    circle = np.empty((4, len(entries)))
    for i in range(len(entries)):
        x, y = entries[i]
        stretch = _stretch(x, y, rim_angles, rim_stretch)
        circle[0, i], circle[1, i] = x / stretch, y / stretch
        circle[2, i], circle[3, i] = drifts[i, 0] / stretch, drifts[i, 1] / stretch
    return circle


@compiled
def _trace_all(
    circle: Array, radius: float, quadric: tuple[float, float, float, float], depths: Array, by_depth: Array
) -> None:
    """Writes what `_trace_ray` gives for all rays of `_warp`."""
    x, y, drift_x, drift_y = circle[0], circle[1], circle[2], circle[3]
    for i in range(len(depths)):
        depths[i], by_depth[i] = _trace_ray(x[i], y[i], drift_x[i], drift_y[i], radius, quadric)


@compiled
def _fit_depth(
    circle: Array, depths: Array, noise: float, radius: float, prior_mean: float, prior_std: float
) -> tuple[float, NDArray[np.bool_]]:
    """Depth of the cap nearest to the readings, or most probable when there is a prior, and which are no outliers."""
    count = len(depths)
    low, high = 0.02 * radius, 4.0 * radius
    informed = prior_std < math.inf
    depth = prior_mean if informed else min(max(2.0 * _median(depths), low), high)
    keep = np.ones(count, np.bool_)
    residuals, slopes, sizes = np.empty(count), np.empty(count), np.empty(count)
    for step in range(_NEWTON_STEPS):
        _trace_all(circle, radius, _quadric(radius, depth), residuals, slopes)
        for i in range(count):
            residuals[i] = depths[i] - residuals[i]
            sizes[i] = abs(residuals[i])
        if step >= 3:
            limit = _OUTLIER * max(noise, _MAD_TO_STD * _median(sizes))
            for i in range(count):
                keep[i] = abs(residuals[i]) < limit
        information, pull = 0.0, 0.0
        for i in range(count):
            if keep[i]:
                information += slopes[i] * slopes[i]
                pull += slopes[i] * residuals[i]
        if informed:
            information += (noise / prior_std) ** 2
            pull += (prior_mean - depth) * (noise / prior_std) ** 2
        change = pull / max(information, 1e-12 * noise * noise)
        depth = min(max(depth + change, low), high)
        if step >= 3 and abs(change) < 1e-4 * depth:
            break
    return depth, keep


@compiled
def _condense(
    entries: Array,
    drifts: Array,
    depths: Array,
    circle: Array,
    inliers: NDArray[np.bool_],
    noise: float,
    lateral: float,
    radius: float,
    rim_angles: Array,
    rim_stretch: Array,
    cap_depth: float,
) -> tuple[NDArray[np.int64], Array]:
    """`numbers` and `cells` of a `CapFit` of that depth, from the readings that are no outliers."""
    quadric = _quadric(radius, cap_depth)
    traced, by_depths = np.empty(len(depths)), np.empty(len(depths))
    _trace_all(circle, radius, quadric, traced, by_depths)
    squared, count = 0.0, 0
    for i in range(len(depths)):
        if inliers[i]:
            squared += (depths[i] - traced[i]) ** 2
            count += 1
    # Where on its ray a reading belongs: noise alone would leave it on the cap, what is no noise moves it.
    trust = max(0.0, 1.0 - noise * noise / max(squared / count, noise * noise))
    sums = np.zeros((CELLS * CELLS, 4))
    for i in range(len(depths)):
        if inliers[i]:
            placed = traced[i] + trust * (depths[i] - traced[i])
            x, y = entries[i, 0] + drifts[i, 0] * placed, entries[i, 1] + drifts[i, 1] * placed
            stretch = _stretch(x, y, rim_angles, rim_stretch)
            x, y = x / stretch, y / stretch
            expected, by_depth = _trace_ray(x, y, 0.0, 0.0, radius, quadric)
            steep = quadric[0] * expected + quadric[1]
            gradient_x, gradient_y = -x / steep, -y / steep
            # One metre of depth along the ray is so much along the normal.
            slope = 1.0 - (drifts[i, 0] * gradient_x + drifts[i, 1] * gradient_y) / stretch
            deviation = placed - expected + slope * (depths[i] - placed)
            white = (slope * noise) ** 2
            weight = 1.0 / (white + lateral * lateral * (gradient_x * gradient_x + gradient_y * gradient_y))
            number = _cell_number(x / radius, y / radius)
            sums[number, 0] += weight
            sums[number, 1] += weight * deviation
            sums[number, 2] += weight * by_depth
            sums[number, 3] += weight * weight * white
    filled = np.empty(len(sums), np.int64)
    cells = 0
    for number in range(len(sums)):
        if sums[number, 0] > 0.0:
            filled[cells] = number
            cells += 1
    numbers = filled[:cells].copy()
    condensed = np.empty((4, cells))
    for cell in range(cells):
        total, deviation, by_depth, white = sums[numbers[cell]]
        condensed[0, cell] = deviation / total
        condensed[1, cell] = by_depth / total
        condensed[2, cell] = 1.0 / total
        condensed[3, cell] = white / (total * total)
    return numbers, condensed


@compiled
def _fit_cap(
    entries: Array,
    drifts: Array,
    depths: Array,
    noise: float,
    lateral: float,
    radius: float,
    rim_angles: Array,
    rim_stretch: Array,
    prior_depth: float,
    prior_std: float,
    places: Array,
) -> tuple[float, float, float, int, Array, NDArray[np.int64], Array]:
    """The fields of a `CapFit`."""
    circle = _warp(entries, drifts, rim_angles, rim_stretch)
    depth, inliers = _fit_depth(circle, depths, noise, radius, prior_depth, prior_std)
    numbers, cells = _condense(
        entries, drifts, depths, circle, inliers, noise, lateral, radius, rim_angles, rim_stretch, depth
    )
    floor, quadric = np.empty_like(places), _quadric(radius, depth)
    x, y = places[0], places[1]
    for place in range(len(x)):
        floor[0, place], floor[1, place] = _trace_ray(radius * x[place], radius * y[place], 0.0, 0.0, radius, quadric)
    count = 0
    for inlier in inliers:
        count += inlier
    volume, volume_by_depth = _cap_volume(radius, depth)
    return depth, volume, volume_by_depth, count, floor, numbers, cells
