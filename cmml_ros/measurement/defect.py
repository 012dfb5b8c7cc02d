"""What is known about one airhole, and what is not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.pooling import CavityReadings
from cmml_ros.measurement.uncertainty import Budget

Array = NDArray[np.float64]


class Status(IntEnum):
    """How an area or a volume came about; the numbers are those of cmml_ros/Defect."""

    MEASURED = 0
    SHAPE_PRIOR = 1
    BELOW_DETECTION_LIMIT = 2
    NO_POINTS = 3
    NO_TRANSFORM = 4
    CUT_BY_BORDER = 5


def _nowhere() -> Array:
    return np.full(3, math.nan)


def _no_outline() -> Array:
    return np.empty((0, 3))


@dataclass(frozen=True)
class Measurement:
    """Position and size of one airhole, metres, in one frame (the camera's until `transformed`).

    Deviations are one standard deviation. NaN is "unknown", and the reason says why. volume_m3 is the void between the
    reference surface and the bottom, over the rim polygon; volume_upper_bound_m3 is the 95 % bound.
    *_systematic_std: the part of a deviation that all views of an airhole share, so that fusing does not lessen it;
    NaN when nobody told, which is to be taken as all of it.
    outline: (n, 3) rim polygon on the surface, counter-clockwise seen from outside. normal points out of the wall.
    *_budget: what a deviation of a single view is made of; None where there is none.
    readings: what fell into the opening, of a single view that other views may add to; else None.
    """

    area_status: Status
    volume_status: Status
    position: Array = field(default_factory=_nowhere)
    normal: Array = field(default_factory=_nowhere)
    outline: Array = field(default_factory=_no_outline)
    area_m2: float = math.nan
    area_std_m2: float = math.nan
    area_systematic_std_m2: float = math.nan
    equivalent_diameter_m: float = math.nan
    major_axis_m: float = math.nan
    minor_axis_m: float = math.nan
    depth_max_m: float = math.nan
    depth_max_std_m: float = math.nan
    depth_max_systematic_std_m: float = math.nan
    volume_m3: float = math.nan
    volume_std_m3: float = math.nan
    volume_systematic_std_m3: float = math.nan
    volume_upper_bound_m3: float = math.nan
    position_std_m: float = math.nan
    range_noise_m: float = math.nan
    point_count: int = 0
    reason: str = ''
    area_budget: Budget | None = None
    depth_budget: Budget | None = None
    volume_budget: Budget | None = None
    readings: CavityReadings | None = None

    @classmethod
    def unknown(cls, status: Status, reason: str) -> Measurement:
        """Nothing metric is known, for `reason`."""
        return cls(area_status=status, volume_status=status, reason=reason)

    def transformed(self, T_target_source: SE3) -> Measurement:
        """The same airhole with position, normal and outline in the target frame."""
        return dataclasses.replace(
            self,
            position=T_target_source.apply(self.position),
            normal=T_target_source.rotation @ self.normal,
            outline=T_target_source.apply(self.outline),
            readings=None if self.readings is None else self.readings.rotated(T_target_source.rotation),
        )


@dataclass(frozen=True)
class Defect:
    """One airhole in one frame: where it is in the image, and how large it is.

    roi: left, top, width, height in pixels. outline_px: (n, 2) rim polygon in pixels.
    """

    class_id: int
    confidence: float
    roi: tuple[int, int, int, int]
    outline_px: Array
    measurement: Measurement
