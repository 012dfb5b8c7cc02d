"""Projected points as feature maps beside the image: how far each lies behind the surface around it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.errors import ShapeError
from cmml_ros.geometry.compiled import as_compiled, compiled, select

# Maps are made at half the image's resolution, where the network joins them to the picture.
RANGE_STRIDE = 2
RANGE_CHANNELS = 3
# Residuals are compressed by asinh(r / 1 mm): linear at sensor noise, logarithmic in deep holes.
_RESIDUAL_SCALE_M = 1e-3
_CELL_PX = 32
_WINDOW_CELLS = 9
_MIN_CELLS = 24
_QUADRATIC_STEPS = 6
_L1_STEPS = 2
_BIWEIGHT_STEPS = 1
_MIN_POINTS = 50
_MAX_FIT_POINTS = 5000
# Medians need no more points than these, in all and on average a cell: they are good to 1 % and 13 % of the scatter.
_MAX_SCATTER_POINTS = 10_000
_MAX_CELL_POINTS = 100


def range_features(
    pixels: NDArray[np.float64], depths_m: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float32]:
    """Feature maps (3, ceil(height / 2), ceil(width / 2)) float32 for the network, all zero where nothing is known.

    pixels: (N, 2) projected points. depths_m: (N,) their z in the camera's optical frame, metres.
    Channels: residual behind the smooth surface around (asinh of millimetres), scatter of these residuals (the same
    unit, constant over the picture, so that the network can tell a depth camera from a time-of-flight LiDAR), and
    support (1 where a point fell, halved per level of interpolation).
    """
    return range_pyramid(pixels, depths_m, height, width, (1,))[0][0]


def range_pyramid(
    pixels: NDArray[np.float64], depths_m: NDArray[np.float64], height: int, width: int, factors: Sequence[int]
) -> tuple[list[NDArray[np.float32]], NDArray[np.float64]]:
    """`range_features` of the picture (height, width) reduced by each of `factors`, its other arguments as there.

    And (N,) how far each point lies behind the surface, metres, at the first of these sizes; NaN where points are too
    few. What is fitted to the picture as a whole is fitted once.
    """
    if pixels.ndim != 2 or pixels.shape[1] != 2 or depths_m.shape != pixels.shape[:1]:
        raise ShapeError(f'pixels must be (N, 2) and depths (N,), got {pixels.shape} and {depths_m.shape}')
    pixels, depths_m = as_compiled(pixels), as_compiled(depths_m)
    rough_m = _behind_quadratic(pixels, depths_m, height, width) if len(pixels) >= _MIN_POINTS else None
    pyramid = []
    behind_m = np.full(len(pixels), np.nan)
    for factor in factors:
        rows, columns = height // factor, width // factor
        features = np.zeros((RANGE_CHANNELS, -(-rows // RANGE_STRIDE), -(-columns // RANGE_STRIDE)), np.float32)
        pyramid.append(features)
        if rough_m is None:
            continue
        at = pixels if factor == 1 else (pixels + 0.5) / factor - 0.5
        residuals_m = _behind_neighbours(at, rough_m, rows, columns)
        if factor == factors[0]:
            behind_m = residuals_m
        some_m = np.abs(residuals_m[:: max(1, len(residuals_m) // _MAX_SCATTER_POINTS)])
        scatter_m = 1.4826 * float(np.median(some_m))
        features[0], features[2] = bin_points(at, np.arcsinh(residuals_m / _RESIDUAL_SCALE_M), rows, columns)
        features[1] = np.float32(np.arcsinh(scatter_m / _RESIDUAL_SCALE_M)) * (features[2] > 0)
    return pyramid, behind_m


def bin_points(
    pixels: NDArray[np.float64], values: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means of `values`, (N,), per cell of 2x2 pixels, and support: 1 where a point fell, halved per level of filling.

    Both (ceil(height / 2), ceil(width / 2)) float32; support 0 where no point is near.
    """
    rows, columns = -(-height // RANGE_STRIDE), -(-width // RANGE_STRIDE)
    sums, counts = _bin(as_compiled(pixels), as_compiled(values), rows, columns)
    return _fill_gaps(sums, counts)


def residuals_behind_surface(
    pixels: NDArray[np.float64], depths_m: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Depth minus the depth of the smooth surface around, metres, positive behind it.

    The inverse depth of a plane is affine in pixels, of a cylinder close to quadratic: one robust quadratic over the
    picture, then local ones over windows much larger than an airhole take what is left of the shape.
    """
    pixels, depths_m = as_compiled(pixels), as_compiled(depths_m)
    return _behind_neighbours(pixels, _behind_quadratic(pixels, depths_m, height, width), height, width)


def nearest_by_cell(
    pixels: NDArray[np.float64], behind_m: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float32]:
    """The least of `behind_m`, (N,), in each cell of the feature maps, infinite without a point."""
    return _nearest(as_compiled(pixels), behind_m, -(-height // RANGE_STRIDE), -(-width // RANGE_STRIDE))


def read_residuals(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Back from the feature maps: means behind the surface per cell and the scatter of single readings, metres."""
    scale = np.float32(_RESIDUAL_SCALE_M)
    return np.asarray(scale * np.sinh(features[0])), float(scale * np.sinh(features[1].max()))


def _behind_quadratic(
    pixels: NDArray[np.float64], depths_m: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Depths behind the surface whose inverse depth is the quadratic over the picture."""
    step = max(1, len(pixels) // _MAX_FIT_POINTS)
    quadratic = _fit_quadratic(pixels, depths_m, width, height, step)
    return _subtract_quadratic(pixels, depths_m, quadratic, 0.2 / float(np.median(depths_m[::step])), width, height)


def _behind_neighbours(
    pixels: NDArray[np.float64], rough_m: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Of what lies behind the quadratic the part that is not of the shape of the surface."""
    rows, columns = -(-height // _CELL_PX), -(-width // _CELL_PX)
    step = max(1, len(pixels) // (rows * columns * _MAX_CELL_POINTS))
    grid = _medians_by_cell(as_compiled(rough_m[::step]), as_compiled(pixels[::step]), rows, columns)
    nearest = ndimage.distance_transform_edt(np.isnan(grid), return_distances=False, return_indices=True)
    windows = _windows(np.pad(grid[tuple(nearest)], _WINDOW_CELLS // 2, mode='edge'))
    rank = windows.shape[1] // 2
    middle = np.partition(windows, rank, axis=1)[:, rank].reshape(grid.shape)
    smooth = _smooth(grid, ndimage.uniform_filter(middle, size=3, mode='nearest'))
    return _subtract_surface(rough_m, pixels, smooth)


@compiled
def _solve_normal(normal: NDArray[np.float64], right: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Solutions (N, 6) of normal equations with right sides (N, 6), by Cholesky.

    normal: (N, 36), their lower triangles; ridge is added to the diagonals.
    """
    solutions = np.empty_like(right)
    factor = np.empty((6, 6))
    for row in range(len(normal)):
        solution = solutions[row]
        for i in range(6):
            for j in range(i + 1):
                rest = normal[row, 6 * i + j] + (ridge if i == j else 0.0)
                for k in range(j):
                    rest -= factor[i, k] * factor[j, k]
                factor[i, j] = np.sqrt(rest) if i == j else rest / factor[j, j]
            rest = right[row, i]
            for k in range(i):
                rest -= factor[i, k] * solution[k]
            solution[i] = rest / factor[i, i]
        for i in range(5, -1, -1):
            rest = solution[i]
            for k in range(i + 1, 6):
                rest -= factor[k, i] * solution[k]
            solution[i] = rest / factor[i, i]
    return solutions


@compiled
def _fit_quadratic(
    pixels: NDArray[np.float64], depths_m: NDArray[np.float64], width: int, height: int, step: int
) -> NDArray[np.float64]:
    """Coefficients (6,) of 1, u, v, u^2, u v, v^2 through most of the inverse depths, u and v from -1 to 1.

    Of the points every `step`-th is used.
    """
    count = (len(pixels) + step - 1) // step
    design, weights, errors, order = np.empty((count, 6)), np.ones(count), np.empty(count), np.empty(count)
    values = np.empty(count)
    for index in range(count):
        u = 2.0 * pixels[index * step, 0] / width - 1.0
        v = 2.0 * pixels[index * step, 1] / height - 1.0
        design[index, 0], design[index, 1], design[index, 2] = 1.0, u, v
        design[index, 3], design[index, 4], design[index, 5] = u * u, u * v, v * v
        values[index] = 1.0 / depths_m[index * step]
    coefficients = np.zeros(6)
    for _ in range(_QUADRATIC_STEPS):
        normal, right = np.zeros((1, 36)), np.zeros((1, 6))
        for index in range(count):
            for i in range(6):
                weighted = weights[index] * design[index, i]
                right[0, i] += weighted * values[index]
                for j in range(i + 1):
                    normal[0, 6 * i + j] += weighted * design[index, j]
        # A grain of ridge: points on one line leave the quadratic open across it.
        ridge = 1e-9 * normal[0, ::7].sum()
        coefficients = _solve_normal(normal, right, ridge)[0]
        for index in range(count):
            fitted = 0.0
            for i in range(6):
                fitted += coefficients[i] * design[index, i]
            errors[index] = order[index] = abs(values[index] - fitted)
        scale = 4.685 * 1.4826 * select(order, count // 2) + 1e-12
        for index in range(count):
            weights[index] = max(1.0 - (errors[index] / scale) ** 2, 0.0) ** 2  # Tukey's biweight
    return coefficients


def _smooth(grid: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """The surface under `grid`, (H, W) with NaN where nothing is known: a robust quadratic around each cell.

    Locally weighted regression (Cleveland, J. Am. Stat. Assoc. 74, 1979). start: (H, W), from where outliers are told
    first, and the answer where too few cells are known.
    """
    reach = _WINDOW_CELLS // 2
    y, x = (offset.ravel() / reach for offset in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)  # (K, 6)
    products = (basis[:, :, None] * basis[:, None]).reshape(len(basis), 36)
    windows = _windows(np.pad(grid, reach, constant_values=np.nan)).reshape(*grid.shape, -1)  # (H, W, K)
    unknown = ~np.isfinite(windows)
    values = np.where(unknown, 0.0, windows)
    count = len(basis) - unknown.sum(axis=2, keepdims=True)
    fitted = np.repeat(start[:, :, None], len(basis), axis=2)
    error, weights = np.empty_like(values), np.empty_like(values)
    for step in range(_L1_STEPS + _BIWEIGHT_STEPS):
        np.abs(np.subtract(values, fitted, out=error), out=error)
        error[unknown] = np.inf
        median = np.take_along_axis(np.sort(error, axis=2), count // 2, axis=2)
        scale = 1.4826 * np.where(count, median, 1.0) + 1e-6
        if step < _L1_STEPS:
            np.divide(scale, np.maximum(error, scale, out=error), out=weights)
        else:
            np.square(np.divide(error, 4.685 * scale, out=error), out=error)
            np.square(np.maximum(np.subtract(1.0, error, out=error), 0.0, out=error), out=weights)
        # Products row by row of the grid: those of all at once would wake the threads of BLAS, which spin long after.
        normal, right = weights @ products, np.multiply(weights, values, out=error) @ basis
        coefficients = _solve_normal(normal.reshape(-1, 36), right.reshape(-1, 6), 1e-6).reshape(right.shape)
        np.matmul(coefficients, basis.T, out=fitted)
    enough = (weights > 0.0).sum(axis=2) >= _MIN_CELLS
    return np.asarray(np.where(enough, coefficients[:, :, 0], start))


def _windows(padded: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, K) the cells of each window of a grid that is wider by half a window on each side."""
    shape = _WINDOW_CELLS, _WINDOW_CELLS
    return np.lib.stride_tricks.sliding_window_view(padded, shape).reshape(-1, _WINDOW_CELLS**2)


@compiled
def _nearest(
    pixels: NDArray[np.float64], behind_m: NDArray[np.float64], rows: int, columns: int
) -> NDArray[np.float32]:
    nearest_m = np.full((rows, columns), np.float32(np.inf))
    for index in range(len(pixels)):
        row, column = _cell(pixels, index, rows, columns)
        nearest_m[row, column] = min(nearest_m[row, column], np.float32(behind_m[index]))
    return nearest_m


@compiled
def _cell(pixels: NDArray[np.float64], index: int, rows: int, columns: int) -> tuple[int, int]:
    row = min(max(int(np.rint(pixels[index, 1] / RANGE_STRIDE)), 0), rows - 1)
    column = min(max(int(np.rint(pixels[index, 0] / RANGE_STRIDE)), 0), columns - 1)
    return row, column


@compiled
def _bin(
    pixels: NDArray[np.float64], values: NDArray[np.float64], rows: int, columns: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sums of `values` and numbers of points, both (rows, columns), per cell."""
    sums, counts = np.zeros((rows, columns)), np.zeros((rows, columns), np.float32)
    for index in range(len(pixels)):
        row, column = _cell(pixels, index, rows, columns)
        sums[row, column] += values[index]
        counts[row, column] += np.float32(1.0)
    return sums.astype(np.float32), counts


@compiled
def _subtract_quadratic(
    pixels: NDArray[np.float64],
    depths_m: NDArray[np.float64],
    quadratic: NDArray[np.float64],
    floor: float,
    width: int,
    height: int,
) -> NDArray[np.float64]:
    """Depths behind a surface whose inverse depth is `quadratic`, but at least `floor`."""
    one, in_u, in_v, in_uu, in_uv, in_vv = quadratic
    residuals = np.empty(len(pixels))
    for index in range(len(pixels)):
        u = 2.0 * pixels[index, 0] / width - 1.0
        v = 2.0 * pixels[index, 1] / height - 1.0
        inverse = one + u * (in_u + in_uu * u + in_uv * v) + v * (in_v + in_vv * v)
        residuals[index] = depths_m[index] - 1.0 / max(inverse, floor)
    return residuals


@compiled
def _medians_by_cell(
    values: NDArray[np.float64], pixels: NDArray[np.float64], rows: int, columns: int
) -> NDArray[np.float64]:
    """(rows, columns) upper medians of the `values` at `pixels` in each cell, NaN where it has none."""
    cells = np.empty(len(values), np.int32)
    ends = np.zeros(rows * columns + 1, np.int64)
    for index in range(len(values)):
        row = min(max(int(pixels[index, 1] / _CELL_PX), 0), rows - 1)
        column = min(max(int(pixels[index, 0] / _CELL_PX), 0), columns - 1)
        cells[index] = row * columns + column
        ends[cells[index] + 1] += 1
    ends = np.cumsum(ends)
    by_cell = np.empty_like(values)
    free = ends[:-1].copy()
    for index in range(len(values)):
        by_cell[free[cells[index]]] = values[index]
        free[cells[index]] += 1
    medians = np.full((rows, columns), np.nan)
    for row in range(rows):
        for column in range(columns):
            cell = row * columns + column
            own = by_cell[ends[cell] : ends[cell + 1]]
            if len(own):
                medians[row, column] = select(own, len(own) // 2)
    return medians


@compiled
def _subtract_surface(
    values: NDArray[np.float64], pixels: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`values`, at `pixels`, less the surface through the middles of the cells of `grid`, linear between them."""
    rows, columns = grid.shape
    left = np.empty_like(values)
    for index in range(len(values)):
        y = min(max(pixels[index, 1] / _CELL_PX - 0.5, 0.0), rows - 1.0)
        x = min(max(pixels[index, 0] / _CELL_PX - 0.5, 0.0), columns - 1.0)
        row, column = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
        below, right = min(row + 1, rows - 1), min(column + 1, columns - 1)
        y, x = y - row, x - column
        upper = grid[row, column] * (1.0 - x) + grid[row, right] * x
        lower = grid[below, column] * (1.0 - x) + grid[below, right] * x
        left[index] = values[index] - upper * (1.0 - y) - lower * y
    return left


def _fill_gaps(
    sums: NDArray[np.float32], counts: NDArray[np.float32], levels: int = 5
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means where there are points, means of ever coarser cells between them, and how coarse (push-pull)."""
    pyramid = [(sums, counts)]
    for _ in range(levels):
        pyramid.append((_sum_2x2(pyramid[-1][0]), _sum_2x2(pyramid[-1][1])))
    values = np.zeros_like(pyramid[-1][0])
    support = np.zeros_like(values)
    for level in range(levels, -1, -1):
        if level < levels:
            values, support = (_double(coarse, pyramid[level][0].shape) for coarse in (values, support))
        _lay_means(*pyramid[level], 0.5**level, values, support)
    return values, support


def _double(coarse: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    fine = cv2.resize(coarse, (2 * coarse.shape[1], 2 * coarse.shape[0]))
    return np.ascontiguousarray(fine[: shape[0], : shape[1]])


@compiled
def _sum_2x2(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of 2x2 cells, ((rows + 1) / 2, (columns + 1) / 2)."""
    rows, columns = grid.shape
    sums = np.zeros(((rows + 1) // 2, (columns + 1) // 2), np.float32)
    for row in range(rows):
        for column in range(columns):
            sums[row // 2, column // 2] += grid[row, column]
    return sums


@compiled
def _lay_means(
    sums: NDArray[np.float32],
    counts: NDArray[np.float32],
    trust: float,
    values: NDArray[np.float32],
    support: NDArray[np.float32],
) -> None:
    """Put the means of cells with points into `values`, and `trust` into `support` there."""
    for row in range(sums.shape[0]):
        for column in range(sums.shape[1]):
            if counts[row, column] > 0.0:
                values[row, column] = sums[row, column] / counts[row, column]
                support[row, column] = trust
