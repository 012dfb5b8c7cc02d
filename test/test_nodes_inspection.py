"""The live node over DDS, with a threshold in place of the network so that results are known."""

from __future__ import annotations

import array
import math
import signal
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')
import rclpy
from cmml_ros.msg import CalibrationCheck, Defect, DefectArray
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from robot import (
    DEPTH_M,
    HEIGHT,
    LATCHED,
    OK,
    RADIUS_M,
    START_NS,
    TIMEOUT_S,
    WARN,
    WIDTH,
    Robot,
    StartNode,
    ThresholdSegmenter,
    know_airholes,
    make_cloud,
    make_edge,
    make_info,
    make_picture,
    stamp_ns,
)
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker

from cmml_ros.analyze import analyze
from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.writer import BagWriter
from cmml_ros.config import InspectorConfig
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.nodes import worker
from cmml_ros.nodes.messages import make_header, make_image
from cmml_ros.nodes.publishers import InspectionPublishers


def test_a_frame_becomes_measured_defects_with_the_stamp_of_its_image(robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS + 7, map_x_m=0.25)
    (message,) = robot.await_messages('defects', 1)
    assert stamp_ns(message) == START_NS + 7
    assert (message.header.frame_id, message.model_id, message.sync_offset) == ('camera', 'threshold', 0.0)
    (defect,) = message.defects
    assert defect.area == pytest.approx(math.pi * RADIUS_M**2, rel=0.03)
    assert defect.volume == pytest.approx(math.pi * RADIUS_M**2 * DEPTH_M, rel=0.05)
    assert (defect.area_status, defect.volume_status) == (defect.MEASURED, defect.MEASURED)
    assert (defect.position.x, defect.position.y, defect.position.z) == pytest.approx((0.0, 0.0, 0.5), abs=5e-4)
    assert message.calibration_status == CalibrationCheck.NOT_CHECKED
    # On the map, the camera stands at x = 0.25 m.
    (on_map,) = robot.await_messages('map', 1)
    assert (on_map.header.frame_id, stamp_ns(on_map)) == ('map', START_NS + 7)
    assert [entry.id for entry in on_map.defects] == [defect.id]
    assert on_map.defects[0].position.x == pytest.approx(0.25, abs=5e-4)
    (markers,) = robot.await_messages('markers', 1)
    assert [(marker.ns, marker.id) for marker in markers.markers] == [('map/rim', defect.id), ('map/label', defect.id)]


def test_points_beside_the_picture_are_told(robot: Robot) -> None:
    robot.tf_static.publish(make_edge(START_NS, 'camera', 'lidar', 5.0))
    robot.send(START_NS, map_x_m=0.0)
    (defect,) = robot.await_result(START_NS).defects
    assert (defect.area_status, math.isnan(defect.area)) == (defect.NO_POINTS, True)

    def is_told() -> bool:
        robot.send(START_NS + 10**8 * (1 + len(robot.received['defects'])), map_x_m=0.0)
        return robot.values('pipeline').get('message') == defect.reason

    assert 'points lies in the picture; check the transform between the sensors' in defect.reason
    robot.await_true(is_told, 'reason in the diagnostics')
    assert robot.values('pipeline')['level'] == WARN


def test_the_calibration_is_known_half_a_period_after_the_first_frame(robot: Robot) -> None:
    robot.mount()
    for after_s in (0, 10):
        robot.send(START_NS + after_s * 10**9, map_x_m=0.0)
        robot.await_result(START_NS + after_s * 10**9)
    first, check = robot.await_messages('calibration', 2)
    assert (first.status, first.reason) == (CalibrationCheck.NOT_CHECKED, '')
    assert (stamp_ns(check), check.header.frame_id) == (START_NS + 10 * 10**9, 'camera')
    assert (check.status, check.reason) == (CalibrationCheck.DEGENERATE, 'a bare plane')
    assert math.isnan(check.correction.translation.x)
    robot.await_true(lambda: robot.values('calibration').get('message') == 'degenerate: a bare plane', 'diagnostics')
    assert robot.values('calibration')['level'] == OK


def test_the_same_airhole_seen_again_keeps_its_id(robot: Robot) -> None:
    robot.mount()
    for index in range(3):
        robot.send(START_NS + index * 10**8, map_x_m=0.25)
        robot.await_messages('defects', index + 1)
    assert len({defect.id for message in robot.received['defects'] for defect in message.defects}) == 1
    robot.await_map([3])


def test_airholes_are_inferred_when_the_map_is_told_or_saved_not_at_each_frame(
    robot: Robot, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_entries, inferred = DefectMap._make_entries, []

    def count(defect_map: DefectMap, rows: list[int]) -> None:
        inferred.extend(rows)
        make_entries(defect_map, rows)

    monkeypatch.setattr(DefectMap, '_make_entries', count)
    monkeypatch.setattr(worker, '_MAP_PERIOD_S', 3600.0)
    robot.mount()
    for index in range(3):
        robot.send(START_NS + index * 10**8, map_x_m=0.25)
        robot.await_messages('markers', index + 1)
    assert inferred == []
    (entry,) = robot.node._worker.snapshot().entries
    assert (entry.observations, inferred) == (3, [0])
    assert robot.node._worker.snapshot().entries == (entry,)
    assert inferred == [0]


def test_a_map_that_takes_long_to_tell_is_told_less_often(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_map, told_s = InspectionPublishers.publish_map, []

    def tell(*arguments: Any) -> None:
        told_s.append(time.monotonic())
        time.sleep(0.2)
        publish_map(*arguments)

    monkeypatch.setattr(InspectionPublishers, 'publish_map', tell)
    robot.mount()
    for index in range(2):
        robot.send(START_NS + index * 10**8, map_x_m=0.25)
        robot.await_map([index + 1])  # the last frame is told all the same
    first_s, second_s = told_s
    assert second_s - first_s > 0.2 / 0.1


def test_markers_are_deleted_when_the_airhole_is_gone(robot: Robot) -> None:
    robot.mount()
    # Where nobody publishes the map frame the first frames wait for it, for `transform_wait_s` of sensor time.
    robot.send(START_NS)
    robot.send(START_NS + 10**9)
    robot.await_result(START_NS + 10**9)
    robot.await_true(lambda: len(robot.received['markers']) == len(robot.received['defects']), 'markers of both')
    count = len(robot.received['markers'])
    robot.send(START_NS + 2 * 10**9, make_picture(hole=False))
    shown, gone = robot.await_messages('markers', count + 1)[-2:]
    assert [marker.action for marker in shown.markers] == [Marker.ADD, Marker.ADD]
    assert [(marker.ns, marker.id, marker.action) for marker in gone.markers] == [
        ('camera/rim', 0, Marker.DELETE),
        ('camera/label', 0, Marker.DELETE),
    ]


def test_frames_in_work_at_once_come_out_in_order(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), []
    segment = ThresholdSegmenter.segment

    def wait_with_the_first(segmenter: ThresholdSegmenter, *inputs: object) -> object:
        begun.append(inputs)
        if len(begun) == 1:
            go_on.wait(TIMEOUT_S)
        return segment(segmenter, *inputs)

    monkeypatch.setattr(ThresholdSegmenter, 'segment', wait_with_the_first)
    robot.mount()
    stamps = [START_NS, START_NS + 10**8]
    for at_ns in stamps:
        robot.send(at_ns, map_x_m=0.0)
        robot.await_true(lambda: len(begun) == 1 + stamps.index(at_ns), 'frame in work')  # noqa: B023
    time.sleep(0.2)
    assert not robot.received['defects']  # the second is done, and waits
    go_on.set()
    assert [stamp_ns(message) for message in robot.await_messages('defects', 2)] == stamps
    robot.await_map([2])


def test_a_frame_that_fails_costs_itself_only(
    robot: Robot, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    segment, begun = ThresholdSegmenter.segment, []

    def fail_first(segmenter: ThresholdSegmenter, *inputs: object) -> object:
        begun.append(inputs)
        if len(begun) == 1:
            raise ValueError('no such thing')
        return segment(segmenter, *inputs)

    monkeypatch.setattr(ThresholdSegmenter, 'segment', fail_first)
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    robot.await_true(lambda: len(begun) == 1, 'frame in work')
    robot.send(START_NS + 10**8, map_x_m=0.0)
    robot.await_result(START_NS + 10**8)
    robot.await_true(
        lambda: robot.values('pipeline').get('inspection failed: ValueError') == '1', 'failure in diagnostics'
    )
    assert 'ValueError: no such thing' in capfd.readouterr().err


def test_an_airhole_without_points_is_told_and_not_kept(robot: Robot) -> None:
    """Nothing tells whether the next frame shows the same one, so a map of them would grow with every frame."""
    robot.mount()
    for index in range(3):
        at_ns = START_NS + index * 10**8
        cloud = make_cloud(at_ns)
        rows = np.frombuffer(cloud.data, '<f4').reshape(-1, 3)
        stripe = rows[rows[:, 0] > 0.05]
        cloud.width, cloud.row_step, cloud.data = len(stripe), stripe.nbytes, array.array('B', stripe.tobytes())
        robot.tf.publish(make_edge(at_ns, 'map', 'camera', 0.0))
        robot.info.publish(make_info(at_ns))
        robot.points.publish(cloud)
        robot.image.publish(make_image(make_picture(), make_header(at_ns, 'camera')))
        (defect,) = robot.await_result(at_ns).defects
        assert (defect.id, defect.area_status) == (0, Defect.NO_POINTS)
    assert not robot.node._worker.snapshot().entries
    # Seen with points it has its place, and the first number.
    robot.send(START_NS + 10**9, map_x_m=0.0)
    assert [one.id for one in robot.await_result(START_NS + 10**9).defects] == [1]


def test_the_last_frame_does_not_wait_for_ever_behind_one_without_a_cloud(robot: Robot) -> None:
    robot.mount()
    early_ns = START_NS - 10**7
    robot.image.publish(make_image(make_picture(), make_header(early_ns, 'camera')))
    robot.await_true(lambda: robot.node._assembler.counts['image received'] == 1, 'image')
    robot.send(START_NS, map_x_m=0.0)
    assert robot.await_result(START_NS).defects[0].area_status == Defect.MEASURED


def test_reset_clears_map_and_markers(robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    robot.await_map([1])
    robot.await_messages('markers', 1)
    assert robot.reset.call(Trigger.Request(), TIMEOUT_S).success
    robot.await_map([])
    robot.await_true(
        lambda: [marker.action for marker in robot.received['markers'][-1].markers] == [Marker.DELETE] * 2, 'DELETE'
    )


def test_malformed_messages_cost_themselves_only(robot: Robot, capfd: pytest.CaptureFixture[str]) -> None:
    robot.mount()
    stamps = [START_NS + index * 10**8 for index in range(5)]
    bad_cloud = make_cloud(START_NS)
    bad_cloud.fields = bad_cloud.fields[1:]
    for index, at_ns in enumerate(stamps):
        bad_image = make_image(make_picture(), make_header(at_ns + 5 * 10**7, 'camera'))
        if index % 2:
            bad_image.encoding = 'sepia8'
        else:
            bad_image.data = bad_image.data[:-1000]
        bad_cloud.header = make_header(at_ns + 5 * 10**7, 'lidar')
        robot.send(at_ns, map_x_m=0.0)
        robot.await_messages('defects', index + 1)
        robot.image.publish(bad_image)
        robot.points.publish(bad_cloud)
    assert [stamp_ns(message) for message in robot.received['defects']] == stamps
    assert all(len(message.defects) == 1 for message in robot.received['defects'])
    assert '/points: no field "x" among' in capfd.readouterr().err


def test_compressed_images_are_taken_until_a_raw_one_comes(robot: Robot) -> None:
    robot.mount()

    def send_compressed(at_ns: int) -> None:
        data = array.array('B', cv2.imencode('.png', make_picture())[1].tobytes())
        robot.tf.publish(make_edge(at_ns, 'map', 'camera'))
        robot.info.publish(make_info(at_ns))
        robot.points.publish(make_cloud(at_ns))
        robot.compressed.publish(CompressedImage(header=make_header(at_ns, 'camera'), format='png', data=data))

    send_compressed(START_NS)
    robot.await_messages('defects', 1)
    robot.send(START_NS + 10**8, map_x_m=0.0)
    robot.await_messages('defects', 2)
    robot.await_true(lambda: not robot.count_subscribers('image/compressed'), 'end of the compressed subscription')
    assert [stamp_ns(message) for message in robot.received['defects']] == [START_NS, START_NS + 10**8]


def test_the_overlay_shows_the_rim_to_who_asks(robot: Robot) -> None:
    robot.create_subscription(Image, 'inspection_node/overlay', robot.received['overlay'].append, 10)
    (overlays,) = [each for each in robot.node.publishers if each.topic_name == '/inspection_node/overlay']
    robot.await_true(lambda: overlays.get_subscription_count() > 0, 'reader of the overlay')
    robot.await_connection()
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    (overlay,) = robot.await_messages('overlay', 1)
    drawn = np.frombuffer(overlay.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert stamp_ns(overlay) == START_NS
    assert tuple(drawn[HEIGHT // 2, WIDTH // 2 + 16]) != (170, 170, 170)


def test_airholes_are_boxes_for_who_knows_vision_msgs(robot: Robot) -> None:
    vision_msgs = pytest.importorskip('vision_msgs.msg')
    received: list[Any] = []
    robot.create_subscription(vision_msgs.Detection3DArray, 'inspection_node/detections', received.append, 10)
    (detections,) = [each for each in robot.node.publishers if each.topic_name == '/inspection_node/detections']
    robot.await_true(lambda: detections.get_subscription_count() > 0, 'reader of the detections')
    robot.await_connection()
    robot.mount()
    robot.send(START_NS, map_x_m=0.25)
    robot.await_true(lambda: bool(received), 'detections')
    assert (stamp_ns(received[0]), received[0].header.frame_id) == (START_NS, 'camera')
    (detection,) = received[0].detections
    (result,) = detection.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ('airhole', 0.875)
    assert detection.id == str(robot.await_result(START_NS).defects[0].id)
    size, center = detection.bbox.size, detection.bbox.center.position
    assert (size.x, size.y) == pytest.approx((2 * RADIUS_M, 2 * RADIUS_M), rel=0.05)
    assert size.z == pytest.approx(DEPTH_M, rel=0.05)
    assert (center.x, center.y, center.z) == pytest.approx((0.0, 0.0, 0.5 + DEPTH_M / 2), abs=5e-4)


def test_without_camera_info_a_line_says_so(robot: Robot, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def told() -> bool:
        lines.extend(capfd.readouterr().err.splitlines())
        return any('no result for' in line and 'no message on "/camera_info"' in line for line in lines)

    for index in range(3):
        robot.image.publish(make_image(make_picture(), make_header(START_NS + index * 10**8, 'camera')))
    robot.await_true(told, 'line about camera_info')
    assert not robot.received['defects']


def test_an_incompatible_publisher_is_named_with_both_policies(capfd: pytest.CaptureFixture[str], robot: Robot) -> None:
    lines: list[str] = []

    def told() -> bool:
        lines.extend(capfd.readouterr().err.splitlines())
        return any(
            '[ERROR]' in line and 'Volatile publisher and transient local subscription' in line for line in lines
        )

    robot.create_publisher(TFMessage, '/tf_static', QoSProfile(depth=1))
    robot.await_true(told, 'line about /tf_static')
    assert any('QoS of /robot is incompatible' in line for line in lines)


def test_best_effort_transforms_are_taken_too(robot: Robot) -> None:
    robot.mount()
    robot.destroy_publisher(robot.tf)
    robot.tf = robot.create_publisher(TFMessage, '/tf', qos_profile_sensor_data)
    robot.await_true(lambda: robot.tf.get_subscription_count() > 0, 'second subscription')
    robot.await_true(
        lambda: any(each.get_publisher_count() for each in robot.node.subscriptions if each.topic_name == '/tf'),
        'the publisher on it',
    )
    robot.send(START_NS, map_x_m=0.25)
    (message,) = robot.await_messages('map', 1)
    assert message.defects[0].position.x == pytest.approx(0.25, abs=5e-4)


def test_a_jump_back_of_time_starts_a_new_map(robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS + 100 * 10**9, map_x_m=0.0)
    robot.await_map([1])
    # Transforms that come before the first picture of the second run fall victim to the jump.
    robot.send(START_NS, map_x_m=0.5)
    robot.await_true(lambda: robot.values('pipeline').get('time jumped back') == '1', 'jump in diagnostics')
    for index in (1, 2):
        robot.send(START_NS + index * 10**9, map_x_m=0.5)
        robot.await_result(START_NS + index * 10**9)

    def places_m() -> list[float]:
        return [entry.position.x for entry in robot.received['map'][-1].defects]

    robot.await_true(lambda: places_m() == pytest.approx([0.5], abs=5e-4), 'map of the second run alone')


def test_diagnostics_tell_rates_and_results(robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    robot.await_messages('defects', 1)

    robot.await_true(lambda: robot.values('pipeline').get('results') == '1', 'result in diagnostics')
    assert {status.name for status in robot.received['health'][-1].status} == {
        f'inspection_node: {name}'
        for name in (
            'image',
            'camera_info',
            'points',
            '/tf',
            '/tf_static',
            'pipeline',
            'transforms',
            'calibration',
            'process',
        )
    }
    pipeline = robot.values('pipeline')
    assert (pipeline['results'], pipeline['model']) == ('1', 'threshold')
    assert pipeline['device'] == 'cpu'
    times_s = {key: float(value) for key, value in pipeline.items() if key.endswith('_time_s')}
    stages = ('transport', 'synchronize', 'convert', 'match', 'project', 'network', 'measure', 'map', 'publish')
    assert [key.removesuffix('_time_s') for key in times_s] == list(stages)
    assert all(time_s >= 0.0 for time_s in times_s.values())
    assert times_s['measure_time_s'] > 0.0
    assert 0.0 < times_s['transport_time_s'] < 10.0
    assert times_s['transport_time_s'] == pytest.approx(float(robot.values('image')['transport_s']), abs=1e-3)
    assert 50 < float(robot.values('process')['memory_mb']) < 20_000
    assert robot.values('image')['publishers'] == '1'
    robot.await_true(lambda: robot.values('image')['rate_hz'] == '0.00', 'silence in diagnostics')
    silent = robot.values('image')
    assert (silent['level'], silent['message']) == (WARN, 'nothing received')


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('sync.tolerence_s:=0.1', 'unknown setting "sync.tolerence_s"; did you mean "sync.tolerance_s"?'),
        ('detection.model:=nothing', 'cannot configure: no shipped weights called "nothing"'),
        ('grading.standards:=nothing', 'cannot configure: no grading standard "nothing"; shipped are aci_301'),
        ('report_dir:=5', "'report_dir' to '5' of type 'INTEGER', expecting type 'STRING'"),
        ('autostart:=yes please', "'autostart' to 'yes please' of type 'STRING', expecting type 'BOOL'"),
        ('topics:=image', "'topics' to 'image' of type 'STRING', expecting type 'STRING_ARRAY'"),
        ('topics:=[]', '"topics" is empty'),
        ('topics:=["no topic!"]', 'Invalid topic name'),
    ],
)
def test_a_node_that_cannot_start_says_why(start_node: StartNode, argument: str, message: str) -> None:
    node = start_node('recorder_node' if argument.startswith('topics') else 'inspection_node', '-p', argument)
    node.await_end()
    assert node.process.returncode == 1
    assert message in node.said
    assert 'Traceback' not in node.said


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly(start_node: StartNode, number: signal.Signals) -> None:
    node = start_node('inspection_node', known_segmenter=True)
    node.await_line('threshold listens to /image')
    segments = node.shared_memory()
    assert node.stop(number) < 3.0
    assert node.process.returncode == 0
    assert 'Traceback' not in node.said
    assert segments
    assert [path for path in segments if path.exists()] == []


def test_a_recording_of_the_live_run_gives_the_same_numbers_offline(
    start_node: StartNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bag is played over DDS, inspected and recorded, each by its process; the new bag is analysed again."""
    # So far apart that a machine with other work inspects most of them: live, only the newest is.
    stamps = [START_NS + index * 8 * 10**8 for index in range(8)]
    write_bag(tmp_path / 'original', stamps)
    inspection = start_node('inspection_node', known_segmenter=True)
    recorder = start_node('recorder_node', '-p', f'bag_path:={tmp_path / "live"}')
    recorder.await_line('records /inspection_node/defects,')
    inspection.await_line('threshold listens to')
    player = start_node('simulator_node', '-p', f'bag_path:={tmp_path / "original"}', '-p', 'loop:=false')
    player.await_line('finished')
    player.await_end()
    assert player.process.returncode == 0
    on_map = await_map(stamps[-1])
    for node in (inspection, recorder):
        node.stop()
        assert node.process.returncode == 0, node.said
    assert 'lost: nothing' in recorder.said

    know_airholes(monkeypatch.setattr)
    analyze(tmp_path / 'live', tmp_path / 'out', InspectorConfig(), bag_out=tmp_path / 'offline')
    live, offline = read_defects(tmp_path / 'live'), read_defects(tmp_path / 'offline')
    # A machine with other work may lose a cloud, too.
    without_cloud = {at_ns for at_ns, values in live.items() if np.isnan(values).any()}
    both = sorted((live.keys() & offline.keys()) - without_cloud)
    assert len(both) >= 3
    for at_ns in both:
        assert len(live[at_ns]) == 1
        assert live[at_ns] == pytest.approx(offline[at_ns], rel=1e-6)

    # The map holds what was inspected live: the same frames again, without what was passed over.
    write_bag(tmp_path / 'inspected', sorted(live), without_cloud)
    for name in ('first', 'second'):
        analyze(tmp_path / 'inspected', tmp_path / name, InspectorConfig(), bag_out=tmp_path / f'{name}_bag')
    with BagReader(tmp_path / 'first_bag') as reader:
        ((_, analysed, _),) = reader.messages(['/inspection_node/map'])
    assert sum(defect.observation_count for defect in on_map.defects) == len(live) - len(without_cloud)
    np.testing.assert_equal(describe_map(on_map), describe_map(analysed))  # unknown is NaN in both
    for table in ('defects.csv', 'defects.geojson', 'defects.parquet', 'frames.csv', 'observations.csv'):
        assert (tmp_path / 'first' / table).read_bytes() == (tmp_path / 'second' / table).read_bytes()


def await_map(at_ns: int) -> Any:
    """The latched map, for one who comes late, once it holds the image of `at_ns`."""
    maps: list[Any] = []
    rclpy.init()
    reader = rclpy.create_node('reader')
    reader.create_subscription(DefectArray, 'inspection_node/map', maps.append, LATCHED)
    end = time.monotonic() + TIMEOUT_S
    while not maps or stamp_ns(maps[-1]) != at_ns:
        assert time.monotonic() < end, f'no map of {at_ns} within {TIMEOUT_S} s'
        rclpy.spin_once(reader, timeout_sec=0.1)
    reader.destroy_node()
    rclpy.shutdown()
    return maps[-1]


def describe_map(message: Any) -> list[dict[str, Any]]:
    """Every value of every airhole but its id, in the order of their places."""
    names = Defect.get_fields_and_field_types().keys() - {'id', 'position', 'normal', 'outline', 'roi'}

    def describe(defect: Any) -> dict[str, Any]:
        places = [(place.x, place.y, place.z) for place in (defect.position, defect.normal, *defect.outline)]
        return {'places': places, **{name: getattr(defect, name) for name in names}}

    return sorted(map(describe, message.defects), key=lambda defect: defect['places'])


def read_defects(bag: Path) -> dict[int, Any]:
    """Numbers of every airhole of every frame, by stamp."""
    frames = {}
    with BagReader(bag) as reader:
        for _, message, _ in reader.messages(['/inspection_node/defects']):
            frames[stamp_ns(message)] = np.array(
                [
                    [defect.area, defect.volume, defect.volume_stddev, defect.depth_max, defect.position.x]
                    for defect in message.defects
                ]
            )
    return frames


def write_bag(path: Path, stamps: list[int], without_cloud: Collection[int] = ()) -> None:
    """The robot of this file, 10 mm further along every 0.8 s; the clouds come 3 ms after the pictures, or not."""
    with BagWriter(path) as writer:
        messages = [('/tf_static', make_edge(stamps[0], 'camera', 'lidar'), stamps[0])]
        for at_ns in stamps:
            later_ns, x_m = at_ns + 3_000_000, (at_ns - START_NS) / 8e10
            messages += [
                ('/tf', make_edge(at_ns, 'map', 'camera', x_m), at_ns),
                ('/front/image', make_image(make_picture(), make_header(at_ns, 'camera')), at_ns),
                ('/front/camera_info', make_info(at_ns), at_ns),
                *([] if at_ns in without_cloud else [('/scan', make_cloud(later_ns), later_ns)]),
                ('/tf', make_edge(at_ns + 10**7, 'map', 'camera', x_m), at_ns + 10**7),
            ]
        types = {topic: type(message) for topic, message, _ in messages}
        for topic, kind in types.items():
            writer.add_topic(topic, f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}', latched='static' in topic)
        for topic, message, at_ns in messages:
            writer.write(topic, serialize_message(message), at_ns)
