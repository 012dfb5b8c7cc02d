"""The undamaged surface around an airhole: a plane, or a quadric where the data ask for one.

Derivations are in docs/measurement.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, fdtrc

from cmml_ros.errors import SurfaceError

Array = NDArray[np.float64]

MIN_POINTS = 6
_QUADRIC_POINTS = 24
_L1_STEPS = 3
_IRLS_STEPS = 8
_MAX_REFINE_STEPS = 5
# Steps stop when the elevation at the airhole changes by less than this share of the noise.
_CONVERGED = 1e-3
# Tukey's biweight keeps 95 % efficiency on normal noise with this constant (Holland and Welsch 1977).
_TUKEY = 4.685
_MAD_TO_STD = 1.4826
# Points all on one side of the airhole extrapolate: the variance at the airhole over that at their centre.
_MAX_LEVERAGE = 10.0
# Beyond 80 degrees of incidence a pixel covers too much surface.
_MIN_COSINE = 0.17
# A scan line is no surface: smaller over larger extent of the points, as seen by the sensor.
_MIN_ASPECT = 0.1
_PATCH_SIGNIFICANCE = 0.001
_HINT_SIGNIFICANCE = 0.05
_NOISE_FLOOR_M = 1e-7


@dataclass(frozen=True, eq=False)
class Surface:
    """z = h(x, y), a quadric in a frame of its own: z points out of the wall, to the sensor.

    origin: (3,), metres. axes: (3, 3), rows x, y, z of that frame; both in the frame of the points it was fitted to.
    coefficients: (6,) of 1, x, y, x^2, xy, y^2. covariance: (6, 6), zero for the terms that a plane lacks.
    range_noise_m: standard deviation of one reading along its ray, from the residuals (or as given).
    patch_std_m: deviation of airhole-sized patches of the real surface from this one: texture, waviness.
    """

    origin: Array
    axes: Array
    coefficients: Array
    covariance: Array
    range_noise_m: float
    patch_std_m: float
    point_count: int

    @property
    def is_plane(self) -> bool:
        """Whether there is no curvature."""
        return not bool(self.coefficients[3:].any())

    @property
    def normal(self) -> Array:
        """Unit normal out of the wall at the origin, (3,)."""
        return np.asarray(self.normal_at(self.origin[None])[0])

    def to_local(self, points: Array) -> Array:
        """`points`, (..., 3), in the surface's own frame."""
        return np.asarray((points - self.origin) @ self.axes.T)

    def from_local(self, local: Array) -> Array:
        """The inverse of `to_local`."""
        return np.asarray(local @ self.axes + self.origin)

    def elevation(self, x: Array, y: Array) -> Array:
        """h(x, y), metres, in the surface's own frame."""
        a, b, c, d, e, f = self.coefficients
        elevation = a + (b + d * x + e * y) * x + (c + f * y) * y
        return np.asarray(elevation)

    def slopes(self, x: Array, y: Array) -> tuple[Array, Array]:
        """dh/dx and dh/dy."""
        _, b, c, d, e, f = self.coefficients
        return b + 2.0 * d * x + e * y, c + e * x + 2.0 * f * y

    def height_above(self, points: Array) -> Array:
        """Distance of `points`, (N, 3), from the surface, (N,), metres; negative inside the wall.

        First order: the elevation difference times the cosine of the slope.
        """
        x, y, z = self.to_local(points).T
        slope_x, slope_y = self.slopes(x, y)
        height: Array = (z - self.elevation(x, y)) / np.sqrt(1.0 + slope_x**2 + slope_y**2)
        return height

    def normal_at(self, points: Array) -> Array:
        """Unit normals out of the wall, (N, 3), where `points` (N, 3) lie on the surface."""
        x, y, _ = self.to_local(points).T
        slope_x, slope_y = self.slopes(x, y)
        normals = np.stack([-slope_x, -slope_y, np.ones_like(x)], axis=1) @ self.axes
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return np.asarray(normals)

    def intersect(self, rays: Array) -> Array:
        """Where `rays`, (N, 3) directions from the sensor, meet the surface first; NaN where they miss. (N, 3)."""
        ox, oy, oz = -self.axes @ self.origin
        dx, dy, dz = self.axes @ rays.T
        _, b, c, d, e, f = self.coefficients
        # z(t) - h(x(t), y(t)) = A t^2 + B t + C
        quadratic = -(d * dx * dx + e * dx * dy + f * dy * dy)
        linear = dz - (b + 2.0 * d * ox + e * oy) * dx - (c + e * ox + 2.0 * f * oy) * dy
        constant = oz - float(self.elevation(np.asarray(ox), np.asarray(oy)))
        with np.errstate(all='ignore'):
            # This form of the root tends to the plane's intersection as the curvature vanishes.
            root = np.sqrt(linear**2 - 4.0 * quadratic * constant)
            distance = 2.0 * constant / (root - linear)
            return np.asarray(rays * np.where(distance > 0.0, distance, np.nan)[:, None])

    def elevation_std(self, x: float, y: float) -> float:
        """Standard deviation of h(x, y) from the fit, metres."""
        basis = _polynomials(np.array([x]), np.array([y]))[0]
        return math.sqrt(max(float(basis @ self.covariance @ basis), 0.0))


def fit_surface(
    points: Array,
    sight: Array,
    *,
    patch_angle_rad: float,
    curvature_significance: float,
    range_noise_m: float | None = None,
) -> Surface:
    """The surface through `points`, (N, 3) in the camera frame, seen from the origin.

    sight: (3,) direction of the airhole's centre, where the surface is wanted. patch_angle_rad: size of the airhole as
    seen from the origin. range_noise_m: deviation of one reading, None to take it from the residuals.
    Residuals are taken along the rays, since there lies the noise: directions are as good as exact, so no slope is
    attenuated at oblique incidence. Robust: iteratively reweighted least squares, absolute deviations first, then
    Tukey's biweight. A quadric replaces the plane by an F-test at `curvature_significance`.
    Raises SurfaceError when the points do not define a surface at `sight`.
    """
    if len(points) < MIN_POINTS:
        raise SurfaceError(f'{len(points)} points around the rim are no surface')
    ring = _Ring.from_points(points, sight, patch_angle_rad)
    start = _fit_plane(ring)
    plane = _refine(start, ring, 3, range_noise_m)
    if plane.leverage > _MAX_LEVERAGE:
        raise SurfaceError('all points lie to one side of the airhole')
    if len(points) >= _QUADRIC_POINTS:
        quadric = _refine(plane.surface, ring, 6, range_noise_m)
        if quadric.leverage < _MAX_LEVERAGE:
            if quadric.curvature_p < curvature_significance:
                return quadric.surface
            if quadric.curvature_p < _HINT_SIGNIFICANCE:
                return _admit_curvature(plane.surface, quadric.surface)
    return plane.surface


def _admit_curvature(plane: Surface, quadric: Surface) -> Surface:
    """`plane` with the variance of a curvature that the data hint at but do not prove."""
    covariance = plane.covariance.copy()
    covariance[0, 0] += (quadric.coefficients[0] - plane.coefficients[0]) ** 2
    return replace(plane, covariance=covariance)


@dataclass(frozen=True, eq=False)
class _Ring:
    """Points around the rim as the sensor sees them: where along which ray.

    directions: (N, 3) unit. ranges: (N,). tangent: (3, 3), rows: two axes across the sight and the sight itself.
    patches: (N,) number of the patch, half an airhole wide, that a point lies in.
    """

    directions: Array
    ranges: Array
    tangent: Array
    patches: NDArray[np.int64]

    @classmethod
    def from_points(cls, points: Array, sight: Array, patch_angle_rad: float) -> _Ring:
        ranges = np.sqrt(np.einsum('ij,ij->i', points, points))
        forward = sight / np.linalg.norm(sight)
        right = np.cross(forward, [0.0, 0.0, 1.0] if abs(forward[2]) < 0.5 else [0.0, -1.0, 0.0])
        right /= np.linalg.norm(right)
        tangent = np.stack([right, np.cross(forward, right), forward])
        directions = points / ranges[:, None]
        cells = np.floor(directions @ tangent[:2].T / (0.5 * patch_angle_rad)).astype(np.int64)
        cells -= cells.min(axis=0)
        return cls(directions, ranges, tangent, cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1])


@dataclass(frozen=True, eq=False)
class _Fit:
    """A surface and what the choice between plane and quadric needs.

    leverage: variance of the elevation at the airhole over that of the mean of all points. curvature_p: probability of
    so much curvature on a plane, NaN for a plane.
    """

    surface: Surface
    leverage: float
    curvature_p: float


def _fit_plane(ring: _Ring) -> Surface:
    """The plane, robustly from nothing: its inverse depth is linear in the tangents of the viewing angles."""
    across_x, across_y, along = ring.tangent @ ring.directions.T
    depth = ring.ranges * along
    basis = np.stack([np.ones_like(along), across_x / along, across_y / along], axis=1)
    spread = np.linalg.eigvalsh(np.cov(basis[:, 1:].T))
    if not spread[0] > _MIN_ASPECT**2 * spread[1]:
        raise SurfaceError('all points around the rim lie on one line')
    inverse_depth = _solve(basis, 1.0 / depth, depth**4)
    for step in range(_IRLS_STEPS):
        fitted = 1.0 / (basis @ inverse_depth)
        residuals = depth - fitted
        scale = _robust_std(residuals, 3)
        weights = scale / np.maximum(np.abs(residuals), scale) if step < _L1_STEPS else _biweight(residuals, scale)
        change = _solve(-(fitted**2)[:, None] * basis, residuals, weights)
        inverse_depth += change
        if step >= _L1_STEPS and abs(change[0]) < _CONVERGED * scale * inverse_depth[0] ** 2:
            break
    normal = -inverse_depth @ np.stack([ring.tangent[2], ring.tangent[0], ring.tangent[1]])
    length = float(np.linalg.norm(normal))
    if not (np.isfinite(length) and inverse_depth[0] > _MIN_COSINE * length):
        raise SurfaceError('the surface around the rim is seen edge-on')
    normal /= length
    axis_x = np.cross([0.0, 1.0, 0.0] if abs(normal[1]) < 0.9 else [0.0, 0.0, 1.0], normal)
    axis_x /= np.linalg.norm(axis_x)
    axes = np.stack([axis_x, np.cross(normal, axis_x), normal])
    return Surface(ring.tangent[2] / inverse_depth[0], axes, np.zeros(6), np.zeros((6, 6)), 0.0, 0.0, len(depth))


def _refine(surface: Surface, ring: _Ring, terms: int, range_noise_m: float | None) -> _Fit:
    """`surface` with its first `terms` coefficients fitted, Gauss-Newton on the residuals along the rays."""
    across = ring.directions @ surface.axes.T
    coefficients = surface.coefficients.copy()
    for step in range(_MAX_REFINE_STEPS + 1):
        current = replace(surface, coefficients=coefficients)
        met = current.intersect(ring.directions)
        residuals = ring.ranges - np.sqrt(np.einsum('ij,ij->i', met, met))
        x, y, _ = current.to_local(met).T
        slope_x, slope_y = current.slopes(x, y)
        cosine = slope_x * across[:, 0] + slope_y * across[:, 1] - across[:, 2]
        missed = ~(cosine > 0.0)
        if missed.any():
            if missed.mean() > 0.1:
                raise SurfaceError('the surface around the rim is seen edge-on')
            residuals, x, y, cosine = (np.where(missed, 0.0, a) for a in (residuals, x, y, cosine))
            cosine = np.where(missed, np.inf, cosine)
        scale = _robust_std(residuals, terms)
        weights = _biweight(residuals, scale)
        jacobian = -_polynomials(x, y)[:, :terms] / cosine[:, None]
        change = _solve(jacobian, residuals, weights)
        if step == _MAX_REFINE_STEPS or abs(change[0]) < _CONVERGED * scale:
            break
        coefficients[:terms] += change
    noise = scale if range_noise_m is None else range_noise_m
    unscaled = _invert((jacobian * weights[:, None]).T @ jacobian)
    inside = weights > 0.0
    mean_cosine = float(cosine[inside].mean())
    patch_std, design_effect = _correlated_part(residuals[inside], ring.patches[inside], noise, terms)
    covariance = np.zeros((6, 6))
    covariance[:terms, :terms] = noise**2 * design_effect * unscaled
    curvature_p = math.nan
    if terms == 6:
        curvature = coefficients[3:]
        wald = float(curvature @ _invert(covariance[3:, 3:]) @ curvature) / 3.0
        curvature_p = float(fdtrc(3, len(residuals) - 6, wald))
    fitted = replace(
        surface,
        coefficients=coefficients,
        covariance=covariance,
        range_noise_m=noise,
        patch_std_m=patch_std * mean_cosine,
    )
    return _Fit(fitted, float(unscaled[0, 0] * weights.sum()) / mean_cosine**2, curvature_p)


def _correlated_part(residuals: Array, patches: NDArray[np.int64], noise: float, terms: int) -> tuple[float, float]:
    """Deviation of whole patches beyond what white noise explains, and what it does to the variance of a fit.

    One-way random effects by moments (DerSimonian and Laird 1986), when a chi-square test rejects white noise.
    """
    counts = np.bincount(patches)
    sums = np.bincount(patches, residuals)
    filled = counts > 0
    counts, sums = counts[filled], sums[filled]
    freedom = len(counts) - terms
    if freedom < 1 or noise <= 0.0:
        return 0.0, 1.0
    chi_square = float((sums**2 / counts).sum()) / noise**2
    if chi_square < chdtri(freedom, _PATCH_SIGNIFICANCE):
        return 0.0, 1.0
    count = float(counts.sum())
    variance = (chi_square - freedom) / (count * freedom / len(counts)) * noise**2
    design_effect = 1.0 + variance / noise**2 * float((counts**2).sum()) / count
    return math.sqrt(variance), design_effect


def _polynomials(x: Array, y: Array) -> Array:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _solve(jacobian: Array, target: Array, weights: Array) -> Array:
    """Weighted least squares by normal equations, columns scaled."""
    weighted = jacobian * weights[:, None]
    return _invert(weighted.T @ jacobian) @ (weighted.T @ target)


def _invert(normal_matrix: Array) -> Array:
    diagonal = np.diag(normal_matrix)
    if not (diagonal > 0.0).all():
        raise SurfaceError('the points around the rim do not define a surface')
    scales = np.sqrt(np.outer(diagonal, diagonal))
    try:
        inverse = np.linalg.inv(normal_matrix / scales) / scales
    except np.linalg.LinAlgError:
        raise SurfaceError('the points around the rim do not define a surface') from None
    return np.asarray(inverse)


def _robust_std(residuals: Array, parameters: int) -> float:
    """Deviation of normal `residuals` of a fit of so many parameters, from their median absolute value."""
    count = len(residuals)
    median = float(np.partition(np.abs(residuals), count // 2)[count // 2])
    return max(_MAD_TO_STD * median * math.sqrt(count / max(count - parameters, 1)), _NOISE_FLOOR_M)


def _biweight(residuals: Array, scale: float) -> Array:
    return np.asarray(np.maximum(1.0 - (residuals / (_TUKEY * scale)) ** 2, 0.0) ** 2)
