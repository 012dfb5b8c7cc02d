"""Airholes for RViz and Foxglove: rim and label of each, and a DELETE for what vanished."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from rclpy.node import Node
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from cmml_ros.measurement.defect import Measurement
from cmml_ros.nodes.messages import make_point, make_points
from cmml_ros.report.overlay import STATUS_COLORS_RGB, label_lines

_RIM_WIDTH_M = 0.0005
_LABEL_HEIGHT_M = 0.004
_LABEL_DISTANCE_M = 0.005
# From which diameter an airhole is more than a pore of a fair-faced surface (DBV, 15 mm), has to be patched for the
# better of the surface finishes of ACI 301 (SF-2.0, 3/4 in), and for the plain one (SF-1.0, 1 1/2 in).
_SEVERITY_COLORS_RGB = (
    (0.038, (255, 64, 64)),
    (0.019, (255, 144, 32)),
    (0.015, (255, 224, 64)),
    (0.0, (255, 255, 255)),
)


class MarkerPublisher:
    """`~/markers`, which remembers what is on display."""

    def __init__(self, node: Node, map_frame: str) -> None:
        self.publisher = node.create_publisher(MarkerArray, '~/markers', 10)
        self._map_frame = map_frame
        self._shown: set[tuple[str, int]] = set()  # frame and number of every airhole that has markers

    def publish(
        self, header: Header, ids: Sequence[int], measurements: Sequence[Measurement], alive: Collection[int]
    ) -> None:
        """Rim and label of each airhole seen, and a DELETE for those that vanished.

        In the map an airhole stays while the map holds it (`alive`); in the camera's frame, while it is seen.
        """
        message = MarkerArray()
        for frame_id, defect_id in sorted(self._shown):
            gone = frame_id == header.frame_id and defect_id not in alive
            if gone or frame_id not in (header.frame_id, self._map_frame):
                self._shown.remove((frame_id, defect_id))
                message.markers += make_markers(Header(stamp=header.stamp, frame_id=frame_id), defect_id, None)
        for defect_id, measurement in zip(ids, measurements, strict=True):
            if np.isfinite(measurement.position).all():
                self._shown.add((header.frame_id, defect_id))
                message.markers += make_markers(header, defect_id, measurement)
        self.publisher.publish(message)

    def clear(self, header: Header) -> None:
        """Take every marker back, in whatever frame it is."""
        for frame_id in {frame_id for frame_id, _ in self._shown}:
            self.publish(Header(stamp=header.stamp, frame_id=frame_id), (), (), ())


def make_markers(header: Header, defect_id: int, measurement: Measurement | None) -> list[Marker]:
    """Rim, coloured by volume status, and label, coloured by severity, of one airhole; None deletes them.

    A marker is known by (ns, id) whatever its frame, so the frame is part of ns: numbers of two frames never collide.
    """
    rim, label = (
        Marker(header=header, ns=f'{header.frame_id}/{part}', id=defect_id, action=Marker.DELETE)
        for part in ('rim', 'label')
    )
    if measurement is None:
        return [rim, label]
    for marker, color in (
        (rim, STATUS_COLORS_RGB[measurement.volume_status]),
        (label, severity_color_rgb(measurement.equivalent_diameter_m)),
    ):
        marker.action = Marker.ADD
        marker.pose.orientation.w = 1.0
        red, green, blue = (level / 255.0 for level in color)
        marker.color = ColorRGBA(r=red, g=green, b=blue, a=1.0)
    rim.type = Marker.LINE_STRIP
    rim.scale.x = _RIM_WIDTH_M
    rim.points = make_points(np.vstack([measurement.outline, measurement.outline[:1]]))
    label.type = Marker.TEXT_VIEW_FACING
    label.scale.z = _LABEL_HEIGHT_M
    label.pose.position = make_point(measurement.position + _LABEL_DISTANCE_M * measurement.normal)
    label.text = '\n'.join(label_lines(measurement))
    return [rim, label]


def severity_color_rgb(diameter_m: float) -> tuple[int, int, int]:
    """White for a pore, through yellow and orange to red for what has to be patched; white when unknown."""
    return next((color for limit_m, color in _SEVERITY_COLORS_RGB if diameter_m >= limit_m), (255, 255, 255))
