"""Live inspection: inspection_node, and on demand recorder_node and RViz."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

TRUE_FALSE = ['true', 'false']
# Settings of params_file that have an argument of their own; an empty argument leaves the file's value.
OVERRIDES = {'map_frame': 'sync.map_frame', 'device': 'detection.device', 'model': 'detection.model'}
OUTPUTS = ('inspection_node/markers', 'inspection_node/overlay')


def in_package(*parts: str) -> PathJoinSubstitution:
    return PathJoinSubstitution([FindPackageShare('cmml_ros'), *parts])


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument('namespace', default_value='', description='Namespace of all nodes and relative topics.'),
        DeclareLaunchArgument(
            'params_file',
            default_value=in_package('config', 'inspect.yaml'),
            description='YAML file with the parameters of inspection_node.',
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
            'record', default_value='false', choices=TRUE_FALSE, description='Record inputs and results to a bag.'
        ),
        DeclareLaunchArgument(
            'bag_path',
            default_value='',
            description='Folder of the new bag; empty: inspection_<local time> in the working directory.',
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
            'log_level',
            default_value='info',
            choices=['debug', 'info', 'warn', 'error', 'fatal'],
            description='Lowest level that is logged.',
        ),
    ]


def make_nodes(context: LaunchContext) -> list[Node]:
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
    return [
        Node(
            package='cmml_ros',
            executable='inspection_node',
            name='inspection_node',
            parameters=[LaunchConfiguration('params_file'), overrides, use_sim_time],
            **common,
        ),
        Node(
            package='cmml_ros',
            executable='recorder_node',
            name='recorder_node',
            parameters=[{'bag_path': ParameterValue(LaunchConfiguration('bag_path'), value_type=str)}, use_sim_time],
            condition=IfCondition(LaunchConfiguration('record')),
            **common,
        ),
        Node(
            package='rviz2',
            executable='rviz2',
            name='rviz',
            namespace=LaunchConfiguration('namespace'),
            arguments=['-d', in_package('config', 'inspect.rviz')],
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
