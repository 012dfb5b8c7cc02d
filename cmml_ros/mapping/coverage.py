"""What of the developed surface the pictures show, and how finely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cmml_ros.mapping.defect_map import MapView
from cmml_ros.mapping.developed import DevelopedSurface

Array = NDArray[np.float64]


_CELL_M = 0.010
_MAX_CELLS = 4_000_000
_MIN_COSINE = math.cos(math.radians(75.0))


@dataclass(frozen=True, eq=False)
class Coverage:
    """What the pictures show of the developed surface.

    px_per_m: (rows, columns), 0 where nothing; row 0 at the bottom.
    """

    cell_m: float
    left_m: float
    bottom_m: float
    px_per_m: Array

    @property
    def area_m2(self) -> float:
        """Area that any picture shows."""
        return float((self.px_per_m > 0.0).sum()) * self.cell_m**2

    @property
    def gaps_m2(self) -> float:
        """Area that no picture shows, with what pictures show all around it."""
        shown = self.px_per_m > 0.0
        return float((ndimage.binary_fill_holes(shown) & ~shown).sum()) * self.cell_m**2


def find_coverage(surface: DevelopedSurface, views: Sequence[MapView]) -> Coverage:
    """How finely the pictures show each cell of the surface (at the best view of it)."""
    windows = [_window(surface, view) for view in views]
    known = [window for window in windows if window is not None]
    if not known:
        return Coverage(_CELL_M, 0.0, 0.0, np.zeros((1, 1)))
    low = np.min([window[0] for window in known], axis=0)
    high = np.max([window[1] for window in known], axis=0)
    cell_m = max(_CELL_M, math.sqrt(float(np.prod(high - low)) / _MAX_CELLS))
    columns, rows = (np.ceil((high - low) / cell_m).astype(int) + 1).tolist()
    px_per_m = np.zeros((rows, columns))
    for view, window in zip(views, windows, strict=True):
        if window is None:
            continue
        first = np.maximum(np.floor((window[0] - low) / cell_m), 0).astype(int)
        last = np.minimum(np.ceil((window[1] - low) / cell_m), [columns, rows]).astype(int)
        u = low[0] + (np.arange(first[0], last[0]) + 0.5) * cell_m
        v = low[1] + (np.arange(first[1], last[1]) + 0.5) * cell_m
        cells = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
        resolution = _resolution(surface, view, cells).reshape(len(v), len(u))
        part = px_per_m[first[1] : last[1], first[0] : last[0]]
        np.maximum(part, resolution, out=part)
    return Coverage(cell_m, float(low[0]), float(low[1]), px_per_m)


def _window(surface: DevelopedSurface, view: MapView) -> tuple[Array, Array] | None:
    """Developed rectangle, (low, high), that holds all that a view shows; None when it faces away."""
    origin = view.T_map_camera.translation
    foot, normal = (one[0] for one in surface.place(surface.develop(origin[None])))
    axis = view.T_map_camera.rotation[:, 2]
    cosine = -float(axis @ normal)
    if cosine < _MIN_COSINE:
        return None
    distance = float((origin - foot) @ normal)
    if distance <= 0.0:
        return None
    along = distance / cosine
    camera = view.camera
    corners = camera.rays(np.array([[0.0, 0.0], [camera.width - 1.0, camera.height - 1.0]]))
    reach = float(np.nanmax(np.linalg.norm(corners[:, :2], axis=1), initial=0.1))
    middle = surface.develop((origin + along * axis)[None])[0]
    half = 1.5 * along * min(reach, 3.0) / cosine
    return middle - half, middle + half


def _resolution(surface: DevelopedSurface, view: MapView, cells: Array) -> Array:
    """Pixels per metre, foreshortened, at which a view shows `cells`, (N, 2); 0 where it does not."""
    points, normals = surface.place(cells)
    T_camera_map = view.T_map_camera.inverse()
    positions = T_camera_map.apply(points)
    _, shown = view.camera.project(positions)
    distances = np.linalg.norm(positions, axis=1)
    cosines = -np.einsum('ij,ij->i', positions, normals @ T_camera_map.rotation.T) / np.maximum(distances, 1e-9)
    shown &= cosines > _MIN_COSINE
    focal_px = math.sqrt(view.camera.fx * view.camera.fy)
    with np.errstate(divide='ignore'):
        return np.where(shown, focal_px * cosines / positions[:, 2], 0.0)
