"""A robot for the tests of the nodes: drivers over real DDS, a wall with one known airhole, node processes."""

from __future__ import annotations

import array
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from cmml_ros.msg import CalibrationCheck, DefectArray
from cmml_ros.srv import SaveReport
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.context import Context
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

import cmml_ros.inspector
from cmml_ros.errors import PoseError
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.nodes import inspection_node, worker
from cmml_ros.nodes.inspection_node import InspectionNode
from cmml_ros.nodes.messages import make_header, make_image

# A camera 0.5 m in front of a wall, 1 pixel = 0.5 mm; one cylindrical airhole of 16 mm, 4 mm deep, straight ahead.
WIDTH, HEIGHT, FOCAL_PX, DISTANCE_M = 320, 240, 1000.0, 0.5
RADIUS_M, DEPTH_M = 0.008, 0.004
START_NS = 1_700_000_000_000_000_000
LATCHED = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
OK, WARN, ERROR = '0', '1', '2'  # levels of diagnostics, as `Robot.values` tells them
TIMEOUT_S = 30.0  # on a loaded machine; nothing waits that long when all is well


class ThresholdSegmenter:
    """Every dark blob; `duration_s` later than it could, for those who need to know how fast an inspection is."""

    model_id = 'threshold'
    device = 'cpu'
    parallel = 2
    matcher = None
    duration_s = 0.0

    def __init__(self, *_: object) -> None:
        pass

    def segment(self, image: NDArray[np.uint8], *_: object) -> list[InstanceMask]:
        time.sleep(self.duration_s)
        _, labels, boxes, _ = cv2.connectedComponentsWithStats((image[:, :, 0] < 90).astype(np.uint8))
        return [
            InstanceMask((labels[top : top + h, left : left + w] == label).astype(np.float32), left, top, 0.875)
            for label, (left, top, w, h, _) in enumerate(boxes[1:].tolist(), start=1)
        ]


class BarePlaneRegistrar:
    """A wall without a feature: nothing can be said about the extrinsic."""

    def __init__(self, *_: object) -> None:
        pass

    def refine(self, *_: object) -> None:
        raise PoseError('a bare plane')


def know_airholes(setattr_: Callable[[object, str, object], None] = setattr) -> None:
    """A threshold in place of the network."""
    setattr_(cmml_ros.inspector, 'Segmenter', ThresholdSegmenter)
    setattr_(cmml_ros.inspector, 'Registrar', BarePlaneRegistrar)


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
        # Readers that a publisher has been matched with so far; of those that it has now, some may be dead.
        self.matched: Counter[str] = Counter()
        self.image = self.make_publisher(Image, 'image', qos_profile_sensor_data)
        self.compressed = self.make_publisher(CompressedImage, 'image/compressed', qos_profile_sensor_data)
        self.info = self.make_publisher(CameraInfo, 'camera_info', qos_profile_sensor_data)
        self.points = self.make_publisher(PointCloud2, 'points', qos_profile_sensor_data)
        self.tf = self.make_publisher(TFMessage, '/tf', 100)
        self.tf_static = self.make_publisher(TFMessage, '/tf_static', LATCHED)
        self.received: dict[str, list[Any]] = {
            name: [] for name in ('defects', 'markers', 'map', 'overlay', 'health', 'calibration')
        }
        for name, message_type, topic, qos in (
            ('defects', DefectArray, 'inspection_node/defects', 10),
            ('markers', MarkerArray, 'inspection_node/markers', 10),
            ('map', DefectArray, 'inspection_node/map', LATCHED),
            ('calibration', CalibrationCheck, 'inspection_node/calibration', 10),
            ('health', DiagnosticArray, '/diagnostics', 10),
        ):
            self.create_subscription(message_type, topic, self.received[name].append, qos)
        self.reset = self.create_client(Trigger, 'inspection_node/reset')
        self.save_report = self.create_client(SaveReport, 'inspection_node/save_report')

    def make_publisher(self, message_type: type, topic: str, qos: Any) -> Publisher:
        """One whose readers are counted in `matched` as they come."""
        name = self.resolve_topic_name(topic)

        def on_matched(event: Any) -> None:
            self.matched[name] += event.total_count_change

        return self.create_publisher(
            message_type, topic, qos, event_callbacks=PublisherEventCallbacks(matched=on_matched)
        )

    def mount(self) -> None:
        self.tf_static.publish(make_edge(START_NS, 'camera', 'lidar'))

    def send(self, at_ns: int, picture: NDArray[np.uint8] | None = None, map_x_m: float | None = None) -> None:
        """One complete view."""
        if map_x_m is not None:
            self.tf.publish(make_edge(at_ns, 'map', 'camera', map_x_m))
        self.info.publish(make_info(at_ns))
        self.points.publish(make_cloud(at_ns))
        self.image.publish(make_image(make_picture() if picture is None else picture, make_header(at_ns, 'camera')))

    def await_connection(self) -> None:
        """What this robot sends reaches the inspection in this process, and what that sends comes back."""
        publishers = (self.image, self.info, self.points, self.tf, self.tf_static)
        subscriptions = [each for node in (self, self.node) for each in node.subscriptions]
        self.await_true(
            lambda: (
                all(each.get_subscription_count() for each in publishers)
                and all(each.get_publisher_count() for each in subscriptions)
                and all(each.service_is_ready() for each in (self.reset, self.save_report))
            ),
            'connection',
        )

    def values(self, part: str) -> dict[str, str]:
        """Level, message and key-values of the latest diagnostics of one part; empty before the first."""
        for message in reversed(list(self.received['health'])):
            for status in message.status:
                if status.name.endswith(f': {part}'):
                    return {'level': str(status.level[0]), 'message': status.message} | {
                        pair.key: pair.value for pair in status.values
                    }
        return {}

    def await_result(self, at_ns: int) -> Any:
        """The airholes of the image of this stamp."""

        def find() -> Any:
            return next((each for each in list(self.received['defects']) if stamp_ns(each) == at_ns), None)

        self.await_true(lambda: find() is not None, f'result of {at_ns}')
        return find()

    def await_map(self, observations: Sequence[int]) -> Any:
        """The latest map, once it shows airholes seen so often, in the order of their ids."""

        def seen() -> list[int]:
            maps = self.received['map']
            return [defect.observation_count for defect in maps[-1].defects] if maps else []

        self.await_true(lambda: seen() == list(observations), f'map of airholes seen {observations} times')
        return self.received['map'][-1]

    def await_messages(self, name: str, count: int) -> list[Any]:
        self.await_true(lambda: len(self.received[name]) >= count, f'{count} messages on {name}')
        return self.received[name]

    @staticmethod
    def await_true(condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end, f'no {what} within {TIMEOUT_S} s'
            time.sleep(0.01)


def spin(executor: SingleThreadedExecutor, stop: threading.Event) -> None:
    """Until `stop`: an executor that is shut down while it spins may fail in its thread."""
    while not stop.is_set():
        executor.spin_once(timeout_sec=0.1)


def run_robot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Robot]:
    """A robot connected to an active inspection_node."""
    know_airholes(monkeypatch.setattr)
    monkeypatch.setattr(inspection_node, '_SILENCE_S', 0.5)
    monkeypatch.setattr(worker, '_MAP_PERIOD_S', 0.1)
    rclpy.init()
    node, robot = InspectionNode(), Robot(rclpy.get_default_context())
    assert node.start()
    robot.node = node
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(robot)
    stop = threading.Event()
    thread = threading.Thread(target=spin, args=(executor, stop))
    thread.start()
    robot.await_connection()
    yield robot
    stop.set()
    thread.join()
    executor.shutdown()
    for one in (node, robot):
        one.destroy_node()
    rclpy.shutdown()


# What node processes run in place of the network.
_KNOWN_SEGMENTER = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import robot
robot.ThresholdSegmenter.duration_s = {{duration_s}}
robot.know_airholes()
from cmml_ros.nodes.inspection_node import main
sys.exit(main())
"""


class NodeProcess:
    """A node in a process of its own, with the arguments of `ros2 run`; what it says is kept in `lines`."""

    def __init__(
        self, name: str, *arguments: str, known_segmenter: bool = False, segmenter_duration_s: float = 0.0
    ) -> None:
        self.lines: list[str] = []
        code = _KNOWN_SEGMENTER.format(duration_s=segmenter_duration_s)
        command = ['-c', code] if known_segmenter else ['-m', f'cmml_ros.nodes.{name}']
        self.process = subprocess.Popen(
            [sys.executable, *command, '--ros-args', *arguments], stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def said(self) -> str:
        return ''.join(self.lines)

    def await_line(self, text: str, timeout_s: float = 4 * TIMEOUT_S) -> str:
        end_s = time.monotonic() + timeout_s
        while True:
            ended = self.process.poll() is not None and not self._reader.is_alive()
            for line in list(self.lines):
                if text in line:
                    return line
            assert not ended, f'ended without "{text}": {self.said}'
            assert time.monotonic() < end_s, f'no "{text}" within {timeout_s} s: {self.said}'
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Send the signal; the seconds until the process has ended.

        Without those in which its main thread could have run but had no processor: others may have taken them all.
        """
        starved_s, started_s = self.starved_s(), time.monotonic()
        self.process.send_signal(number)
        end_s = started_s + 4 * TIMEOUT_S
        while os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            assert time.monotonic() < end_s, f'does not end: {self.said}'
            time.sleep(0.005)
        ended_s, starved_s = time.monotonic(), self.starved_s() - starved_s
        self.await_end()
        return ended_s - started_s - starved_s

    def shared_memory(self) -> set[Path]:
        """The segments that DDS has made for this process, and those of others that it reads."""
        maps = Path(f'/proc/{self.process.pid}/maps').read_text(encoding='utf-8')
        return {Path(name) for name in re.findall(r'/dev/shm/fastrtps_[0-9a-f]{16}\b', maps)}

    def processor_s(self) -> float:
        """Time that its threads have run so far, in user and system mode."""
        fields = Path(f'/proc/{self.process.pid}/stat').read_text(encoding='ascii').rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def memory_mb(self) -> float:
        """Memory in use, what it shares with other processes by its part (PSS)."""
        rollup = Path(f'/proc/{self.process.pid}/smaps_rollup').read_text(encoding='ascii')
        return int(re.findall(r'^Pss: +(\d+) kB', rollup, re.MULTILINE)[0]) * 1024e-6

    def starved_s(self) -> float:
        """How long its main thread has waited for a processor; zero where the system does not tell."""
        try:
            return int(Path(f'/proc/{self.process.pid}/schedstat').read_text(encoding='ascii').split()[1]) * 1e-9
        except OSError:
            return 0.0

    def await_end(self) -> float:
        """When it has ended, on the monotonic clock."""
        self.process.wait(2 * TIMEOUT_S)
        ended_s = time.monotonic()
        self._reader.join(TIMEOUT_S)
        return ended_s

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)


StartNode = Callable[..., NodeProcess]


def run_node_processes() -> Iterator[StartNode]:
    """Starts node processes; whatever still runs at the end is ended."""
    nodes: list[NodeProcess] = []

    def start(name: str, *arguments: str, known_segmenter: bool = False) -> NodeProcess:
        nodes.append(NodeProcess(name, *arguments, known_segmenter=known_segmenter))
        return nodes[-1]

    yield start
    end_nodes(nodes)


def end_nodes(nodes: Sequence[NodeProcess]) -> None:
    """End what still runs; killed is only who does not listen, for who is killed leaves its shared memory behind."""
    for node in nodes:
        node.process.terminate()
    for node in nodes:
        with suppress(subprocess.TimeoutExpired):
            node.process.wait(TIMEOUT_S)
        node.process.kill()
        node.await_end()
