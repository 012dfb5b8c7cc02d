"""What the pipeline listens to: one camera, one range sensor and the transforms, put into an Assembler as they come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from cmml_ros.errors import CmmlError
from cmml_ros.nodes.complaints import Complaints
from cmml_ros.nodes.endpoints import Endpoints, match_qos
from cmml_ros.stream.assembler import Assembler

INPUT_NAMES = ('image', 'camera_info', 'points', '/tf', '/tf_static')
_COMPRESSED = '/compressed'
_TRANSPORTS_KEPT = 100
# Best effort connects to reliable and to best-effort publishers alike.
_SENSOR_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
# A lost transform changes what is interpolated across its gap, so these are asked for reliably.
_TF_QOS = QoSProfile(depth=1000)
_TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_TF_BEST_EFFORT_QOS = QoSProfile(depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass
class InputStatistics:
    """What came on one input: since the start, since the previous report, and how late the latest was.

    age_s: since its stamp. transport_s: since it was published, through DDS and the queue to the callback; of a
    publisher on another machine as good as the clocks agree.
    """

    total: int = 0
    recent: int = 0
    age_s: float | None = None
    transport_s: float | None = None


class SensorInputs:
    """The subscriptions; their callbacks only enqueue, and call `on_message` after it.

    topics: resolved topic by each of INPUT_NAMES.
    """

    def __init__(
        self,
        node: Node,
        topics: Mapping[str, str],
        assembler: Assembler,
        complaints: Complaints,
        on_message: Callable[[], None],
    ) -> None:
        self.statistics = {name: InputStatistics() for name in INPUT_NAMES}
        self._node = node
        self._endpoints = Endpoints(node)
        self._mismatched: set[Subscription] = set()  # not all of their publishers have been named in the log
        self._named: set[str] = set()
        self._assembler = assembler
        self._complaints = complaints
        self._on_message = on_message
        self._subscriptions: dict[str, list[Subscription]] = {name: [] for name in INPUT_NAMES}
        self._compressed: Subscription | None = None
        self._latched_info: Subscription | None = None
        self._spent_s = 0.0
        self._image_transports_s: dict[int, float] = {}  # by stamp
        image, add = topics['image'], assembler
        # Compressed images are taken from `<image>/compressed`, as image_transport names it, until a raw one comes.
        if image.endswith(_COMPRESSED):
            self._listen('image', CompressedImage, image, _SENSOR_QOS, add.add_image)
        else:
            self._listen('image', Image, image, _SENSOR_QOS, self._add_raw_image)
            self._compressed = self._listen('image', CompressedImage, image + _COMPRESSED, _SENSOR_QOS, add.add_image)
        self._listen('camera_info', CameraInfo, topics['camera_info'], _SENSOR_QOS, add.add_camera_info)
        self._listen('points', PointCloud2, topics['points'], _SENSOR_QOS, add.add_cloud)
        for name, qos in (('/tf', _TF_QOS), ('/tf_static', _TF_STATIC_QOS)):
            add_transforms = partial(add.add_transforms, static=name == '/tf_static')
            self._listen(name, TFMessage, topics[name], qos, add_transforms)

    def close(self) -> None:
        """Listen no more."""
        self._mismatched.clear()
        for subscriptions in self._subscriptions.values():
            while subscriptions:
                self._node.destroy_subscription(subscriptions.pop())
        if self._latched_info is not None:
            self._node.destroy_subscription(self._latched_info)

    def take_spent_s(self) -> float:
        """Wall time that putting messages into the Assembler has taken since the previous call."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def transport_s(self, stamp_ns: int) -> float:
        """How long the image of this stamp took from its publisher to the callback; NaN when it is not known."""
        return self._image_transports_s.get(stamp_ns, math.nan)

    def explain(self, name: str) -> list[str]:
        """Why nothing comes on one input, as far as the ROS graph tells."""
        subscriptions = self._subscriptions[name]
        if name == 'image' and self._compressed is not None:
            # Nobody publishes both: the one that is not there is no reason.
            compressed = self._node.count_publishers(self._compressed.topic_name)
            subscriptions = [self._compressed] if compressed else subscriptions[:1]
        return self._endpoints.explain_silence(subscriptions)

    def count_publishers(self, name: str) -> int:
        """How many publishers one input is connected to."""
        return sum(subscription.get_publisher_count() for subscription in self._subscriptions[name])

    def report_mismatches(self) -> None:
        """Log each publisher of incompatible QoS once, as soon as its node's name is known."""
        for subscription in list(self._mismatched):
            reasons = [r for r in self._endpoints.explain_silence([subscription]) if 'incompatible' in r]
            for reason in reasons:
                if reason not in self._named:
                    self._node.get_logger().error(reason)
            self._named.update(reasons)
            if reasons and self._endpoints.are_named(subscription.topic_name):
                self._mismatched.remove(subscription)

    def ask_for_latched(self) -> None:
        """Ask for a camera_info that was published once, and latched, before this node listened; as long as none came.

        Only then, for publishers that latch nothing warn of who asks for it.
        """
        statistics, (listening, *_) = self.statistics['camera_info'], self._subscriptions['camera_info']
        publishers = self._node.get_publishers_info_by_topic(listening.topic_name)
        if statistics.total or self._latched_info is not None or not publishers:
            return
        qos = match_qos(publishers, 1)
        if qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:

            def on_message(message: CameraInfo, info: dict[str, int]) -> None:
                if not statistics.total:  # what is published from now on comes by the other one, too
                    self._receive('camera_info', message, info, self._assembler.add_camera_info)
                    self._on_message()

            ignore = SubscriptionEventCallbacks(incompatible_qos=lambda _: None)
            self._latched_info = self._node.create_subscription(
                CameraInfo, listening.topic_name, on_message, qos, event_callbacks=ignore
            )

    def explain_missing(self) -> list[str]:
        """The same for all that a result needs."""
        return [reason for name in ('image', 'camera_info', 'points') for reason in self.explain(name)]

    def _listen(
        self, name: str, message_type: type, topic: str, qos: QoSProfile, add: Callable[[Any], None]
    ) -> Subscription:
        def on_message(message: Any, info: dict[str, int]) -> None:
            # The executor takes one message of each topic a turn. All that wait are taken here, or transforms at 100 Hz
            # and more would fall behind the pictures while the worker keeps Python busy.
            for _ in range(qos.depth):
                self._receive(name, message, info, add)
                taken = subscription.handle.take_message(message_type, False)
                if taken is None:
                    break
                message, info = taken
            self._on_message()

        def on_incompatible_qos(_: object) -> None:
            if qos is _TF_QOS and len(self._subscriptions[name]) == 1:
                # Some drivers publish even this as best effort.
                self._listen(name, message_type, topic, _TF_BEST_EFFORT_QOS, add)
                return
            self._mismatched.add(subscription)
            self.report_mismatches()

        events = SubscriptionEventCallbacks(incompatible_qos=on_incompatible_qos)
        subscription = self._node.create_subscription(message_type, topic, on_message, qos, event_callbacks=events)
        self._subscriptions[name].append(subscription)
        return subscription

    def _receive(self, name: str, message: Any, info: dict[str, int], add: Callable[[Any], None]) -> None:
        self._count(name, message, info)
        started_s = time.perf_counter()
        try:
            add(message)
        except CmmlError as error:
            self._complaints.add(error)
        self._spent_s += time.perf_counter() - started_s

    def _count(self, name: str, message: Any, info: dict[str, int]) -> None:
        statistics = self.statistics[name]
        statistics.total += 1
        statistics.recent += 1
        statistics.transport_s = (time.time_ns() - info['source_timestamp']) * 1e-9
        header = message.transforms[0].header if name.startswith('/tf') and message.transforms else None
        header = getattr(message, 'header', header)
        if header is not None:
            now_ns = self._node.get_clock().now().nanoseconds
            stamp_ns = header.stamp.sec * 10**9 + header.stamp.nanosec
            statistics.age_s = (now_ns - stamp_ns) * 1e-9
            if name == 'image':
                self._image_transports_s[stamp_ns] = statistics.transport_s
                while len(self._image_transports_s) > _TRANSPORTS_KEPT:
                    del self._image_transports_s[next(iter(self._image_transports_s))]

    def _add_raw_image(self, message: Image) -> None:
        if self._compressed is not None:
            self._node.destroy_subscription(self._compressed)
            self._subscriptions['image'].remove(self._compressed)
            self._compressed = None
        self._assembler.add_image(message)
