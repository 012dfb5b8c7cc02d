from __future__ import annotations

import ast
import json
import re
import xml.etree.ElementTree
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmml_ros.config import InspectorConfig, SettingEntry, list_settings

ROOT = Path(__file__).parents[1]
INSPECT, SIMULATE = ROOT / 'launch' / 'inspect.launch.py', ROOT / 'launch' / 'simulate.launch.py'


def declared_arguments(path: Path) -> dict[str, dict[str, Any]]:
    """Keywords of every DeclareLaunchArgument, by the argument's name, read without launch."""
    tree = ast.parse(path.read_text())
    constants = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }
    arguments = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'DeclareLaunchArgument':
            keywords = {}
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Name):
                    keywords[keyword.arg] = constants[keyword.value.id]
                elif not isinstance(keyword.value, ast.Call):
                    keywords[keyword.arg] = ast.literal_eval(keyword.value)
            arguments[ast.literal_eval(node.args[0])] = keywords
    return arguments


def test_the_arguments_of_inspect_are_those_of_the_documentation() -> None:
    assert list(declared_arguments(INSPECT)) == [
        'namespace', 'params_file', 'image_topic', 'camera_info_topic', 'points_topic', 'map_frame', 'record',
        'bag_path', 'rviz', 'use_sim_time', 'device', 'model', 'registration', 'log_level',
    ]  # fmt: skip


@pytest.mark.parametrize('path', [INSPECT, SIMULATE])
def test_every_argument_is_described_and_its_default_is_a_choice(path: Path) -> None:
    for name, keywords in declared_arguments(path).items():
        assert keywords['description'].endswith('.'), name
        assert keywords.get('default_value') in keywords.get('choices', [keywords.get('default_value')]), name


def test_arguments_override_parameters_that_exist() -> None:
    overrides = next(
        ast.literal_eval(node.value)
        for node in ast.parse(INSPECT.read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == 'OVERRIDES'
    )
    assert set(overrides.values()) <= {entry.name for entry in list_settings(InspectorConfig)}
    assert set(overrides) <= set(declared_arguments(INSPECT))


def test_the_arguments_of_simulate_are_parameters_of_the_simulator() -> None:
    pytest.importorskip('rclpy')
    from cmml_ros.nodes.simulator_node import SimulatorConfig

    entries: dict[str, SettingEntry] = {entry.name: entry for entry in list_settings(SimulatorConfig)}
    arguments = declared_arguments(SIMULATE)
    assert set(arguments) - {'play'} == {field.name for field in fields(SimulatorConfig)} - {'bag_path', 'truth_path'}
    for name in set(arguments) - {'play'}:
        assert yaml.safe_load(arguments[name]['default_value']) == entries[name].default
        if entries[name].setting.choices:
            assert arguments[name]['choices'] == list(entries[name].setting.choices)


@pytest.mark.parametrize(('argument', 'name'), [('device', 'detection.device'), ('registration', 'registration.mode')])
def test_the_choices_are_those_of_the_setting(argument: str, name: str) -> None:
    entry = next(entry for entry in list_settings(InspectorConfig) if entry.name == name)
    assert declared_arguments(INSPECT)[argument]['choices'] == ['', *entry.setting.choices]


def test_the_fast_dds_profile_holds_the_largest_image_in_one_piece() -> None:
    root = xml.etree.ElementTree.parse(ROOT / 'config' / 'fastdds.xml').getroot()
    (shared,) = (item for item in root.iterfind('.//{*}transport_descriptor') if item.findtext('{*}type') == 'SHM')
    assert int(shared.findtext('{*}segment_size', '')) == 64 * 2**20
    assert int(shared.findtext('{*}maxMessageSize', '')) >= 1920 * 1200 * 3
    used = [item.text for item in root.iterfind('.//{*}userTransports/{*}transport_id')]
    assert shared.findtext('{*}transport_id') in used


def test_rviz_shows_what_the_node_publishes() -> None:
    document = yaml.safe_load((ROOT / 'config' / 'inspect.rviz').read_text())
    topics = {
        display['Topic']['Value'] for display in document['Visualization Manager']['Displays'] if 'Topic' in display
    }
    assert {'/inspection_node/markers', '/inspection_node/overlay', '/points', '/image'} == topics


def test_the_foxglove_layout_shows_what_the_node_publishes() -> None:
    document = json.loads((ROOT / 'config' / 'foxglove.json').read_text())

    def panels(part: Any) -> list[str]:
        return [part] if isinstance(part, str) else [*panels(part['first']), *panels(part['second'])]

    assert sorted(panels(document['layout'])) == sorted(document['configById'])
    text = json.dumps(document)
    topics = set(re.findall(r'"(/[a-z_]+(?:/[a-z_]+)?)', text))
    outputs = {f'/inspection_node/{name}' for name in ('markers', 'overlay', 'map', 'defects', 'calibration')}
    assert topics == {'/points', '/diagnostics', *outputs}


def test_launch_reads_both_files() -> None:
    """With the real launch, where it is installed."""
    pytest.importorskip('launch_ros')
    from launch import LaunchContext
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    for path, argument in ((INSPECT, 'points_topic'), (SIMULATE, 'sensor')):
        description = PythonLaunchDescriptionSource(str(path)).get_launch_description(LaunchContext())
        assert argument in [item.name for item in description.get_launch_arguments()]
