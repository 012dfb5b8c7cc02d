"""The live node over DDS, with a threshold in place of the network so that results are known."""

from __future__ import annotations

import array
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip('rclpy')
import rclpy
from cmml_ros.msg import DefectArray
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from cmml_ros.analyze import analyze
from cmml_ros.bag.reader import BagReader
from cmml_ros.bag.writer import BagWriter
from cmml_ros.config import InspectorConfig
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.nodes import inspection_node
from cmml_ros.nodes.inspection_node import InspectionNode
from cmml_ros.nodes.publishers import make_header, make_image

# A camera 0.5 m in front of a wall, 1 pixel = 0.5 mm; one cylindrical airhole of 16 mm, 4 mm deep, straight ahead.
WIDTH, HEIGHT, FOCAL_PX, DISTANCE_M = 320, 240, 1000.0, 0.5
RADIUS_M, DEPTH_M = 0.008, 0.004
START_NS = 1_700_000_000_000_000_000
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TIMEOUT_S = 10.0

Start = Callable[..., subprocess.Popen[str]]


class ThresholdSegmenter:
    model_id = 'threshold'

    def __init__(self, *_: object) -> None:
        pass

    def segment(self, image: NDArray[np.uint8], *_: object) -> list[InstanceMask]:
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((image[:, :, 0] < 90).astype(np.uint8))
        return [
            InstanceMask((labels[top : top + h, left : left + w] == label).astype(np.float32), left, top, 0.875)
            for label, (left, top, w, h, _) in enumerate(boxes[1:].tolist(), start=1)
        ]


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def make_picture(hole: bool = True) -> NDArray[np.uint8]:
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    dark = np.hypot(u - WIDTH / 2, v - HEIGHT / 2) < RADIUS_M / DISTANCE_M * FOCAL_PX
    return np.repeat(np.where(dark & hole, 30, 170).astype(np.uint8)[:, :, None], 3, axis=2)


def make_info(at_ns: int) -> CameraInfo:
    k = [FOCAL_PX, 0.0, WIDTH / 2, 0.0, FOCAL_PX, HEIGHT / 2, 0.0, 0.0, 1.0]
    return CameraInfo(
        header=make_header(at_ns, 'camera'), width=WIDTH, height=HEIGHT, distortion_model='plumb_bob', d=[0.0] * 5, k=k
    )


def make_cloud(at_ns: int) -> PointCloud2:
    x, y = np.meshgrid(np.arange(-0.078, 0.078, 0.0005), np.arange(-0.058, 0.058, 0.0005))
    z = np.where(np.hypot(x, y) < RADIUS_M, DISTANCE_M + DEPTH_M, DISTANCE_M)
    z += np.random.default_rng(0).normal(0.0, 0.0001, z.shape)
    points = np.stack([x, y, z], axis=-1).astype('<f4')
    fields = [PointField(name=n, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, n in enumerate('xyz')]
    return PointCloud2(
        header=make_header(at_ns, 'lidar'),
        height=1,
        width=z.size,
        fields=fields,
        point_step=12,
        row_step=12 * z.size,
        data=array.array('B', points.tobytes()),
        is_dense=True,
    )


def make_edge(at_ns: int, parent: str, child: str, x: float = 0.0) -> TFMessage:
    edge = TransformStamped(header=make_header(at_ns, parent), child_frame_id=child)
    edge.transform.translation.x, edge.transform.rotation.w = x, 1.0
    return TFMessage(transforms=[edge])


class Robot(Node):
    """Publishes what a driver would, and keeps what comes back."""

    def __init__(self, context: Context) -> None:
        super().__init__('robot', context=context)
        self.image = self.create_publisher(Image, 'image', qos_profile_sensor_data)
        self.compressed = self.create_publisher(CompressedImage, 'image/compressed', qos_profile_sensor_data)
        self.info = self.create_publisher(CameraInfo, 'camera_info', qos_profile_sensor_data)
        self.points = self.create_publisher(PointCloud2, 'points', qos_profile_sensor_data)
        self.tf = self.create_publisher(TFMessage, '/tf', 100)
        self.tf_static = self.create_publisher(TFMessage, '/tf_static', LATCHED)
        self.received: dict[str, list[Any]] = {name: [] for name in ('defects', 'markers', 'map', 'overlay', 'health')}
        for name, message_type, topic, qos in (
            ('defects', DefectArray, 'inspection_node/defects', 10),
            ('markers', MarkerArray, 'inspection_node/markers', 10),
            ('map', DefectArray, 'inspection_node/map', LATCHED),
            ('health', DiagnosticArray, '/diagnostics', 10),
        ):
            self.create_subscription(message_type, topic, self.received[name].append, qos)
        self.reset = self.create_client(Trigger, 'inspection_node/reset')

    def mount(self) -> None:
        self.tf_static.publish(make_edge(START_NS, 'camera', 'lidar'))

    def send(self, at_ns: int, picture: NDArray[np.uint8] | None = None, map_x_m: float | None = None) -> None:
        """One complete view."""
        if map_x_m is not None:
            self.tf.publish(make_edge(at_ns, 'map', 'camera', map_x_m))
        self.info.publish(make_info(at_ns))
        self.points.publish(make_cloud(at_ns))
        self.image.publish(make_image(make_picture() if picture is None else picture, make_header(at_ns, 'camera')))

    def await_messages(self, name: str, count: int) -> list[Any]:
        self.await_true(lambda: len(self.received[name]) >= count, f'{count} messages on {name}')
        return self.received[name]

    @staticmethod
    def await_true(condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end, f'no {what} within {TIMEOUT_S} s'
            time.sleep(0.01)


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Robot]:
    """A robot connected to a running inspection_node."""
    monkeypatch.setattr('cmml_ros.inspector.Segmenter', ThresholdSegmenter)
    monkeypatch.setattr(inspection_node, '_SILENCE_S', 0.5)
    monkeypatch.setattr(inspection_node, '_MAP_PERIOD_S', 0.1)
    rclpy.init()
    node, robot = InspectionNode(), Robot(rclpy.get_default_context())
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(robot)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    robot.await_true(
        lambda: (
            all(
                robot.count_subscribers(topic) and node.count_publishers(topic)
                for topic in ('image', 'points', '/tf_static')
            )
            and robot.count_publishers('inspection_node/defects')
        ),
        'connection',
    )
    time.sleep(0.2)
    yield robot
    executor.shutdown()
    thread.join()
    for one in (node, robot):
        one.destroy_node()
    rclpy.shutdown()


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
    # On the map, the camera stands at x = 0.25 m.
    (on_map,) = robot.await_messages('map', 1)
    assert (on_map.header.frame_id, stamp_ns(on_map)) == ('map', START_NS + 7)
    assert [entry.id for entry in on_map.defects] == [defect.id]
    assert on_map.defects[0].position.x == pytest.approx(0.25, abs=5e-4)
    (markers,) = robot.await_messages('markers', 1)
    assert [(marker.ns, marker.id) for marker in markers.markers] == [('map/rim', defect.id), ('map/label', defect.id)]


def test_the_same_airhole_seen_again_keeps_its_id(robot: Robot) -> None:
    robot.mount()
    for index in range(3):
        robot.send(START_NS + index * 10**8, map_x_m=0.25)
        robot.await_messages('defects', index + 1)
    assert len({defect.id for message in robot.received['defects'] for defect in message.defects}) == 1
    robot.await_true(
        lambda: robot.received['map'][-1].defects[0].observation_count == 3, 'third observation on the map'
    )


def test_markers_are_deleted_when_the_airhole_is_gone(robot: Robot) -> None:
    robot.mount()
    # Where nobody publishes the map frame the first frames wait for it, for `transform_wait_s` of sensor time.
    robot.send(START_NS)
    robot.send(START_NS + 10**9)
    robot.await_messages('defects', 1)
    robot.await_true(lambda: stamp_ns(robot.received['defects'][-1]) == START_NS + 10**9, 'second frame')
    time.sleep(0.2)
    count = len(robot.received['markers'])
    robot.send(START_NS + 2 * 10**9, make_picture(hole=False))
    shown, gone = robot.await_messages('markers', count + 1)[-2:]
    assert [marker.action for marker in shown.markers] == [Marker.ADD, Marker.ADD]
    assert [(marker.ns, marker.id, marker.action) for marker in gone.markers] == [
        ('camera/rim', 0, Marker.DELETE),
        ('camera/label', 0, Marker.DELETE),
    ]


def test_reset_clears_map_and_markers(robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    robot.await_messages('map', 1)
    assert robot.reset.call(Trigger.Request()).success
    robot.await_true(lambda: not robot.received['map'][-1].defects, 'empty map')
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
    robot.await_true(lambda: robot.count_publishers('inspection_node/overlay') > 0, 'overlay')
    time.sleep(0.3)
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    (overlay,) = robot.await_messages('overlay', 1)
    drawn = np.frombuffer(overlay.data, np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert stamp_ns(overlay) == START_NS
    assert tuple(drawn[HEIGHT // 2, WIDTH // 2 + 16]) != (170, 170, 170)


def test_without_camera_info_a_line_says_so(robot: Robot, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def told() -> bool:
        lines.extend(capfd.readouterr().err.splitlines())
        return any('no result for' in line and 'no message on "/camera_info"' in line for line in lines)

    for index in range(3):
        robot.image.publish(make_image(make_picture(), make_header(START_NS + index * 10**8, 'camera')))
    robot.await_true(told, 'line about camera_info')


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
    robot.await_true(lambda: robot.count_subscribers('/tf') == 2, 'second subscription')
    time.sleep(0.2)
    robot.send(START_NS, map_x_m=0.25)
    (message,) = robot.await_messages('map', 1)
    assert message.defects[0].position.x == pytest.approx(0.25, abs=5e-4)


def test_a_jump_back_of_time_starts_a_new_map(robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS + 100 * 10**9, map_x_m=0.0)
    robot.await_messages('defects', 1)
    # Transforms that come before the first picture of the second run fall victim to the jump.
    for index in range(3):
        robot.send(START_NS + index * 10**9, map_x_m=0.5)
        time.sleep(0.1)
    robot.await_true(lambda: stamp_ns(robot.received['defects'][-1]) == START_NS + 2 * 10**9, 'second run')
    robot.await_true(
        lambda: [entry.position.x for entry in robot.received['map'][-1].defects] == pytest.approx([0.5], abs=5e-4),
        'map of the second run alone',
    )


def test_diagnostics_tell_rates_and_results(robot: Robot) -> None:
    robot.mount()
    robot.send(START_NS, map_x_m=0.0)
    robot.await_messages('defects', 1)
    count = len(robot.received['health'])
    statuses = {status.name: status for status in robot.await_messages('health', count + 1)[-1].status}
    assert set(statuses) == {
        f'inspection_node: {name}' for name in ('image', 'camera_info', 'points', '/tf', '/tf_static', 'pipeline')
    }
    pipeline = {entry.key: entry.value for entry in statuses['inspection_node: pipeline'].values}
    assert (pipeline['results'], pipeline['model']) == ('1', 'threshold')
    silent = robot.await_messages('health', count + 3)[-1].status[0]
    assert (silent.level, silent.message) == (DiagnosticStatus.WARN, 'nothing received')


# What the processes below run in place of the network.
KNOWN_SEGMENTER = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import cmml_ros.inspector, {Path(__file__).stem}
cmml_ros.inspector.Segmenter = {Path(__file__).stem}.ThresholdSegmenter
from cmml_ros.nodes.inspection_node import main
sys.exit(main())
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python with arguments, as the launch files would; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []
    profile = str(Path(__file__).parents[1] / 'config' / 'fastdds.xml')
    environment = {**os.environ, 'FASTRTPS_DEFAULT_PROFILES_FILE': profile, 'FASTDDS_DEFAULT_PROFILES_FILE': profile}

    def run(*arguments: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment)
        )
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('sync.tolerence_s:=0.1', 'unknown setting "sync.tolerence_s"; did you mean "sync.tolerance_s"?'),
        ('detection.model:=nothing', 'no shipped weights called "nothing"'),
    ],
)
def test_a_node_that_cannot_start_says_why(start: Start, argument: str, message: str) -> None:
    process = start('-m', 'cmml_ros.nodes.inspection_node', '--ros-args', '-p', argument)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert message in errors
    assert 'Traceback' not in errors


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly(start: Start, number: signal.Signals) -> None:
    process = start('-c', KNOWN_SEGMENTER)
    await_line(process, 'threshold listens to /image')
    started = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert 'Traceback' not in errors
    assert time.monotonic() - started < 3.0


def test_a_recording_of_the_live_run_gives_the_same_numbers_offline(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bag is played over DDS, inspected and recorded, each by its process; the new bag is analysed again."""
    stamps = [START_NS + index * 4 * 10**8 for index in range(6)]
    write_bag(tmp_path / 'original', stamps)
    inspection = start('-c', KNOWN_SEGMENTER)
    recorder = start('-m', 'cmml_ros.nodes.recorder_node', '--ros-args', '-p', f'bag_path:={tmp_path / "live"}')
    await_line(recorder, 'recording to')
    await_line(inspection, 'threshold listens to')
    player = start(
        '-m', 'cmml_ros.nodes.simulator_node', '--ros-args',
        '-p', f'bag_path:={tmp_path / "original"}', '-p', 'loop:=false',
    )  # fmt: skip
    await_line(player, 'finished')
    assert player.wait(TIMEOUT_S) == 0
    time.sleep(1.0)
    for process in (inspection, recorder):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, errors
    assert 'lost: nothing' in errors

    monkeypatch.setattr('cmml_ros.inspector.Segmenter', ThresholdSegmenter)
    analyze(tmp_path / 'live', tmp_path / 'out', InspectorConfig(), bag_out=tmp_path / 'offline')
    live, offline = read_defects(tmp_path / 'live'), read_defects(tmp_path / 'offline')
    both = sorted(live.keys() & offline.keys())
    assert len(both) >= 3
    for at_ns in both:
        assert len(live[at_ns]) == 1
        assert live[at_ns] == pytest.approx(offline[at_ns], rel=1e-6, nan_ok=True)


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


def write_bag(path: Path, stamps: list[int]) -> None:
    """The robot of this file, 10 mm further along at each stamp; the clouds come 3 ms after the pictures."""
    with BagWriter(path) as writer:
        messages = [('/tf_static', make_edge(stamps[0], 'camera', 'lidar'), stamps[0])]
        for index, at_ns in enumerate(stamps):
            later_ns = at_ns + 3_000_000
            messages += [
                ('/tf', make_edge(at_ns, 'map', 'camera', 0.01 * index), at_ns),
                ('/front/image', make_image(make_picture(), make_header(at_ns, 'camera')), at_ns),
                ('/front/camera_info', make_info(at_ns), at_ns),
                ('/scan', make_cloud(later_ns), later_ns),
                ('/tf', make_edge(at_ns + 10**7, 'map', 'camera', 0.01 * index), at_ns + 10**7),
            ]
        types = {topic: type(message) for topic, message, _ in messages}
        for topic, kind in types.items():
            writer.add_topic(topic, f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}', latched='static' in topic)
        for topic, message, at_ns in messages:
            writer.write(topic, serialize_message(message), at_ns)


def await_line(process: subprocess.Popen[str], text: str) -> None:
    """Read what the process says until `text` is in it."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return
    raise AssertionError(f'never said "{text}": {"".join(said)}')
