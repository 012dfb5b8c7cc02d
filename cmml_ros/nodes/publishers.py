"""Results out to ROS."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image

from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.msg import CalibrationCheck, Defect, DefectArray
from cmml_ros.nodes.detections import find_vision_msgs, make_detections
from cmml_ros.nodes.markers import MarkerPublisher
from cmml_ros.nodes.messages import make_calibration, make_defect, make_defect_array, make_header, make_image
from cmml_ros.report.overlay import draw_overlay

if TYPE_CHECKING:  # the inspector brings torch, which takes seconds to import
    from cmml_ros.inspector import Inspection


class InspectionPublishers:
    """The node's output topics.

    A reliable writer serves reliable and best-effort readers alike, so every output is offered as reliable.
    """

    def __init__(self, node: Node, map_frame: str) -> None:
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node = node
        self._map_frame = map_frame
        self._told: dict[int, tuple[MapEntry, Defect]] = {}
        self._defects = node.create_publisher(DefectArray, '~/defects', 10)
        self._calibration = node.create_publisher(CalibrationCheck, '~/calibration', 10)
        self._markers = MarkerPublisher(node, map_frame)
        self._overlay = node.create_publisher(Image, '~/overlay', 2)
        self._map = node.create_publisher(DefectArray, '~/map', latched)
        self._publishers = [self._defects, self._calibration, self._markers.publisher, self._overlay, self._map]
        self._vision_msgs = find_vision_msgs()
        if self._vision_msgs is not None:
            self._detections = node.create_publisher(self._vision_msgs.Detection3DArray, '~/detections', 10)
            self._publishers.append(self._detections)

    def destroy(self) -> None:
        """Withdraw the topics."""
        while self._publishers:
            self._node.destroy_publisher(self._publishers.pop())

    def publish(self, inspection: Inspection, ids: Sequence[int], map_ids: Collection[int]) -> None:
        """One frame's results. ids: one number per defect. map_ids: what the map holds after this frame."""
        frame = inspection.frame
        header = make_header(frame.stamp_ns, frame.frame_id)
        self._defects.publish(make_defect_array(inspection, ids))
        self._calibration.publish(make_calibration(inspection))
        if self._overlay.get_subscription_count():
            self._overlay.publish(make_image(draw_overlay(inspection), header))
        if self._vision_msgs is not None:
            self._detections.publish(make_detections(self._vision_msgs, header, ids, inspection.defects))
        measurements = [defect.measurement for defect in inspection.defects]
        if frame.T_map_camera is None:
            self._markers.publish(header, ids, measurements, ids)
        else:
            measurements = [measurement.transformed(frame.T_map_camera) for measurement in measurements]
            self._markers.publish(make_header(frame.stamp_ns, self._map_frame), ids, measurements, map_ids)

    def publish_map(self, entries: Iterable[MapEntry], stamp_ns: int, model_id: str) -> None:
        """Every airhole known so far; stamp_ns: of the latest image in it."""
        message = DefectArray(header=make_header(stamp_ns, self._map_frame), model_id=model_id, sync_offset=math.nan)
        message.projection_time = message.segmentation_time = message.measurement_time = message.total_time = math.nan
        # Who has no news is the same entry as last time, and to make a message of it takes longer than to send it.
        before, self._told = self._told, {}
        for entry in entries:
            known, defect = before.get(entry.defect_id, (None, None))
            if known is not entry:
                defect = make_defect(entry.defect_id, entry.confidence, entry.measurement)
                defect.class_id = entry.class_id
                defect.observation_count = entry.observations
            self._told[entry.defect_id] = entry, defect
            message.defects.append(defect)
        self._map.publish(message)

    def clear(self, stamp_ns: int, model_id: str) -> None:
        """Take every marker back and publish an empty map."""
        self._markers.clear(make_header(stamp_ns, self._map_frame))
        self.publish_map((), stamp_ns, model_id)
