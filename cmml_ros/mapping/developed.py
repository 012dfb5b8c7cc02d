"""The inspected surface unrolled into a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import SurfaceError
from cmml_ros.measurement.defect import Measurement

Array = NDArray[np.float64]

_FLAT_DEG = 4.0  # spread of the normals up to which a surface is a plane
_LARGEST_RESIDUAL_M = 0.010  # or three deviations of the positions


@dataclass(frozen=True, eq=False)
class DevelopedSurface:
    """A plane, or a cylinder unrolled; u to the right seen from outside, v up (on a cylinder: along its axis), metres.

    origin: (3,) where u = v = 0. right, up, normal: (3,) axes there, normal out of the wall. curvature: 1 / m about
    `up`, positive for a column, negative for a tunnel, 0 for a plane.
    """

    origin: Array
    right: Array
    up: Array
    normal: Array
    curvature: float

    @property
    def kind(self) -> str:
        """For a person to read."""
        if self.curvature == 0.0:
            return 'plane'
        return f'{"column" if self.curvature > 0 else "vault"} of {1 / abs(self.curvature):.2f} m radius'

    def develop(self, points: Array) -> Array:
        """u, v of `points`, (N, 3) in the map, dropped on the surface: (N, 2)."""
        offsets = points - self.origin
        right, up, out = offsets @ self.right, offsets @ self.up, offsets @ self.normal
        if self.curvature == 0.0:
            return np.column_stack([right, up])
        angles = np.arctan2(right * self.curvature, 1.0 + out * self.curvature)
        return np.column_stack([angles / self.curvature, up])

    def place(self, developed: Array) -> tuple[Array, Array]:
        """Points and unit normals in the map, (N, 3) each, of `developed`, (N, 2)."""
        u, v = developed.T
        if self.curvature == 0.0:
            points = self.origin + u[:, None] * self.right + v[:, None] * self.up
            return points, np.broadcast_to(self.normal, points.shape)
        angles = u * self.curvature
        sines, cosines = np.sin(angles)[:, None], np.cos(angles)[:, None]
        normals = sines * self.right + cosines * self.normal
        points = self.origin + (normals - self.normal) / self.curvature + v[:, None] * self.up
        return points, normals


def fit_developed(measurements: Sequence[Measurement]) -> DevelopedSurface:
    """The plane or cylinder on which the airholes lie.

    Raises SurfaceError when there is none, or when they lie on neither.
    """
    placed = [one for one in measurements if np.isfinite(one.position).all() and np.isfinite(one.normal).all()]
    if not placed:
        raise SurfaceError('no airhole has a place in the map')
    positions = np.array([one.position for one in placed])
    normals = np.array([one.normal for one in placed])
    stds = [one.position_std_m for one in placed if math.isfinite(one.position_std_m)]
    tolerance_m = max(_LARGEST_RESIDUAL_M, 3.0 * float(np.median(stds)) if stds else 0.0)
    mean_normal = np.median(normals, axis=0)
    if np.linalg.norm(mean_normal) < 0.2:
        raise SurfaceError('the surface closes on itself; inspect it side by side')
    mean_normal /= np.linalg.norm(mean_normal)
    center = np.median(positions, axis=0)
    spread_deg = math.degrees(math.acos(min(float(np.median(normals @ mean_normal)), 1.0)))
    if spread_deg <= _FLAT_DEG or len(placed) < 6:
        surface = _make_plane(positions, center, mean_normal)
    else:
        surface = _make_cylinder(positions, normals, center, mean_normal)
    feet, _ = surface.place(surface.develop(positions))
    residual_m = float(np.median(np.linalg.norm(positions - feet, axis=1)))
    if residual_m > tolerance_m:
        raise SurfaceError(
            f'the airholes lie {residual_m * 1e3:.0f} mm beside the {surface.kind} that fits best; '
            'inspect each face of the structure in a recording of its own'
        )
    return surface


def _make_plane(positions: Array, center: Array, mean_normal: Array) -> DevelopedSurface:
    normal = mean_normal
    offsets = positions - center
    extents = np.linalg.svd(offsets, full_matrices=False)[1] if len(offsets) >= 6 else np.zeros(3)
    if len(extents) == 3 and extents[1] > 0.1 * extents[0] > 0.0:  # wide both ways: positions tell more than normals
        for _ in range(2):
            heights = np.abs(offsets @ normal)
            near = offsets[heights <= 4.0 * max(float(np.median(heights)), 1e-6)]
            normal = np.linalg.svd(near - near.mean(axis=0), full_matrices=False)[2][2]
            normal = normal * np.sign(normal @ mean_normal)
    return _orient(center, normal, _find_up(normal), 0.0)


def _make_cylinder(positions: Array, normals: Array, center: Array, mean_normal: Array) -> DevelopedSurface:
    """Normals are at right angles to the axis, and position = axis point + radius * normal is linear in the rest."""
    _, _, axes = np.linalg.svd(normals - (normals @ mean_normal)[:, None] * mean_normal, full_matrices=False)
    sideways = axes[0]
    axis = np.cross(mean_normal, sideways)
    axis /= np.linalg.norm(axis)
    if axis @ _find_up(mean_normal) < 0:
        axis = -axis
    flat_normals = normals - (normals @ axis)[:, None] * axis
    flat_normals /= np.linalg.norm(flat_normals, axis=1, keepdims=True)
    flat = (positions - center) - ((positions - center) @ axis)[:, None] * axis
    normal = mean_normal - (mean_normal @ axis) * axis
    normal /= np.linalg.norm(normal)
    side = np.cross(axis, normal)
    unknowns = np.zeros((2 * len(flat), 3))
    for row, direction in enumerate((side, normal)):
        unknowns[row::2, row] = 1.0
        unknowns[row::2, 2] = flat_normals @ direction
    target = np.column_stack([flat @ side, flat @ normal]).ravel()
    across, depth, signed_radius = np.linalg.lstsq(unknowns, target, rcond=None)[0]
    if abs(signed_radius) < 0.02 or abs(signed_radius) > 1e3:
        return _make_plane(positions, center, mean_normal)
    origin = center + across * side + (depth + signed_radius) * normal
    return _orient(origin, normal, axis, 1.0 / float(signed_radius))


def _find_up(normal: Array) -> Array:
    """The z axis of the map in the surface; on a floor or ceiling its y axis."""
    vertical = np.array([0.0, 0.0, 1.0]) if abs(normal[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    up = vertical - (vertical @ normal) * normal
    return np.asarray(up / np.linalg.norm(up))


def _orient(origin: Array, normal: Array, up: Array, curvature: float) -> DevelopedSurface:
    return DevelopedSurface(origin, np.cross(up, normal), up, normal, curvature)
