"""What airholes look like, and what depth readings say about one of them.

A cavity is the cap of an ellipsoid through the measured rim, of unknown depth, plus a Gaussian field for what real
airholes add to a cap. Many readings decide all of it; few decide the depth; where nothing is seen (side walls hidden
from an oblique view, gaps of a stereo sensor) the cap and the field's correlation fill in, at the price of a larger
deviation. Derivations and sources are in docs/measurement.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled, select

Array = NDArray[np.float64]

# A volume is not known while more than this share of the opening has no reading nearby: a hidden floor may lie much
# deeper.
MAX_UNSEEN_SHARE = 0.2
# Readings and area are condensed on a grid of so many cells a side over the circle that the rim is warped to.
_CELLS = 12
# Correlation length of the deviation from a cap, in radii of the rim.
_CORRELATION_LENGTH = 0.4
# A cap's deviation vanishes at the rim; this much of its variance remains there, since rims are not quite ellipses.
_RIM_VARIANCE = 0.05
# The area within a rim polygon is summed up over so many turns of it, ever nearer to the centre.
_TURNS = 16
# How many cells the prior on the deviation counts for against those of the data.
_PRIOR_CELLS = 4.0
# No cavity is so regular that less than this share of the variance expected of it is left.
_MIN_EXCESS = 0.01
# A rim that is not seen from its centre in every direction is drawn out to this.
_MIN_STRETCH = 0.2
# The slope of half an ellipsoid is infinite at its rim: no place is nearer to it, in squared radii.
_RIM_MARGIN = 0.02
# Share of the deviation's variance that depends on the distance from the rim only: cavities are alike all around.
_SYMMETRIC_SHARE = 0.3
# Exponent s of a wall (1 - r^2)^s: 1 for a shallow cap, 1/2 for half an ellipsoid, towards 0 for a box or an overhang.
_ELLIPSOID, _BOX = 0.5, 0.2
# Prior deviation of that exponent: its mean over all directions, and each of its first two harmonics. Those of higher
# order k have 2 / k of it, as the harmonics of any outline with corners; with the first two alone the walls that are
# seen would say too much about those that are hidden.
_STEEPNESS_STD = 0.3
_STEEPNESS_HARMONICS = 6
# So far from a reading, in radii, a place counts as unseen.
_NEAR = 0.3
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
    that circle the rim is from the centre in their directions. cell_areas: (_CELLS^2,) area in each cell of the grid
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


class Prior(NamedTuple):
    """Depth of a cap, metres, and deviation of a real cavity from it, over its depth."""

    depth_mean: float
    depth_std: float
    shape_std: float


class Posterior(NamedTuple):
    """A quantity of the cavity: mean, its variance from white noise and from what was not seen, and how it answers to
    an error common to all depths (its derivative).
    """

    mean: float
    noise_variance: float
    shape_variance: float
    common_response: float

    @property
    def std(self) -> float:
        """Standard deviation without common errors."""
        return math.sqrt(self.noise_variance + self.shape_variance)


class CavityPosterior(NamedTuple):
    """Depth at the deepest point (m), volume (m3), and the volume's standard deviation before any reading.

    unseen_share: of the opening, where no reading ends nearby.
    """

    depth_max: Posterior
    volume: Posterior
    volume_prior_std: float
    unseen_share: float


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


def fit_cavity(
    opening: Opening, readings: Readings, prior: Prior, lateral_std: float, *, use_depth_prior: bool
) -> CavityPosterior:
    """What `readings` say about depth and volume; `prior` on the depth counts only with `use_depth_prior`.

    lateral_std: of the place in the cavity that each belongs to, metres.

    Gaussian process regression of the deviation from the cap nearest to the readings (Rasmussen and Williams 2006,
    2.2 and 2.7), with the cap's depth as its explicit basis; the volume is an integral of it (O'Hagan 1991).
    """
    grid = _grid()
    volume, depth_max, volume_prior_std, unseen_share = _infer_cavity(
        readings.entries,
        readings.drifts,
        readings.depths,
        max(readings.std, 1e-4 * opening.radius),
        lateral_std,
        opening.radius,
        opening.rim_angles,
        opening.rim_stretch,
        opening.cell_areas,
        prior.depth_mean,
        prior.depth_std,
        prior.shape_std,
        use_depth_prior,
        grid.places,
        grid.tapers,
        grid.kernel,
        grid.fine,
        grid.fine_kernel,
        grid.fine_variance,
        grid.steepness,
        grid.steepness_kernel,
        grid.fine_steepness,
    )
    return CavityPosterior(Posterior(*depth_max), Posterior(*volume), volume_prior_std, unseen_share)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Places over a circle of radius one, and what is a priori known about deviations there; all of it constant.

    places: (2, M) of the cells. fine: (2, F) places at which the deepest point is looked for. tapers: (M,).
    kernel: (M, M), fine_kernel: (M, F), fine_variance: (F,), of a field of unit deviation. steepness: (13, M), and
    fine_steepness: (13, F), how the depth answers to the steepness of the walls, over that of the cap.
    """

    places: Array
    fine: Array
    tapers: Array
    kernel: Array
    fine_kernel: Array
    fine_variance: Array
    steepness: Array
    steepness_kernel: Array
    fine_steepness: Array


@cache
def _grid() -> _Grid:
    def spread(count: int) -> Array:
        axis = (np.arange(count) + 0.5) * (2.0 / count) - 1.0
        return np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2)

    places = spread(_CELLS)
    # Cells cut by the rim stand for what of them lies inside.
    places *= np.minimum(1.0, (1.0 - 0.5 / _CELLS) / np.hypot(places[:, 0], places[:, 1]))[:, None]
    fine = spread(2 * _CELLS + 1)  # one of them in the middle, where most are deepest
    fine = fine[np.hypot(fine[:, 0], fine[:, 1]) < 1.0]
    steepness = _steepness(places)
    return _Grid(
        np.ascontiguousarray(places.T),
        np.ascontiguousarray(fine.T),
        _taper(places),
        _kernel(places, places),
        _kernel(places, fine),
        _taper(fine) ** 2,
        steepness,
        steepness.T @ steepness,
        _steepness(fine),
    )


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
    column = min(max(int((x + 1.0) * (0.5 * _CELLS)), 0), _CELLS - 1)
    row = min(max(int((y + 1.0) * (0.5 * _CELLS)), 0), _CELLS - 1)
    return column * _CELLS + row


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
    cells = np.zeros(_CELLS * _CELLS)
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
    cells = np.zeros(_CELLS * _CELLS)
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
    constant = min(x * x + y * y, (1.0 - _RIM_MARGIN) * radius * radius) - radius * radius
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
) -> tuple[NDArray[np.int64], Array, Array, Array, Array]:
    """Readings that are no outliers, condensed to the cells of the grid that hold any.

    Returns (M,) numbers of the cells; deviations from the cap of that depth, along the normal; derivatives of the cap's
    depth there by its greatest depth; variances of the deviations, and the part of them that is white noise.
    """
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
    sums = np.zeros((_CELLS * _CELLS, 4))
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
    deviations, by_depths, variances, white_variances = (
        np.empty(cells),
        np.empty(cells),
        np.empty(cells),
        np.empty(cells),
    )
    for cell in range(cells):
        total, deviation, by_depth, white = sums[numbers[cell]]
        deviations[cell] = deviation / total
        by_depths[cell] = by_depth / total
        variances[cell] = 1.0 / total
        white_variances[cell] = white / (total * total)
    return numbers, deviations, by_depths, variances, white_variances


@compiled
def _find_field_std(
    numbers: NDArray[np.int64], deviations: Array, variances: Array, tapers: Array, prior_std: float
) -> float:
    """Deviation of the field, by moments from the cells, each counted by its information, shrunk to the prior."""
    seen, shares = 0.0, 0.0
    for cell in range(len(numbers)):
        squared = tapers[numbers[cell]] ** 2
        prior_variance = prior_std * prior_std * squared
        share = (prior_variance / (prior_variance + variances[cell])) ** 2
        seen += share * (deviations[cell] ** 2 - variances[cell]) / squared
        shares += share
    variance = (_PRIOR_CELLS * prior_std * prior_std + seen) / (_PRIOR_CELLS + shares)
    return math.sqrt(max(variance, (0.1 * prior_std) ** 2))


@compiled
def _find_unseen_share(numbers: NDArray[np.int64], areas: Array, places: Array, reach: float) -> float:
    """Share of the area in cells further than `reach` from all of `numbers`."""
    x, y = places[0], places[1]
    nearest = np.full(len(areas), math.inf)  # squared
    for number in numbers:
        for cell in range(len(nearest)):
            nearest[cell] = min(nearest[cell], (x[cell] - x[number]) ** 2 + (y[cell] - y[number]) ** 2)
    unseen, total = 0.0, 0.0
    for cell in range(len(areas)):
        total += areas[cell]
        if nearest[cell] > reach * reach:
            unseen += areas[cell]
    return unseen / total


@compiled
def _dot(a: Array, b: Array) -> float:
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def _multiply(matrix: Array, vector: Array) -> Array:
    """Rows of a matrix times a vector."""
    product = np.empty(len(matrix))
    for row in range(len(matrix)):
        product[row] = _dot(matrix[row], vector)
    return product


@compiled
def _combine(shares: Array, rows: Array) -> Array:
    """Sum of the rows of a matrix, each times its share; few that are not zero."""
    total = np.zeros(rows.shape[1])
    for row in range(len(rows)):
        if shares[row] != 0.0:
            added = rows[row]
            for i in range(len(total)):
                total[i] += shares[row] * added[i]
    return total


@compiled
def _factorise(matrix: Array) -> None:
    """Cholesky's lower factor of a symmetric positive matrix, in its place; what is above the diagonal stays.

    Two columns at a time: what is left of the matrix is gone through half as often.
    """
    count = len(matrix)
    first, second = np.empty(count), np.empty(count)
    for k in range(0, count, 2):
        last = min(k + 1, count - 1)
        matrix[k, k] = math.sqrt(matrix[k, k])
        for i in range(k + 1, count):
            matrix[i, k] /= matrix[k, k]
            first[i] = matrix[i, k]
        if last == k:
            break
        matrix[last, last] = math.sqrt(matrix[last, last] - first[last] * first[last])
        for i in range(last + 1, count):
            matrix[i, last] = (matrix[i, last] - first[i] * first[last]) / matrix[last, last]
            second[i] = matrix[i, last]
        for i in range(last + 1, count):
            # Slices let the compiler see that the inner loop is straight.
            row = matrix[i, last + 1 : i + 1]
            beside, beyond, by_first, by_second = first[last + 1 : i + 1], second[last + 1 : i + 1], first[i], second[i]
            for j in range(len(row)):
                row[j] -= by_first * beside[j] + by_second * beyond[j]


@compiled
def _whiten(lower: Array) -> Array:
    """Inverse of a lower triangular matrix. Of Cholesky's factor of K: W of W^T W = K^-1."""
    count = len(lower)
    whitening = np.zeros((count, count))
    for i in range(count):
        row = whitening[i]
        for j in range(0, i - 1, 2):
            above, below, by_above, by_below = whitening[j], whitening[j + 1, : j + 2], lower[i, j], lower[i, j + 1]
            for k in range(len(below)):
                row[k] -= by_above * above[k] + by_below * below[k]
        if i % 2 == 1:
            above, by_above = whitening[i - 1, :i], lower[i, i - 1]
            for k in range(len(above)):
                row[k] -= by_above * above[k]
        row[i] = 1.0
        scale = 1.0 / lower[i, i]
        for j in range(i + 1):
            row[j] *= scale
    return whitening


@compiled
def _solve(whitening: Array, right: Array) -> Array:
    """W^T W `right`."""
    x = np.zeros(len(right))
    for i in range(len(right)):
        row = whitening[i, : i + 1]
        white = _dot(row, right)
        for j in range(len(row)):
            x[j] += white * row[j]
    return x


@compiled
def _find_excess(innovation: Array, solved: Array, whitening: Array, white_variances: Array) -> float:
    """Variance that the cells show beyond white noise, over what they were to show, shrunk to one.

    MINQUE (Rao 1971) of the factor s of S in the covariance K = W + S, W white: y^T K^-1 S K^-1 y has the expectation
    s tr((K^-1 S)^2) + tr(K^-1 S K^-1 W). The cap's free depth takes one from the count.
    """
    count = len(innovation)
    inverse = np.zeros((count, count))  # of K, below the diagonal
    for i in range(count):
        row = whitening[i]
        for j in range(i + 1):
            beside, before, share = inverse[j, : j + 1], row[: j + 1], row[j]
            for k in range(len(beside)):
                beside[k] += share * before[k]
    # K^-1 S = 1 - K^-1 W
    trace, square_trace, shown = 0.0, 0.0, 0.0
    for i in range(count):
        shown += solved[i] * (innovation[i] - white_variances[i] * solved[i])
        trace += inverse[i, i] * white_variances[i]
        for j in range(i + 1):
            both = (1.0 if i == j else 2.0) * white_variances[i] * white_variances[j]
            square_trace += both * inverse[i, j] * inverse[i, j]
    shown -= trace - square_trace
    expected = max(count - 2.0 * trace + square_trace - 1.0, 0.0)
    return max((_PRIOR_CELLS + shown) / (_PRIOR_CELLS + expected), _MIN_EXCESS)


@compiled
def _infer(
    value: float,
    gain: Array,
    variance: float,
    excess: float,
    whitening: Array,
    solved: Array,
    white_variances: Array,
) -> tuple[float, float, float, float]:
    """Posterior of a linear functional of the depths, as the fields of `Posterior`.

    value: a priori, and variance. gain: (M,) its prior covariance with the cells, whose own `whitening` whitens and
    gave `solved`. excess: factor of what is not white noise.
    """
    weights = _solve(whitening, gain)
    from_noise = 0.0
    response = 0.0
    for cell in range(len(weights)):
        from_noise += weights[cell] ** 2 * white_variances[cell]
        response += weights[cell]
    shape = excess * (variance - _dot(gain, weights) - from_noise)
    return value + _dot(gain, solved), from_noise, max(shape, 0.0), response


@compiled
def _infer_cavity(
    entries: Array,
    drifts: Array,
    depths: Array,
    noise: float,
    lateral: float,
    radius: float,
    rim_angles: Array,
    rim_stretch: Array,
    areas: Array,
    prior_depth: float,
    prior_depth_std: float,
    prior_shape_std: float,
    use_depth_prior: bool,
    places: Array,
    tapers: Array,
    kernel: Array,
    fine: Array,
    fine_kernel: Array,
    fine_variance: Array,
    steepness: Array,
    steepness_kernel: Array,
    fine_steepness: Array,
) -> tuple[tuple[float, float, float, float], tuple[float, float, float, float], float, float]:
    """Posteriors of volume and greatest depth, the volume's prior deviation, and the unseen share of the opening."""
    informed_std = prior_depth_std if use_depth_prior else math.inf
    circle = _warp(entries, drifts, rim_angles, rim_stretch)
    depth, inliers = _fit_depth(circle, depths, noise, radius, prior_depth, informed_std)
    numbers, deviations, by_depth, variances, white_variances = _condense(
        entries, drifts, depths, circle, inliers, noise, lateral, radius, rim_angles, rim_stretch, depth
    )
    # Without a prior on the depth the data decide it: any depth within a radius of the cap's is as good.
    shift = prior_depth - depth if use_depth_prior else 0.0
    depth_variance = prior_depth_std**2 if use_depth_prior else radius**2
    field_variance = _find_field_std(numbers, deviations, variances, tapers, prior_shape_std * depth) ** 2
    steep_variance = (_STEEPNESS_STD * depth) ** 2

    count = len(numbers)
    covariance, innovation = np.empty((count, count)), np.empty(count)
    for i in range(count):
        row, steep = kernel[numbers[i]], steepness_kernel[numbers[i]]
        for j in range(i + 1):
            covariance[i, j] = (
                field_variance * row[numbers[j]]
                + depth_variance * by_depth[i] * by_depth[j]
                + steep_variance * steep[numbers[j]]
            )
        covariance[i, i] += variances[i]
        innovation[i] = deviations[i] - by_depth[i] * shift
    _factorise(covariance)
    whitening = _whiten(covariance)
    solved = _solve(whitening, innovation)
    excess = _find_excess(innovation, solved, whitening, white_variances)

    # The volume: an integral over the cells.
    volume, volume_by_depth = _cap_volume(radius, depth)
    smoothed, steepened = _combine(areas, kernel), _multiply(steepness, areas)
    variance = field_variance * _dot(areas, smoothed) + steep_variance * _dot(steepened, steepened)
    steep = _combine(steepened, steepness)
    gain = np.empty(count)
    for i in range(count):
        cell = numbers[i]
        gain[i] = volume_by_depth * depth_variance * by_depth[i]
        gain[i] += field_variance * smoothed[cell] + steep_variance * steep[cell]
    volume_posterior = _infer(
        volume + volume_by_depth * shift,
        gain,
        volume_by_depth**2 * depth_variance + variance,
        max(excess, 1.0),
        whitening,
        solved,
        white_variances,
    )
    volume_prior_std = math.sqrt((volume_by_depth * prior_depth_std) ** 2 + variance)

    # The depth where its mean is greatest.
    change = shift + depth_variance * _dot(by_depth, solved)
    solved_at = np.zeros(len(areas))
    for i in range(count):
        solved_at[numbers[i]] = solved[i]
    field_mean = _combine(solved_at, fine_kernel)
    steep_mean = _combine(_multiply(steepness, solved_at), fine_steepness)
    mean, cap, slope = np.empty(fine.shape[1]), np.empty(fine.shape[1]), np.empty(fine.shape[1])
    x, y = fine[0], fine[1]
    quadric = _quadric(radius, depth)
    for place in range(len(mean)):
        cap[place], slope[place] = _trace_ray(radius * x[place], radius * y[place], 0.0, 0.0, radius, quadric)
        mean[place] = cap[place] + slope[place] * change
        mean[place] += field_variance * field_mean[place] + steep_variance * steep_mean[place]
    deepest = int(np.argmax(mean))
    there = fine_steepness[:, deepest].copy()
    steep = _combine(there, steepness)
    for i in range(count):
        cell = numbers[i]
        gain[i] = slope[deepest] * depth_variance * by_depth[i]
        gain[i] += field_variance * fine_kernel[cell, deepest] + steep_variance * steep[cell]
    variance = field_variance * fine_variance[deepest] + steep_variance * _dot(there, there)
    depth_posterior = _infer(
        cap[deepest] + slope[deepest] * shift,
        gain,
        slope[deepest] ** 2 * depth_variance + variance,
        excess,
        whitening,
        solved,
        white_variances,
    )

    # Cells without a reading nearby, where readings are dense enough to expect one.
    kept = 0
    for inlier in inliers:
        kept += inlier
    reach = max(_NEAR, 1.5 * math.sqrt(math.pi / kept))
    unseen_share = _find_unseen_share(numbers, areas, places, reach)
    return volume_posterior, depth_posterior, volume_prior_std, unseen_share


def _taper(places: Array) -> Array:
    """Deviation of the field at `places`, (N, 2) in radii."""
    return np.asarray(np.sqrt(np.maximum(1.0 - np.einsum('ij,ij->i', places, places), _RIM_VARIANCE)))


def _steepness(places: Array) -> Array:
    """Change of the depth at `places`, (N, 2) in radii, over that of the cap and over that of the exponent. (13, N).

    Finite difference between half an ellipsoid and a box: all around, and its first harmonics in the direction.
    """
    squared = np.einsum('ij,ij->i', places, places)
    rest = np.maximum(1.0 - squared, 0.1 * _RIM_MARGIN)
    change = (rest**_ELLIPSOID - rest**_BOX) / (_ELLIPSOID - _BOX)
    orders = np.arange(1, _STEEPNESS_HARMONICS + 1)
    shares = np.minimum(1.0, 2.0 / orders)
    angles = orders[:, None] * np.arctan2(places[:, 1], places[:, 0])
    around = np.vstack([np.ones(len(places)), shares[:, None] * np.cos(angles), shares[:, None] * np.sin(angles)])
    return np.asarray(change * around)


def _kernel(a: Array, b: Array) -> Array:
    """Covariance of a field of unit deviation at two sets of places in radii, (len(a), len(b))."""
    local = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])
    radial = np.abs(np.hypot(a[:, 0], a[:, 1])[:, None] - np.hypot(b[:, 0], b[:, 1]))
    correlation = (1.0 - _SYMMETRIC_SHARE) * _matern(local) + _SYMMETRIC_SHARE * _matern(radial)
    return np.asarray(_taper(a)[:, None] * correlation * _taper(b))


def _matern(distance: Array) -> Array:
    """Matern covariance of smoothness 3/2 and unit variance (Rasmussen and Williams 2006, eq. 4.17)."""
    scaled = distance * (math.sqrt(3.0) / _CORRELATION_LENGTH)
    return np.asarray((1.0 + scaled) * np.exp(-scaled))
