"""Which points a mask is seen beside, and which are seen through it: of hundreds of thousands, many times a frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import ProjectedCloud
from cmml_ros.geometry.compiled import as_compiled, compiled

Array = NDArray[np.float64]

# What moves along both axes, and like a chess knight, cost in `_chamfer`; one straight on costs 1.
_DIAGONAL_MOVE, _KNIGHT_MOVE = 1.4, 2.1969
# Direction of the middle of an octant.
_OCTANT_COS, _OCTANT_SIN = math.cos(math.pi / 8.0), math.sin(math.pi / 8.0)
# Points are sorted by tiles of so many pixels a side.
_TILE_PX = 16


@dataclass(frozen=True, eq=False)
class PointMap:
    """The usable points, tile by tile along rows of tiles, and in a tile in the order of the cloud.

    points: (M, 3) camera frame, and pixels: (M, 2) where they project to, all of the cloud. numbers: (N,) which of
    these are usable. starts: (rows, columns + 1) where a tile begins.
    """

    points: Array
    pixels: Array
    numbers: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def from_cloud(cls, projected: ProjectedCloud, camera: Camera) -> PointMap:
        """Sorts the points that lie in the image, before the camera."""
        points, pixels = as_compiled(projected.points_camera), as_compiled(projected.pixels)
        return cls(points, pixels, *_sort_by_tile(points, pixels, camera.width, camera.height))

    def select_ring(
        self,
        box: tuple[int, int, int, int],
        occupied: NDArray[np.bool_],
        edge: NDArray[np.int64],
        reach_px: float,
        max_points: int,
    ) -> Array:
        """Points up to `reach_px` from a mask with that edge, on pixels that no mask occupies: (N, 3).

        box: left, top, width and height of what lies so near. Of more than `max_points` every so many.
        """
        return _select_ring(
            self.points, self.pixels, self.numbers, self.starts, box, occupied, edge, reach_px, max_points
        )

    def select_inside(self, coverage: NDArray[np.float32], left: int, top: int, least: float) -> Array:
        """Points, (N, 3), where the coverage, bilinear between the centres of its pixels, is at least that.

        coverage: (h, w), its first pixel at left, top of the image.
        """
        return _select_inside(self.points, self.pixels, self.numbers, self.starts, coverage, left, top, least)


@compiled
def _sort_by_tile(points: Array, pixels: Array, width: int, height: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """`numbers` and `starts` of a `PointMap`."""
    columns, rows = width // _TILE_PX + 1, height // _TILE_PX + 1
    tiles = np.empty(len(points), np.int32)
    counts = np.zeros(columns * rows + 1, np.int64)
    for i in range(len(points)):
        u, v = pixels[i]
        tiles[i] = -1
        if u >= -0.5 and u < width - 0.5 and v >= -0.5 and v < height - 0.5:
            x, y, z = points[i]
            if z > 0.0 and math.isfinite(x + y + z):
                tiles[i] = int(v + 0.5) // _TILE_PX * columns + int(u + 0.5) // _TILE_PX
                counts[tiles[i] + 1] += 1
    starts = np.empty((rows, columns + 1), np.int64)
    for tile in range(columns * rows):
        counts[tile + 1] += counts[tile]
    for row in range(rows):
        for column in range(columns + 1):
            starts[row, column] = counts[row * columns + column]
    numbers = np.empty(counts[-1], np.int32)
    for i in range(len(points)):
        if tiles[i] >= 0:
            numbers[counts[tiles[i]]] = i
            counts[tiles[i]] += 1
    return numbers, starts


@compiled
def _chamfer(x: float, y: float) -> float:
    """Distance over x columns and y rows, within 2 % of Euclid's (Borgefors 1986): OpenCV's DIST_MASK_5."""
    far, near = max(abs(x), abs(y)), min(abs(x), abs(y))
    straight = far - 2.0 * near + _KNIGHT_MOVE * near
    return straight if far >= 2.0 * near else _KNIGHT_MOVE * (far - near) + _DIAGONAL_MOVE * (2.0 * near - far)


@compiled
def _find_edge(coverage: NDArray[np.float32], level: float, left: int, top: int) -> NDArray[np.int64]:
    """Columns and rows, (2, n), of the pixels of a mask that have a neighbour outside it."""
    height, width = coverage.shape
    inside, across = np.zeros((height + 2, width + 2), np.uint8), np.empty((height + 2, width), np.uint8)
    for row in range(height):
        for column in range(width):
            inside[row + 1, column + 1] = coverage[row, column] >= level
    for row in range(height + 2):
        for column in range(width):
            across[row, column] = inside[row, column] & inside[row, column + 1] & inside[row, column + 2]
    edge = np.empty((2, coverage.size + 1), np.int64)
    count = 0
    for row in range(height):
        for column in range(width):
            deep = across[row, column] & across[row + 1, column] & across[row + 2, column]
            edge[0, count], edge[1, count] = left + column, top + row
            count += inside[row + 1, column + 1] > deep
    return edge[:, :count].copy()


@compiled
def mark_near(
    occupied: NDArray[np.bool_],
    coverage: NDArray[np.float32],
    level: float,
    left: int,
    top: int,
    reach_px: float,
) -> NDArray[np.int64]:
    """Marks the pixels of the image nearer than `reach_px` to a mask, itself included; returns its edge."""
    for row in range(max(0, -top), min(coverage.shape[0], occupied.shape[0] - top)):
        for column in range(max(0, -left), min(coverage.shape[1], occupied.shape[1] - left)):
            if coverage[row, column] >= level:
                occupied[top + row, left + column] = True
    edge, rows = _find_edge(coverage, level, left, top), math.ceil(reach_px)
    halves = np.full(rows + 1, -1)  # of the rows of what lies nearer than that to one pixel
    for row in range(rows + 1):
        while _chamfer(halves[row] + 1.0, row) < reach_px:
            halves[row] += 1
    # Each row of what is near a pixel begins with 1 and ends before -1; sums from the left are above 0 within any.
    height, width = coverage.shape
    turns = np.zeros((height + 2 * rows, width + 2 * rows + 1), np.int32)
    for i in range(edge.shape[1]):
        u, v = edge[0, i] - left + rows, edge[1, i] - top + rows
        for row in range(-rows, rows + 1):
            half = halves[abs(row)]
            if half >= 0:
                turns[v + row, u - half] += 1
                turns[v + row, u + half + 1] -= 1
    first = left - rows
    for row in range(max(rows - top, 0), min(len(turns), occupied.shape[0] + rows - top)):
        begun, marked = 0, occupied[top - rows + row]
        for column in range(min(turns.shape[1], occupied.shape[1] - first)):
            begun += turns[row, column]
            if begun > 0 and first + column >= 0:
                marked[first + column] = True
    return edge


@compiled
def _find_near(starts: NDArray[np.int64], left: int, top: int, width: int, height: int) -> NDArray[np.int64]:
    """Numbers, (n, 2), of the first point of a row of tiles that a box of pixels touches and of that after its last."""
    rows, columns = starts.shape
    first, last = max(left, 0) // _TILE_PX, min(max(left + width - 1, 0) // _TILE_PX, columns - 2)
    low, high = max(top, 0) // _TILE_PX, min(max(top + height - 1, 0) // _TILE_PX, rows - 1)
    near = np.zeros((max(high - low + 1, 0), 2), np.int64)
    for row in range(len(near)):
        near[row, 0], near[row, 1] = (
            starts[low + row, first],
            max(starts[low + row, last + 1], starts[low + row, first]),
        )
    return near


@compiled
def _octant(x: int, y: int) -> tuple[int, int, int]:
    """Which eighth of the plane a direction lies in."""
    return int(x > 0), int(y > 0), int(abs(y) > abs(x))


@compiled
def _is_near(u: int, v: int, edge: NDArray[np.int64], reach_px: float) -> bool:
    """Whether a pixel is up to `reach_px` from one of an edge."""
    near = 0
    for i in range(edge.shape[1]):  # all of them: without a way out the loop takes several at a time
        near += _chamfer(u - edge[0, i], v - edge[1, i]) <= reach_px
    return near > 0


@compiled
def _select_ring(
    points: Array,
    pixels: Array,
    numbers: NDArray[np.int32],
    starts: NDArray[np.int64],
    box: tuple[int, int, int, int],
    occupied: NDArray[np.bool_],
    edge: NDArray[np.int64],
    reach_px: float,
    max_points: int,
) -> Array:
    """Points up to `reach_px` from a mask with that edge, on pixels that no mask occupies, thinned to `max_points`.

    box: left, top, width and height of what lies so near.
    """
    left, top, width, height = box
    near = _find_near(starts, left, top, width, height)
    found = np.empty((near[:, 1] - near[:, 0]).sum() + 1, np.int64)
    count = 0
    middle_u, middle_v = left + width // 2, top + height // 2
    # Farther from the middle than `beyond` is too far from the edge, too; and of each octant the pixel of the edge that
    # lies farthest out, near which most of what is looked for there is.
    beyond, farthest = 0.0, np.zeros((2, 2, 2))
    outer = np.zeros((2, 2, 2), np.int64)
    for i in range(edge.shape[1]):
        u, v = edge[0, i] - middle_u, edge[1, i] - middle_v
        beyond = max(beyond, reach_px + _chamfer(u, v))
        octant = _octant(u, v)
        out = _OCTANT_COS * max(abs(u), abs(v)) + _OCTANT_SIN * min(abs(u), abs(v))
        if out > farthest[octant]:
            farthest[octant], outer[octant] = out, i
    for row in range(len(near)):
        for at in range(near[row, 0], near[row, 1]):
            number = numbers[at]
            u, v = int(pixels[number, 0] + 0.5), int(pixels[number, 1] + 0.5)
            found[count] = number
            count += (_chamfer(u - middle_u, v - middle_v) <= beyond) & (not occupied[v, u])
    candidates, count = count, 0
    for i in range(candidates):
        number = found[i]
        u, v = int(pixels[number, 0] + 0.5), int(pixels[number, 1] + 0.5)
        first = outer[_octant(u - middle_u, v - middle_v)]
        if _chamfer(u - edge[0, first], v - edge[1, first]) <= reach_px or _is_near(u, v, edge, reach_px):
            found[count] = number
            count += 1
    return _take(points, found[:count][:: count // max_points + 1])


@compiled
def _take(points: Array, numbers: NDArray[np.int64]) -> Array:
    taken = np.empty((len(numbers), 3))
    for i in range(len(numbers)):
        for axis in range(3):
            taken[i, axis] = points[numbers[i], axis]
    return taken


@compiled
def _select_inside(
    points: Array,
    pixels: Array,
    numbers: NDArray[np.int32],
    starts: NDArray[np.int64],
    coverage: NDArray[np.float32],
    left: int,
    top: int,
    least: float,
) -> Array:
    """Points where the coverage, bilinear between the centres of its pixels, is at least that."""
    height, width = coverage.shape
    near = _find_near(starts, left, top, width, height)
    found = np.empty((near[:, 1] - near[:, 0]).sum(), np.int64)
    count = 0
    for row in range(len(near)):
        for at in range(near[row, 0], near[row, 1]):
            number = numbers[at]
            u, v = pixels[number, 0] - left, pixels[number, 1] - top
            if u >= -0.5 and u < width - 0.5 and v >= -0.5 and v < height - 0.5:
                u, v = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
                column, below = int(u), int(v)
                right, bottom = min(column + 1, width - 1), min(below + 1, height - 1)
                share_u, share_v = u - column, v - below
                upper = coverage[below, column] * (1.0 - share_u) + coverage[below, right] * share_u
                lower = coverage[bottom, column] * (1.0 - share_u) + coverage[bottom, right] * share_u
                if upper * (1.0 - share_v) + lower * share_v >= least:
                    found[count] = number
                    count += 1
    return _take(points, found[:count][::1])
