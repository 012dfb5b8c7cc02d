"""Results out to ROS. Every message carries the acquisition stamp of its image and one frame."""

from __future__ import annotations

import array
import math
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Vector3
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from cmml_ros.inspector import Inspection
from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.measurement.defect import Measurement
from cmml_ros.msg import CalibrationCheck, DefectArray
from cmml_ros.msg import Defect as DefectMessage
from cmml_ros.report.overlay import STATUS_COLORS_RGB, draw_overlay, label_lines

_RIM_WIDTH_M = 0.0005
_LABEL_HEIGHT_M = 0.004
_LABEL_DISTANCE_M = 0.005


class InspectionPublishers:
    """The node's output topics.

    A reliable writer serves reliable and best-effort readers alike, so every output is offered as reliable.
    """

    def __init__(self, node: Node) -> None:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._defects = node.create_publisher(DefectArray, '~/defects', 10)
        self._markers = node.create_publisher(MarkerArray, '~/markers', 10)
        self._overlay = node.create_publisher(Image, '~/overlay', 2)
        self._map = node.create_publisher(DefectArray, '~/map', latched)
        self._shown: set[tuple[str, int]] = set()  # frame and number of every airhole that has markers

    def publish(self, inspection: Inspection, ids: Sequence[int], map_ids: Collection[int], map_frame: str) -> None:
        """One frame's results. ids: one number per defect. map_ids: what the map holds after this frame."""
        frame = inspection.frame
        header = make_header(frame.stamp_ns, frame.frame_id)
        self._defects.publish(make_defect_array(inspection, ids))
        if self._overlay.get_subscription_count():
            self._overlay.publish(make_image(draw_overlay(inspection), header))
        measurements = [defect.measurement for defect in inspection.defects]
        if frame.T_map_camera is None:
            self._publish_markers(header, ids, measurements, ids, map_frame)
        else:
            measurements = [measurement.transformed(frame.T_map_camera) for measurement in measurements]
            header = make_header(frame.stamp_ns, map_frame)
            self._publish_markers(header, ids, measurements, map_ids, map_frame)

    def publish_map(self, entries: Iterable[MapEntry], map_frame: str, stamp_ns: int, model_id: str) -> None:
        """Every airhole known so far; stamp_ns: of the latest image in it."""
        message = DefectArray(header=make_header(stamp_ns, map_frame), model_id=model_id, sync_offset=math.nan)
        message.projection_time = message.segmentation_time = message.measurement_time = message.total_time = math.nan
        for entry in entries:
            defect = make_defect(entry.defect_id, entry.confidence, entry.measurement)
            defect.observation_count = entry.observations
            message.defects.append(defect)
        self._map.publish(message)

    def clear(self, map_frame: str, stamp_ns: int, model_id: str) -> None:
        """Take every marker back and publish an empty map."""
        for frame_id in {frame_id for frame_id, _ in self._shown}:
            self._publish_markers(make_header(stamp_ns, frame_id), (), (), (), map_frame)
        self.publish_map((), map_frame, stamp_ns, model_id)

    def _publish_markers(
        self,
        header: Header,
        ids: Sequence[int],
        measurements: Sequence[Measurement],
        alive: Collection[int],
        map_frame: str,
    ) -> None:
        """Rim and label of each airhole seen, and a DELETE for those that vanished.

        In the map an airhole stays while the map holds it; in the camera's frame, while it is seen.
        """
        message = MarkerArray()
        for frame_id, defect_id in sorted(self._shown):
            if (frame_id == header.frame_id and defect_id not in alive) or frame_id not in (header.frame_id, map_frame):
                self._shown.remove((frame_id, defect_id))
                message.markers += make_markers(Header(stamp=header.stamp, frame_id=frame_id), defect_id, None)
        for defect_id, measurement in zip(ids, measurements, strict=True):
            if np.isfinite(measurement.position).all():
                self._shown.add((header.frame_id, defect_id))
                message.markers += make_markers(header, defect_id, measurement)
        self._markers.publish(message)


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
        calibration_status=CalibrationCheck.NOT_CHECKED,
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


def make_defect(defect_id: int, confidence: float, measurement: Measurement) -> DefectMessage:
    """One measured airhole; NaN stays NaN."""
    return DefectMessage(
        id=defect_id,
        confidence=confidence,
        position=_make_point(measurement.position),
        normal=_make_vector(measurement.normal),
        outline=[_make_point(point) for point in measurement.outline],
        area=measurement.area_m2,
        area_stddev=measurement.area_std_m2,
        equivalent_diameter=measurement.equivalent_diameter_m,
        major_axis=measurement.major_axis_m,
        minor_axis=measurement.minor_axis_m,
        depth_max=measurement.depth_max_m,
        depth_max_stddev=measurement.depth_max_std_m,
        volume=measurement.volume_m3,
        volume_stddev=measurement.volume_std_m3,
        volume_upper_bound=measurement.volume_upper_bound_m3,
        area_status=int(measurement.area_status),
        volume_status=int(measurement.volume_status),
        reason=measurement.reason,
        point_count=measurement.point_count,
    )


def make_markers(header: Header, defect_id: int, measurement: Measurement | None) -> list[Marker]:
    """Rim and label of one airhole; None deletes them.

    A marker is known by (ns, id) whatever its frame, so the frame is part of ns: numbers of two frames never collide.
    """
    rim, label = (
        Marker(header=header, ns=f'{header.frame_id}/{part}', id=defect_id, action=Marker.DELETE)
        for part in ('rim', 'label')
    )
    if measurement is None:
        return [rim, label]
    red, green, blue = (level / 255.0 for level in STATUS_COLORS_RGB[measurement.volume_status])
    for marker in (rim, label):
        marker.action = Marker.ADD
        marker.pose.orientation.w = 1.0
        marker.color = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    rim.type = Marker.LINE_STRIP
    rim.scale.x = _RIM_WIDTH_M
    rim.points = [_make_point(point) for point in (*measurement.outline, *measurement.outline[:1])]
    label.type = Marker.TEXT_VIEW_FACING
    label.scale.z = _LABEL_HEIGHT_M
    label.pose.position = _make_point(measurement.position + _LABEL_DISTANCE_M * measurement.normal)
    label.text = '\n'.join(label_lines(measurement))
    return [rim, label]


def _make_point(point: NDArray[np.float64]) -> Point:
    x, y, z = point.tolist()
    return Point(x=x, y=y, z=z)


def _make_vector(vector: NDArray[np.float64]) -> Vector3:
    x, y, z = vector.tolist()
    return Vector3(x=x, y=y, z=z)
