"""Projected points as feature maps beside the image: how far each lies behind the surface around it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.errors import ShapeError

# Maps are made at half the image's resolution, where the network joins them to the picture.
RANGE_STRIDE = 2
RANGE_CHANNELS = 3
# Residuals are compressed by asinh(r / 1 mm): linear at sensor noise, logarithmic in deep holes.
_RESIDUAL_SCALE_M = 1e-3
_CELL_PX = 32
_WINDOW_CELLS = 9
_MIN_CELLS = 24
_L1_STEPS = 2
_BIWEIGHT_STEPS = 1
_MIN_POINTS = 50
_MAX_FIT_POINTS = 5000


def range_features(
    pixels: NDArray[np.float64], depths_m: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float32]:
    """Feature maps (3, ceil(height / 2), ceil(width / 2)) float32 for the network, all zero where nothing is known.

    pixels: (N, 2) projected points. depths_m: (N,) their z in the camera's optical frame, metres.
    Channels: residual behind the smooth surface around (asinh of millimetres), scatter of these residuals (the same
    unit, constant over the picture, so that the network can tell a depth camera from a time-of-flight LiDAR), and
    support (1 where a point fell, halved per level of interpolation).
    """
    if pixels.ndim != 2 or pixels.shape[1] != 2 or depths_m.shape != pixels.shape[:1]:
        raise ShapeError(f'pixels must be (N, 2) and depths (N,), got {pixels.shape} and {depths_m.shape}')
    rows, columns = -(-height // RANGE_STRIDE), -(-width // RANGE_STRIDE)
    features = np.zeros((RANGE_CHANNELS, rows, columns), np.float32)
    if len(pixels) < _MIN_POINTS:
        return features

    residuals_m = residuals_behind_surface(pixels, depths_m, height, width)
    scatter_m = 1.4826 * float(np.median(np.abs(residuals_m)))
    compressed = np.arcsinh(residuals_m / _RESIDUAL_SCALE_M)

    values, support = bin_points(pixels, compressed, height, width)
    features[0] = values
    features[1] = np.arcsinh(scatter_m / _RESIDUAL_SCALE_M) * (support > 0)
    features[2] = support
    return features


def bin_points(
    pixels: NDArray[np.float64], values: NDArray[np.float64], height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means of `values`, (N,), per cell of 2x2 pixels, and support: 1 where a point fell, halved per level of filling.

    Both (ceil(height / 2), ceil(width / 2)) float32; support 0 where no point is near.
    """
    rows, columns = -(-height // RANGE_STRIDE), -(-width // RANGE_STRIDE)
    row = np.clip(np.rint(pixels[:, 1] / RANGE_STRIDE).astype(np.intp), 0, rows - 1)
    column = np.clip(np.rint(pixels[:, 0] / RANGE_STRIDE).astype(np.intp), 0, columns - 1)
    cell = row * columns + column
    counts = np.bincount(cell, minlength=rows * columns).reshape(rows, columns).astype(np.float32)
    sums = np.bincount(cell, weights=values, minlength=rows * columns).reshape(rows, columns).astype(np.float32)
    return _fill_gaps(sums, counts)


def residuals_behind_surface(
    pixels: NDArray[np.float64], depths_m: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Depth minus the depth of the smooth surface around, metres, positive behind it.

    The inverse depth of a plane is affine in pixels, of a cylinder close to quadratic: one robust quadratic over the
    picture, then local ones over windows much larger than an airhole take what is left of the shape.
    """
    u = 2.0 * pixels[:, 0] / width - 1.0
    v = 2.0 * pixels[:, 1] / height - 1.0
    inverse = 1.0 / depths_m
    step = max(1, len(u) // _MAX_FIT_POINTS)
    fit_u, fit_v, fit_inverse = u[::step], v[::step], inverse[::step]
    fit_design = np.stack([np.ones_like(fit_u), fit_u, fit_v, fit_u * fit_u, fit_u * fit_v, fit_v * fit_v], axis=1)
    weights: NDArray[np.float64] = np.ones(len(fit_inverse))
    coefficients: NDArray[np.float64] = np.zeros(6)
    for _ in range(6):
        weighted = fit_design * weights[:, None]
        # A grain of ridge: points on one line leave the quadratic open across it.
        normal = weighted.T @ fit_design
        normal.flat[::7] += 1e-9 * np.trace(normal)
        coefficients = np.asarray(np.linalg.solve(normal, weighted.T @ fit_inverse), np.float64)
        error = fit_inverse - fit_design @ coefficients
        scale = 4.685 * 1.4826 * float(np.median(np.abs(error))) + 1e-12
        weights = np.square(np.clip(1.0 - np.square(error / scale), 0.0, None))  # Tukey's biweight
    one, in_u, in_v, in_uu, in_uv, in_vv = coefficients
    surface = one + u * (in_u + in_uu * u + in_uv * v) + v * (in_v + in_vv * v)
    surface = np.maximum(surface, 0.2 * float(np.median(inverse)))
    residuals = depths_m - 1.0 / surface

    rows, columns = -(-height // _CELL_PX), -(-width // _CELL_PX)
    row = np.clip((pixels[:, 1] / _CELL_PX).astype(np.intp), 0, rows - 1)
    column = np.clip((pixels[:, 0] / _CELL_PX).astype(np.intp), 0, columns - 1)
    cell = row * columns + column
    # By cell, and within it by residual. Numbers of 16 bits are sorted in one pass, without comparing.
    order = np.argsort(residuals)
    order = order[np.argsort(cell[order].astype(np.uint16 if rows * columns <= 2**16 else np.intp), kind='stable')]
    counts = np.bincount(cell, minlength=rows * columns)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    medians = np.full(rows * columns, np.nan)
    filled = counts > 0
    medians[filled] = residuals[order[starts[filled] + counts[filled] // 2]]
    grid = medians.reshape(rows, columns)
    nearest = ndimage.distance_transform_edt(np.isnan(grid), return_distances=False, return_indices=True)
    middle = ndimage.median_filter(grid[tuple(nearest)], size=_WINDOW_CELLS, mode='nearest')
    smooth = _smooth(grid, ndimage.uniform_filter(middle, size=3, mode='nearest'))
    at = np.stack([pixels[:, 1], pixels[:, 0]]) / _CELL_PX - 0.5
    offset = ndimage.map_coordinates(smooth, at, order=1, mode='nearest')
    return np.asarray(residuals - offset)


def _smooth(grid: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """The surface under `grid`, (H, W) with NaN where nothing is known: a robust quadratic around each cell.

    Locally weighted regression (Cleveland, J. Am. Stat. Assoc. 74, 1979). start: (H, W), from where outliers are told
    first, and the answer where too few cells are known.
    """
    reach = _WINDOW_CELLS // 2
    y, x = (offset.ravel() / reach for offset in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)  # (K, 6)
    products = (basis[:, :, None] * basis[:, None]).reshape(len(basis), 36)
    padded = np.pad(grid, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_WINDOW_CELLS, _WINDOW_CELLS)).reshape(grid.size, -1)
    known = np.isfinite(windows)
    values = np.where(known, windows, 0.0)
    count = known.sum(axis=1)
    fitted = np.repeat(start.reshape(-1, 1), len(basis), axis=1)
    for step in range(_L1_STEPS + _BIWEIGHT_STEPS):
        error = np.where(known, np.abs(values - fitted), np.inf)
        median = np.sort(error, axis=1)[np.arange(grid.size), count // 2 - (count == len(basis))]
        scale = 1.4826 * np.where(np.isfinite(median), median, 1.0)[:, None] + 1e-6
        if step < _L1_STEPS:
            weights = known / np.maximum(error, scale) * scale
        else:
            weights = np.square(np.clip(1.0 - np.square(error / (4.685 * scale)), 0.0, None))
        normal = (weights @ products).reshape(-1, 6, 6) + 1e-6 * np.eye(6)
        coefficients = np.linalg.solve(normal, ((weights * values) @ basis)[..., None])[..., 0]
        fitted = coefficients @ basis.T
    enough = (weights > 0.0).sum(axis=1) >= _MIN_CELLS
    return np.asarray(np.where(enough, coefficients[:, 0], start.ravel()).reshape(grid.shape))


def _fill_gaps(
    sums: NDArray[np.float32], counts: NDArray[np.float32], levels: int = 5
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means where there are points, means of ever coarser cells between them, and how coarse (push-pull)."""
    pyramid = [(sums, counts)]
    for _ in range(levels):
        fine_sums, fine_counts = pyramid[-1]
        pyramid.append((_sum_2x2(fine_sums), _sum_2x2(fine_counts)))
    values = np.zeros_like(pyramid[-1][0])
    support = np.zeros_like(values)
    for level in range(levels, -1, -1):
        level_sums, level_counts = pyramid[level]
        if level < levels:
            values, support = (_double(coarse, level_sums.shape) for coarse in (values, support))
        hit = level_counts > 0
        values = np.asarray(np.where(hit, level_sums / np.maximum(level_counts, 1.0), values), np.float32)
        support = np.asarray(np.where(hit, 0.5**level, support), np.float32)
    return values, support


def _double(coarse: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    fine = cv2.resize(coarse, (2 * coarse.shape[1], 2 * coarse.shape[0]))
    return np.asarray(fine[: shape[0], : shape[1]], np.float32)


def _sum_2x2(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = grid.shape
    if rows % 2 or columns % 2:
        grid = np.pad(grid, ((0, rows % 2), (0, columns % 2)))
    pairs = grid[::2] + grid[1::2]
    return np.asarray(pairs[:, ::2] + pairs[:, 1::2])
