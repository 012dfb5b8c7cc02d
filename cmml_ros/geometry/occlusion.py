"""Which points of a view are hidden behind nearer ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.compiled import compiled


@compiled
def find_unhidden(
    points_camera: NDArray[np.float64],
    pixels: NDArray[np.float64],
    cell_px: float,
    grid: tuple[int, int],
    gap_m: float,
    gap_ratio: float,
) -> NDArray[np.int64]:
    """Indices of the points (N, 3) at `pixels` (N, 2) that no point of the same cell is nearer than by both gaps.

    grid: rows and columns of the cells; gap_ratio: of the depth.
    """
    nearest_m = np.full(grid, math.inf)
    for index in range(len(pixels)):
        row, column = int((pixels[index, 1] + 0.5) / cell_px), int((pixels[index, 0] + 0.5) / cell_px)
        nearest_m[row, column] = min(nearest_m[row, column], points_camera[index, 2])
    unhidden = np.empty(len(pixels), np.int64)
    count = 0
    for index in range(len(pixels)):
        row, column = int((pixels[index, 1] + 0.5) / cell_px), int((pixels[index, 0] + 0.5) / cell_px)
        depth_m = points_camera[index, 2]
        if not depth_m - nearest_m[row, column] > max(gap_m, gap_ratio * depth_m):
            unhidden[count] = index
            count += 1
    return unhidden[:count].copy()
