"""Point clouds, and what the camera sees of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import ShapeError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3

# A point is hidden only when something is nearer by more than this: larger than any airhole is deep (tens of
# millimetres) and than the noise of a time-of-flight sensor, smaller than the gap between a pole and a wall.
OCCLUSION_GAP_M = 0.1
OCCLUSION_GAP_RATIO = 0.1
_CELL_PX = (4.0, 32.0)
_POINTS_PER_CELL = 2.0


@dataclass(frozen=True)
class Cloud:
    """Finite points of one scan, in the sensor's frame.

    points: (N, 3) float32 or float64, metres; may be a view of the message. intensity: (N,) float32 in the sensor's own
    unit, or None.
    """

    points: NDArray[np.float32] | NDArray[np.float64]
    intensity: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise ShapeError(f'points must be (N, 3), got {self.points.shape}')
        if self.intensity is not None and self.intensity.shape != self.points.shape[:1]:
            raise ShapeError(f'intensity must be ({len(self.points)},), got {self.intensity.shape}')

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class ProjectedCloud:
    """The points of a cloud that the camera sees, in the order of the cloud.

    points_camera: (N, 3) float64, metres, camera frame. pixels: (N, 2) float64. intensity: (N,) float32, or None.
    """

    points_camera: NDArray[np.float64]
    pixels: NDArray[np.float64]
    intensity: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        count = len(self.points_camera)
        if self.points_camera.shape != (count, 3) or self.pixels.shape != (count, 2):
            shapes = f'{self.points_camera.shape} and {self.pixels.shape}'
            raise ShapeError(f'points_camera must be (N, 3) and pixels (N, 2), got {shapes}')
        if self.intensity is not None and self.intensity.shape != (count,):
            raise ShapeError(f'intensity must be ({count},), got {self.intensity.shape}')

    def __len__(self) -> int:
        return len(self.points_camera)


def project_cloud(cloud: Cloud, camera: Camera, T_camera_lidar: SE3) -> ProjectedCloud:
    """The points of `cloud` that lie in the image and are not hidden behind nearer ones.

    Hidden (z-buffer): some point of the same image cell is nearer by more than OCCLUSION_GAP_M and more than
    OCCLUSION_GAP_RATIO of the depth. The cells are square and hold two points on average, so that a cloud coarser
    than the pixels still closes its surfaces, within 4 to 32 px.
    """
    from cmml_ros.geometry.occlusion import find_unhidden  # numba: who only passes clouds on need not wait for it

    points_camera, pixels, kept = camera.see(cloud.points, T_camera_lidar)
    area_px = camera.width * camera.height
    cell_px = min(max(math.sqrt(_POINTS_PER_CELL * area_px / max(len(pixels), 1)), _CELL_PX[0]), _CELL_PX[1])
    grid = math.ceil(camera.height / cell_px), math.ceil(camera.width / cell_px)
    unhidden = find_unhidden(points_camera, pixels, cell_px, grid, OCCLUSION_GAP_M, OCCLUSION_GAP_RATIO)
    if len(unhidden) < len(kept):
        points_camera, pixels, kept = points_camera[unhidden], pixels[unhidden], kept[unhidden]
    intensity = None if cloud.intensity is None else cloud.intensity[kept]
    return ProjectedCloud(points_camera, pixels, intensity)
