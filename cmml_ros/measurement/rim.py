"""The rim of an airhole: from a soft mask in the image to a polygon and an area on the surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.compiled import as_compiled, compiled
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import Surface, SurfacePoint

Array = NDArray[np.float64]

# Softness of an exact mask, the mean over all places of a rim in a pixel; it varies by 0.064 over the root of the rim's
# pixels (exact masks of ellipses, 6 to 80 px wide), and up to three times that it is no doubt.
_EXACT_SOFTNESS = 1.0 / 6.0
_EXACT_SOFTNESS_PLAY = 3.0 * 0.064
# Deviation of a rim that is exact but for a grid of 8 x 8 rays in each pixel, times the root of the rim's pixels.
_EXACT_STD_PX = 0.0125


def find_rim_level(mask: InstanceMask) -> float:
    """The coverage that separates inside from outside: one half, or less in a mask that never gets there."""
    return 0.5 * min(1.0, float(mask.coverage.max()))


def find_perimeter(mask: InstanceMask) -> float:
    """Length of the rim polygon in pixels; 0 for a mask without area."""
    return _perimeter(outline_in_image(mask))


def find_boundary_std(softness_px: float, perimeter_px: float) -> float:
    """Deviation of the rim, pixels, all around alike, as the mask is soft across it.

    Read as the probability that the rim lies farther out, a mask that falls off logistically with scale w puts the rim
    at a deviation of pi w / sqrt(3). An exact mask has w = 1/6, to what the places of its rim in the pixels add, which
    is no doubt; a binary one has 0, and does not tell where in its pixels the rim lies.
    """
    beyond_exact = (softness_px - _EXACT_SOFTNESS) ** 2 - _EXACT_SOFTNESS_PLAY**2 / perimeter_px
    variance = math.pi**2 / 3.0 * max(beyond_exact, 0.0) + _EXACT_STD_PX**2 / perimeter_px
    return math.sqrt(variance)


def outline_in_image(mask: InstanceMask) -> Array:
    """The rim polygon in pixels, (n, 2), where half of a pixel is covered; empty for a mask without area.

    The largest one, should the mask fall into several.
    """
    if mask.coverage.size == 0 or not mask.coverage.max() > 0.0:
        return np.empty((0, 2))
    return _trace_outline(as_compiled(mask.coverage), mask.left, mask.top, find_rim_level(mask))


class SeenRim(NamedTuple):
    """What the camera sees of a mask that has an area, on whatever surface it lies.

    coverage: (h, w), its first pixel at left, top of the image. level: the coverage at the rim. outline_px: (n, 2).
    softness_px: scale w of the mask's fall across its rim, how far one more in the log-odds moves the rim. For a mask
    that falls off logistically with scale w, the sum of p (1 - p) per pixel of rim is w.
    box: first row and column, rows and columns of the smallest part of the coverage that holds all that is not zero.
    rays: (3, C + n + 1) through the corners of the pixels of that box, row by row, the outline, and the centroid.
    """

    coverage: NDArray[np.float32]
    left: int
    top: int
    area_px: float
    level: float
    outline_px: Array
    perimeter_px: float
    softness_px: float
    box: tuple[int, int, int, int]
    rays: Array

    @property
    def sight(self) -> Array:
        """Ray through the centroid, (3,)."""
        return np.array([self.rays[0, -1], self.rays[1, -1], 1.0])

    @property
    def diameter_px(self) -> float:
        """Diameter of the disc of the same area."""
        return 2.0 * math.sqrt(self.area_px / math.pi)


def see_rims(masks: Sequence[InstanceMask], camera: Camera) -> list[SeenRim | None]:
    """One for each mask, None for those without area."""
    rims = [_see_rim(mask, camera) for mask in masks]
    seen = [rim for rim in rims if rim is not None]
    if seen and camera.is_distorted:
        x, y, _ = np.concatenate([rim.rays for rim in seen], axis=1)
        straight = np.stack(camera.undistort(x, y))
        first = 0
        for rim in seen:
            rim.rays[:2] = straight[:, first : first + rim.rays.shape[1]]
            first += rim.rays.shape[1]
    return rims


def _see_rim(mask: InstanceMask, camera: Camera) -> SeenRim | None:
    """As a camera without distortion would."""
    coverage = as_compiled(mask.coverage)
    area_px, level, perimeter_px, softness_px, outline_px, box, rays = _see(
        coverage, mask.left, mask.top, camera.fx, camera.fy, camera.cx, camera.cy
    )
    if not (math.isfinite(area_px) and area_px > 0.0):
        return None
    return SeenRim(coverage, mask.left, mask.top, area_px, level, outline_px, perimeter_px, softness_px, box, rays)


class Rim(NamedTuple):
    """The opening on its surface.

    middle: its centroid on the surface. outline: (n, 3) polygon, counter-clockwise seen from
    outside, and outline_xy: (n, 2), the same along x and y of the surface. area: m2. centre: (2,) centroid, along the
    surface. axes: major and minor (full lengths) of the ellipse with the same second moments. to_circle: (2, 2)
    area-preserving map that makes that ellipse a circle.
    pixels: (3, N) rows x, y and area of the covered part of each pixel, projected on the x-y plane of the surface, m2.
    """

    middle: SurfacePoint
    outline: Array
    outline_xy: Array
    area: float
    centre: tuple[float, float]
    axes: tuple[float, float]
    to_circle: Array
    pixels: Array

    @classmethod
    def on_surface(cls, seen: SeenRim, surface: Surface) -> Rim:
        """The exact integral of the coverage over the surface: each pixel's corners are cast on it.

        Raises SurfaceError when the mask reaches beyond the surface.
        """
        area, centre, axes, to_circle, pixels, outline_xy, outline = _put_on_surface(
            seen.coverage, seen.box, surface.cast(seen.rays), len(seen.outline_px), surface.origin, surface.axes
        )
        if not math.isfinite(area):
            raise SurfaceError('the mask reaches beyond the surface')
        return cls(surface.at(*centre), outline, outline_xy, area, centre, axes, to_circle, pixels)


@compiled
def _sum_up(coverage: NDArray[np.float32]) -> tuple[float, float, float, float, float, tuple[int, int, int, int]]:
    """Sum of the coverage p, and of p (1 - p), its mean column and row, the largest, and the box of a `SeenRim`."""
    height, width = coverage.shape
    total, doubt, column_sum, row_sum, peak = 0.0, 0.0, 0.0, 0.0, 0.0
    columns = np.zeros(width)  # the largest in each
    first, last = height, -1
    for row in range(height):
        row_total, row_peak = 0.0, 0.0
        for column in range(width):
            share = np.float64(coverage[row, column])
            row_total += share
            doubt += share * (1.0 - share)
            column_sum += share * column
            columns[column] = share if share > columns[column] else columns[column]
            row_peak = share if share > row_peak else row_peak
        total += row_total
        row_sum += row_total * row
        peak = max(peak, row_peak)
        if row_peak > 0.0:
            first, last = min(first, row), row
    left, right = 0, width
    while left < right and not columns[left] > 0.0:
        left += 1
    while right > left and not columns[right - 1] > 0.0:
        right -= 1
    return total, doubt, column_sum / total, row_sum / total, peak, (first, left, last - first + 1, right - left)


@compiled
def _follow(
    field: Array, row: int, column: int, level: float, started: NDArray[np.bool_], polygon: Array
) -> tuple[float, int]:
    """Twice the signed area and the length of the contour between (row, column), inside, and its right neighbour.

    Writes x, y of its corners to `polygon` when that has any rows, and marks in `started` where else it may start.
    """
    in_row, in_column, out_row, out_column = row, column, row, column + 1
    # Between a point inside and one outside, and on, straight across the line that joins them.
    step_row, step_column = 1, 0
    length, area, x, y, first_x, first_y = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    while length == 0 or step_row != 1 or in_row != row or in_column != column:
        inside, outside = field[in_row, in_column], field[out_row, out_column]
        share = (level - outside) / (inside - outside)
        before_x, before_y = x, y
        x, y = out_column + share * (in_column - out_column), out_row + share * (in_row - out_row)
        if length == 0:
            first_x, first_y = x, y
        area += before_x * y - x * before_y
        if len(polygon) > 0:
            polygon[length, 0], polygon[length, 1] = x, y
        length += 1
        if step_row == 1:
            started[in_row, in_column] = True
        row_in, column_in = in_row + step_row, in_column + step_column
        row_out, column_out = out_row + step_row, out_column + step_column
        ahead_in, ahead_out = field[row_in, column_in], field[row_out, column_out]
        if ahead_out >= level and (ahead_in >= level or inside + outside + ahead_in + ahead_out >= 4.0 * level):
            # around the point outside; at a saddle where its middle is inside
            step_row, step_column = out_row - in_row, out_column - in_column
            in_row, in_column = row_out, column_out
        elif ahead_in >= level:
            in_row, in_column, out_row, out_column = row_in, column_in, row_out, column_out
        else:
            # around the point inside
            step_row, step_column = in_row - out_row, in_column - out_column
            out_row, out_column = row_in, column_in
    return area + x * first_y - first_x * y, length


@compiled
def _trace_outline(coverage: NDArray[np.float32], left: int, top: int, level: float) -> Array:
    """The largest closed contour of the coverage, (n, 2) in the image: marching squares, with zero all around."""
    height, width = coverage.shape
    field = np.zeros((height + 2, width + 2))
    field[1:-1, 1:-1] = coverage
    started = np.zeros(field.shape, np.bool_)
    best_row, best_column, best_area, best_length = 0, 0, -1.0, 0
    nothing = np.empty((0, 2))
    for row in range(1, height + 1):
        for column in range(1, width + 1):
            if field[row, column] >= level and field[row, column + 1] < level and not started[row, column]:
                area, length = _follow(field, row, column, level, started, nothing)
                if abs(area) > best_area:
                    best_row, best_column, best_area, best_length = row, column, abs(area), length
    polygon = np.empty((best_length, 2))
    _follow(field, best_row, best_column, level, started, polygon)
    for i in range(best_length):
        polygon[i, 0] += left - 1.0
        polygon[i, 1] += top - 1.0
    return polygon


@compiled
def _wind(cast: Array, count: int, origin: Array, axes: Array) -> tuple[Array, Array]:
    """The outline of a `SeenRim`, `count` of its rays cast on a surface, counter-clockwise seen from z.

    Returns it along the surface, (n, 2), and in the camera frame, (n, 3).
    """
    first, area = cast.shape[1] - 1 - count, 0.0
    last_x, last_y = cast[0, first + count - 1], cast[1, first + count - 1]
    for i in range(first, first + count):
        x, y = cast[0, i], cast[1, i]
        area += last_x * y - x * last_y
        last_x, last_y = x, y
    along, placed = np.empty((count, 2)), np.empty((count, 3))
    for i in range(count):
        at = first + i if area >= 0.0 else first + count - 1 - i
        x, y, z = cast[0, at], cast[1, at], cast[2, at]
        along[i, 0], along[i, 1] = x, y
        for axis in range(3):
            placed[i, axis] = origin[axis] + x * axes[0, axis] + y * axes[1, axis] + z * axes[2, axis]
    return along, placed


@compiled
def _perimeter(polygon: Array) -> float:
    total = 0.0
    for i in range(len(polygon)):
        total += math.hypot(polygon[i, 0] - polygon[i - 1, 0], polygon[i, 1] - polygon[i - 1, 1])
    return total


@compiled
def _see(
    coverage: NDArray[np.float32], left: int, top: int, fx: float, fy: float, cx: float, cy: float
) -> tuple[float, float, float, float, Array, tuple[int, int, int, int], Array]:
    """Area, level, perimeter, softness, outline, box and rays of a `SeenRim`, seen by a camera without distortion.

    No outline and no rays unless the area is finite and above zero.
    """
    area, doubt, column, row, peak, box = _sum_up(coverage)
    if not (math.isfinite(area) and area > 0.0):
        return area, 0.0, 0.0, 0.0, np.empty((0, 2)), box, np.empty((3, 0))
    level = 0.5 * min(1.0, peak)
    outline = _trace_outline(coverage, left, top, level)
    first_row, first_column, height, width = box
    corners = (height + 1) * (width + 1)
    rays = np.ones((3, corners + len(outline) + 1))
    x, y = rays[0, :corners].reshape(height + 1, width + 1), rays[1, :corners].reshape(height + 1, width + 1)
    for corner_row in range(height + 1):
        for corner_column in range(width + 1):
            x[corner_row, corner_column] = (left + first_column + corner_column - 0.5 - cx) / fx
            y[corner_row, corner_column] = (top + first_row + corner_row - 0.5 - cy) / fy
    for i in range(len(outline)):
        rays[0, corners + i], rays[1, corners + i] = (outline[i, 0] - cx) / fx, (outline[i, 1] - cy) / fy
    rays[0, -1], rays[1, -1] = (left + column - cx) / fx, (top + row - cy) / fy
    perimeter = _perimeter(outline)
    return area, level, perimeter, doubt / perimeter, outline, box, rays


@compiled
def _integrate(
    coverage: NDArray[np.float32], box: tuple[int, int, int, int], cast: Array
) -> tuple[float, tuple[float, float], tuple[float, float], Array, Array]:
    """Area, centre, axes, to_circle and pixels of a `Rim`. cast: (3, n) the rays of a `SeenRim` on the surface."""
    first_row, first_column, height, width = box
    corners = cast[:, : (height + 1) * (width + 1)].copy().reshape(3, height + 1, width + 1)
    x, y, z = corners[0], corners[1], corners[2]
    pixels = np.empty((3, height, width))
    flats = pixels[2]
    area, flat_area = 0.0, 0.0
    for row in range(height):
        shares = coverage[first_row + row, first_column : first_column + width]
        for column in range(width):
            # Half the cross product of the diagonals, falling and rising.
            fx, rx = x[row + 1, column + 1] - x[row, column], x[row, column + 1] - x[row + 1, column]
            fy, ry = y[row + 1, column + 1] - y[row, column], y[row, column + 1] - y[row + 1, column]
            fz, rz = z[row + 1, column + 1] - z[row, column], z[row, column + 1] - z[row + 1, column]
            across_x, across_y, across_z = fy * rz - fz * ry, fz * rx - fx * rz, fx * ry - fy * rx
            halved = 0.5 * np.float64(shares[column])
            sloped = halved * math.sqrt(across_x * across_x + across_y * across_y + across_z * across_z)
            # Where nothing is covered the rays may miss the surface.
            flats[row, column] = halved * abs(across_z) if halved > 0.0 else 0.0
            area += sloped if halved > 0.0 else 0.0
            flat_area += flats[row, column]
    centre, along, down = np.empty(2), np.empty(2), np.empty(2)  # means of middles and sides of the pixels
    for axis in range(2):
        corner, middles = corners[axis], pixels[axis]
        middle_sum, along_sum, down_sum = 0.0, 0.0, 0.0
        for row in range(height):
            for column in range(width):
                share = flats[row, column] / flat_area
                left, right = corner[row, column], corner[row, column + 1]
                left_below, right_below = corner[row + 1, column], corner[row + 1, column + 1]
                middle = 0.25 * (left + right + left_below + right_below)
                middles[row, column] = middle if share > 0.0 else 0.0
                middle_sum += share * middles[row, column]
                along_sum += share * 0.5 * (right + right_below - left - left_below) if share > 0.0 else 0.0
                down_sum += share * 0.5 * (left_below + right_below - left - right) if share > 0.0 else 0.0
        centre[axis], along[axis], down[axis] = middle_sum, along_sum, down_sum
    xx, xy, yy = 0.0, 0.0, 0.0
    for row in range(height):
        for column in range(width):
            to_x, to_y = pixels[0, row, column] - centre[0], pixels[1, row, column] - centre[1]
            xx += flats[row, column] * to_x * to_x
            xy += flats[row, column] * to_x * to_y
            yy += flats[row, column] * to_y * to_y
    # Sampling a soft mask adds the moment of a pixel (Sheppard's correction).
    pixel_xx, pixel_yy = (along[0] ** 2 + down[0] ** 2) / 12.0, (along[1] ** 2 + down[1] ** 2) / 12.0
    xx, yy = xx / flat_area - pixel_xx, yy / flat_area - pixel_yy
    xy = xy / flat_area - (along[0] * along[1] + down[0] * down[1]) / 12.0

    # Eigenvalues, and the angle of the larger one's vector.
    middle, half = 0.5 * (xx + yy), math.hypot(0.5 * (xx - yy), xy)
    floor = 0.5 * (pixel_xx + pixel_yy)
    major, minor = max(middle + half, floor), max(middle - half, floor)
    angle = 0.5 * math.atan2(2.0 * xy, xx - yy)
    c, s = math.cos(angle), math.sin(angle)
    stretch = (minor / major) ** 0.25
    to_circle = np.empty((2, 2))
    to_circle[0, 0] = stretch * c * c + s * s / stretch
    to_circle[1, 1] = stretch * s * s + c * c / stretch
    to_circle[0, 1] = to_circle[1, 0] = (stretch - 1.0 / stretch) * c * s
    axes = (4.0 * math.sqrt(major), 4.0 * math.sqrt(minor))
    return area, (centre[0], centre[1]), axes, to_circle, pixels.reshape(3, height * width)


@compiled
def _put_on_surface(
    coverage: NDArray[np.float32],
    box: tuple[int, int, int, int],
    cast: Array,
    outline_length: int,
    origin: Array,
    axes: Array,
) -> tuple[float, tuple[float, float], tuple[float, float], Array, Array, Array, Array]:
    """What `_integrate` and `_wind` return."""
    area, centre, lengths, to_circle, pixels = _integrate(coverage, box, cast)
    outline_xy, outline = _wind(cast, outline_length, origin, axes)
    return area, centre, lengths, to_circle, pixels, outline_xy, outline
