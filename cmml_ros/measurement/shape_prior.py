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
_CORRELATION_LENGTH = 0.5
# A cap's deviation vanishes at the rim; this much of its variance remains there, since rims are not quite ellipses.
_RIM_VARIANCE = 0.05
# How many cells the prior on the deviation counts for against those of the data.
_PRIOR_CELLS = 4.0
_NEWTON_STEPS = 8
_OUTLIER = 6.0
_MAD_TO_STD = 1.4826
_NEIGHBOURS = np.stack(np.meshgrid(np.arange(-3.0, 4.0), np.arange(-3.0, 4.0)), axis=-1).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Opening:
    """The rim and what lies within, in coordinates (metres) along the surface that make its ellipse a circle.

    radius: of the circle of the same area. rim: (n, 2) polygon. cells: (M, 2), cell_areas: (M,) parts of the opening.
    """

    radius: float
    rim: Array
    cells: Array
    cell_areas: Array

    @classmethod
    def from_pixels(cls, positions: Array, areas: Array, rim: Array) -> Opening:
        """From the pixels within the rim, positions (N, 2) and covered areas (N,), condensed to cells."""
        radius = math.sqrt(float(areas.sum()) / math.pi)
        cell = _cell_numbers(positions, radius)
        cell_areas = np.bincount(cell, areas)
        filled = np.flatnonzero(cell_areas)
        cell_areas = cell_areas[filled]
        cells = [np.bincount(cell, areas * positions[:, axis])[filled] / cell_areas for axis in (0, 1)]
        return cls(radius, rim, np.stack(cells, axis=1), cell_areas)

    @property
    def area(self) -> float:
        """Square metres."""
        return math.pi * self.radius**2

    @cached_property
    def _polar_rim(self) -> tuple[Array, Array]:
        angles = np.arctan2(self.rim[:, 1], self.rim[:, 0])
        order = np.argsort(angles)
        return angles[order], np.hypot(self.rim[order, 0], self.rim[order, 1])

    def relative_radius(self, positions: Array) -> Array:
        """Distance of `positions`, (N, 2), from the centre over that of the rim in the same direction, (N,)."""
        angles, radii = self._polar_rim
        at_rim = np.interp(np.arctan2(positions[:, 1], positions[:, 0]), angles, radii, period=2.0 * math.pi)
        ratio: Array = np.hypot(positions[:, 0], positions[:, 1]) / np.maximum(at_rim, 0.2 * self.radius)
        return ratio


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

    def trace(self, entries: Array, drifts: Array) -> tuple[Array, Array, Array]:
        """Depths at which rays meet the cap, their derivative by the cap's depth, and the slope factor, each (N,).

        The slope factor turns a difference along the ray into one along the normal at the same place: 1 - drift . grad.
        """
        a, h = self.radius, self.depth
        if h < a:
            stretch, center, stretch_by_h, center_by_h = 1.0, (a * a - h * h) / (2 * h), 0.0, -(a * a / h**2 + 1) / 2
        else:
            stretch, center, stretch_by_h, center_by_h = (a / h) ** 2, 0.0, -2.0 * a * a / h**3, 0.0
        # |entry + drift d|^2 + stretch d^2 + 2 center d = radius^2
        quadratic = stretch + np.einsum('ij,ij->i', drifts, drifts)
        linear = center + np.einsum('ij,ij->i', entries, drifts)
        constant = np.minimum(np.einsum('ij,ij->i', entries, entries) - a * a, -1e-3 * a * a)
        root = np.sqrt(linear**2 - quadratic * constant)
        depths = -constant / (root + linear)
        by_h = -(0.5 * stretch_by_h * depths + center_by_h) * depths / root
        return depths, by_h, root / (stretch * depths + center)


def fit_cavity(opening: Opening, readings: Readings, prior: Prior, *, use_depth_prior: bool) -> CavityPosterior:
    """What `readings` say about depth and volume; `prior` on the depth counts only with `use_depth_prior`."""
    depth, readings, noise = _fit_depth(opening, readings, prior if use_depth_prior else None)
    cap = EllipsoidCap(opening.radius, depth)
    cap_mean, cap_std = (prior.depth_mean, prior.depth_std) if use_depth_prior else (depth, opening.radius)
    traced, by_depth, slope = cap.trace(readings.entries, readings.drifts)
    places = readings.entries + readings.drifts * traced[:, None]

    # Condense the readings: in each cell the mean weighted by the variance (slope * noise)^2 of a vertical residual.
    cell = _cell_numbers(places, opening.radius)
    weight = 1.0 / slope**2
    total = np.bincount(cell, weight)
    filled = np.flatnonzero(total)
    total = total[filled]

    def average(values: Array) -> Array:
        return np.asarray(np.bincount(cell, weight * values)[filled] / total)

    residual = average((readings.depths - traced) * slope)
    amplitude = average(by_depth * slope)
    position = np.stack([average(places[:, 0]), average(places[:, 1])], axis=1)
    noise_variance = noise**2 / total

    taper = _taper(opening, position)
    taper_opening = _taper(opening, opening.cells)
    field_std = _field_std(residual, noise_variance, taper, prior.shape_std * depth)
    scaled, scaled_opening = field_std * taper, field_std * taper_opening
    covariance = cap_std**2 * np.outer(amplitude, amplitude)
    covariance += scaled[:, None] * _correlation(opening, position, position) * scaled
    covariance[np.diag_indices(len(position))] += noise_variance
    factor = cho_factor(covariance, lower=True, check_finite=False)
    innovation = residual - amplitude * (cap_mean - depth)

    def infer(mean: float, by_cap: float, field_covariance: Array, field_variance: float) -> Posterior:
        gain = by_cap * cap_std**2 * amplitude + field_covariance
        answer = cho_solve(factor, gain, check_finite=False)
        variance = (by_cap * cap_std) ** 2 + field_variance - float(gain @ answer)
        from_noise = float(answer**2 @ noise_variance)
        mean += by_cap * (cap_mean - depth) + float(answer @ innovation)
        return Posterior(mean, from_noise, max(variance - from_noise, 0.0), float(answer.sum()))

    areas = opening.cell_areas
    weighted = areas * scaled_opening
    to_readings = weighted @ _correlation(opening, opening.cells, position) * scaled
    field_variance = float(weighted @ _correlation(opening, opening.cells, opening.cells) @ weighted)
    volume = infer(cap.volume, cap.volume_per_depth, to_readings, field_variance)

    # The deepest point: among the cells, then closer around the deepest of them.
    solved = cho_solve(factor, innovation, check_finite=False)
    step = 2.0 * _EXTENT * opening.radius / _CELLS
    nodes = opening.cells
    for spacing in (0.0, step / 4.0):
        if spacing:
            nodes = nodes[deepest] + spacing * _NEIGHBOURS
        cap_depths, cap_by_depth, _ = cap.trace(nodes, np.zeros_like(nodes))
        scaled_nodes = field_std * _taper(opening, nodes)
        field_covariance = scaled_nodes[:, None] * _correlation(opening, nodes, position) * scaled
        depths = cap_depths + cap_by_depth * (cap_mean - depth + cap_std**2 * (amplitude @ solved))
        deepest = int(np.argmax(depths + field_covariance @ solved))
    depth_max = infer(
        float(cap_depths[deepest]),
        float(cap_by_depth[deepest]),
        field_covariance[deepest],
        float(scaled_nodes[deepest] ** 2),
    )
    prior_std = math.hypot(cap.volume_per_depth * prior.depth_std, math.sqrt(field_variance))
    return CavityPosterior(depth_max, volume, prior_std)


def _fit_depth(opening: Opening, readings: Readings, prior: Prior | None) -> tuple[float, Readings, float]:
    """Depth of the cap nearest to the readings (or most probable), the readings without outliers, their noise."""
    a, std = opening.radius, max(readings.std, 1e-4 * opening.radius)
    low, high = 0.02 * a, 4.0 * a
    depth = min(max(2.0 * float(np.median(readings.depths)), low), high) if prior is None else prior.depth_mean
    keep = np.ones(len(readings), bool)
    for step in range(_NEWTON_STEPS):
        traced, by_depth, _ = EllipsoidCap(a, depth).trace(readings.entries, readings.drifts)
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


def _field_std(residual: Array, noise_variance: Array, taper: Array, prior_std: float) -> float:
    """Deviation of the field, by moments from the cells, each counted by its information, shrunk to the prior."""
    share = ((prior_std * taper) ** 2 / ((prior_std * taper) ** 2 + noise_variance)) ** 2
    seen = float((share * (residual**2 - noise_variance) / taper**2).sum())
    variance = (_PRIOR_CELLS * prior_std**2 + seen) / (_PRIOR_CELLS + float(share.sum()))
    return math.sqrt(max(variance, (0.1 * prior_std) ** 2))


def _taper(opening: Opening, positions: Array) -> Array:
    return np.asarray(np.sqrt(np.maximum(1.0 - opening.relative_radius(positions) ** 2, _RIM_VARIANCE)))


def _correlation(opening: Opening, a: Array, b: Array) -> Array:
    """Matern 3/2, (len(a), len(b))."""
    squared = (a[:, None, 0] - b[None, :, 0]) ** 2 + (a[:, None, 1] - b[None, :, 1]) ** 2
    distance = np.sqrt(squared) * (math.sqrt(3.0) / (_CORRELATION_LENGTH * opening.radius))
    return np.asarray((1.0 + distance) * np.exp(-distance))


def _cell_numbers(positions: Array, radius: float) -> NDArray[np.int64]:
    cells = np.floor((positions / (_EXTENT * radius) + 1.0) * (0.5 * _CELLS)).astype(np.int64)
    cells = np.clip(cells, 0, _CELLS - 1)
    return np.asarray(cells[:, 0] * _CELLS + cells[:, 1])
