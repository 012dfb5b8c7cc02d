from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter

from cmml_ros.config import InspectorConfig, list_settings, load_config
from cmml_ros.errors import ConfigError
from cmml_ros.nodes.parameters import declare_config, render_parameter_file

PARAMETER_FILE = Path(__file__).parents[1] / 'config' / 'inspect.yaml'

MakeNode = Callable[..., Node]


@pytest.fixture
def make_node() -> Iterator[MakeNode]:
    context = Context()
    rclpy.init(context=context)
    nodes: list[Node] = []

    def make(*arguments: str, name: str = 'inspection_node') -> Node:
        nodes.append(Node(name, context=context, cli_args=['--ros-args', *arguments]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.shutdown(context=context)


def test_every_setting_is_a_parameter_with_its_documentation_and_range(make_node: MakeNode) -> None:
    node = make_node()
    assert declare_config(node, InspectorConfig) == InspectorConfig()
    for entry in list_settings(InspectorConfig):
        assert node.get_parameter(entry.name).value == entry.default
        assert node.describe_parameter(entry.name).description.startswith(entry.setting.doc)
    tolerance = node.describe_parameter('sync.tolerance_s')
    (bounds,) = tolerance.floating_point_range
    assert (bounds.from_value, bounds.to_value, bounds.step) == (0.0, 1.0, 0.0)
    assert tolerance.description.endswith('[s]')
    (bounds,) = node.describe_parameter('sync.queue_size').integer_range
    assert (bounds.from_value, bounds.to_value, bounds.step) == (1, 1000, 0)
    assert node.describe_parameter('detection.device').additional_constraints == 'one of: auto, cpu, cuda'


def test_given_values_reach_the_config_and_the_parameter(make_node: MakeNode) -> None:
    # A whole number is good enough where a length is asked for.
    node = make_node('-p', 'sync.tolerance_s:=1', '-p', 'detection.device:=cpu', '-p', 'sync.map_frame:=wall')
    config = declare_config(node, InspectorConfig)
    assert (config.sync.tolerance_s, config.detection.device, config.sync.map_frame) == (1.0, 'cpu', 'wall')
    assert node.get_parameter('sync.tolerance_s').value == 1.0


@pytest.mark.parametrize(
    ('argument', 'message'),
    [
        ('sync.tolerence_s:=0.1', 'unknown setting "sync.tolerence_s"; did you mean "sync.tolerance_s"?'),
        ('sync.tolerance_s:=9.0', '"sync.tolerance_s" must be in [0, 1] s, got 9.0'),
        ('sync.queue_size:=2.5', '"sync.queue_size" must be int, got 2.5'),
        ('detection.device:=tpu', '"detection.device" must be one of auto, cpu, cuda, got \'tpu\''),
    ],
)
def test_a_bad_value_is_refused_by_name(make_node: MakeNode, argument: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        declare_config(make_node('-p', argument), InspectorConfig)
    assert str(caught.value) == message


def test_what_every_ros_node_has_is_not_unknown(make_node: MakeNode) -> None:
    node = make_node(
        '-p', 'use_sim_time:=true', '-p', 'start_type_description_service:=false', '-p', 'qos_overrides./tf.depth:=1'
    )
    node.declare_parameter('own', 0)
    assert declare_config(node, InspectorConfig) == InspectorConfig()


def test_a_setting_does_not_change_while_the_node_runs(make_node: MakeNode) -> None:
    node = make_node()
    declare_config(node, InspectorConfig)
    (result,) = node.set_parameters([Parameter('sync.tolerance_s', value=0.2)])
    assert not result.successful
    assert node.get_parameter('sync.tolerance_s').value == 0.05


def test_the_shipped_parameter_file_is_in_step_with_the_config() -> None:
    assert PARAMETER_FILE.read_text() == render_parameter_file(InspectorConfig), (
        'run: python -m cmml_ros.nodes.parameters > config/inspect.yaml'
    )
    assert load_config(InspectorConfig, PARAMETER_FILE) == InspectorConfig()


@pytest.mark.parametrize('remap', [(), ('-r', '__ns:=/robot'), ('-r', '__node:=front')])
def test_the_parameter_file_serves_any_name_and_namespace(
    make_node: MakeNode, tmp_path: Path, remap: tuple[str, ...]
) -> None:
    path = tmp_path / 'mine.yaml'
    path.write_text(PARAMETER_FILE.read_text().replace('tolerance_s: 0.05', 'tolerance_s: 0.07'))
    config = declare_config(make_node('--params-file', str(path), *remap), InspectorConfig)
    assert config.sync.tolerance_s == 0.07
