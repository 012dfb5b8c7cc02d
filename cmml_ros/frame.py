"""What the pipeline works on: one image, the points seen with it, and how they lie to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import ShapeError
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud
from cmml_ros.geometry.transforms import SE3


@dataclass(frozen=True)
class Frame:
    """One synchronized view, validated once when made.

    image: (H, W, 3) uint8, BGR. stamp_ns, frame_id: acquisition stamp and optical frame of the image.
    cloud: points in the range sensor's frame, or None when there is no partner for the image.
    T_camera_lidar, T_map_camera: None when unknown, and `transform_reason` says why, or what the first is short of.
    """

    image: NDArray[np.uint8]
    camera: Camera
    stamp_ns: int
    frame_id: str
    cloud: Cloud | None = None
    cloud_stamp_ns: int | None = None
    T_camera_lidar: SE3 | None = None
    T_map_camera: SE3 | None = None
    transform_reason: str = ''

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ShapeError(f'image must be (H, W, 3) uint8, got {self.image.shape} {self.image.dtype}')
        height, width = self.image.shape[:2]
        if (self.camera.width, self.camera.height) != (width, height):
            raise ShapeError(
                f'image is {width}x{height} but camera_info says {self.camera.width}x{self.camera.height}; '
                'both must come from the same driver at the same resolution'
            )

    @property
    def sync_offset_s(self) -> float:
        """Stamp of the cloud minus stamp of the image, seconds; NaN without a cloud."""
        return float('nan') if self.cloud_stamp_ns is None else (self.cloud_stamp_ns - self.stamp_ns) * 1e-9
