"""The airholes of one frame as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.measurement.uncertainty import Budget

Array = NDArray[np.float64]


class FrameViews:
    """The airholes of one frame as arrays, a row each; in the camera's frame until moved."""

    def __init__(self, defects: Sequence[Defect]) -> None:
        found = [defect.measurement for defect in defects]

        def column(name: str) -> Array:
            return np.array([getattr(view, name) for view in found], np.float64)

        self.class_ids = np.array([defect.class_id for defect in defects], np.int64)
        self.confidences = np.array([defect.confidence for defect in defects], np.float64)
        self.area_statuses = np.array([view.area_status for view in found], np.int64)
        self.volume_statuses = np.array([view.volume_status for view in found], np.int64)
        self.whole = self.area_statuses != Status.CUT_BY_BORDER
        self.point_counts = np.array([view.point_count for view in found], np.int64)
        self.position_stds = column('position_std_m')
        self.areas = np.stack([column(name) for name in ('area_m2', 'major_axis_m', 'minor_axis_m')], axis=1)
        self.area_stds, self.area_systematic_stds = column('area_std_m2'), column('area_systematic_std_m2')
        self.depths = column('depth_max_m')[:, None]
        self.depth_stds, self.depth_systematic_stds = column('depth_max_std_m'), column('depth_max_systematic_std_m')
        self.volumes = np.stack([column(name) for name in ('volume_m3', 'volume_upper_bound_m3')], axis=1)
        self.volume_stds, self.volume_systematic_stds = column('volume_std_m3'), column('volume_systematic_std_m3')
        budgets = [view.volume_budget or Budget() for view in found]
        besides, rims = [one.beside_cavity for one in budgets], [Budget(boundary=one.boundary) for one in budgets]
        self.beside_stds = np.array([one.std for one in besides])
        self.beside_systematic_stds = np.array([one.systematic_std for one in besides])
        self.rim_stds = np.array([one.std for one in rims])
        self.rim_systematic_stds = np.array([one.systematic_std for one in rims])
        self.diameters = column('equivalent_diameter_m')
        self._positions_camera = column('position').reshape(-1, 3)
        self._normals_camera = column('normal').reshape(-1, 3)
        self.radii = _radii_m(found, self._positions_camera)
        self.positions, self.normals = self._positions_camera, self._normals_camera
        # Along the ray the range decides, across it the rim: its deviation is that of the area over the perimeter.
        rays = self._positions_camera / np.linalg.norm(self._positions_camera, axis=1, keepdims=True)
        rim_stds = self.area_stds / (math.pi * self.diameters)
        across = np.nan_to_num(rim_stds)[:, None, None] ** 2 * np.eye(3)
        along = np.nan_to_num(self.position_stds)[:, None, None] ** 2 * rays[:, :, None] * rays[:, None, :]
        self._covariances_camera = along + across
        self.covariances = self._covariances_camera

    def __len__(self) -> int:
        return len(self.class_ids)

    def move(self, T_map_camera: SE3) -> None:
        """Into the map."""
        rotation = T_map_camera.rotation
        self.positions = T_map_camera.apply(self._positions_camera)
        self.normals = self._normals_camera @ rotation.T
        self.covariances = rotation @ self._covariances_camera @ rotation.T


def _radii_m(views: Sequence[Measurement], positions: Array) -> Array:
    """From each centre to the farthest known point of the rim, (n,)."""
    counts = np.array([len(view.outline) for view in views], np.int64)
    radii = np.zeros(len(views))
    if counts.any():
        offsets = np.concatenate([view.outline for view in views]) - np.repeat(positions, counts, axis=0)
        starts = (np.cumsum(counts) - counts)[counts > 0]
        radii[counts > 0] = np.sqrt(np.maximum.reduceat(np.einsum('ij,ij->i', offsets, offsets), starts))
    return radii
