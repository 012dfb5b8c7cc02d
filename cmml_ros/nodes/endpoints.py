"""Who publishes on a topic: how to subscribe to it, and why nothing of it arrives."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

_UNKNOWN_NAME = '_NODE_NAME_UNKNOWN_'  # of rmw_dds_common, for an endpoint that was discovered before its node
_NAME_WAIT_S = 5.0


def match_qos(publishers: Sequence[TopicEndpointInfo], depth: int) -> QoSProfile:
    """The strictest QoS that receives from all `publishers`: reliable and latched only where every one is."""
    offered = [publisher.qos_profile for publisher in publishers]
    reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered)
    latched = all(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class Endpoints:
    """What the ROS graph tells about the publishers of subscriptions.

    A publisher is often discovered before the name of its node: it is not spoken of until the name is known, or has
    not become known for five seconds.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._unnamed_since_s: dict[bytes, float] = {}

    def explain_silence(self, subscriptions: Sequence[Subscription]) -> list[str]:
        """Why nothing arrives: no publisher, another type, incompatible QoS."""
        publishers = {each.topic_name: self._publishers(each.topic_name) for each in subscriptions}
        silent = ', '.join(topic for topic, found in publishers.items() if not found)
        reasons = [f'nothing publishes {silent}: check remappings, namespace and ROS_DOMAIN_ID'] if silent else []
        for subscription in subscriptions:
            topic = subscription.topic_name
            wanted = f'{subscription.msg_type.__module__.split(".")[0]}/msg/{subscription.msg_type.__name__}'
            for publisher in publishers[topic]:
                name = self._name(publisher)
                if name is None:
                    continue
                if publisher.topic_type != wanted:
                    reasons.append(f'{name} publishes {topic} as {publisher.topic_type}, not {wanted}')
                    continue
                compatibility, policies = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
                if compatibility == QoSCompatibility.ERROR:
                    policies = policies.replace('ERROR: ', '').rstrip(';').replace(';', ', ')
                    reasons.append(f'{topic}: QoS of {name} is incompatible: {policies}; change the publisher')
        return reasons

    def are_named(self, topic: str) -> bool:
        """Whether all publishers of a topic can be spoken of."""
        return None not in map(self._name, self._publishers(topic))

    def _publishers(self, topic: str) -> list[TopicEndpointInfo]:
        return self._node.get_publishers_info_by_topic(topic)

    def _name(self, publisher: TopicEndpointInfo) -> str | None:
        """The full name of its node; None while it may still become known."""
        gid = bytes(publisher.endpoint_gid)
        if publisher.node_name != _UNKNOWN_NAME:
            self._unnamed_since_s.pop(gid, None)
            return f'{publisher.node_namespace.rstrip("/")}/{publisher.node_name}'
        now_s = time.monotonic()
        if now_s - self._unnamed_since_s.setdefault(gid, now_s) < _NAME_WAIT_S:
            return None
        return f'a node without a name (endpoint {gid.hex()})'
