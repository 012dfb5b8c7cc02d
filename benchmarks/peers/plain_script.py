"""What anyone writes in an afternoon: RANSAC plane, depth threshold, connected blobs, sums. The peer to beat.

It needs no picture, knows no uncertainty, and calls everything measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Blob:
    """One hole: centre (3,), area, greatest depth and volume, metres."""

    centre: Array
    area_m2: float
    depth_m: float
    volume_m3: float


def find_holes(
    points: Array,
    *,
    cell_m: float = 0.001,
    threshold_m: float = 0.0003,
    noise_factor: float = 4.0,
    smooth_cells: float = 0.7,
    min_cells: int = 8,
    plane_tolerance_m: float = 0.002,
) -> list[Blob]:
    """Every hole in `points`, (N, 3) metres, seen from the origin."""
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
    o3d.utility.random.seed(0)
    (a, b, c, _), inliers = cloud.segment_plane(plane_tolerance_m, 3, 500)
    normal = np.array([a, b, c]) / np.linalg.norm([a, b, c])
    on_plane = points[inliers]
    origin = on_plane.mean(axis=0)
    # RANSAC's plane goes through three noisy points; all inliers give a better one.
    normal = np.linalg.svd(on_plane[:: len(on_plane) // 20000 + 1] - origin, full_matrices=False)[2][2]
    if normal @ origin > 0.0:
        normal = -normal
    axis_x = np.cross(normal, [0.0, 1.0, 0.0])
    axis_x /= np.linalg.norm(axis_x)
    axes = np.stack([axis_x, np.cross(normal, axis_x)])

    xy = (points - origin) @ axes.T
    depth = -(points - origin) @ normal
    low = xy.min(axis=0)
    columns, rows = ((xy - low) / cell_m).astype(int).T
    shape = (rows.max() + 1, columns.max() + 1)
    cells = rows * shape[1] + columns
    count = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(cells, depth, minlength=shape[0] * shape[1]).reshape(shape)
    depth_map = np.where(count > 0, total / np.maximum(count, 1), 0.0)
    # Cells without a point take the depth of the nearest one that has.
    nearest = ndimage.distance_transform_edt(count == 0, return_distances=False, return_indices=True)
    depth_map = ndimage.gaussian_filter(depth_map[tuple(nearest)], smooth_cells)
    spread = 1.4826 * float(np.median(np.abs(depth_map - np.median(depth_map))))
    threshold = max(threshold_m, noise_factor * spread)

    blobs, number = ndimage.label(depth_map > threshold)
    found = []
    for index in range(1, number + 1):
        inside = blobs == index
        if inside.sum() < min_cells:
            continue
        row, column = (float(np.mean(axis)) for axis in np.nonzero(inside))
        centre = origin + (low + cell_m * (np.array([column, row]) + 0.5)) @ axes
        depths = depth_map[inside]
        found.append(Blob(centre, inside.sum() * cell_m**2, float(depths.max()), float(depths.sum()) * cell_m**2))
    return found
