"""What one view shows of one airhole: for a person to look at, nothing is computed from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cmml_ros.frame import Frame
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.defect import Defect

Array = NDArray[np.float64]

_CROP_PX = 96
_MARGIN = 0.6  # of the rim's extent, on each side
_JPEG_QUALITY = 80
_BEYOND_BGR = (225, 225, 225)  # what the picture does not show
_SECTION_STEPS = 41
_SECTION_REACH = 1.0  # diameters to each side of the centre
_STRIP = 0.15  # half the width of the section, diameters


@dataclass(frozen=True, eq=False)
class Closeup:
    """A crop of the picture, the rim in it and a section through the points.

    jpeg: a square picture. rim: (n, 2) x right, y down, in shares of its side. section_m: (k, 2) place along the
    longest axis of the rim and depth below the surface (the plane through the rim), metres; empty without points.
    """

    jpeg: bytes
    rim: Array
    section_m: Array


class CloseupMaker:
    """Makes the closeups of one frame, with its points taken through T_camera_lidar."""

    def __init__(self, frame: Frame, T_camera_lidar: SE3 | None) -> None:
        self._frame = frame
        self._T_camera_lidar = T_camera_lidar
        self._points: Array | None = None
        self._rows: Array = np.empty(0)

    def make(self, defect: Defect) -> Closeup:
        """The closeup of `defect`, one of this frame."""
        left, top, width, height = defect.roi
        side = max(width, height) * (1.0 + 2.0 * _MARGIN) + 4.0
        center = np.array([left + 0.5 * (width - 1), top + 0.5 * (height - 1)])
        origin, scale = center - 0.5 * (side - 1.0), _CROP_PX / side
        # Pixel centres: the crop's pixel i lies at origin + (i + 0.5) / scale - 0.5 of the picture.
        inverse_map = np.array(
            [[1 / scale, 0, origin[0] + 0.5 / scale - 0.5], [0, 1 / scale, origin[1] + 0.5 / scale - 0.5]]
        )
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC)
        crop = cv2.warpAffine(
            self._frame.image, inverse_map, (_CROP_PX, _CROP_PX), flags=flags, borderValue=_BEYOND_BGR
        )
        _, encoded = cv2.imencode('.jpg', crop, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        rim = (defect.outline_px - origin + 0.5) / side
        return Closeup(encoded.tobytes(), rim, self._section(defect))

    def _section(self, defect: Defect) -> Array:
        view = defect.measurement
        diameter = view.equivalent_diameter_m
        if not math.isfinite(diameter) or not np.isfinite(view.normal).all() or len(view.outline) < 3:
            return np.empty((0, 2))
        spokes = view.outline - view.position
        along = spokes[int(np.linalg.norm(spokes, axis=1).argmax())]
        along = along - view.normal * (along @ view.normal)
        along /= np.linalg.norm(along)
        reach = _SECTION_REACH * diameter
        near = self._points_near(view.position, 1.5 * reach) - view.position
        places, across = near @ along, near @ np.cross(view.normal, along)
        inside = (np.abs(across) <= _STRIP * diameter) & (np.abs(places) <= reach)
        places, depths = places[inside], -(near[inside] @ view.normal)
        bins = np.rint((places / reach + 1.0) * 0.5 * (_SECTION_STEPS - 1)).astype(np.int64)
        grid = np.linspace(-reach, reach, _SECTION_STEPS)
        return np.array([[grid[index], np.median(depths[bins == index])] for index in np.unique(bins)]).reshape(-1, 2)

    def _points_near(self, position: Array, reach_m: float) -> Array:
        """Points in the camera's frame that project beside `position`, (n, 3)."""
        frame = self._frame
        if self._points is None:
            if frame.cloud is None or self._T_camera_lidar is None:
                self._points = np.empty((0, 3))
            else:
                points = self._T_camera_lidar.apply(frame.cloud.points)
                points = points[points[:, 2] > 0.0]
                rows = points[:, 1] / points[:, 2]
                order = np.argsort(rows, kind='stable')
                self._points, self._rows = points[order], rows[order]
        middle, reach = position[1] / position[2], reach_m / position[2]
        strip = self._points[slice(*np.searchsorted(self._rows, (middle - reach, middle + reach)))]
        return np.asarray(strip[np.linalg.norm(strip - position, axis=1) <= reach_m])
