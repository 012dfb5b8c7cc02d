"""The lens models point by point, and their inverse pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled

Array = NDArray[np.float64]

_NEWTON_STEPS = 20


@compiled
def _radial_gain(coefficients: Array, equidistant: bool, squared: float) -> tuple[float, float]:
    """Radial factor f(s) and its derivative, s the squared undistorted radius (equidistant: squared angle)."""
    if equidistant:
        k1, k2, k3, k4 = coefficients[0], coefficients[1], coefficients[2], coefficients[3]
        value = 1.0 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))
        slope = k1 + squared * (2.0 * k2 + squared * (3.0 * k3 + squared * 4.0 * k4))
        return value, slope
    k1, k2, k3 = coefficients[0], coefficients[1], coefficients[4]
    k4, k5, k6 = coefficients[5], coefficients[6], coefficients[7]
    n = 1.0 + squared * (k1 + squared * (k2 + squared * k3))
    dn = k1 + squared * (2.0 * k2 + squared * 3.0 * k3)
    d = 1.0 + squared * (k4 + squared * (k5 + squared * k6))
    dd = k4 + squared * (2.0 * k5 + squared * 3.0 * k6)
    if not d > 0.0:  # beyond a pole the model means nothing
        return math.nan, math.nan
    return n / d, (dn * d - n * dd) / (d * d)


@compiled
def tabulate_gain(coefficients: Array, equidistant: bool, radii: Array) -> tuple[Array, Array]:
    """What `_radial_gain` says of undistorted radii (equidistant: angles), each (N,)."""
    gains, slopes = np.empty_like(radii), np.empty_like(radii)
    for i in range(len(radii)):
        gains[i], slopes[i] = _radial_gain(coefficients, equidistant, radii[i] * radii[i])
    return gains, slopes


@compiled
def _distort(x: float, y: float, coefficients: Array, equidistant: bool) -> tuple[float, float]:
    """Distorted normalized coordinates. Who calls it looks after the valid domain: here that would take longer."""
    squared = x * x + y * y
    if equidistant:
        radius = math.sqrt(squared)
        angle = math.atan(radius)
        gain, _ = _radial_gain(coefficients, equidistant, angle * angle)
        scale = angle * gain / radius if radius > 1e-12 else 1.0
        return x * scale, y * scale
    p1, p2 = coefficients[2], coefficients[3]
    gain, _ = _radial_gain(coefficients, equidistant, squared)
    return (
        x * gain + 2.0 * p1 * x * y + p2 * (squared + 2.0 * x * x),
        y * gain + p1 * (squared + 2.0 * y * y) + 2.0 * p2 * x * y,
    )


@compiled
def project(points: Array, pinhole: Array, coefficients: Array, equidistant: bool, limit: float) -> Array:
    """Pixels, (N, 2), of `points`, (N, 3) in the camera frame; NaN behind it and outside the valid domain.

    pinhole: fx, fy, cx, cy. coefficients: (8,), those that the model lacks are 0. limit: largest undistorted radius
    of the valid domain, infinite where nothing is distorted.
    """
    pixels = np.full((len(points), 2), math.nan)
    for i in range(len(points)):
        depth = points[i, 2]
        x, y = points[i, 0] / depth, points[i, 1] / depth
        if depth > 0.0 and x * x + y * y <= limit * limit:
            x, y = _distort(x, y, coefficients, equidistant)
            pixels[i, 0], pixels[i, 1] = pinhole[0] * x + pinhole[2], pinhole[1] * y + pinhole[3]
    return pixels


@compiled
def project_seen(
    points: Array,
    rotation: Array,
    translation: Array,
    pinhole: Array,
    size: tuple[int, int],
    coefficients: Array,
    equidistant: bool,
    limit: float,
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Those of `points`, (N, 3), moved by rotation and translation, that lie in the image: (K, 3).

    And their pixels (K, 2) and indices (K,). size: width, height. The rest as of `project`.
    """
    moved, pixels = np.empty((len(points), 3)), np.empty((len(points), 2))
    indices = np.empty(len(points), np.int64)
    count = 0
    for i in range(len(points)):
        for axis in range(3):
            moved[count, axis] = (
                rotation[axis, 0] * points[i, 0]
                + rotation[axis, 1] * points[i, 1]
                + rotation[axis, 2] * points[i, 2]
                + translation[axis]
            )
        depth = moved[count, 2]
        if not depth > 0.0:
            continue
        x, y = moved[count, 0] / depth, moved[count, 1] / depth
        if not x * x + y * y <= limit * limit:
            continue
        x, y = _distort(x, y, coefficients, equidistant)
        u, v = pinhole[0] * x + pinhole[2], pinhole[1] * y + pinhole[3]
        if u >= -0.5 and u < size[0] - 0.5 and v >= -0.5 and v < size[1] - 0.5:
            pixels[count, 0], pixels[count, 1] = u, v
            indices[count] = i
            count += 1
    return moved[:count].copy(), pixels[:count].copy(), indices[:count].copy()


@compiled
def undistort(
    distorted: Array,
    coefficients: Array,
    equidistant: bool,
    limit: float,
    starts: Array,
    widest: float,
    tolerance: float,
) -> Array:
    """Undistorted normalized coordinates of `distorted`, both (N, 2): the radius from a table, then Newton's method.

    coefficients, limit: as of `project`. starts: (K,) undistorted radii (equidistant: angles) at the arc tangents of
    distorted radii, even steps from 0 to `widest`. NaN where no place of the domain is distorted to within `tolerance`.
    """
    found = np.empty_like(distorted)
    p1, p2 = coefficients[2], coefficients[3]
    steps = (len(starts) - 1) / widest if widest > 0.0 else 0.0
    widest_angle = math.atan(limit)
    for i in range(len(distorted)):
        x_wanted, y_wanted = distorted[i]
        radius_wanted = math.sqrt(x_wanted * x_wanted + y_wanted * y_wanted)
        place = min(math.atan(radius_wanted), widest) * steps
        at = min(int(place), len(starts) - 2)
        radius = starts[at] + (place - at) * (starts[at + 1] - starts[at])
        error = math.inf
        if equidistant:
            angle = radius
            for _ in range(_NEWTON_STEPS):
                gain, slope = _radial_gain(coefficients, equidistant, angle * angle)
                step = (angle * gain - radius_wanted) / (gain + 2.0 * angle * angle * slope)
                angle = min(max(angle - step, 0.0), widest_angle)
                if not abs(step) > tolerance:
                    break
            gain, _ = _radial_gain(coefficients, equidistant, angle * angle)
            error = abs(angle * gain - radius_wanted)
            radius = math.tan(angle)
            scale = radius / radius_wanted if radius_wanted > 1e-12 else 1.0
            x, y = x_wanted * scale, y_wanted * scale
        else:
            scale = radius / radius_wanted if radius_wanted > 1e-12 else 1.0
            x, y = x_wanted * scale, y_wanted * scale
            for _ in range(_NEWTON_STEPS):
                squared = x * x + y * y
                gain, slope = _radial_gain(coefficients, equidistant, squared)
                error_x = x * gain + 2.0 * p1 * x * y + p2 * (squared + 2.0 * x * x) - x_wanted
                error_y = y * gain + p1 * (squared + 2.0 * y * y) + 2.0 * p2 * x * y - y_wanted
                error = math.sqrt(error_x * error_x + error_y * error_y)
                xx = gain + 2.0 * x * x * slope + 2.0 * p1 * y + 6.0 * p2 * x
                yy = gain + 2.0 * y * y * slope + 6.0 * p1 * y + 2.0 * p2 * x
                xy = 2.0 * x * y * slope + 2.0 * p1 * x + 2.0 * p2 * y
                determinant = xx * yy - xy * xy
                step_x = (yy * error_x - xy * error_y) / determinant
                step_y = (xx * error_y - xy * error_x) / determinant
                x, y = x - step_x, y - step_y
                if not error > tolerance:  # before this step, which squares it
                    break
            if not x * x + y * y <= limit * limit:
                error = math.inf
        found[i, 0] = x if error < tolerance else math.nan
        found[i, 1] = y if error < tolerance else math.nan
    return found
