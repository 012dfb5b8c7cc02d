"""The undamaged surface around an airhole: a plane, or a quadric where the data ask for one.

Derivations are in docs/measurement.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, fdtrc, fdtri

from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.compiled import as_compiled, compiled, select

Array = NDArray[np.float64]

MIN_POINTS = 6
_QUADRIC_POINTS = 24
_L1_STEPS = 3
_IRLS_STEPS = 8
_MAX_REFINE_STEPS = 5
# The first plane is looked for in about so many points: enough for the basin of the biweight, which uses all.
_START_POINTS = 256
# Steps stop when the elevation at the airhole changes by less than this share of the noise.
_CONVERGED = 1e-3
# Tukey's biweight keeps 95 % efficiency on normal noise with this constant (Holland and Welsch 1977).
_TUKEY = 4.685
_MAD_TO_STD = 1.4826
# Points all on one side of the airhole extrapolate: the variance at the airhole over that at their centre.
_MAX_LEVERAGE = 10.0
# Of a plane through points of a curved surface: at 4 the airhole is at the edge of a strip of points. Farther out, what
# is no quadric decides, and the points do not tell.
_MAX_CURVED_LEVERAGE = 6.0
# A quadric has some amid its points too, and a plane that the data reject is worse.
_MAX_QUADRIC_LEVERAGE = 100.0
# Beyond 80 degrees of incidence a pixel covers too much surface.
_MIN_COSINE = 0.17
# So many rays may miss the surface.
_MAX_MISSED = 0.1
# A scan line is no surface: smaller over larger extent of the points, as seen by the sensor.
_MIN_ASPECT = 0.1
_PATCH_SIGNIFICANCE = 0.001
_HINT_SIGNIFICANCE = 0.05
# A plane whose residuals bend less than this has no need of a quadric to be fitted.
_BEND_SIGNIFICANCE = 0.2
_NOISE_FLOOR_M = 1e-7


class SurfacePoint(NamedTuple):
    """A point of a surface, (3,), and its unit normal out of the wall, (3,), as the sensor sees them.

    distance: from the sensor, metres. cosine: of incidence. elevation_std: standard deviation of h there from the fit,
    metres. area_std_ratio: the relative one of the area that a small solid angle cuts out there, the angle times
    distance^2 / cosine: it answers to the elevation and, obliquely seen, to the tilt.
    """

    position: Array
    normal: Array
    distance: float
    cosine: float
    elevation_std: float
    area_std_ratio: float


@dataclass(frozen=True, eq=False)
class Surface:
    """z = h(x, y), a quadric in a frame of its own: z points out of the wall, to the sensor.

    origin: (3,), metres. axes: (3, 3), rows x, y, z of that frame; both in the frame of the points it was fitted to.
    coefficients: (6,) of 1, x, y, x^2, xy, y^2. covariance: (6, 6), zero for the terms that a plane lacks.
    range_noise_m: standard deviation of one reading along its ray, from the residuals (or as given).
    patch_std_m: deviation of airhole-sized patches of the real surface from this one: texture, waviness, a shape that
    is no quadric. extrapolation: how many times as wrong it is at the airhole as among its points: 1 where these lie
    all around, up to 6 where they lie to one side.
    """

    origin: Array
    axes: Array
    coefficients: Array
    covariance: Array
    range_noise_m: float
    patch_std_m: float
    point_count: int
    extrapolation: float = 1.0

    def cast(self, rays: Array) -> Array:
        """Where `rays`, directions from the sensor, meet the surface first, in its own frame; NaN where they miss.

        Both (3, N), rows x, y, z.
        """
        return _cast(as_compiled(rays), self.origin, self.axes, self.coefficients)

    def at(self, x: float, y: float) -> SurfacePoint:
        """The point at x, y of the surface's own frame."""
        return SurfacePoint(*_look_at(float(x), float(y), self.origin, self.axes, self.coefficients, self.covariance))

    def enter(self, points: Array) -> tuple[Array, Array, Array, float]:
        """How the rays to `points`, (N, 3) in the camera frame, pass the surface.

        Returns where, (N, 2) along the surface; how far they go sideways per metre of depth, (N, 2); the depths of the
        points below the surface, (N,); and the mean cosine of incidence, NaN without points.
        """
        return _enter(as_compiled(points), self.origin, self.axes, self.coefficients)


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
    sight = as_compiled(sight)
    points, patch_size = as_compiled(points), 0.5 * patch_angle_rad
    origin, axes, coefficients = np.empty(3), np.empty((3, 3)), np.zeros(6)
    spread, cosine, fitted = _fit(points, sight, patch_size, 3, origin, axes, coefficients)
    if not spread > _MIN_ASPECT**2:
        raise SurfaceError('all points around the rim lie on one line')
    if not cosine > _MIN_COSINE:
        raise SurfaceError('the surface around the rim is seen edge-on')
    plane = _judge(coefficients, *fitted, 3, range_noise_m)
    if plane.leverage > _MAX_LEVERAGE:
        raise SurfaceError('all points lie to one side of the airhole')
    aside = max(plane.leverage, 1.0)
    chosen, extrapolation = plane, math.sqrt(aside)
    if len(points) >= _QUADRIC_POINTS and plane.curvature_f > _find_bend_limit(len(points) - 6):
        coefficients = plane.coefficients.copy()
        _, _, fitted = _fit(points, sight, patch_size, 6, origin, axes, coefficients)
        quadric = _judge(coefficients, *fitted, 6, range_noise_m)
        if quadric.leverage < _MAX_QUADRIC_LEVERAGE:
            curvature_p = float(fdtrc(3, len(points) - 6, quadric.curvature_f))
            doubted = curvature_p < _HINT_SIGNIFICANCE
            if curvature_p < curvature_significance:
                chosen, extrapolation = quadric, aside
                doubted = aside >= _MAX_CURVED_LEVERAGE
            if doubted:  # the other one may be right as well
                chosen.covariance[0, 0] += (quadric.coefficients[0] - plane.coefficients[0]) ** 2
    return Surface(
        origin,
        axes,
        chosen.coefficients,
        chosen.covariance,
        range_noise_m=chosen.noise,
        patch_std_m=chosen.patch_std,
        point_count=len(points),
        extrapolation=extrapolation,
    )


class _Fit(NamedTuple):
    """What a `Surface` takes from a fit, and what the choice between plane and quadric needs.

    leverage: variance of the elevation at the airhole over that of the mean of all points. curvature_f: squared
    curvature over its variance, F distributed on a plane; of a plane: of what one more step would give it.
    """

    coefficients: Array
    covariance: Array
    noise: float
    patch_std: float
    leverage: float
    curvature_f: float


def _judge(
    coefficients: Array,
    scale: float,
    missed: float,
    weight: float,
    mean_cosine: float,
    unscaled: Array,
    wald: float,
    patches: tuple[int, int, float, float],
    terms: int,
    range_noise_m: float | None,
) -> _Fit:
    """What `_refine` found, and how far it is right."""
    if missed > _MAX_MISSED:
        raise SurfaceError('the surface around the rim is seen edge-on')
    least_variance = float(unscaled[0, 0])
    if not least_variance > 0.0:
        raise SurfaceError('the points around the rim do not define a surface')
    noise = scale if range_noise_m is None else range_noise_m
    patch_std, design_effect = _correlated_part(*patches, noise, terms)
    variance = noise**2 * design_effect
    leverage = least_variance * weight / mean_cosine**2
    return _Fit(coefficients, variance * unscaled, noise, patch_std * mean_cosine, leverage, wald / (3.0 * variance))


def _correlated_part(
    patches: int, count: int, squared_counts: float, explained: float, noise: float, terms: int
) -> tuple[float, float]:
    """Deviation of whole patches beyond what white noise explains, and what it does to the variance of a fit.

    count residuals lie in so many patches; squared_counts: sum of the squared number in each. explained: sum of the
    squared sum in each over its number. One-way random effects by moments (DerSimonian and Laird 1986), when a
    chi-square test rejects white noise.
    """
    freedom = patches - terms
    if freedom < 1 or noise <= 0.0:
        return 0.0, 1.0
    chi_square = explained / noise**2
    if chi_square < _find_patch_limit(freedom):
        return 0.0, 1.0
    variance = (chi_square - freedom) / (count * freedom / patches) * noise**2
    return math.sqrt(variance), 1.0 + variance / noise**2 * squared_counts / count


@cache
def _find_bend_limit(freedom: int) -> float:
    """F that the curvature of a plane exceeds with the probability _BEND_SIGNIFICANCE."""
    return float(fdtri(3, freedom, 1.0 - _BEND_SIGNIFICANCE))


@cache
def _find_patch_limit(freedom: int) -> float:
    """Chi-square that white noise exceeds with the probability _PATCH_SIGNIFICANCE."""
    return float(chdtri(freedom, _PATCH_SIGNIFICANCE))


@compiled
def _eye(origin: Array, axes: Array) -> tuple[float, float, float]:
    """Where the sensor is in the surface's own frame."""
    x, y, z = origin
    return (
        -(axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z),
        -(axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z),
        -(axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z),
    )


@compiled
def _rotate(axes: Array, vectors: Array) -> Array:
    """`vectors` along `axes`, (3, 3) in rows; both (3, N), rows x, y, z, so that the loop takes several at a time."""
    rotated = np.empty_like(vectors)
    for row in range(3):
        by_x, by_y, by_z = axes[row]
        for i in range(vectors.shape[1]):
            rotated[row, i] = by_x * vectors[0, i] + by_y * vectors[1, i] + by_z * vectors[2, i]
    return rotated


@compiled
def _beneath(x: float, y: float, z: float, coefficients: Array) -> tuple[float, float, float]:
    """How high above the quadric a place is, and its slopes there."""
    a, b, c, d, e, f = coefficients
    return z - (a + (b + d * x + e * y) * x + (c + f * y) * y), b + 2.0 * d * x + e * y, c + e * x + 2.0 * f * y


@compiled
def _meet(
    dx: float, dy: float, dz: float, beneath: tuple[float, float, float], bends: tuple[float, float, float]
) -> float:
    """How many times (dx, dy, dz) it is from a place to the quadric; NaN or below zero where it is never met."""
    height, slope_x, slope_y = beneath
    d, e, f = bends
    # z(t) - h(x(t), y(t)) = quadratic t^2 + linear t + height
    quadratic = -(d * dx * dx + e * dx * dy + f * dy * dy)
    linear = dz - slope_x * dx - slope_y * dy
    # This form of the root tends to the plane's intersection as the curvature vanishes.
    return 2.0 * height / (math.sqrt(linear * linear - 4.0 * quadratic * height) - linear)


@compiled
def _cast(rays: Array, origin: Array, axes: Array, coefficients: Array) -> Array:
    local = _rotate(axes, rays)
    ox, oy, oz = _eye(origin, axes)
    beneath = _beneath(ox, oy, oz, coefficients)
    bends = (coefficients[3], coefficients[4], coefficients[5])
    for i in range(rays.shape[1]):
        dx, dy, dz = local[0, i], local[1, i], local[2, i]
        distance = _meet(dx, dy, dz, beneath, bends)
        distance = distance if distance > 0.0 else math.nan
        local[0, i], local[1, i], local[2, i] = ox + distance * dx, oy + distance * dy, oz + distance * dz
    return local


@compiled
def _enter(points: Array, origin: Array, axes: Array, coefficients: Array) -> tuple[Array, Array, Array, float]:
    ox, oy, oz = _eye(origin, axes)
    beneath = _beneath(ox, oy, oz, coefficients)
    bends = (coefficients[3], coefficients[4], coefficients[5])
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = axes
    places, drifts, depths = np.empty((len(points), 2)), np.empty((len(points), 2)), np.empty(len(points))
    cosines = 0.0
    for i in range(len(points)):
        x, y, z = points[i]
        dx, dy, dz = xx * x + xy * y + xz * z, yx * x + yy * y + yz * z, zx * x + zy * y + zz * z
        distance = _meet(dx, dy, dz, beneath, bends)
        distance = distance if distance > 0.0 else math.nan
        x, y, z = ox + distance * dx, oy + distance * dy, oz + distance * dz
        _, slope_x, slope_y = _beneath(x, y, z, coefficients)
        sinking = slope_x * dx + slope_y * dy - dz
        cosines += sinking / math.sqrt(dx * dx + dy * dy + dz * dz)
        places[i, 0], places[i, 1] = x, y
        drifts[i, 0], drifts[i, 1] = dx / sinking, dy / sinking
        height, _, _ = _beneath(ox + dx, oy + dy, oz + dz, coefficients)
        depths[i] = -height
    return places, drifts, depths, cosines / len(points)


@compiled
def _look_at(
    x: float, y: float, origin: Array, axes: Array, coefficients: Array, covariance: Array
) -> tuple[Array, Array, float, float, float, float]:
    """The fields of a `SurfacePoint`."""
    a, b, c, d, e, f = coefficients
    z = a + (b + d * x + e * y) * x + (c + f * y) * y
    slope_x, slope_y = b + 2.0 * d * x + e * y, c + e * x + 2.0 * f * y
    steepness = 1.0 + slope_x * slope_x + slope_y * slope_y
    point, normal = np.empty(3), np.empty(3)
    squared, along = 0.0, 0.0
    for axis in range(3):
        point[axis] = origin[axis] + x * axes[0, axis] + y * axes[1, axis] + z * axes[2, axis]
        normal[axis] = (axes[2, axis] - slope_x * axes[0, axis] - slope_y * axes[1, axis]) / math.sqrt(steepness)
        squared += point[axis] ** 2
        along += point[axis] * normal[axis]
    distance = math.sqrt(squared)

    eye_x, eye_y, eye_z = _eye(origin, axes)
    ray_x, ray_y, ray_z = x - eye_x, y - eye_y, z - eye_z
    # The surface moved by dh is met a share dh / sinking nearer; of the cosine sinking / (D |normal|) the tilt changes
    # sinking and the length of the normal.
    sinking = slope_x * ray_x + slope_y * ray_y - ray_z
    by_h, by_x, by_y = -2.0 / sinking, slope_x / steepness - ray_x / sinking, slope_y / steepness - ray_y / sinking
    places = (1.0, x, y, x * x, x * y, y * y)
    by_slope_x, by_slope_y = (0.0, 1.0, 0.0, 2.0 * x, y, 0.0), (0.0, 0.0, 1.0, 0.0, x, 2.0 * y)
    elevation, area = np.empty(6), np.empty(6)
    for term in range(6):
        elevation[term] = places[term]
        area[term] = by_h * places[term] + by_x * by_slope_x[term] + by_y * by_slope_y[term]
    elevation_std = math.sqrt(max(_propagate(covariance, elevation), 0.0))
    area_std_ratio = math.sqrt(max(_propagate(covariance, area), 0.0))
    return point, normal, distance, abs(along) / distance, elevation_std, area_std_ratio


@compiled
def _propagate(covariance: Array, gradient: Array) -> float:
    variance = 0.0
    for row in range(6):
        for column in range(6):
            variance += gradient[row] * covariance[row, column] * gradient[column]
    return variance


@compiled
def _cross(a: Array, b: Array, into: Array) -> None:
    """Writes the unit vector along the cross product."""
    into[0], into[1], into[2] = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
    length = math.sqrt(into[0] ** 2 + into[1] ** 2 + into[2] ** 2)
    for axis in range(3):
        into[axis] /= length


@compiled
def _tangent_frame(sight: Array) -> Array:
    """(3, 3), rows: two axes across the sight and the sight itself, units."""
    tangent, up = np.zeros((3, 3)), np.zeros(3)
    length = math.sqrt(sight[0] ** 2 + sight[1] ** 2 + sight[2] ** 2)
    for axis in range(3):
        tangent[2, axis] = sight[axis] / length
    if abs(tangent[2, 2]) < 0.5:
        up[2] = 1.0
    else:
        up[1] = -1.0
    _cross(tangent[2], up, tangent[0])
    _cross(tangent[2], tangent[0], tangent[1])
    return tangent


@compiled
def _see_ring(points: Array, sight: Array, patch_size: float) -> tuple[Array, Array, NDArray[np.int64], int]:
    """Points around the rim as the sensor sees them.

    Directions, (3, N) units, rows x, y, z; ranges, (N,); and for each the number, of how many, of the patch, of that
    size as seen from the sensor, that it lies in.
    """
    count = len(points)
    tangent = _tangent_frame(sight)
    directions, ranges, patches = np.empty((3, count)), np.empty(count), np.empty(count, np.int64)
    columns, rows = np.empty(count), np.empty(count)
    left, top, right, bottom = 0.0, 0.0, 0.0, 0.0
    for i in range(count):
        x, y, z = points[i]
        ranges[i] = math.sqrt(x * x + y * y + z * z)
        closeness = 1.0 / ranges[i]
        directions[0, i], directions[1, i], directions[2, i] = x * closeness, y * closeness, z * closeness
        per_patch = closeness / patch_size
        columns[i] = math.floor((tangent[0, 0] * x + tangent[0, 1] * y + tangent[0, 2] * z) * per_patch)
        rows[i] = math.floor((tangent[1, 0] * x + tangent[1, 1] * y + tangent[1, 2] * z) * per_patch)
        left, top = min(left, columns[i]), min(top, rows[i])
        right, bottom = max(right, columns[i]), max(bottom, rows[i])
    height = bottom - top + 1.0
    for i in range(count):
        patches[i] = int((columns[i] - left) * height + rows[i] - top)
    return directions, ranges, patches, int((right - left + 1.0) * height)


@compiled
def _robust_std(residuals: Array, parameters: int) -> float:
    """Deviation of normal `residuals` of a fit of so many parameters, from their median absolute value."""
    count = len(residuals)
    sizes = np.empty(count)
    for i in range(count):
        sizes[i] = abs(residuals[i])
    median = select(sizes, count // 2)
    return max(_MAD_TO_STD * median * math.sqrt(count / max(count - parameters, 1)), _NOISE_FLOOR_M)


@compiled
def _invert(matrix: Array, terms: int) -> Array:
    """Inverse of the first `terms` rows and columns of a symmetric positive matrix, columns scaled. Zero when it has
    none, and in the rest.
    """
    inverse = np.zeros_like(matrix)
    for i in range(terms):
        if not matrix[i, i] > 0.0:
            return inverse
    scales = np.empty(terms)
    for i in range(terms):
        scales[i] = 1.0 / math.sqrt(matrix[i, i])
    # Cholesky's lower factor, inverted in place
    lower = np.zeros((terms, terms))
    for i in range(terms):
        for j in range(i + 1):
            rest = matrix[i, j] * scales[i] * scales[j]
            for k in range(j):
                rest -= lower[i, k] * lower[j, k]
            if i == j:
                if not rest > 1e-14:
                    return inverse
                lower[i, i] = math.sqrt(rest)
            else:
                lower[i, j] = rest / lower[j, j]
    for j in range(terms):
        lower[j, j] = 1.0 / lower[j, j]
        for i in range(j + 1, terms):
            rest = 0.0
            for k in range(j, i):
                rest -= lower[i, k] * lower[k, j]
            lower[i, j] = rest / lower[i, i]
    for i in range(terms):
        for j in range(i + 1):
            total = 0.0
            for k in range(i, terms):
                total += lower[k, i] * lower[k, j]
            inverse[i, j] = inverse[j, i] = total * scales[i] * scales[j]
    return inverse


@compiled
def _start_plane(directions: Array, ranges: Array, sight: Array) -> tuple[float, float, Array, Array]:
    """A plane through some of the points: its inverse depth is linear in the tangents u, v of the viewing angles.

    Returns the smaller over the larger variance of these, the cosine of incidence, and a `Surface`'s origin and axes.
    """
    tangent = _tangent_frame(sight)
    count = len(ranges)
    step = count // _START_POINTS + 1
    picked = (count + step - 1) // step
    u, v, depth = np.empty(picked), np.empty(picked), np.empty(picked)
    mean_u, mean_v = 0.0, 0.0
    for i in range(picked):
        x, y, z = directions[0, i * step], directions[1, i * step], directions[2, i * step]
        ahead = tangent[2, 0] * x + tangent[2, 1] * y + tangent[2, 2] * z
        u[i] = (tangent[0, 0] * x + tangent[0, 1] * y + tangent[0, 2] * z) / ahead
        v[i] = (tangent[1, 0] * x + tangent[1, 1] * y + tangent[1, 2] * z) / ahead
        depth[i] = ranges[i * step] * ahead
        mean_u += u[i] / picked
        mean_v += v[i] / picked
    uu, uv, vv = 0.0, 0.0, 0.0
    for i in range(picked):
        uu += (u[i] - mean_u) ** 2
        uv += (u[i] - mean_u) * (v[i] - mean_v)
        vv += (v[i] - mean_v) ** 2
    root = math.sqrt((uu - vv) ** 2 + 4.0 * uv * uv)
    spread = (uu + vv - root) / (uu + vv + root)

    inverse_depth = np.zeros(3)
    residuals, weights, targets = np.empty(picked), np.empty(picked), np.empty(picked)
    for iteration in range(_IRLS_STEPS + 1):
        scale = 1.0
        if iteration == 0:  # straight to the inverse depths, each as good as its depth
            for i in range(picked):
                weights[i], targets[i] = depth[i] ** 4, 1.0 / depth[i]
        else:
            for i in range(picked):
                residuals[i] = depth[i] - 1.0 / (inverse_depth[0] + inverse_depth[1] * u[i] + inverse_depth[2] * v[i])
            scale = _robust_std(residuals, len(inverse_depth))
            for i in range(picked):
                if iteration <= _L1_STEPS:
                    weight = scale / max(abs(residuals[i]), scale)
                else:
                    weight = max(1.0 - (residuals[i] / (_TUKEY * scale)) ** 2, 0.0) ** 2
                squared = (depth[i] - residuals[i]) ** 2
                weights[i], targets[i] = weight * squared**2, -residuals[i] / squared
        m00 = m10 = m01 = m20 = m11 = m02 = p0 = p1 = p2 = 0.0
        for i in range(picked):
            weight, pull_here = weights[i], weights[i] * targets[i]
            m00 += weight
            m10 += weight * u[i]
            m01 += weight * v[i]
            m20 += weight * u[i] * u[i]
            m11 += weight * u[i] * v[i]
            m02 += weight * v[i] * v[i]
            p0 += pull_here
            p1 += pull_here * u[i]
            p2 += pull_here * v[i]
        normal, pull = np.array([[m00, m10, m01], [m10, m20, m11], [m01, m11, m02]]), (p0, p1, p2)
        inverse = _invert(normal, len(inverse_depth))
        first = 0.0
        for row in range(3):
            change = inverse[row, 0] * pull[0] + inverse[row, 1] * pull[1] + inverse[row, 2] * pull[2]
            inverse_depth[row] += change
            if row == 0:
                first = change
        if iteration > _L1_STEPS and abs(first) < _CONVERGED * scale * inverse_depth[0] ** 2:
            break

    length = math.sqrt(inverse_depth[0] ** 2 + inverse_depth[1] ** 2 + inverse_depth[2] ** 2)
    origin, axes, up = np.empty(3), np.zeros((3, 3)), np.zeros(3)
    for axis in range(3):
        origin[axis] = tangent[2, axis] / inverse_depth[0]
        across = inverse_depth[1] * tangent[0, axis] + inverse_depth[2] * tangent[1, axis]
        axes[2, axis] = -(inverse_depth[0] * tangent[2, axis] + across) / length
    if abs(axes[2, 1]) < 0.9:
        up[1] = 1.0
    else:
        up[2] = 1.0
    _cross(up, axes[2], axes[0])
    _cross(axes[2], axes[0], axes[1])
    return spread, inverse_depth[0] / length, origin, axes


@compiled
def _sum_moments(x: Array, y: Array, shares: Array, pulls: Array, terms: int, normal: Array, pull: Array) -> None:
    """Writes the normal equations, (6, 6) and (6,), of the first `terms`, 3 or 6, of 1, x, y, x^2, xy, y^2."""
    m00 = m10 = m01 = m20 = m11 = m02 = m30 = m21 = m12 = m03 = m40 = m31 = m22 = m13 = m04 = 0.0
    p00 = p10 = p01 = p20 = p11 = p02 = 0.0
    for i in range(len(x)):
        share, pulled, xi, yi = shares[i], pulls[i], x[i], y[i]
        m00 += share
        m10 += share * xi
        m01 += share * yi
        m20 += share * xi * xi
        m11 += share * xi * yi
        m02 += share * yi * yi
        p00 += pulled
        p10 += pulled * xi
        p01 += pulled * yi
    if terms > 3:
        for i in range(len(x)):
            xx, xy, yy = x[i] * x[i], x[i] * y[i], y[i] * y[i]
            by_xx, by_xy, by_yy = shares[i] * xx, shares[i] * xy, shares[i] * yy
            m30 += by_xx * x[i]
            m21 += by_xx * y[i]
            m12 += by_yy * x[i]
            m03 += by_yy * y[i]
            m40 += by_xx * xx
            m31 += by_xx * xy
            m22 += by_xx * yy
            m13 += by_xy * yy
            m04 += by_yy * yy
            p20 += pulls[i] * xx
            p11 += pulls[i] * xy
            p02 += pulls[i] * yy
    moments = (
        (m00, m10, m01, m20, m11, m02),
        (m10, m20, m11, m30, m21, m12),
        (m01, m11, m02, m21, m12, m03),
        (m20, m30, m21, m40, m31, m22),
        (m11, m21, m12, m31, m22, m13),
        (m02, m12, m03, m22, m13, m04),
    )
    answers = (p00, p10, p01, p20, p11, p02)
    for row in range(6):
        pull[row] = answers[row]
        for column in range(6):
            normal[row, column] = moments[row][column]


@compiled
def _refine(
    coefficients: Array,
    origin: Array,
    axes: Array,
    directions: Array,
    ranges: Array,
    patches: NDArray[np.int64],
    patch_count: int,
    terms: int,
) -> tuple[float, float, float, float, Array, float, tuple[int, int, float, float]]:
    """Fits the first `terms` of the coefficients in place.

    Returns the robust deviation, the share of rays that missed, the sum of the weights, the mean cosine of incidence,
    the inverse of the normal matrix (6, 6), the squared curvature over its covariance of unit noise (for a plane: that
    of the next step to a quadric), and what `_correlated_part` takes first.
    """
    count = len(ranges)
    across = _rotate(axes, directions)
    dx, dy, dz = across[0], across[1], across[2]
    ox, oy, oz = _eye(origin, axes)
    x, y, slant, residuals = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
    shares, pulls = np.empty(count), np.empty(count)
    unscaled, normal, pull = np.zeros((6, 6)), np.zeros((6, 6)), np.zeros(6)
    scale, weight_sum = 0.0, 0.0
    for iteration in range(_MAX_REFINE_STEPS + 1):
        beneath = _beneath(ox, oy, oz, coefficients)
        _, b, c, d, e, f = coefficients
        met = 0
        for i in range(count):
            distance = _meet(dx[i], dy[i], dz[i], beneath, (d, e, f))
            here_x, here_y = ox + distance * dx[i], oy + distance * dy[i]
            cosine = (b + 2.0 * d * here_x + e * here_y) * dx[i] + (c + e * here_x + 2.0 * f * here_y) * dy[i] - dz[i]
            seen = cosine > 0.0 and distance > 0.0
            residuals[i], slant[i] = ranges[i] - distance if seen else 0.0, 1.0 / cosine if seen else 0.0
            x[i], y[i] = here_x if seen else 0.0, here_y if seen else 0.0
            met += seen
        if met < (1.0 - _MAX_MISSED) * count:
            break
        scale = _robust_std(residuals, terms)
        weight_sum = 0.0
        for i in range(count):
            weight = max(1.0 - (residuals[i] / (_TUKEY * scale)) ** 2, 0.0) ** 2
            weight_sum += weight
            # the derivative of a residual by the elevation is minus the slant
            shares[i], pulls[i] = weight * slant[i] ** 2, -weight * slant[i] * residuals[i]
        _sum_moments(x, y, shares, pulls, terms, normal, pull)
        unscaled = _invert(normal, terms)
        change = np.zeros(6)
        for row in range(terms):
            for column in range(terms):
                change[row] += unscaled[row, column] * pull[column]
        if iteration == _MAX_REFINE_STEPS or abs(change[0]) < _CONVERGED * scale:
            break
        for row in range(terms):
            coefficients[row] += change[row]
    if terms == 3:  # a plane's equations, continued to those of a quadric
        _sum_moments(x, y, shares, pulls, 6, normal, pull)

    met, inside, cosines = 0, 0, 0.0
    numbers, sums = np.zeros(patch_count), np.zeros(patch_count)
    for i in range(count):
        if slant[i] > 0.0:
            met += 1
            if abs(residuals[i]) < _TUKEY * scale:
                inside += 1
                cosines += 1.0 / slant[i]
                numbers[patches[i]] += 1.0
                sums[patches[i]] += residuals[i]
    filled, squared_numbers, explained = 0, 0.0, 0.0
    for patch in range(patch_count):
        if numbers[patch] > 0.0:
            filled += 1
            squared_numbers += numbers[patch] ** 2
            explained += sums[patch] ** 2 / numbers[patch]
    whole = _invert(normal, len(pull))
    bend, variance = np.zeros(3), np.zeros((3, 3))
    for row in range(3):
        bend[row] = coefficients[3 + row]
        if terms == 3:
            for column in range(6):
                bend[row] += whole[3 + row, column] * pull[column]
        for column in range(3):
            variance[row, column] = whole[3 + row, 3 + column]
    information = _invert(variance, len(bend))
    wald = 0.0
    for row in range(3):
        for column in range(3):
            wald += bend[row] * information[row, column] * bend[column]
    mean_cosine = cosines / inside if inside > 0 else math.nan
    within = (filled, inside, squared_numbers, explained)
    return scale, 1.0 - met / count, weight_sum, mean_cosine, unscaled, wald, within


@compiled
def _fit(
    points: Array, sight: Array, patch_size: float, terms: int, origin: Array, axes: Array, coefficients: Array
) -> tuple[float, float, tuple[float, float, float, float, Array, float, tuple[int, int, float, float]]]:
    """Writes the plane, 3 terms, or the quadric that is near the plane given, 6 terms.

    Returns spread and cosine as `_start_plane` does (of a quadric: 1), and what `_refine` returns.
    """
    directions, ranges, patches, patch_count = _see_ring(points, sight, patch_size)
    spread, cosine = 1.0, 1.0
    if terms == 3:
        spread, cosine, origin[:], axes[:] = _start_plane(directions, ranges, sight)
    fitted = _refine(coefficients, origin, axes, directions, ranges, patches, patch_count, terms)
    return spread, cosine, fitted
