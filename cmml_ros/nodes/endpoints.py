"""Who publishes on a topic: how to subscribe to it, and why nothing of it arrives."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo


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


def explain_silence(node: Node, subscriptions: Sequence[Subscription]) -> list[str]:
    """Why nothing arrives, as far as the ROS graph tells: no publisher, another type, incompatible QoS."""
    publishers = {each.topic_name: node.get_publishers_info_by_topic(each.topic_name) for each in subscriptions}
    silent = ', '.join(topic for topic, found in publishers.items() if not found)
    reasons = [f'nothing publishes {silent}: check remappings, namespace and ROS_DOMAIN_ID'] if silent else []
    for subscription in subscriptions:
        topic = subscription.topic_name
        wanted = f'{subscription.msg_type.__module__.split(".")[0]}/msg/{subscription.msg_type.__name__}'
        for publisher in publishers[topic]:
            name = f'{publisher.node_namespace.rstrip("/")}/{publisher.node_name}'
            if publisher.topic_type != wanted:
                reasons.append(f'{name} publishes {topic} as {publisher.topic_type}, not {wanted}')
                continue
            compatibility, policies = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
            if compatibility == QoSCompatibility.ERROR:
                policies = policies.replace('ERROR: ', '').rstrip(';').replace(';', ', ')
                reasons.append(f'{topic}: QoS of {name} is incompatible: {policies}; change the publisher')
    return reasons
