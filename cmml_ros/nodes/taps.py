"""The subscriptions of the recorder: serialized messages on their way into a recording."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription

from cmml_ros.bag.event_filter import EventFilter, HeldMessage, read_header_stamp_ns
from cmml_ros.bag.recording import Recording
from cmml_ros.msg import DefectArray
from cmml_ros.nodes.definitions import find_definitions
from cmml_ros.nodes.endpoints import match_qos
from cmml_ros.nodes.sidecar import Sidecar

_DEPTH = 100
# What fills disks: left out in mode "results", held back in mode "events".
_LARGE = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/PointCloud2')


@dataclass(frozen=True)
class TapSettings:
    """What passes. defects_topic: whose results are the events."""

    mode: str
    defects_topic: str
    event_window_s: float
    event_hold_s: float
    event_hold_bytes: int


class Tap:
    """Subscribes to each of `topics` as its publishers offer it, once it has any."""

    def __init__(
        self, node: Node, topics: Sequence[str], settings: TapSettings, recording: Recording, sidecar: Sidecar
    ) -> None:
        self.lost: Counter[str] = Counter()
        self._node = node
        self._settings = settings
        self._recording = recording
        self._sidecar = sidecar
        self._wanted = list(topics)
        self._subscriptions: dict[str, Subscription] = {}
        self._type_names: dict[str, str] = {}
        self._filter = EventFilter(settings.event_window_s, settings.event_hold_s, settings.event_hold_bytes)

    def discover(self) -> None:
        """Subscribe to the wanted topics that have a publisher by now."""
        for topic in list(self._wanted):
            publishers = self._node.get_publishers_info_by_topic(topic)
            if not publishers:
                continue
            self._wanted.remove(topic)
            type_name = publishers[0].topic_type
            if type_name in _LARGE and self._settings.mode == 'results':
                continue
            package, _, name = type_name.split('/')
            try:
                message_type = getattr(importlib.import_module(f'{package}.msg'), name)
            except (ImportError, AttributeError):
                self._node.get_logger().error(f'{topic} is not recorded: {type_name} is not installed here')
                continue
            qos = match_qos(publishers, _DEPTH)
            self._recording.register(find_definitions(type_name))
            self._recording.add_topic(
                topic,
                type_name,
                latched=qos.durability == DurabilityPolicy.TRANSIENT_LOCAL,
                reliable=qos.reliability == ReliabilityPolicy.RELIABLE,
            )
            self._type_names[topic] = type_name
            self._subscribe(topic, message_type)

    def close(self) -> None:
        """Record what has arrived by now, and no more."""
        while self._subscriptions:
            topic, subscription = self._subscriptions.popitem()
            on_message = self._make_callback(topic)
            # No more than may wait: while a publisher goes on, there is always one more.
            for _ in range(_DEPTH):
                taken = subscription.handle.take_message(subscription.msg_type, True)
                if taken is None:
                    break
                on_message(*taken)
            self._node.destroy_subscription(subscription)

    def _subscribe(self, topic: str, message_type: type) -> None:
        def on_incompatible_qos(_: object) -> None:
            """A publisher came that offers less than those before: all are heard by asking for less."""
            self._node.destroy_subscription(self._subscriptions.pop(topic))
            self._subscribe(topic, message_type)

        def on_lost(event: Any) -> None:
            self.lost[topic] += event.total_count_change

        def on_matched(event: Any) -> None:
            if event.total_count == event.total_count_change:
                policies = f'{qos.reliability.name} {qos.durability.name}'
                self._node.get_logger().info(f'records {topic}, offered as {policies}')

        events = SubscriptionEventCallbacks(
            incompatible_qos=on_incompatible_qos, message_lost=on_lost, matched=on_matched
        )
        qos = match_qos(self._node.get_publishers_info_by_topic(topic), _DEPTH)
        self._subscriptions[topic] = self._node.create_subscription(
            message_type, topic, self._make_callback(topic), qos, event_callbacks=events, raw=True
        )

    def _make_callback(self, topic: str) -> Callable[[bytes, dict[str, int]], None]:
        type_name = self._type_names[topic]
        held_back = type_name in _LARGE and self._settings.mode == 'events'
        raises_events = topic == self._settings.defects_topic and self._settings.mode == 'events'

        def on_message(data: bytes, info: dict[str, int]) -> None:
            received = HeldMessage(topic, data, info['received_timestamp'])
            passed = self._filter.add(received, read_header_stamp_ns(data)) if held_back else [received]
            if raises_events and deserialize_message(data, DefectArray).defects:
                passed += self._filter.event(read_header_stamp_ns(data))
            for message in passed:
                self._recording.write(message.topic, message.data, message.received_ns)
            self._sidecar.observe(topic, type_name, data)

        return on_message
