"""Results as ROS messages. Every message carries the acquisition stamp of its image and one frame; NaN stays NaN."""

from __future__ import annotations

import array
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Quaternion, Transform, Vector3
from numpy.typing import NDArray
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.defect import Measurement
from cmml_ros.msg import CalibrationCheck, DefectArray
from cmml_ros.msg import Defect as DefectMessage
from cmml_ros.report.results_bag import list_sizes

if TYPE_CHECKING:  # the inspector brings torch, which takes seconds to import
    from cmml_ros.inspector import Inspection


def make_header(stamp_ns: int, frame_id: str) -> Header:
    """A header with an acquisition stamp."""
    return Header(stamp=Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id=frame_id)


def make_image(image: NDArray[np.uint8], header: Header) -> Image:
    """`image`, (H, W, 3) BGR, as a message."""
    height, width = image.shape[:2]
    # From array.array the message takes the buffer as it is; from bytes or a list it checks every byte in Python.
    data = array.array('B', image.tobytes())
    return Image(header=header, height=height, width=width, encoding='bgr8', step=3 * width, data=data)


def make_defect_array(inspection: Inspection, ids: Sequence[int]) -> DefectArray:
    """One frame's airholes in the camera's optical frame."""
    frame, timings_s = inspection.frame, inspection.timings_s
    message = DefectArray(
        header=make_header(frame.stamp_ns, frame.frame_id),
        model_id=inspection.model_id,
        sync_offset=frame.sync_offset_s,
        calibration_status=int(inspection.calibration.status),
        projection_time=timings_s['project'],
        segmentation_time=timings_s['network'],
        measurement_time=timings_s['measure'],
        total_time=sum(timings_s.values()),
    )
    for defect_id, defect in zip(ids, inspection.defects, strict=True):
        left, top, width, height = defect.roi
        one = make_defect(defect_id, defect.confidence, defect.measurement)
        one.class_id = defect.class_id
        one.roi = RegionOfInterest(x_offset=left, y_offset=top, width=width, height=height)
        one.observation_count = 1
        message.defects.append(one)
    return message


def make_calibration(inspection: Inspection) -> CalibrationCheck:
    """What is known about the extrinsic after this frame; NaN where nothing is."""
    frame, check = inspection.frame, inspection.calibration
    message = CalibrationCheck(
        header=make_header(frame.stamp_ns, frame.frame_id),
        correction=Transform(
            translation=make_vector(check.correction[3:]),
            rotation=Quaternion(x=math.nan, y=math.nan, z=math.nan, w=math.nan),
        ),
        rotation_stddev=make_vector(check.std[:3]),
        translation_stddev=make_vector(check.std[3:]),
        match_count=check.match_count,
        inlier_ratio=check.inlier_ratio,
        status=int(check.status),
        reason=check.reason,
    )
    if np.isfinite(check.correction).all():
        x, y, z, w = SE3.from_rotation_vector(check.correction[:3], check.correction[3:]).quaternion_xyzw.tolist()
        message.correction.rotation = Quaternion(x=x, y=y, z=z, w=w)
    return message


def make_defect(defect_id: int, confidence: float, measurement: Measurement) -> DefectMessage:
    """One measured airhole; NaN stays NaN."""
    return DefectMessage(
        id=defect_id,
        confidence=confidence,
        position=make_point(measurement.position),
        normal=make_vector(measurement.normal),
        outline=make_points(measurement.outline),
        **list_sizes(measurement),
    )


def make_point(point: NDArray[np.float64]) -> Point:
    """x, y, z."""
    return make_points(point[None])[0]


def make_points(points: NDArray[np.float64]) -> list[Point]:
    """x, y, z of each of `points`, (N, 3)."""
    return [Point(x=x, y=y, z=z) for x, y, z in points.tolist()]


def make_vector(vector: NDArray[np.float64]) -> Vector3:
    """x, y, z."""
    x, y, z = vector.tolist()
    return Vector3(x=x, y=y, z=z)
