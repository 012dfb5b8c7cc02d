"""Records topics into a bag as they come over DDS, without decoding them."""

from __future__ import annotations

import importlib
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy

from cmml_ros.bag.writer import BagWriter
from cmml_ros.config import setting
from cmml_ros.errors import BagError
from cmml_ros.nodes.endpoints import match_qos
from cmml_ros.nodes.parameters import declare_config
from cmml_ros.nodes.process import run_node

_DISCOVERY_PERIOD_S = 0.2
_DEPTH = 100
_DEFAULT_TOPICS = (
    'image',
    'image/compressed',
    'camera_info',
    'points',
    '/tf',
    '/tf_static',
    'inspection_node/defects',
    'inspection_node/markers',
    'inspection_node/map',
)


@dataclass(frozen=True)
class RecorderConfig:
    """Where to record to, and how much may wait for the disk."""

    bag_path: str = setting('', 'folder of the new bag; empty: inspection_<local time> in the working directory')
    queue_mb: int = setting(256, 'what may wait to be written; more is lost and counted', unit='MB', low=1, high=65536)


class RecorderNode(Node):
    """Subscribes to each topic as its publishers offer it, and writes in a thread of its own."""

    def __init__(self) -> None:
        super().__init__('recorder_node')
        about_topics = ParameterDescriptor(description='topics to record; relative names are remapped', read_only=True)
        topics = self.declare_parameter('topics', list(_DEFAULT_TOPICS), about_topics).value
        config = declare_config(self, RecorderConfig)
        self._wanted = {self.resolve_topic_name(topic) for topic in topics}
        self._writer = BagWriter(Path(config.bag_path or f'inspection_{datetime.now().astimezone():%Y%m%d_%H%M%S}'))
        # The writer belongs to one thread: the executor only queues what that thread has to do, and its size.
        self._queue: queue.SimpleQueue[tuple[Callable[[], None], int] | None] = queue.SimpleQueue()
        self._room = config.queue_mb * 10**6
        self._queued = self._written = 0  # bytes; each is counted by one thread only, the difference waits
        self._lost: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._write, name='writer')
        self._thread.start()
        self.create_timer(_DISCOVERY_PERIOD_S, self._discover, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(f'recording to {self._writer.path}: {", ".join(sorted(self._wanted))}')

    def destroy_node(self) -> None:
        """Write what waits, close the bag with its index and metadata, then go."""
        self._queue.put(None)
        self._thread.join()
        self._report()
        super().destroy_node()

    def _discover(self) -> None:
        """Subscribe to the wanted topics that have a publisher by now."""
        for topic in sorted(self._wanted):
            publishers = self.get_publishers_info_by_topic(topic)
            if not publishers:
                continue
            self._wanted.remove(topic)
            type_name = publishers[0].topic_type
            package, _, name = type_name.split('/')
            try:
                message_type = getattr(importlib.import_module(f'{package}.msg'), name)
            except (ImportError, AttributeError):
                self.get_logger().error(f'{topic} is not recorded: {type_name} is not installed here')
                continue
            qos = match_qos(publishers, _DEPTH)
            latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
            self._queue.put((partial(self._writer.add_topic, topic, type_name, latched=latched), 0))
            self.create_subscription(message_type, topic, self._make_callback(topic), qos, raw=True)

    def _make_callback(self, topic: str) -> Callable[[bytes, dict[str, int]], None]:
        def on_message(data: bytes, info: dict[str, int]) -> None:
            if self._queued - self._written + len(data) > self._room:
                self._lost[topic] += 1
                self.get_logger().error(
                    f'{self._lost[topic]} messages of {topic} lost: the disk is too slow', throttle_duration_sec=1.0
                )
                return
            self._queued += len(data)
            self._queue.put((partial(self._writer.write, topic, data, info['received_timestamp']), len(data)))

        return on_message

    def _write(self) -> None:
        """The writer thread: everything queued, in order, until the end is asked for."""
        for action, size in iter(self._queue.get, None):
            try:
                action()
            except BagError as error:
                self.get_logger().error(str(error), throttle_duration_sec=1.0)
            self._written += size
        try:
            self._writer.close()
        except BagError as error:
            self.get_logger().error(str(error))

    def _report(self) -> None:
        lost = ', '.join(f'{topic} {count}' for topic, count in sorted(self._lost.items()))
        self.get_logger().info(f'{self._writer.path} closed; lost: {lost or "nothing"}')


def main() -> int:
    """Record until stopped."""
    return run_node(RecorderNode)


if __name__ == '__main__':
    sys.exit(main())
