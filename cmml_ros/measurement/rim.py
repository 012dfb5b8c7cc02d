"""The rim of an airhole: from a soft mask in the image to a polygon and an area on the surface."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import SurfaceError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.compiled import as_compiled, compiled
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.surface import Surface

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


def find_softness(mask: InstanceMask, perimeter_px: float) -> float:
    """Scale w of the mask's fall across its rim, pixels: how far one more in the log-odds moves the rim.

    For a mask that falls off logistically with scale w, the sum of p (1 - p) per pixel of rim is w.
    """
    return _doubt(as_compiled(mask.coverage)) / perimeter_px


def find_boundary_std(mask: InstanceMask, perimeter_px: float) -> float:
    """Deviation of the rim, pixels, all around alike: how soft the mask is across it, and what its maker adds.

    Read as the probability that the rim lies farther out, a mask that falls off logistically with scale w puts the rim
    at a deviation of pi w / sqrt(3). An exact mask has w = 1/6, to what the places of its rim in the pixels add, which
    is no doubt; a binary one has 0, and does not tell where in its pixels the rim lies.
    """
    beyond_exact = (find_softness(mask, perimeter_px) - _EXACT_SOFTNESS) ** 2 - _EXACT_SOFTNESS_PLAY**2 / perimeter_px
    variance = math.pi**2 / 3.0 * max(beyond_exact, 0.0) + _EXACT_STD_PX**2 / perimeter_px
    return math.sqrt(variance + mask.boundary_std_px**2)


def outline_in_image(mask: InstanceMask) -> Array:
    """The rim polygon in pixels, (n, 2), where half of a pixel is covered; empty for a mask without area.

    The largest one, should the mask fall into several.
    """
    if mask.coverage.size == 0 or not mask.coverage.max() > 0.0:
        return np.empty((0, 2))
    return _trace_outline(as_compiled(mask.coverage), mask.left, mask.top, find_rim_level(mask))


@dataclass(frozen=True, eq=False)
class SeenRim:
    """What the camera sees of a mask that has an area, on whatever surface it lies.

    coverage: (h, w), its first pixel at left, top of the image. level: the coverage at the rim. outline_px: (n, 2).
    corners: (h + 1, w + 1) numbers of the corners of the covered pixels, -1 where there are none. rays: (C + n + 1, 3)
    through these corners, the outline, and the centroid.
    """

    coverage: NDArray[np.float32]
    left: int
    top: int
    area_px: float
    level: float
    outline_px: Array
    perimeter_px: float
    corners: NDArray[np.int64]
    rays: Array

    @property
    def sight(self) -> Array:
        """Ray through the centroid, (3,)."""
        return np.asarray(self.rays[-1])

    @property
    def diameter_px(self) -> float:
        """Diameter of the disc of the same area."""
        return 2.0 * math.sqrt(self.area_px / math.pi)


def see_rims(masks: Sequence[InstanceMask], camera: Camera) -> list[SeenRim | None]:
    """One for each mask, None for those without area."""
    outlined: list[Callable[[Array], SeenRim] | None] = []
    pixels: list[Array] = []
    for mask in masks:
        coverage = as_compiled(mask.coverage)
        area_px, level, perimeter_px, length, corners, places = _see(coverage, mask.left, mask.top)
        if not (math.isfinite(area_px) and area_px > 0.0):
            outlined.append(None)
            continue
        pixels.append(places)
        outline_px = places[-1 - length : -1]
        outlined.append(
            partial(SeenRim, coverage, mask.left, mask.top, area_px, level, outline_px, perimeter_px, corners)
        )
    if not pixels:
        return [None] * len(masks)
    # All at once: a call costs as much as many rays.
    rays = camera.rays(np.concatenate(pixels))
    parts = iter(np.split(rays, np.cumsum([len(part) for part in pixels[:-1]])))
    return [None if see is None else see(next(parts)) for see in outlined]


@dataclass(frozen=True, eq=False)
class Rim:
    """The opening on its surface.

    position: (3,) centroid. normal: (3,) out of the wall, there. outline: (n, 3) polygon, counter-clockwise seen from
    outside, and outline_xy: (n, 2), the same along x and y of the surface. area: m2. centre: (2,) centroid, along the
    surface. axes: major and minor (full lengths) of the ellipse with the same second moments. to_circle: (2, 2)
    area-preserving map that makes that ellipse a circle.
    pixel_xy: (N, 2), pixel_areas: (N,) covered part of each pixel, projected on the x-y plane of the surface, m2.
    """

    position: Array
    normal: Array
    outline: Array
    outline_xy: Array
    area: float
    centre: tuple[float, float]
    axes: tuple[float, float]
    to_circle: Array
    pixel_xy: Array
    pixel_areas: Array

    @classmethod
    def on_surface(cls, seen: SeenRim, surface: Surface) -> Rim:
        """The exact integral of the coverage over the surface: each pixel's corners are cast on it.

        Raises SurfaceError when the mask reaches beyond the surface.
        """
        cast = surface.cast(seen.rays)
        area, centre, axes, to_circle, pixel_xy, pixel_areas = _integrate(seen.coverage, seen.corners, cast)
        if not math.isfinite(area):
            raise SurfaceError('the mask reaches beyond the surface')
        outline = cast[-1 - len(seen.outline_px) : -1]
        outline_xy, outline = _wind(outline, surface.origin, surface.axes)
        position, normal = surface.point_at(*centre)
        return cls(position, normal, outline, outline_xy, area, centre, axes, to_circle, pixel_xy, pixel_areas)


@compiled
def _sum_up(coverage: NDArray[np.float32]) -> tuple[float, float, float, float]:
    """Sum of the coverage, its mean column and row, and the largest."""
    total, column_sum, row_sum, peak = 0.0, 0.0, 0.0, 0.0
    for row in range(coverage.shape[0]):
        for column in range(coverage.shape[1]):
            share = np.float64(coverage[row, column])
            total += share
            column_sum += share * column
            row_sum += share * row
            peak = max(peak, share)
    return total, column_sum / total, row_sum / total, peak


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
def _doubt(coverage: NDArray[np.float32]) -> float:
    """Sum of p (1 - p)."""
    total = 0.0
    for row in range(coverage.shape[0]):
        for column in range(coverage.shape[1]):
            share = np.float64(coverage[row, column])
            total += share * (1.0 - share)
    return total


@compiled
def _wind(polygon: Array, origin: Array, axes: Array) -> tuple[Array, Array]:
    """The polygon, (n, 3) in a surface's own frame, counter-clockwise seen from z.

    Returns it along the surface, (n, 2), and in the camera frame, (n, 3).
    """
    count, area = len(polygon), 0.0
    for i in range(count):
        area += polygon[i - 1, 0] * polygon[i, 1] - polygon[i, 0] * polygon[i - 1, 1]
    along, placed = np.empty((count, 2)), np.empty((count, 3))
    for i in range(count):
        x, y, z = polygon[i] if area >= 0.0 else polygon[count - 1 - i]
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
def _find_corners(coverage: NDArray[np.float32], left: int, top: int) -> tuple[NDArray[np.int64], Array]:
    """Corners of the covered pixels: their numbers, (h + 1, w + 1), and where they are in the image, (n, 2)."""
    height, width = coverage.shape
    numbers = np.full((height + 1, width + 1), -1)
    for row in range(height):
        for column in range(width):
            if coverage[row, column] > 0.0:
                numbers[row, column] = numbers[row, column + 1] = 0
                numbers[row + 1, column] = numbers[row + 1, column + 1] = 0
    places = np.empty((numbers.size, 2))
    count = 0
    for row in range(height + 1):
        for column in range(width + 1):
            if numbers[row, column] == 0:
                numbers[row, column] = count
                places[count, 0] = left + column - 0.5
                places[count, 1] = top + row - 0.5
                count += 1
    return numbers, places[:count]


@compiled
def _see(
    coverage: NDArray[np.float32], left: int, top: int
) -> tuple[float, float, float, int, NDArray[np.int64], Array]:
    """Area and level of a `SeenRim`, its perimeter, the length of its outline, its corners, and places in the image.

    Places: those that its `rays` go through, (C + n + 1, 2); none unless the area is finite and above zero.
    """
    area, column, row, peak = _sum_up(coverage)
    if not (math.isfinite(area) and area > 0.0):
        return area, 0.0, 0.0, 0, np.empty((0, 0), np.int64), np.empty((0, 2))
    level = 0.5 * min(1.0, peak)
    outline = _trace_outline(coverage, left, top, level)
    numbers, corners = _find_corners(coverage, left, top)
    places = np.empty((len(corners) + len(outline) + 1, 2))
    places[: len(corners)] = corners
    places[len(corners) : -1] = outline
    places[-1, 0], places[-1, 1] = left + column, top + row
    return area, level, _perimeter(outline), len(outline), numbers, places


@compiled
def _integrate(
    coverage: NDArray[np.float32], corners: NDArray[np.int64], cast: Array
) -> tuple[float, tuple[float, float], tuple[float, float], Array, Array, Array]:
    """Area, centre, axes, to_circle, pixel_xy and pixel_areas of a `Rim`. corners: their rows in `cast`, (n, 3)."""
    height, width = coverage.shape
    pixel_xy, pixel_areas = np.empty((coverage.size, 2)), np.empty(coverage.size)
    area, flat_area, count = 0.0, 0.0, 0
    centre_x, centre_y = 0.0, 0.0
    edge_u, edge_v = np.zeros(2), np.zeros(2)
    for row in range(height):
        for column in range(width):
            share = np.float64(coverage[row, column])
            if not share > 0.0:
                continue
            a, b = cast[corners[row, column]], cast[corners[row, column + 1]]
            c, d = cast[corners[row + 1, column]], cast[corners[row + 1, column + 1]]
            # Half the cross product of the diagonals, falling and rising.
            fx, fy, fz = d[0] - a[0], d[1] - a[1], d[2] - a[2]
            rx, ry, rz = b[0] - c[0], b[1] - c[1], b[2] - c[2]
            x, y, z = fy * rz - fz * ry, fz * rx - fx * rz, fx * ry - fy * rx
            area += 0.5 * share * math.sqrt(x * x + y * y + z * z)
            flat = 0.5 * share * abs(z)
            flat_area += flat
            pixel_areas[count] = flat
            pixel_xy[count, 0] = 0.25 * (a[0] + b[0] + c[0] + d[0])
            pixel_xy[count, 1] = 0.25 * (a[1] + b[1] + c[1] + d[1])
            centre_x += flat * pixel_xy[count, 0]
            centre_y += flat * pixel_xy[count, 1]
            edge_u[0] += flat * 0.5 * (fx + rx)
            edge_u[1] += flat * 0.5 * (fy + ry)
            edge_v[0] += flat * 0.5 * (fx - rx)
            edge_v[1] += flat * 0.5 * (fy - ry)
            count += 1
    centre_x, centre_y = centre_x / flat_area, centre_y / flat_area
    xx, xy, yy = 0.0, 0.0, 0.0
    for i in range(count):
        x, y, share = pixel_xy[i, 0] - centre_x, pixel_xy[i, 1] - centre_y, pixel_areas[i] / flat_area
        xx += share * x * x
        xy += share * x * y
        yy += share * y * y
    # Sampling a soft mask adds the moment of a pixel (Sheppard's correction).
    scale = 12.0 * flat_area * flat_area
    pixel_xx = (edge_u[0] ** 2 + edge_v[0] ** 2) / scale
    pixel_yy = (edge_u[1] ** 2 + edge_v[1] ** 2) / scale
    xx, yy = xx - pixel_xx, yy - pixel_yy
    xy -= (edge_u[0] * edge_u[1] + edge_v[0] * edge_v[1]) / scale

    # Eigenvalues, and the angle of the larger one's vector.
    middle, half = 0.5 * (xx + yy), math.hypot(0.5 * (xx - yy), xy)
    floor = 0.5 * (pixel_xx + pixel_yy)
    major, minor = max(middle + half, floor), max(middle - half, floor)
    angle = 0.5 * math.atan2(2.0 * xy, xx - yy)
    c, s = math.cos(angle), math.sin(angle)
    along = (minor / major) ** 0.25
    to_circle = np.empty((2, 2))
    to_circle[0, 0] = along * c * c + s * s / along
    to_circle[1, 1] = along * s * s + c * c / along
    to_circle[0, 1] = to_circle[1, 0] = (along - 1.0 / along) * c * s
    axes = (4.0 * math.sqrt(major), 4.0 * math.sqrt(minor))
    return area, (centre_x, centre_y), axes, to_circle, pixel_xy[:count], pixel_areas[:count]
