from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy')
from visualization_msgs.msg import Marker, MarkerArray

from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.inspector import Inspection
from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.nodes.messages import make_defect_array, make_header, make_image
from cmml_ros.nodes.publishers import InspectionPublishers

STAMP_NS = 1_700_000_001_000_000_007
# The wall is 0.5 m in front of the camera of the robot, which looks along the map's x axis from 1 m beside the origin.
T_MAP_CAMERA = SE3(np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]), np.array([0.0, 1.0, 0.0]))


def make_measurement(x: float = 0.01) -> Measurement:
    return Measurement(
        area_status=Status.MEASURED,
        volume_status=Status.MEASURED,
        position=np.array([x, 0.0, 0.5]),
        normal=np.array([0.0, 0.0, -1.0]),
        outline=np.array([[x, 0.0, 0.5], [x, 0.01, 0.5], [x + 0.01, 0.0, 0.5]]),
        area_m2=5e-5,
        equivalent_diameter_m=0.00798,
        volume_m3=123.4e-9,
        point_count=40,
    )


def make_inspection(*measurements: Measurement, T_map_camera: SE3 | None = None) -> Inspection:
    image = np.zeros((48, 64, 3), np.uint8)
    frame = Frame(image, Camera(64, 48, 50.0, 50.0, 32.0, 24.0), STAMP_NS, 'camera', T_map_camera=T_map_camera)
    defects = tuple(Defect(0, 0.875, (1, 2, 3, 4), np.empty((0, 2)), measurement) for measurement in measurements)
    return Inspection(frame, defects, 'small-0123', {'project': 0.1, 'network': 0.2, 'measure': 0.3})


def test_a_defect_array_carries_the_stamp_and_the_measured_values() -> None:
    message = make_defect_array(make_inspection(make_measurement()), [7])
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_001, 7)
    assert (message.header.frame_id, message.model_id) == ('camera', 'small-0123')
    assert message.total_time == pytest.approx(0.6)
    assert math.isnan(message.sync_offset)
    (defect,) = message.defects
    assert (defect.id, defect.confidence, defect.point_count, defect.observation_count) == (7, 0.875, 40, 1)
    assert (defect.area, defect.volume, defect.volume_status) == (5e-5, 123.4e-9, defect.MEASURED)
    assert (defect.roi.x_offset, defect.roi.y_offset, defect.roi.width, defect.roi.height) == (1, 2, 3, 4)
    assert [(point.x, point.y, point.z) for point in defect.outline][1] == (0.01, 0.01, 0.5)


def test_unknown_stays_nan_with_its_reason() -> None:
    unknown = Measurement.unknown(Status.NO_TRANSFORM, 'no edge from base to lidar')
    (defect,) = make_defect_array(make_inspection(unknown), [0]).defects
    assert math.isnan(defect.area)
    assert math.isnan(defect.volume)
    assert math.isnan(defect.position.x)
    assert (defect.area_status, defect.volume_status) == (defect.NO_TRANSFORM, defect.NO_TRANSFORM)
    assert (defect.reason, len(defect.outline)) == ('no edge from base to lidar', 0)


def test_an_image_message_is_made_without_touching_every_byte() -> None:
    image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        message = make_image(image, make_header(STAMP_NS, 'camera'))
        seconds.append(time.perf_counter() - started)
    # A list or bytes takes a second and more.
    assert min(seconds) < 0.010
    assert (message.width, message.height, message.step, message.encoding) == (1280, 720, 3840, 'bgr8')
    assert np.array_equal(np.frombuffer(message.data, np.uint8).reshape(720, 1280, 3), image)


class Topics:
    """Stands for a node: keeps what is published."""

    def __init__(self) -> None:
        self.sent: dict[str, list[object]] = {}
        self.readers = 0

    def create_publisher(self, _: type, topic: str, __: object) -> Topics.Publisher:
        return self.Publisher(self, topic)

    class Publisher:
        def __init__(self, topics: Topics, topic: str) -> None:
            self._topics, self._topic = topics, topic

        def publish(self, message: object) -> None:
            self._topics.sent.setdefault(self._topic, []).append(message)

        def get_subscription_count(self) -> int:
            return self._topics.readers


def actions(message: MarkerArray) -> list[tuple[str, int, int]]:
    return [(marker.ns, marker.id, marker.action) for marker in message.markers]


def test_markers_of_a_camera_without_a_map_vanish_with_their_airholes() -> None:
    topics = Topics()
    publishers = InspectionPublishers(topics, 'map')
    publishers.publish(make_inspection(make_measurement(0.0), make_measurement(0.1)), [0, 1], [0, 1])
    publishers.publish(make_inspection(make_measurement(0.0)), [0], [0])
    publishers.publish(make_inspection(), [], [])
    first, second, third = topics.sent['~/markers']
    assert actions(first) == [
        ('camera/rim', 0, Marker.ADD),
        ('camera/label', 0, Marker.ADD),
        ('camera/rim', 1, Marker.ADD),
        ('camera/label', 1, Marker.ADD),
    ]
    assert actions(second)[:2] == [('camera/rim', 1, Marker.DELETE), ('camera/label', 1, Marker.DELETE)]
    assert actions(third) == [('camera/rim', 0, Marker.DELETE), ('camera/label', 0, Marker.DELETE)]
    rim, label = first.markers[:2]
    assert rim.type == Marker.LINE_STRIP
    assert rim.points[0] == rim.points[-1]
    assert len(rim.points) == 4
    assert rim.header == make_header(STAMP_NS, 'camera')
    assert label.text == '8.0 mm\n123 mm3'
    assert label.pose.position.z == pytest.approx(0.495)  # out of the wall, towards the camera


def test_markers_on_the_map_stay_while_the_map_holds_them() -> None:
    topics = Topics()
    publishers = InspectionPublishers(topics, 'map')
    publishers.publish(make_inspection(make_measurement()), [0], [0])
    publishers.publish(make_inspection(make_measurement(), T_map_camera=T_MAP_CAMERA), [5], [5])
    publishers.publish(make_inspection(T_map_camera=T_MAP_CAMERA), [], [5])
    publishers.publish(make_inspection(T_map_camera=T_MAP_CAMERA), [], [])
    _, second, third, fourth = topics.sent['~/markers']
    # What was shown before the pose was known is on the map now.
    assert actions(second) == [
        ('camera/rim', 0, Marker.DELETE),
        ('camera/label', 0, Marker.DELETE),
        ('map/rim', 5, Marker.ADD),
        ('map/label', 5, Marker.ADD),
    ]
    start = second.markers[2].points[0]
    assert (start.x, start.y, start.z) == pytest.approx((0.5, 0.99, 0.0))
    assert actions(third) == []
    assert actions(fourth) == [('map/rim', 5, Marker.DELETE), ('map/label', 5, Marker.DELETE)]


def test_an_airhole_without_a_place_has_no_marker() -> None:
    topics = Topics()
    unknown = Measurement.unknown(Status.NO_POINTS, 'no cloud')
    InspectionPublishers(topics, 'map').publish(make_inspection(unknown), [0], [0])
    assert actions(topics.sent['~/markers'][0]) == []


def test_the_overlay_is_drawn_only_for_a_reader() -> None:
    topics = Topics()
    publishers = InspectionPublishers(topics, 'map')
    publishers.publish(make_inspection(), [], [])
    assert '~/overlay' not in topics.sent
    topics.readers = 1
    publishers.publish(make_inspection(), [], [])
    (overlay,) = topics.sent['~/overlay']
    assert overlay.header == make_header(STAMP_NS, 'camera')


def test_the_map_is_told_again_and_only_what_changed_is_made_again() -> None:
    topics = Topics()
    publishers = InspectionPublishers(topics, 'map')
    one, two, three = (MapEntry(number, 0, 'map', make_measurement(), 0.5, 1, 0, 0) for number in (1, 2, 3))
    publishers.publish_map([one, two], STAMP_NS, '')
    publishers.publish_map([one, replace(two, observations=2), three], STAMP_NS, '')
    publishers.clear(STAMP_NS, '')
    publishers.publish_map([replace(one, observations=5)], STAMP_NS, '')
    told = [[(defect.id, defect.observation_count) for defect in each.defects] for each in topics.sent['~/map']]
    assert told == [[(1, 1), (2, 1)], [(1, 1), (2, 2), (3, 1)], [], [(1, 5)]]
    first, second, *_ = topics.sent['~/map']
    assert second.defects[0] is first.defects[0]


def test_clearing_deletes_every_marker_and_empties_the_map() -> None:
    topics = Topics()
    publishers = InspectionPublishers(topics, 'map')
    publishers.publish(make_inspection(make_measurement(), T_map_camera=T_MAP_CAMERA), [3], [3])
    publishers.clear(STAMP_NS, 'small-0123')
    assert actions(topics.sent['~/markers'][-1]) == [('map/rim', 3, Marker.DELETE), ('map/label', 3, Marker.DELETE)]
    (message,) = topics.sent['~/map']
    assert (message.header.frame_id, list(message.defects)) == ('map', [])
