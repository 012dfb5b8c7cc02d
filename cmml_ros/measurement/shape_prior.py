"""What airholes look like, and what depth readings say about one of them.

A cavity is the cap of an ellipsoid through the measured rim, of unknown depth, plus a Gaussian field for what real
airholes add to a cap. Many readings decide all of it; few decide the depth; where nothing is seen (side walls hidden
from an oblique view, gaps of a stereo sensor) the cap and the field's correlation fill in, at the price of a larger
deviation. Derivations and sources are in docs/measurement.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

# Readings and area are condensed on a grid of so many cells a side, over so many radii.
_CELLS = 12
_EXTENT = 1.5
# Correlation length of the deviation from a cap, in radii of the rim.
_CORRELATION_LENGTH = 0.6
# A cap's deviation vanishes at the rim; this much of its variance remains there, since rims are not quite ellipses.
_RIM_VARIANCE = 0.05
# How many cells the prior on the deviation counts for against those of the data.
_PRIOR_CELLS = 4.0
# A rim that is not seen from its centre in every direction is drawn out to this.
_MIN_STRETCH = 0.2
# The slope of half an ellipsoid is infinite at its rim: no place is nearer to it, in squared radii.
_RIM_MARGIN = 0.02
# Share of the deviation's variance that depends on the distance from the rim only: cavities are alike all around.
_SYMMETRIC_SHARE = 0.7
_NEWTON_STEPS = 8
_OUTLIER = 6.0
_MAD_TO_STD = 1.4826
_NEIGHBOURS = np.stack(np.meshgrid(np.arange(-3.0, 4.0), np.arange(-3.0, 4.0)), axis=-1).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Opening:
    """The rim and what lies within, along the surface, from the centroid, metres.

    radius: of the circle of the same area. rim: (n, 2) polygon. cells: (M, 2), cell_areas: (M,) parts of the opening,
    their places warped to that circle.
    """

    radius: float
    rim: Array
    cells: Array
    cell_areas: Array

    @classmethod
    def from_pixels(cls, positions: Array, areas: Array, rim: Array) -> Opening:
        """From the pixels within the rim, positions (N, 2) and covered areas (N,), condensed to cells."""
        radius = math.sqrt(float(areas.sum()) / math.pi)
        empty = cls(radius, rim, np.empty((0, 2)), np.empty(0))
        warped = positions / empty.stretch(positions)[:, None]
        cell = _cell_numbers(warped, radius)
        cell_areas = np.asarray(np.bincount(cell, areas), np.float64)
        filled = np.flatnonzero(cell_areas)
        cell_areas = cell_areas[filled]
        cells = [np.bincount(cell, areas * warped[:, axis])[filled] / cell_areas for axis in (0, 1)]
        return cls(radius, rim, np.stack(cells, axis=1), cell_areas)

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
    """Depth at the deepest point (m), volume (m3), and the volume's standard deviation before any reading."""

    depth_max: Posterior
    volume: Posterior
    volume_prior_std: float


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

    to_cells = opening.cell_areas @ field.covariance(opening.cells, cells.places)
    field_variance = float(opening.cell_areas @ field.covariance(opening.cells, opening.cells) @ opening.cell_areas)
    volume = field.infer(cap.volume, cap.volume_per_depth, to_cells, field_variance)

    # The deepest point: among the cells, then closer around the deepest of them.
    spacing = 2.0 * _EXTENT * opening.radius / _CELLS
    deepest = opening.cells[[np.argmax(field.depths(opening.cells))]]
    nodes = deepest + spacing / 4.0 * _NEIGHBOURS
    deepest = nodes[[np.argmax(field.depths(nodes))]]
    cap_depth, by_depth = cap.depths(deepest)
    depth_max = field.infer(
        float(cap_depth[0]),
        float(by_depth[0]),
        field.covariance(deepest, cells.places)[0],
        float(field.covariance(deepest, deepest)[0, 0]),
    )
    prior_std = math.hypot(cap.volume_per_depth * prior.depth_std, math.sqrt(field_variance))
    return CavityPosterior(depth_max, volume, prior_std)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Readings condensed to cells of warped places: (M, 2) places, and (M,) of the rest.

    deviations: from the cap, along the normal. by_depth: derivative of the cap's depth there by its greatest depth.
    """

    places: Array
    deviations: Array
    by_depth: Array
    noise_variances: Array
    tapers: Array


class _Field:
    """Posterior of the cap's depth, a priori normal, and of the field of deviations from it."""

    def __init__(self, cap: EllipsoidCap, cells: _Cells, depth_mean: float, depth_std: float, field_std: float) -> None:
        self._cap = cap
        self._cells = cells
        self._shift = depth_mean - cap.depth
        self._depth_variance = depth_std**2
        self._field_std = field_std
        covariance = self._depth_variance * np.outer(cells.by_depth, cells.by_depth)
        covariance += self.covariance(cells.places, cells.places)
        covariance[np.diag_indices(len(cells.places))] += cells.noise_variances
        self._factor = cho_factor(covariance, lower=True, check_finite=False)
        innovation = cells.deviations - cells.by_depth * self._shift
        self._solved = cho_solve(self._factor, innovation, check_finite=False)

    def covariance(self, a: Array, b: Array) -> Array:
        """Prior covariance of the deviations at two sets of warped places, (len(a), len(b))."""
        radius = self._cap.radius
        local = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]) / radius
        radial = np.abs(np.hypot(a[:, 0], a[:, 1])[:, None] - np.hypot(b[:, 0], b[:, 1])) / radius
        correlation = (1.0 - _SYMMETRIC_SHARE) * _matern(local) + _SYMMETRIC_SHARE * _matern(radial)
        tapers = self._field_std * _taper(radius, a), self._field_std * _taper(radius, b)
        return np.asarray(tapers[0][:, None] * correlation * tapers[1])

    def depths(self, places: Array) -> Array:
        """Posterior mean of the depth at warped `places`, (N,)."""
        cap_depths, by_depth = self._cap.depths(places)
        depth_change = self._shift + self._depth_variance * float(self._cells.by_depth @ self._solved)
        deviations = self.covariance(places, self._cells.places) @ self._solved
        return np.asarray(cap_depths + by_depth * depth_change + deviations)

    def infer(self, cap_value: float, by_depth: float, to_cells: Array, variance: float) -> Posterior:
        """Posterior of a linear functional of the depths.

        cap_value: of the cap itself, by_depth: its derivative. to_cells: (M,) prior covariance of the functional of the
        deviations with the cells, variance: its own.
        """
        gain = by_depth * self._depth_variance * self._cells.by_depth + to_cells
        weights = cho_solve(self._factor, gain, check_finite=False)
        total = by_depth**2 * self._depth_variance + variance - float(gain @ weights)
        from_noise = float(weights**2 @ self._cells.noise_variances)
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
    slopes = 1.0 - np.einsum('ij,ij->i', readings.drifts / stretch, cap.gradients(places, expected))
    deviations = placed - expected + slopes * (readings.depths - placed)

    cell = _cell_numbers(places, opening.radius)
    weight = 1.0 / slopes**2  # a deviation's variance is (slope * noise)^2
    total = np.bincount(cell, weight)
    filled = np.flatnonzero(total)

    def average(values: Array) -> Array:
        return np.asarray(np.bincount(cell, weight * values)[filled] / total[filled])

    means = np.stack([average(places[:, 0]), average(places[:, 1])], axis=1)
    return _Cells(
        places=means,
        deviations=average(deviations),
        by_depth=average(by_depth),
        noise_variances=noise**2 / total[filled],
        tapers=_taper(opening.radius, means),
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
    prior_variances = (prior_std * cells.tapers) ** 2
    share = (prior_variances / (prior_variances + cells.noise_variances)) ** 2
    seen = float((share * (cells.deviations**2 - cells.noise_variances) / cells.tapers**2).sum())
    variance = (_PRIOR_CELLS * prior_std**2 + seen) / (_PRIOR_CELLS + float(share.sum()))
    return math.sqrt(max(variance, (0.1 * prior_std) ** 2))


def _taper(radius: float, warped: Array) -> Array:
    squared = np.einsum('ij,ij->i', warped, warped) / radius**2
    return np.asarray(np.sqrt(np.maximum(1.0 - squared, _RIM_VARIANCE)))


def _matern(distance: Array) -> Array:
    """Matern covariance of smoothness 3/2 and unit variance (Rasmussen and Williams 2006, eq. 4.17)."""
    scaled = distance * (math.sqrt(3.0) / _CORRELATION_LENGTH)
    return np.asarray((1.0 + scaled) * np.exp(-scaled))


def _cell_numbers(positions: Array, radius: float) -> NDArray[np.int64]:
    cells = np.floor((positions / (_EXTENT * radius) + 1.0) * (0.5 * _CELLS)).astype(np.int64)
    cells = np.clip(cells, 0, _CELLS - 1)
    return np.asarray(cells[:, 0] * _CELLS + cells[:, 1])
