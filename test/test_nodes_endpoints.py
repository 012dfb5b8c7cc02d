"""What the nodes say about publishers, whatever the order in which these become known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip('rclpy')
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from cmml_ros.nodes import endpoints
from cmml_ros.nodes.endpoints import Endpoints

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SUBSCRIPTION = SimpleNamespace(topic_name='/tf_static', msg_type=TFMessage, qos_profile=LATCHED)


class Graph:
    """Stands for a node: publishers of /tf_static by the name of their node."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def get_publishers_info_by_topic(self, _: str) -> list[Any]:
        return [
            SimpleNamespace(
                node_namespace='_NODE_NAMESPACE_UNKNOWN_' if name == '_NODE_NAME_UNKNOWN_' else '/arm',
                node_name=name,
                topic_type='tf2_msgs/msg/TFMessage',
                qos_profile=QoSProfile(depth=1),
                endpoint_gid=[index] * 16,
            )
            for index, name in enumerate(self.names)
        ]


def test_a_publisher_is_not_spoken_of_before_its_name_is_known() -> None:
    graph = Graph('driver', '_NODE_NAME_UNKNOWN_')
    known = Endpoints(graph)
    (reason,) = known.explain_silence([SUBSCRIPTION])
    assert reason == (
        '/tf_static: QoS of /arm/driver is incompatible: Volatile publisher and transient local subscription; '
        'change the publisher'
    )
    assert not known.are_named('/tf_static')
    graph.names = ('driver', 'lidar')
    assert [text.split(' is ')[0] for text in known.explain_silence([SUBSCRIPTION])] == [
        '/tf_static: QoS of /arm/driver',
        '/tf_static: QoS of /arm/lidar',
    ]
    assert known.are_named('/tf_static')


def test_a_publisher_whose_name_never_comes_is_named_by_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(endpoints.time, 'monotonic', lambda: now_s)
    known = Endpoints(Graph('_NODE_NAME_UNKNOWN_'))
    assert known.explain_silence([SUBSCRIPTION]) == []
    now_s = 104.9
    assert known.explain_silence([SUBSCRIPTION]) == []
    now_s = 105.0
    (reason,) = known.explain_silence([SUBSCRIPTION])
    assert f'QoS of a node without a name (endpoint {"00" * 16}) is incompatible' in reason
    assert known.are_named('/tf_static')
