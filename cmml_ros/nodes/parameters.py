"""ROS parameters out of the config dataclasses: names, defaults, descriptions and ranges have that one source."""

from __future__ import annotations

import json
import math
import sys
from typing import TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from cmml_ros.config import InspectorConfig, SettingEntry, flatten_config, list_settings, make_config

ConfigT = TypeVar('ConfigT')


def declare_config(node: Node, config_type: type[ConfigT], others: type | None = None) -> ConfigT:
    """`config_type` as set by parameter files and `-p`, with every setting declared as a read-only parameter.

    Call it after the node has declared what else it has: a value given for a name that nothing declares is refused,
    because a misspelt setting that is ignored costs more than a node that does not start. others: settings of another
    node, which may stand in the same file.
    Raises ConfigError for an unknown name, a wrong type or a value out of range.
    """
    foreign = set() if others is None else {entry.name for entry in list_settings(others)}
    given = {
        name: parameter.value
        for name, parameter in node._parameter_overrides.items()
        if not (node.has_parameter(name) or name.startswith('qos_overrides.') or name in foreign)
    }
    config = make_config(config_type, given)
    values = flatten_config(config)
    for entry in list_settings(config_type):
        node.declare_parameter(entry.name, values[entry.name], describe_setting(entry), ignore_override=True)
    return config


def describe_setting(entry: SettingEntry) -> ParameterDescriptor:
    """What `ros2 param describe` shows of one setting: documentation, unit, range and choices."""
    about = entry.setting
    descriptor = ParameterDescriptor(
        description=f'{about.doc} [{about.unit}]' if about.unit else about.doc,
        additional_constraints=f'one of: {", ".join(about.choices)}' if about.choices else '',
        read_only=True,  # the pipeline is built from it at start
    )
    # A range message has no way to say "open": it is given only where both ends are finite.
    if math.isfinite(about.low) and math.isfinite(about.high):
        if entry.type is float:
            descriptor.floating_point_range = [FloatingPointRange(from_value=about.low, to_value=about.high)]
        elif entry.type is int:
            descriptor.integer_range = [IntegerRange(from_value=int(about.low), to_value=int(about.high))]
    return descriptor


def render_parameter_file(config_type: type) -> str:
    """A ROS parameter file with every setting at its default, for any node name, each with its documentation."""
    lines = [
        '# Parameters of inspection_node. Written from cmml_ros/config.py by `python -m cmml_ros.nodes.parameters`.',
        '/**:',
        '  ros__parameters:',
    ]
    stage = ''
    for entry in list_settings(config_type):
        prefix, _, name = entry.name.rpartition('.')
        if prefix != stage:
            stage = prefix
            lines.append(f'    {prefix}:')
        about = entry.setting
        limits = f'; {about.low:g} to {about.high:g}' if math.isfinite(about.low) and math.isfinite(about.high) else ''
        unit = f' {about.unit}' if about.unit else ''
        choices = f'; one of: {", ".join(about.choices)}' if about.choices else ''
        lines.append(f'      {name}: {json.dumps(entry.default)}  # {about.doc}{limits}{unit}{choices}')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.stdout.write(render_parameter_file(InspectorConfig))
