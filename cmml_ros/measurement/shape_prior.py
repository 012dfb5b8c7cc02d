"""What airholes look like, and what depth readings say about one of them.

A cavity is the cap of an ellipsoid through the measured rim, of unknown depth, plus a Gaussian field for what real
airholes add to a cap. Many readings decide all of it; few decide the depth; where nothing is seen (side walls hidden
from an oblique view, gaps of a stereo sensor) the cap and the field's correlation fill in, at the price of a larger
deviation. Derivations and sources are in docs/measurement.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

# Readings and area are condensed on a grid of so many cells a side over the circle that the rim is warped to.
_CELLS = 12
# Correlation length of the deviation from a cap, in radii of the rim.
_CORRELATION_LENGTH = 0.4
# A cap's deviation vanishes at the rim; this much of its variance remains there, since rims are not quite ellipses.
_RIM_VARIANCE = 0.05
# How many cells the prior on the deviation counts for against those of the data.
_PRIOR_CELLS = 4.0
# A rim that is not seen from its centre in every direction is drawn out to this.
_MIN_STRETCH = 0.2
# The slope of half an ellipsoid is infinite at its rim: no place is nearer to it, in squared radii.
_RIM_MARGIN = 0.02
# Share of the deviation's variance that depends on the distance from the rim only: cavities are alike all around.
_SYMMETRIC_SHARE = 0.3
# Exponent s of a wall (1 - r^2)^s: 1 for a shallow cap, 1/2 for half an ellipsoid, towards 0 for a box or an overhang.
_ELLIPSOID, _BOX = 0.5, 0.2
# Prior deviation of that exponent: its mean over all directions, and each of its first two harmonics.
_STEEPNESS_STD = 0.3
# A sensor averages over about the distance of its points, so a reading belongs to a place known to this share of it.
_LATERAL_STD = 0.5
_MAX_LATERAL_STD = 0.2
# So far from a reading, in radii, a place counts as unseen.
_NEAR = 0.3
_NEWTON_STEPS = 8
_OUTLIER = 6.0
_MAD_TO_STD = 1.4826


@dataclass(frozen=True, eq=False)
class Opening:
    """The rim and what lies within, along the surface, from the centroid, metres.

    radius: of the circle of the same area. rim: (n, 2) polygon. cell_areas: (_CELLS^2,) area in each cell of the grid
    over that circle.
    """

    radius: float
    rim: Array
    cell_areas: Array

    @classmethod
    def from_pixels(cls, positions: Array, areas: Array, rim: Array) -> Opening:
        """From the pixels within the rim, positions (N, 2) and covered areas (N,), condensed to cells."""
        radius = math.sqrt(float(areas.sum()) / math.pi)
        empty = cls(radius, rim, np.empty(0))
        cells = _cell_numbers(positions / empty.stretch(positions)[:, None], radius)
        return cls(radius, rim, np.asarray(np.bincount(cells, areas, minlength=_CELLS**2), np.float64))

    @cached_property
    def _polar_rim(self) -> tuple[Array, Array]:
        angles = np.arctan2(self.rim[:, 1], self.rim[:, 0])
        order = np.argsort(angles)
        return angles[order], np.hypot(self.rim[order, 0], self.rim[order, 1]) / self.radius

    def stretch(self, positions: Array) -> Array:
        """How much further than on the circle the rim is from the centre, in the direction of `positions`, (N,)."""
        angles, stretch = self._polar_rim
        there = np.interp(np.arctan2(positions[:, 1], positions[:, 0]), angles, stretch, period=2.0 * math.pi)
        return np.asarray(np.maximum(there, _MIN_STRETCH))

    def relative_radius(self, positions: Array) -> Array:
        """Distance of `positions`, (N, 2), from the centre over that of the rim in the same direction, (N,)."""
        return np.asarray(np.hypot(positions[:, 0], positions[:, 1]) / (self.radius * self.stretch(positions)))


@dataclass(frozen=True, eq=False)
class Readings:
    """Depth readings inside one rim.

    entries: (N, 2) where their rays pass the opening. drifts: (N, 2) how far a ray goes sideways per metre of depth.
    depths: (N,) below the surface. std: white noise of one depth, metres.
    """

    entries: Array
    drifts: Array
    depths: Array
    std: float

    def __len__(self) -> int:
        return len(self.depths)

    @property
    def places(self) -> Array:
        """Where they end, (N, 2)."""
        return np.asarray(self.entries + self.drifts * self.depths[:, None])

    def select(self, keep: NDArray[np.bool_]) -> Readings:
        """Those to `keep`, (N,)."""
        return Readings(self.entries[keep], self.drifts[keep], self.depths[keep], self.std)


@dataclass(frozen=True)
class Prior:
    """Depth of a cap, metres, and deviation of a real cavity from it, over its depth."""

    depth_mean: float
    depth_std: float
    shape_std: float


@dataclass(frozen=True)
class Posterior:
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


@dataclass(frozen=True)
class CavityPosterior:
    """Depth at the deepest point (m), volume (m3), and the volume's standard deviation before any reading.

    unseen_share: of the opening, where no reading ends nearby.
    """

    depth_max: Posterior
    volume: Posterior
    volume_prior_std: float
    unseen_share: float


@dataclass(frozen=True)
class EllipsoidCap:
    """Cap of a sphere (stretched with its rim: of an ellipsoid) through a rim of `radius`, `depth` deep.

    Deeper than its radius it is half an ellipsoid: a sphere would bulge out below the rim.
    """

    radius: float
    depth: float

    @property
    def volume(self) -> float:
        """Of the cap of a sphere pi h (3 a^2 + h^2) / 6, of half an ellipsoid 2/3 pi a^2 h."""
        area = math.pi * self.radius**2
        if self.depth < self.radius:
            return area * self.depth / 2.0 * (1.0 + (self.depth / self.radius) ** 2 / 3.0)
        return area * self.depth * 2.0 / 3.0

    @property
    def volume_per_depth(self) -> float:
        """Derivative of the volume, m2."""
        area = math.pi * self.radius**2
        return area / 2.0 * (1.0 + (self.depth / self.radius) ** 2) if self.depth < self.radius else area * 2.0 / 3.0

    def trace(self, entries: Array, drifts: Array) -> tuple[Array, Array]:
        """Depths at which rays meet the cap, and their derivative by the cap's depth, each (N,)."""
        stretch, center, stretch_by_h, center_by_h = self._quadric
        # |entry + drift d|^2 + stretch d^2 + 2 center d = radius^2
        quadratic = stretch + np.einsum('ij,ij->i', drifts, drifts)
        linear = center + np.einsum('ij,ij->i', entries, drifts)
        squared = np.einsum('ij,ij->i', entries, entries)
        constant = np.minimum(squared, (1.0 - _RIM_MARGIN) * self.radius**2) - self.radius**2
        root = np.sqrt(linear**2 - quadratic * constant)
        depths = -constant / (root + linear)
        return depths, -(0.5 * stretch_by_h * depths + center_by_h) * depths / root

    def depths(self, places: Array) -> tuple[Array, Array]:
        """Depths below `places`, (N, 2), and their derivative by the cap's depth, each (N,)."""
        return self.trace(places, np.zeros_like(places))

    def gradients(self, places: Array, depths: Array) -> Array:
        """Gradient of the depth along the surface at `places`, (N, 2), where the cap is `depths` deep. (N, 2)."""
        stretch, center, _, _ = self._quadric
        return np.asarray(-places / (stretch * depths + center)[:, None])

    @property
    def _quadric(self) -> tuple[float, float, float, float]:
        """s and c of |place|^2 + s depth^2 + 2 c depth = radius^2, and their derivatives by the cap's depth."""
        a, h = self.radius, self.depth
        if h < a:
            return 1.0, (a * a - h * h) / (2.0 * h), 0.0, -(a * a / h**2 + 1.0) / 2.0
        return (a / h) ** 2, 0.0, -2.0 * a * a / h**3, 0.0


def fit_cavity(opening: Opening, readings: Readings, prior: Prior, *, use_depth_prior: bool) -> CavityPosterior:
    """What `readings` say about depth and volume; `prior` on the depth counts only with `use_depth_prior`.

    Gaussian process regression of the deviation from the cap nearest to the readings (Rasmussen and Williams 2006,
    2.2 and 2.7), with the cap's depth as its explicit basis; the volume is an integral of it (O'Hagan 1991).
    """
    depth, readings, noise = _fit_depth(opening, readings, prior if use_depth_prior else None)
    cap = EllipsoidCap(opening.radius, depth)
    cells = _condense(opening, cap, readings, noise)
    field_std = _find_field_std(cells, prior.shape_std * depth)
    if use_depth_prior:
        field = _Field(cap, cells, prior.depth_mean, prior.depth_std, field_std)
    else:
        field = _Field(cap, cells, depth, opening.radius, field_std)

    volume = field.infer_integral(opening.cell_areas)
    prior_std = math.hypot(
        cap.volume_per_depth * prior.depth_std, math.sqrt(field.integral_variance(opening.cell_areas))
    )
    # Cells without a reading nearby, where readings are dense enough to expect one.
    reach = max(_NEAR, 1.5 * math.sqrt(math.pi / len(readings)))
    unseen = _grid().distances[:, cells.numbers].min(axis=1) > reach
    unseen_share = float(opening.cell_areas[unseen].sum() / opening.cell_areas.sum())
    return CavityPosterior(field.infer_deepest(), volume, prior_std, unseen_share)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Places over a circle of radius one, and what is a priori known about deviations there; all of it constant.

    places: (M, 2) of the cells. fine: (F, 2) places at which the deepest point is looked for. distances: (M, M)
    between cells. tapers: (M,).
    kernel: (M, M), fine_kernel: (F, M), fine_variance: (F,), of a field of unit deviation. steepness: (M, 5), and
    fine_steepness: (F, 5), how the depth answers to the steepness of the walls, over that of the cap.
    """

    places: Array
    fine: Array
    distances: Array
    tapers: Array
    kernel: Array
    fine_kernel: Array
    fine_variance: Array
    steepness: Array
    fine_steepness: Array


@cache
def _grid() -> _Grid:
    def spread(count: int) -> Array:
        axis = (np.arange(count) + 0.5) * (2.0 / count) - 1.0
        return np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2)

    places = spread(_CELLS)
    # Cells cut by the rim stand for what of them lies inside.
    places *= np.minimum(1.0, (1.0 - 0.5 / _CELLS) / np.hypot(places[:, 0], places[:, 1]))[:, None]
    fine = spread(2 * _CELLS)
    fine = fine[np.hypot(fine[:, 0], fine[:, 1]) < 1.0]
    return _Grid(
        places,
        fine,
        np.linalg.norm(places[:, None] - places[None], axis=2),
        _taper(places),
        _kernel(places, places),
        _kernel(fine, places),
        _taper(fine) ** 2,
        _steepness(places),
        _steepness(fine),
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Readings condensed to the cells of the grid that hold any: (M,) numbers of the cells, and (M,) of the rest.

    deviations: from the cap, along the normal. by_depth: derivative of the cap's depth there by its greatest depth.
    variances: of the deviations, and white_variances: the part of them that is white noise of the range.
    """

    numbers: NDArray[np.int64]
    deviations: Array
    by_depth: Array
    variances: Array
    white_variances: Array


class _Field:
    """Posterior of the cap's depth, a priori normal, and of the field of deviations from it."""

    def __init__(self, cap: EllipsoidCap, cells: _Cells, depth_mean: float, depth_std: float, field_std: float) -> None:
        grid = _grid()
        self._cap = cap
        self._cells = cells
        self._shift = depth_mean - cap.depth
        self._depth_variance = depth_std**2
        self._field_variance = field_std**2
        self._steepness_variance = (_STEEPNESS_STD * cap.depth) ** 2
        steepness = grid.steepness[cells.numbers]
        covariance = self._field_variance * grid.kernel[np.ix_(cells.numbers, cells.numbers)]
        covariance += self._depth_variance * np.outer(cells.by_depth, cells.by_depth)
        covariance += self._steepness_variance * (steepness @ steepness.T)
        covariance[np.diag_indices(len(cells.numbers))] += cells.variances
        self._factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        innovation = cells.deviations - cells.by_depth * self._shift
        self._solved = cho_solve(self._factor, innovation, check_finite=False)

    def integral_variance(self, areas: Array) -> float:
        """Prior variance of the integral of the deviations over cells of `areas`, (_CELLS^2,)."""
        grid = _grid()
        steep = areas @ grid.steepness
        return float(self._field_variance * (areas @ grid.kernel @ areas) + self._steepness_variance * (steep @ steep))

    def infer_integral(self, areas: Array) -> Posterior:
        """Posterior of the volume over cells of `areas`, (_CELLS^2,)."""
        grid, numbers = _grid(), self._cells.numbers
        to_cells = self._field_variance * (areas @ grid.kernel)[numbers]
        to_cells += self._steepness_variance * (grid.steepness[numbers] @ (areas @ grid.steepness))
        return self._infer(self._cap.volume, self._cap.volume_per_depth, to_cells, self.integral_variance(areas))

    def infer_deepest(self) -> Posterior:
        """Posterior of the depth where its mean is greatest."""
        grid, numbers = _grid(), self._cells.numbers
        cap_depths, by_depth = self._cap.depths(self._cap.radius * grid.fine)
        depth_change = self._shift + self._depth_variance * float(self._cells.by_depth @ self._solved)
        steep = self._steepness_variance * (self._solved @ grid.steepness[numbers])
        depths = cap_depths + by_depth * depth_change + grid.fine_steepness @ steep
        depths += self._field_variance * (grid.fine_kernel[:, numbers] @ self._solved)
        deepest = int(np.argmax(depths))
        to_cells = self._field_variance * grid.fine_kernel[deepest, numbers]
        to_cells += self._steepness_variance * (grid.steepness[numbers] @ grid.fine_steepness[deepest])
        variance = self._field_variance * float(grid.fine_variance[deepest])
        variance += self._steepness_variance * float(grid.fine_steepness[deepest] @ grid.fine_steepness[deepest])
        return self._infer(float(cap_depths[deepest]), float(by_depth[deepest]), to_cells, variance)

    def _infer(self, cap_value: float, by_depth: float, to_cells: Array, variance: float) -> Posterior:
        """Posterior of a linear functional of the depths.

        cap_value: of the cap itself, by_depth: its derivative. to_cells: (M,) prior covariance of the functional of the
        deviations with the cells, variance: its own.
        """
        gain = by_depth * self._depth_variance * self._cells.by_depth + to_cells
        weights = cho_solve(self._factor, gain, check_finite=False)
        total = by_depth**2 * self._depth_variance + variance - float(gain @ weights)
        from_noise = float(weights**2 @ self._cells.white_variances)
        mean = cap_value + by_depth * self._shift + float(gain @ self._solved)
        return Posterior(mean, from_noise, max(total - from_noise, 0.0), float(weights.sum()))


def _condense(opening: Opening, cap: EllipsoidCap, readings: Readings, noise: float) -> _Cells:
    stretch = opening.stretch(readings.entries)[:, None]
    traced, _ = cap.trace(readings.entries / stretch, readings.drifts / stretch)
    misfit = readings.depths - traced
    # Where on its ray a reading belongs: noise alone would leave it on the cap, what is no noise moves it.
    trust = max(0.0, 1.0 - noise**2 / max(float(misfit @ misfit) / len(misfit), noise**2))
    placed = traced + trust * misfit
    places = readings.entries + readings.drifts * placed[:, None]
    stretch = opening.stretch(places)[:, None]
    places = places / stretch
    expected, by_depth = cap.depths(places)
    # One metre of depth along the ray is so much along the normal.
    gradients = cap.gradients(places, expected)
    slopes = 1.0 - np.einsum('ij,ij->i', readings.drifts / stretch, gradients)
    deviations = placed - expected + slopes * (readings.depths - placed)

    numbers = _cell_numbers(places, opening.radius)
    lateral = opening.radius * min(_LATERAL_STD * math.sqrt(math.pi / len(readings)), _MAX_LATERAL_STD)
    white = (slopes * noise) ** 2
    weight = 1.0 / (white + lateral**2 * np.einsum('ij,ij->i', gradients, gradients))
    total = np.bincount(numbers, weight)
    filled = np.flatnonzero(total)
    return _Cells(
        numbers=filled,
        deviations=np.bincount(numbers, weight * deviations)[filled] / total[filled],
        by_depth=np.bincount(numbers, weight * by_depth)[filled] / total[filled],
        variances=1.0 / total[filled],
        white_variances=np.bincount(numbers, weight**2 * white)[filled] / total[filled] ** 2,
    )


def _fit_depth(opening: Opening, readings: Readings, prior: Prior | None) -> tuple[float, Readings, float]:
    """Depth of the cap nearest to the readings (or most probable), the readings without outliers, their noise."""
    a, std = opening.radius, max(readings.std, 1e-4 * opening.radius)
    low, high = 0.02 * a, 4.0 * a
    depth = min(max(2.0 * float(np.median(readings.depths)), low), high) if prior is None else prior.depth_mean
    keep = np.ones(len(readings), bool)
    stretch = opening.stretch(readings.entries)[:, None]
    entries, drifts = readings.entries / stretch, readings.drifts / stretch
    for step in range(_NEWTON_STEPS):
        traced, by_depth = EllipsoidCap(a, depth).trace(entries, drifts)
        residuals = readings.depths - traced
        if step >= 3:
            scale = max(std, _MAD_TO_STD * float(np.median(np.abs(residuals))))
            keep = np.abs(residuals) < _OUTLIER * scale
        information = float(by_depth[keep] @ by_depth[keep]) / std**2
        pull = float(by_depth[keep] @ residuals[keep]) / std**2
        if prior is not None:
            information += 1.0 / prior.depth_std**2
            pull += (prior.depth_mean - depth) / prior.depth_std**2
        change = pull / max(information, 1e-12)
        depth = min(max(depth + change, low), high)
        if step >= 3 and abs(change) < 1e-4 * depth:
            break
    return depth, readings.select(keep), std


def _find_field_std(cells: _Cells, prior_std: float) -> float:
    """Deviation of the field, by moments from the cells, each counted by its information, shrunk to the prior."""
    tapers = _grid().tapers[cells.numbers]
    prior_variances = (prior_std * tapers) ** 2
    share = (prior_variances / (prior_variances + cells.variances)) ** 2
    seen = float((share * (cells.deviations**2 - cells.variances) / tapers**2).sum())
    variance = (_PRIOR_CELLS * prior_std**2 + seen) / (_PRIOR_CELLS + float(share.sum()))
    return math.sqrt(max(variance, (0.1 * prior_std) ** 2))


def _taper(places: Array) -> Array:
    """Deviation of the field at `places`, (N, 2) in radii."""
    return np.asarray(np.sqrt(np.maximum(1.0 - np.einsum('ij,ij->i', places, places), _RIM_VARIANCE)))


def _steepness(places: Array) -> Array:
    """Change of the depth at `places`, (N, 2) in radii, over that of the cap and over that of the exponent. (N, 5).

    Finite difference between half an ellipsoid and a box: all around, and its first two harmonics in the direction.
    """
    squared = np.einsum('ij,ij->i', places, places)
    rest = np.maximum(1.0 - squared, 0.1 * _RIM_MARGIN)
    change = (rest**_ELLIPSOID - rest**_BOX) / (_ELLIPSOID - _BOX)
    x, y = places.T / np.sqrt(squared)
    around = np.column_stack([np.ones(len(places)), x, y, x * x - y * y, 2.0 * x * y])
    return np.asarray(change[:, None] * around)


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


def _cell_numbers(positions: Array, radius: float) -> NDArray[np.int64]:
    cells = np.clip(((positions / radius + 1.0) * (0.5 * _CELLS)).astype(np.int64), 0, _CELLS - 1)
    return np.asarray(cells[:, 0] * _CELLS + cells[:, 1])
