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

    @property
    def is_plane(self) -> bool:
        """Whether there is no curvature."""
        return not bool(self.coefficients[3:].any())

    @property
    def normal(self) -> Array:
        """Unit normal out of the wall at the origin, (3,)."""
        return self.point_at(0.0, 0.0)[1]

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
        return self.from_local(self.cast(rays))

    def cast(self, rays: Array) -> Array:
        """The same as `intersect`, in the surface's own frame."""
        return _cast(as_compiled(rays), self.origin, self.axes, self.coefficients)

    def point_at(self, x: float, y: float) -> tuple[Array, Array]:
        """The point of the surface at x, y of its own frame, and the unit normal out of the wall there, each (3,)."""
        return _point_at(float(x), float(y), self.origin, self.axes, self.coefficients)

    def elevation_std(self, x: float, y: float) -> float:
        """Standard deviation of h(x, y) from the fit, metres."""
        return math.sqrt(max(_elevation_variance(self.covariance, float(x), float(y)), 0.0))

    def area_std_ratio(self, x: float, y: float) -> float:
        """Relative standard deviation, from the fit, of the area at x, y that a small solid angle cuts out.

        The area is the solid angle times D^2 / cosine for a distance D: it answers to the elevation and, obliquely
        seen, to the tilt.
        """
        x, y = float(x), float(y)
        return math.sqrt(max(_area_variance(self.covariance, x, y, self.origin, self.axes, self.coefficients), 0.0))

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
    ring = _Ring(*_see_ring(as_compiled(points), sight, 0.5 * patch_angle_rad))
    origin, axes = _find_plane(ring, sight)
    plane = _refine(origin, axes, np.zeros(6), ring, 3, range_noise_m)
    if plane.leverage > _MAX_LEVERAGE:
        raise SurfaceError('all points lie to one side of the airhole')
    aside = max(plane.leverage, 1.0)
    flat = replace(plane.surface, extrapolation=math.sqrt(aside))
    if len(points) >= _QUADRIC_POINTS and plane.curvature_p < _BEND_SIGNIFICANCE:
        quadric = _refine(origin, axes, plane.surface.coefficients.copy(), ring, 6, range_noise_m)
        if quadric.leverage < _MAX_QUADRIC_LEVERAGE:
            if quadric.curvature_p < curvature_significance:
                curved = replace(quadric.surface, extrapolation=aside)
                return curved if aside < _MAX_CURVED_LEVERAGE else _doubt(curved, flat)
            if quadric.curvature_p < _HINT_SIGNIFICANCE:
                return _doubt(flat, quadric.surface)
    return flat


def _doubt(surface: Surface, other: Surface) -> Surface:
    """`surface`, whose elevation at the airhole deviates by its difference from `other`, which may be right as well."""
    covariance = surface.covariance.copy()
    covariance[0, 0] += (surface.coefficients[0] - other.coefficients[0]) ** 2
    return replace(surface, covariance=covariance)


@dataclass(frozen=True, eq=False)
class _Ring:
    """Points around the rim as the sensor sees them: where along which ray.

    directions: (N, 3) unit. ranges: (N,). patches: (N,) number, below `patch_count`, of the patch, half an airhole
    wide, that a point lies in.
    """

    directions: Array
    ranges: Array
    patches: NDArray[np.int64]
    patch_count: int


@dataclass(frozen=True, eq=False)
class _Fit:
    """A surface and what the choice between plane and quadric needs.

    leverage: variance of the elevation at the airhole over that of the mean of all points. curvature_p: probability of
    so much curvature on a plane; of a plane: of the curvature that one more step would give it.
    """

    surface: Surface
    leverage: float
    curvature_p: float


def _find_plane(ring: _Ring, sight: Array) -> tuple[Array, Array]:
    """Origin and axes of a `Surface` that is the plane, robustly from nothing."""
    spread, cosine, origin, axes = _start_plane(ring.directions, ring.ranges, sight)
    if not spread > _MIN_ASPECT**2:
        raise SurfaceError('all points around the rim lie on one line')
    if not cosine > _MIN_COSINE:
        raise SurfaceError('the surface around the rim is seen edge-on')
    return origin, axes


def _refine(
    origin: Array, axes: Array, coefficients: Array, ring: _Ring, terms: int, range_noise_m: float | None
) -> _Fit:
    """The surface with the first `terms` of `coefficients` fitted in place, Gauss-Newton on residuals along rays."""
    scale, missed, weight, mean_cosine, unscaled, wald, patches = _refine_coefficients(
        coefficients, origin, axes, ring.directions, ring.ranges, ring.patches, ring.patch_count, terms
    )
    if missed > _MAX_MISSED:
        raise SurfaceError('the surface around the rim is seen edge-on')
    least_variance = float(unscaled[0, 0])
    if not least_variance > 0.0:
        raise SurfaceError('the points around the rim do not define a surface')
    noise = scale if range_noise_m is None else range_noise_m
    patch_std, design_effect = _correlated_part(*patches, noise, terms)
    variance = noise**2 * design_effect
    surface = Surface(
        origin,
        axes,
        coefficients,
        variance * unscaled,
        range_noise_m=noise,
        patch_std_m=patch_std * mean_cosine,
        point_count=len(ring.ranges),
    )
    curvature_p = float(fdtrc(3, len(ring.ranges) - 6, wald / (3.0 * variance)))
    return _Fit(surface, least_variance * weight / mean_cosine**2, curvature_p)


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
    if chi_square < chdtri(freedom, _PATCH_SIGNIFICANCE):
        return 0.0, 1.0
    variance = (chi_square - freedom) / (count * freedom / patches) * noise**2
    return math.sqrt(variance), 1.0 + variance / noise**2 * squared_counts / count


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
    """`vectors`, (N, 3), along `axes`, (3, 3) in rows."""
    rotated = np.empty_like(vectors)
    for i in range(len(vectors)):
        for row in range(3):
            rotated[i, row] = axes[row, 0] * vectors[i, 0] + axes[row, 1] * vectors[i, 1] + axes[row, 2] * vectors[i, 2]
    return rotated


@compiled
def _cast(rays: Array, origin: Array, axes: Array, coefficients: Array) -> Array:
    local = np.empty_like(rays)
    across = _rotate(axes, rays)
    ox, oy, oz = _eye(origin, axes)
    a, b, c, d, e, f = coefficients
    # z(t) - h(x(t), y(t)) = A t^2 + B t + C
    constant = oz - (a + (b + d * ox + e * oy) * ox + (c + f * oy) * oy)
    slope_x, slope_y = b + 2.0 * d * ox + e * oy, c + e * ox + 2.0 * f * oy
    for i in range(len(rays)):
        dx, dy, dz = across[i]
        quadratic = -(d * dx * dx + e * dx * dy + f * dy * dy)
        linear = dz - slope_x * dx - slope_y * dy
        # This form of the root tends to the plane's intersection as the curvature vanishes.
        distance = 2.0 * constant / (math.sqrt(linear * linear - 4.0 * quadratic * constant) - linear)
        if not distance > 0.0:
            distance = math.nan
        local[i, 0] = ox + distance * dx
        local[i, 1] = oy + distance * dy
        local[i, 2] = oz + distance * dz
    return local


@compiled
def _enter(points: Array, origin: Array, axes: Array, coefficients: Array) -> tuple[Array, Array, Array, float]:
    ends, entries = _rotate(axes, points), _cast(points, origin, axes, coefficients)
    ox, oy, oz = _eye(origin, axes)
    a, b, c, d, e, f = coefficients
    places, drifts, depths = np.empty((len(points), 2)), np.empty((len(points), 2)), np.empty(len(points))
    cosines = 0.0
    for i in range(len(points)):
        dx, dy, dz = ends[i]
        x, y = entries[i, 0], entries[i, 1]
        sinking = (b + 2.0 * d * x + e * y) * dx + (c + e * x + 2.0 * f * y) * dy - dz
        cosines += sinking / math.sqrt(dx * dx + dy * dy + dz * dz)
        places[i, 0], places[i, 1] = x, y
        drifts[i, 0], drifts[i, 1] = dx / sinking, dy / sinking
        x, y = ox + dx, oy + dy
        depths[i] = a + (b + d * x + e * y) * x + (c + f * y) * y - oz - dz
    return places, drifts, depths, cosines / len(points)


@compiled
def _point_at(x: float, y: float, origin: Array, axes: Array, coefficients: Array) -> tuple[Array, Array]:
    a, b, c, d, e, f = coefficients
    z = a + (b + d * x + e * y) * x + (c + f * y) * y
    slope_x, slope_y = b + 2.0 * d * x + e * y, c + e * x + 2.0 * f * y
    length = math.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
    point, normal = np.empty(3), np.empty(3)
    for axis in range(3):
        point[axis] = origin[axis] + x * axes[0, axis] + y * axes[1, axis] + z * axes[2, axis]
        normal[axis] = (axes[2, axis] - slope_x * axes[0, axis] - slope_y * axes[1, axis]) / length
    return point, normal


@compiled
def _elevation_variance(covariance: Array, x: float, y: float) -> float:
    return _propagate(covariance, np.array([1.0, x, y, x * x, x * y, y * y]))


@compiled
def _area_variance(covariance: Array, x: float, y: float, origin: Array, axes: Array, coefficients: Array) -> float:
    """Relative variance of D^2 / cosine at x, y."""
    a, b, c, d, e, f = coefficients
    slope_x, slope_y = b + 2.0 * d * x + e * y, c + e * x + 2.0 * f * y
    eye_x, eye_y, eye_z = _eye(origin, axes)
    ray_x, ray_y, ray_z = x - eye_x, y - eye_y, a + (b + d * x + e * y) * x + (c + f * y) * y - eye_z
    # The surface moved by dh is met a share dh / sinking nearer; of the cosine sinking / (D |normal|) the tilt changes
    # sinking and the length of the normal.
    sinking = slope_x * ray_x + slope_y * ray_y - ray_z
    normal = 1.0 + slope_x * slope_x + slope_y * slope_y
    by_h, by_x, by_y = -2.0 / sinking, slope_x / normal - ray_x / sinking, slope_y / normal - ray_y / sinking
    answer = np.array(
        [
            by_h,
            by_h * x + by_x,
            by_h * y + by_y,
            by_h * x * x + 2.0 * by_x * x,
            by_h * x * y + by_x * y + by_y * x,
            by_h * y * y + 2.0 * by_y * y,
        ]
    )
    return _propagate(covariance, answer)


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
    """The fields of a `_Ring`."""
    count = len(points)
    tangent = _tangent_frame(sight)
    directions, ranges, patches = np.empty((count, 3)), np.empty(count), np.empty(count, np.int64)
    columns, rows = np.empty(count, np.int64), np.empty(count, np.int64)
    left, top, right, bottom = 0, 0, 0, 0
    for i in range(count):
        x, y, z = points[i]
        ranges[i] = math.sqrt(x * x + y * y + z * z)
        for axis in range(3):
            directions[i, axis] = points[i, axis] / ranges[i]
        size = ranges[i] * patch_size
        columns[i] = math.floor((tangent[0, 0] * x + tangent[0, 1] * y + tangent[0, 2] * z) / size)
        rows[i] = math.floor((tangent[1, 0] * x + tangent[1, 1] * y + tangent[1, 2] * z) / size)
        left, top = min(left, columns[i]), min(top, rows[i])
        right, bottom = max(right, columns[i]), max(bottom, rows[i])
    for i in range(count):
        patches[i] = (columns[i] - left) * (bottom - top + 1) + rows[i] - top
    return directions, ranges, patches, (right - left + 1) * (bottom - top + 1)


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
    seen = _rotate(tangent, directions[::step].copy())
    mean_u, mean_v = 0.0, 0.0
    for i in range(picked):
        u[i], v[i], depth[i] = seen[i, 0] / seen[i, 2], seen[i, 1] / seen[i, 2], ranges[i * step] * seen[i, 2]
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
    residuals = np.empty(picked)
    for iteration in range(_IRLS_STEPS + 1):
        scale = 1.0
        if iteration > 0:
            for i in range(picked):
                residuals[i] = depth[i] - 1.0 / (inverse_depth[0] + inverse_depth[1] * u[i] + inverse_depth[2] * v[i])
            scale = _robust_std(residuals, len(inverse_depth))
        normal, pull = np.zeros((3, 3)), np.zeros(3)
        for i in range(picked):
            if iteration == 0:  # straight to the inverse depths, each as good as its depth
                weight, target = depth[i] ** 4, 1.0 / depth[i]
            else:
                fitted = depth[i] - residuals[i]
                if iteration <= _L1_STEPS:
                    weight = scale / max(abs(residuals[i]), scale)
                else:
                    weight = max(1.0 - (residuals[i] / (_TUKEY * scale)) ** 2, 0.0) ** 2
                weight *= fitted**4
                target = -residuals[i] / fitted**2
            normal[0, 0] += weight
            normal[1, 0] += weight * u[i]
            normal[2, 0] += weight * v[i]
            normal[1, 1] += weight * u[i] * u[i]
            normal[2, 1] += weight * u[i] * v[i]
            normal[2, 2] += weight * v[i] * v[i]
            pull[0] += weight * target
            pull[1] += weight * target * u[i]
            pull[2] += weight * target * v[i]
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
def _refine_coefficients(
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
    ox, oy, oz = _eye(origin, axes)
    x, y, slant, residuals = np.empty(count), np.empty(count), np.empty(count), np.empty(count)
    unscaled, normal, pull = np.zeros((6, 6)), np.zeros((6, 6)), np.zeros(6)
    scale, weight_sum = 0.0, 0.0
    for iteration in range(_MAX_REFINE_STEPS + 1):
        a, b, c, d, e, f = coefficients
        constant = oz - (a + (b + d * ox + e * oy) * ox + (c + f * oy) * oy)
        slope_x, slope_y = b + 2.0 * d * ox + e * oy, c + e * ox + 2.0 * f * oy
        met = 0
        for i in range(count):
            dx, dy, dz = across[i]
            quadratic = -(d * dx * dx + e * dx * dy + f * dy * dy)
            linear = dz - slope_x * dx - slope_y * dy
            distance = 2.0 * constant / (math.sqrt(linear * linear - 4.0 * quadratic * constant) - linear)
            x[i], y[i] = ox + distance * dx, oy + distance * dy
            cosine = (b + 2.0 * d * x[i] + e * y[i]) * dx + (c + e * x[i] + 2.0 * f * y[i]) * dy - dz
            if cosine > 0.0 and distance > 0.0:
                residuals[i], slant[i] = ranges[i] - distance, 1.0 / cosine
                met += 1
            else:
                residuals[i], slant[i], x[i], y[i] = 0.0, 0.0, 0.0, 0.0
        if met < (1.0 - _MAX_MISSED) * count:
            break
        scale = _robust_std(residuals, terms)
        m00 = m10 = m01 = m20 = m11 = m02 = m30 = m21 = m12 = m03 = m40 = m31 = m22 = m13 = m04 = 0.0
        p00 = p10 = p01 = p20 = p11 = p02 = 0.0
        weight_sum = 0.0
        for i in range(count):
            weight = max(1.0 - (residuals[i] / (_TUKEY * scale)) ** 2, 0.0) ** 2
            weight_sum += weight
            # the derivative of a residual by the elevation is minus the slant
            pull_here = -weight * slant[i] * residuals[i]
            here = weight * slant[i] ** 2
            xi, yi = x[i], y[i]
            xx, xy, yy = xi * xi, xi * yi, yi * yi
            m00 += here
            m10 += here * xi
            m01 += here * yi
            m20 += here * xx
            m11 += here * xy
            m02 += here * yy
            m30 += here * xx * xi
            m21 += here * xx * yi
            m12 += here * yy * xi
            m03 += here * yy * yi
            m40 += here * xx * xx
            m31 += here * xx * xy
            m22 += here * xx * yy
            m13 += here * xy * yy
            m04 += here * yy * yy
            p00 += pull_here
            p10 += pull_here * xi
            p01 += pull_here * yi
            p20 += pull_here * xx
            p11 += pull_here * xy
            p02 += pull_here * yy
        moments = (
            (m00, m10, m01, m20, m11, m02),
            (m10, m20, m11, m30, m21, m12),
            (m01, m11, m02, m21, m12, m03),
            (m20, m30, m21, m40, m31, m22),
            (m11, m21, m12, m31, m22, m13),
            (m02, m12, m03, m22, m13, m04),
        )
        for row in range(6):
            for column in range(6):
                normal[row, column] = moments[row][column]
        pulls = (p00, p10, p01, p20, p11, p02)
        for row in range(6):
            pull[row] = pulls[row]
        unscaled = _invert(normal, terms)
        change = np.zeros(6)
        for row in range(terms):
            for column in range(terms):
                change[row] += unscaled[row, column] * pull[column]
        if iteration == _MAX_REFINE_STEPS or abs(change[0]) < _CONVERGED * scale:
            break
        for row in range(terms):
            coefficients[row] += change[row]

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
