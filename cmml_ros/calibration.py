"""What the data say about the extrinsic between camera and range sensor, frame by frame and smoothed over frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from cmml_ros.config import RegistrationConfig

Array = NDArray[np.float64]

# Below this probability that the extrinsic is right, it is called drifted.
_SIGNIFICANCE = 1e-3


class CalibrationStatus(IntEnum):
    """What is known about the extrinsic; the numbers are those of cmml_ros/CalibrationCheck."""

    NOT_CHECKED = 0
    CONSISTENT = 1
    DRIFTED = 2
    DEGENERATE = 3
    NO_TRANSFORM = 4


@dataclass(frozen=True, eq=False)
class CalibrationCheck:
    """How far the extrinsic in use is from what the data say, smoothed over frames.

    correction: (6,) rotation vector (rad) and translation (m) of T_camera_corrected @ T_camera_lidar^-1, camera frame,
    and std (6,) its deviations; NaN when not determined. match_count, inlier_ratio: of the latest frame.
    One that is NOT_CHECKED and has a correction is in doubt: the data contradict the extrinsic, in too few frames yet.
    """

    status: CalibrationStatus
    reason: str = ''
    correction: Array = field(default_factory=lambda: np.full(6, math.nan))
    std: Array = field(default_factory=lambda: np.full(6, math.nan))
    match_count: int = 0
    inlier_ratio: float = math.nan

    @property
    def in_doubt(self) -> bool:
        """Whether the data contradict the extrinsic, but in too few frames to be believed."""
        return self.status is CalibrationStatus.NOT_CHECKED and bool(np.isfinite(self.correction).all())


NOT_CHECKED = CalibrationCheck(CalibrationStatus.NOT_CHECKED)


class CalibrationMonitor:
    """Smooths the corrections of single frames: one odd frame is no drift.

    A Kalman filter on a constant that may wander by `registration.drift_rate_*`. The systematic deviation of a frame is
    not averaged out but added before anything is judged: network and sensor may err the same way in all frames, as an
    offset of the sensor does, and before the same wall.
    """

    def __init__(self, config: RegistrationConfig) -> None:
        self._config = config
        self._mean = np.zeros(6)
        self._covariance: Array | None = None
        self._stamp_ns = 0
        self._frames = 0

    def add(
        self,
        correction: Array,
        covariance: Array,
        systematic: Array,
        match_count: int,
        inlier_ratio: float,
        stamp_ns: int,
    ) -> CalibrationCheck:
        """The verdict after one more frame.

        correction: (6,), as of CalibrationCheck. covariance, systematic: (6, 6), all of it and the part that more
        matches do not lower. A stamp before the last one starts over.
        """
        covariance = covariance - systematic
        if self._covariance is None or stamp_ns < self._stamp_ns:
            self._mean, self._covariance, self._frames = correction.copy(), covariance.copy(), 1
        else:
            elapsed_s = (stamp_ns - self._stamp_ns) * 1e-9
            wander = np.repeat([math.radians(self._config.drift_rate_deg_h), self._config.drift_rate_m_h], 3) ** 2 * (
                elapsed_s / 3600.0
            )
            predicted = self._covariance + np.diag(wander)
            gain = predicted @ np.linalg.inv(predicted + covariance)
            self._mean = self._mean + gain @ (correction - self._mean)
            self._covariance = (np.eye(6) - gain) @ predicted
            self._frames += 1
        self._stamp_ns = stamp_ns
        total = self._covariance + systematic
        std = np.sqrt(np.diag(total))
        distance = float(self._mean @ np.linalg.solve(total, self._mean))
        mean = self._mean.copy()
        if distance <= float(chdtri(6, _SIGNIFICANCE)):
            return CalibrationCheck(CalibrationStatus.CONSISTENT, '', mean, std, match_count, inlier_ratio)
        turned_deg, moved_m = (float(np.linalg.norm(part)) for part in np.split(mean, 2))
        finding = (
            f'the data see the range sensor turned by {math.degrees(turned_deg):.2f} degrees and moved by '
            f'{1e3 * moved_m:.1f} mm against /tf'
        )
        if self._frames < self._config.frames_to_believe:
            reason = f'{finding}, in {self._frames} of the {self._config.frames_to_believe} frames that make it sure'
            return CalibrationCheck(CalibrationStatus.NOT_CHECKED, reason, mean, std, match_count, inlier_ratio)
        reason = f'{finding}; calibrate again, or use registration.mode: refine'
        return CalibrationCheck(CalibrationStatus.DRIFTED, reason, mean, std, match_count, inlier_ratio)
