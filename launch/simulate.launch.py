"""Live inspection of a simulated wall, or of a recording played in real time.

Every argument of inspect.launch.py is an argument here too.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue


def declare_arguments() -> list[DeclareLaunchArgument]:
    return [
        DeclareLaunchArgument(
            'scene', default_value='plane', choices=['plane', 'column', 'tunnel'], description='Shape of the wall.'
        ),
        DeclareLaunchArgument(
            'sensor',
            default_value='depth_camera',
            choices=['depth_camera', 'line_profiler', 'tof_lidar'],
            description='Range sensor beside the camera.',
        ),
        DeclareLaunchArgument('seed', default_value='1', description='Seed of the wall and of all noise.'),
        DeclareLaunchArgument('rate_hz', default_value='2.0', description='Frames published each second.'),
        DeclareLaunchArgument(
            'frames', default_value='20', description='Frames rendered before the first is published.'
        ),
        DeclareLaunchArgument(
            'loop', default_value='true', choices=['true', 'false'], description='Begin again after the last frame.'
        ),
        DeclareLaunchArgument(
            'play', default_value='', description='Bag to play in place of the simulation; empty: simulate.'
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """The description that `ros2 launch cmml_ros simulate.launch.py` runs."""
    types = {'scene': str, 'sensor': str, 'seed': int, 'rate_hz': float, 'frames': int, 'loop': bool}
    parameters = {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, kind in types.items()}
    parameters['bag_path'] = ParameterValue(LaunchConfiguration('play'), value_type=str)
    inspect = str(Path(get_package_share_directory('cmml_ros'), 'launch', 'inspect.launch.py'))
    return LaunchDescription(
        [
            *declare_arguments(),
            IncludeLaunchDescription(PythonLaunchDescriptionSource(inspect)),  # first: it sets the Fast DDS profile
            Node(
                package='cmml_ros',
                executable='simulator_node',
                name='simulator_node',
                namespace=LaunchConfiguration('namespace'),
                parameters=[parameters],
                remappings=[
                    ('image', LaunchConfiguration('image_topic')),
                    ('camera_info', LaunchConfiguration('camera_info_topic')),
                    ('points', LaunchConfiguration('points_topic')),
                ],
                output='screen',
                emulate_tty=True,
            ),
        ]
    )
