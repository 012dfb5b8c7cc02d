"""Live inspection: inspection_node, and on demand recorder_node and RViz."""

from collections.abc import Callable
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    TimerAction,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

TRUE_FALSE = ['true', 'false']
# Settings of params_file that have an argument of their own; an empty argument leaves the file's value.
OVERRIDES = {
    'map_frame': 'sync.map_frame',
    'device': 'detection.device',
    'model': 'detection.model',
    'registration': 'registration.mode',
}
OUTPUTS = ('inspection_node/markers', 'inspection_node/overlay')


RESTART_DELAY_S = 1.0
REFUSED = 1  # exit code of a node that cannot start, which would not get better by trying again


def in_package(*parts: str) -> str:
    return str(Path(get_package_share_directory('cmml_ros'), *parts))


def keep_running(make_node: Callable[[], Node]) -> list[Action]:
    """The node, and another one in its place whenever it dies."""

    def on_exit(event: ProcessExited, context: LaunchContext) -> list[Action]:
        if context.is_shutdown or event.returncode in (0, REFUSED):
            return []
        return [TimerAction(period=RESTART_DELAY_S, actions=keep_running(make_node))]

    node = make_node()
    return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=on_exit)), node]


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of all nodes and relative topics.'),
        DeclareLaunchArgument(
            'params_file',
            default_value=in_package('config', 'inspect.yaml'),
            description='YAML file with the parameters of inspection_node; recorder_node reads its own section.',
        ),
        DeclareLaunchArgument(
            'image_topic',
            default_value='image',
            description='Images: sensor_msgs/Image, or sensor_msgs/CompressedImage on this name + /compressed.',
        ),
        DeclareLaunchArgument(
            'camera_info_topic', default_value='camera_info', description='Calibration of the camera.'
        ),
        DeclareLaunchArgument(
            'points_topic', default_value='points', description='Clouds of the range sensor: sensor_msgs/PointCloud2.'
        ),
        DeclareLaunchArgument(
            'map_frame',
            default_value='',
            description='Frame in which an airhole seen again is recognised; empty: as in params_file.',
        ),
        DeclareLaunchArgument(
            'record',
            default_value='false',
            choices=['false', 'true', 'results', 'events'],
            description='Record a bag: inputs and results (true), results alone, or pictures of airholes (events).',
        ),
        DeclareLaunchArgument(
            'bag_path',
            default_value='',
            description='Folder of the new bag, with a number added where it exists; empty: inspection_<local time>.',
        ),
        DeclareLaunchArgument('rviz', default_value='false', choices=TRUE_FALSE, description='Start RViz.'),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', choices=TRUE_FALSE, description='Take the time from /clock.'
        ),
        DeclareLaunchArgument(
            'device',
            default_value='',
            choices=['', 'auto', 'cpu', 'cuda'],
            description='Where the network runs; empty: as in params_file.',
        ),
        DeclareLaunchArgument(
            'model',
            default_value='',
            description='Name of shipped weights or path of a .safetensors file; empty: as in params_file.',
        ),
        DeclareLaunchArgument(
            'registration',
            default_value='',
            choices=['', 'tf', 'refine', 'match'],
            description='Extrinsic: as in /tf, refined by the data, or found without /tf; empty: as in params_file.',
        ),
        DeclareLaunchArgument(
            'log_level',
            default_value='info',
            choices=['debug', 'info', 'warn', 'error', 'fatal'],
            description='Lowest level that is logged.',
        ),
    ]


def make_nodes(context: LaunchContext) -> list[Action]:
    image_topic = LaunchConfiguration('image_topic')
    points_topic = LaunchConfiguration('points_topic')
    use_sim_time = {'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool)}
    common = {
        'namespace': LaunchConfiguration('namespace'),
        'remappings': [
            ('image', image_topic),
            ('image/compressed', [image_topic, '/compressed']),
            ('camera_info', LaunchConfiguration('camera_info_topic')),
            ('points', points_topic),
        ],
        'ros_arguments': ['--log-level', LaunchConfiguration('log_level')],
        'output': 'screen',
        'emulate_tty': True,
    }
    overrides = {
        parameter: ParameterValue(LaunchConfiguration(argument), value_type=str)
        for argument, parameter in OVERRIDES.items()
        if LaunchConfiguration(argument).perform(context)
    }
    record, map_frame = (LaunchConfiguration(name).perform(context) for name in ('record', 'map_frame'))
    bag = {
        'bag_path': ParameterValue(LaunchConfiguration('bag_path'), value_type=str),
        'mode': 'all' if record == 'true' else record,
    }

    def make_node(name: str, parameters: dict[str, object]) -> Callable[[], Node]:
        return lambda: Node(
            package='cmml_ros',
            executable=name,
            name=name,
            parameters=[LaunchConfiguration('params_file'), parameters, use_sim_time],
            **common,
        )

    return [
        *keep_running(make_node('inspection_node', overrides)),
        *(keep_running(make_node('recorder_node', bag)) if record != 'false' else []),
        Node(
            package='rviz2',
            executable='rviz2',
            name='rviz',
            namespace=LaunchConfiguration('namespace'),
            arguments=['-d', in_package('config', 'inspect.rviz'), *(['-f', map_frame] if map_frame else [])],
            # The file names absolute topics: here they follow the namespace and the arguments.
            remappings=[('/points', points_topic), ('/image', image_topic), *((f'/{name}', name) for name in OUTPUTS)],
            parameters=[use_sim_time],
            condition=IfCondition(LaunchConfiguration('rviz')),
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """The description that `ros2 launch cmml_ros inspect.launch.py` runs."""
    # Fast DDS loses most large images without its profile. Jazzy reads the first variable, Kilted and later the second.
    profile = [
        SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=in_package('config', 'fastdds.xml')))
        for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
    ]
    return LaunchDescription([*declare_arguments(), *profile, OpaqueFunction(function=make_nodes)])
