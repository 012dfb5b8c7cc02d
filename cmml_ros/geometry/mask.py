"""Airhole masks in image space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmml_ros.errors import ShapeError


@dataclass(frozen=True)
class InstanceMask:
    """One airhole in the image.

    coverage: (h, w) float32 in [0, 1], the share of each pixel that lies inside the rim; it sums to the area in pixels.
    left, top: column and row of coverage[0, 0] in the image. touches_border: the image cuts the airhole.
    boundary_std_px: deviation of the whole rim, all around alike; NaN where only the softness of the coverage tells.
    """

    coverage: NDArray[np.float32]
    left: int
    top: int
    confidence: float
    touches_border: bool = False
    class_id: int = 0
    boundary_std_px: float = math.nan

    def __post_init__(self) -> None:
        if self.coverage.ndim != 2 or self.coverage.dtype != np.float32:
            raise ShapeError(f'coverage must be (h, w) float32, got {self.coverage.shape} {self.coverage.dtype}')

    @property
    def roi(self) -> tuple[int, int, int, int]:
        """left, top, width, height in pixels."""
        height, width = self.coverage.shape
        return self.left, self.top, width, height

    @property
    def area_px(self) -> float:
        """Area in pixels."""
        return float(self.coverage.sum(dtype=np.float64))

    @property
    def equivalent_diameter_px(self) -> float:
        """Diameter of the disc of the same area, in pixels."""
        return 2.0 * float(np.sqrt(self.area_px / np.pi))
