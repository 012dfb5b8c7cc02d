"""A robot for the pipeline where there is none: publishes a simulated wall, or a recording, in real time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from cmml_ros.bag.message_types import make_typestore
from cmml_ros.bag.reader import TRANSFORM_TYPE, BagReader
from cmml_ros.config import setting
from cmml_ros.errors import CmmlError
from cmml_ros.nodes.parameters import declare_config
from cmml_ros.nodes.process import run_node
from cmml_ros.simulation.scenario import FrameMessages, Scenario, SimulatedFrame, describe_frame, describe_scenario

# Reliable publishers serve best-effort subscriptions too.
_OUTPUTS = {
    'image': (Image, QoSProfile(depth=10)),
    'image/compressed': (CompressedImage, QoSProfile(depth=10)),
    'camera_info': (CameraInfo, QoSProfile(depth=10)),
    'points': (PointCloud2, QoSProfile(depth=10)),
    '/tf': (TFMessage, QoSProfile(depth=1000)),
    '/tf_static': (TFMessage, QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)),
}
_NAMES = {
    '/camera/image': 'image',
    '/camera/camera_info': 'camera_info',
    '/lidar/points': 'points',
    '/tf': '/tf',
}
_POLL_PERIOD_S = 0.1
_SETTLE_S = 1.0  # for connections to come up, and for the last messages to arrive
_STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class SimulatorConfig:
    """What is published, and how fast."""

    scene: str = setting('plane', 'shape of the simulated wall', choices=('plane', 'column', 'tunnel'))
    sensor: str = setting(
        'depth_camera', 'range sensor beside the camera', choices=('depth_camera', 'line_profiler', 'tof_lidar')
    )
    seed: int = setting(1, 'seed of the wall and of all noise', low=0, high=2**31 - 1)
    rate_hz: float = setting(2.0, 'simulated frames published each second', unit='Hz', low=0.1, high=30.0)
    frames: int = setting(20, 'frames rendered before the first is published', low=1, high=1000)
    loop: bool = setting(True, 'begin again after the last frame')
    bag_path: str = setting('', 'recording to play instead, with its own stamps; empty: simulate')
    truth_path: str = setting('', 'JSON file for the truth about the simulated wall; empty: none')


class Timed(NamedTuple):
    """A message and when it is due, nanoseconds on the recording's own clock."""

    due_ns: int
    name: str
    message: Any


class SimulatorNode(Node):
    """Publishes image, camera_info, points, /tf and /tf_static from a thread of its own."""

    def __init__(self) -> None:
        super().__init__('simulator_node')
        self._config = declare_config(self, SimulatorConfig)
        self._typestore = make_typestore()
        config = self._config
        if config.bag_path:
            passes = self._recorded_passes(Path(config.bag_path))
        else:
            passes = self._simulated_passes(Scenario(config.scene, config.sensor, config.seed, rate_hz=config.rate_hz))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, args=(passes,), name='player', daemon=True)
        self._thread.start()

    def destroy_node(self) -> None:
        """Stop playing, then go."""
        self._stop.set()
        self._thread.join(_STOP_TIMEOUT_S)
        super().destroy_node()

    def _play(self, passes: Iterator[Iterator[Timed]]) -> None:
        """The player thread: each message when it is due, pass after pass."""
        try:
            for timeline in passes:
                first_ns: int | None = None
                for due_ns, name, message in timeline:
                    if first_ns is None:
                        first_ns, started_s = due_ns, time.monotonic()
                    if self._stop.wait(max((due_ns - first_ns) * 1e-9 - (time.monotonic() - started_s), 0.0)):
                        return
                    # As CDR: a generated message would check every byte of a numpy array in Python.
                    data = self._typestore.serialize_cdr(message, message.__msgtype__)
                    self._outputs[name].publish(bytes(data))
                if not self._config.loop:
                    break
            self._stop.wait(_SETTLE_S)  # a publisher takes with it what is still under way
            self.get_logger().info('finished')
        except CmmlError as error:
            self.get_logger().fatal(str(error))
        finally:
            self.context.try_shutdown()

    def _advertise(self, names: Iterable[str]) -> None:
        self._outputs = {name: self.create_publisher(_OUTPUTS[name][0], name, _OUTPUTS[name][1]) for name in set(names)}

    def _await_subscriber(self) -> None:
        """What is published before anybody has subscribed is lost."""
        self.get_logger().info('waits for a subscriber')
        outputs = [output for name, output in self._outputs.items() if name not in ('/tf', '/tf_static')]
        while not any(output.get_subscription_count() for output in outputs):
            if self._stop.wait(_POLL_PERIOD_S):
                return
        self._stop.wait(_SETTLE_S)
        self.get_logger().info('publishes')

    def _recorded_passes(self, path: Path) -> Iterator[Iterator[Timed]]:
        """The sensor topics of a bag under this node's names, stamps untouched: when it loops, time jumps back."""
        reader = BagReader(path)
        topics, types = reader.find_sensor_topics(), reader.topics()
        names = {topics.camera_info: 'camera_info', topics.image: 'image'}
        if types[topics.image] == 'sensor_msgs/msg/CompressedImage':
            names[topics.image] = 'image/compressed'
        if topics.points is not None:
            names[topics.points] = 'points'
        for topic, type_name in types.items():
            if type_name == TRANSFORM_TYPE:
                names[topic] = '/tf_static' if topic.endswith('tf_static') else '/tf'

        self._advertise(names.values())

        def passes() -> Iterator[Iterator[Timed]]:
            self._await_subscriber()
            while True:
                yield (Timed(stamp_ns, names[topic], message) for topic, message, stamp_ns in reader.messages(names))

        return passes()

    def _simulated_passes(self, scenario: Scenario) -> Iterator[Iterator[Timed]]:
        """Frames rendered once, on every pass with stamps of the node's clock as if they were taken now."""
        config = self._config
        self._advertise((*_NAMES.values(), '/tf_static'))
        frames = []
        for index in range(config.frames):
            if self._stop.is_set():
                return
            frames.append(scenario.frame(index))
            self.get_logger().info(f'frame {index + 1} of {config.frames} rendered')
        if config.truth_path:
            truth = {**describe_scenario(scenario), 'frames': [describe_frame(frame, scenario) for frame in frames]}
            Path(config.truth_path).write_text(json.dumps(truth) + '\n', encoding='utf-8')
        messages = FrameMessages(self._typestore.types)
        self._await_subscriber()
        while True:
            shift_ns = self.get_clock().now().nanoseconds - scenario.start_ns
            yield self._simulated_pass(messages, scenario, frames, shift_ns)
            self._stop.wait(1.0 / config.rate_hz)

    @staticmethod
    def _simulated_pass(
        messages: FrameMessages, scenario: Scenario, frames: list[SimulatedFrame], shift_ns: int
    ) -> Iterator[Timed]:
        mounting = [replace(edge, stamp_ns=edge.stamp_ns + shift_ns) for edge in scenario.static_transforms]
        yield Timed(scenario.start_ns + shift_ns, '/tf_static', messages.transforms(mounting))
        for frame in frames:
            moved = replace(
                frame,
                stamp_ns=frame.stamp_ns + shift_ns,
                cloud_stamp_ns=frame.cloud_stamp_ns + shift_ns,
                transforms=tuple(replace(edge, stamp_ns=edge.stamp_ns + shift_ns) for edge in frame.transforms),
            )
            for stamp_ns, topic, message in messages.of_frame(moved, scenario):
                yield Timed(stamp_ns, _NAMES[topic], message)


def main() -> NoReturn:
    """Publish until stopped."""
    run_node(SimulatorNode)


if __name__ == '__main__':
    main()
