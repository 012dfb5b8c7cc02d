"""Point clouds, and what the camera sees of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import ShapeError


@dataclass(frozen=True)
class Cloud:
    """Finite points of one scan, in the sensor's frame.

    points: (N, 3) float64, metres. intensity: (N,) float32 in the sensor's own unit, or None.
    """

    points: NDArray[np.float64]
    intensity: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise ShapeError(f'points must be (N, 3), got {self.points.shape}')
        if self.intensity is not None and self.intensity.shape != self.points.shape[:1]:
            raise ShapeError(f'intensity must be ({len(self.points)},), got {self.intensity.shape}')

    def __len__(self) -> int:
        return len(self.points)
