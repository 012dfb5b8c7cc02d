"""`pip install .`: the offline half of the package (the `cmml` command and the library) on a machine without ROS.

ROS builds with CMakeLists.txt instead, because only CMake can generate and compile the messages that the nodes need.
Both install the same Python sources, and both take the version from package.xml.
"""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name='cmml_ros',
    version=ElementTree.parse(ROOT / 'package.xml').findtext('version'),
    description='Find airholes in concrete with a camera and a range sensor, and measure them with an uncertainty',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=[*find_packages(include=['cmml_ros', 'cmml_ros.*']), 'cmml_ros.bag.msg', 'cmml_ros.mapping.standards'],
    # The message definitions let recordings of our own topics be read where no ROS is.
    package_dir={'cmml_ros.bag.msg': 'msg', 'cmml_ros.mapping.standards': 'config/grading'},
    package_data={
        'cmml_ros': ['py.typed'],
        'cmml_ros.bag.msg': ['*.msg'],
        'cmml_ros.mapping.standards': ['*.yaml'],
        'cmml_ros.model': ['weights/*'],
        'cmml_ros.report': ['templates/*'],
    },
    install_requires=[
        'jinja2',
        'markupsafe',
        'mcap',
        'numba>=0.58',
        'numpy>=1.26',
        'onnx>=1.17',
        'opencv-python-headless>=4.6',
        'poselib>=2.0.2',
        'openvino>=2025.0',
        'pyarrow>=14',
        'pyyaml',
        'rosbags>=0.11',
        'safetensors',
        'scipy>=1.11',
        'torch>=2.6',
        'tqdm',
        'zstandard',
    ],
    # What `cmml simulate`, `cmml train` and `cmml evaluate` need on top: all of them work on simulated walls.
    # 'cluster': `cmml analyze --workers` and `--cluster`.
    extras_require={
        'cluster': ['ray>=2.40'],
        'simulation': [
            'matplotlib>=3.8',
            'mitsuba>=3.7',
            'open3d>=0.19',
            'pycocotools>=2.0.8',
            'shapely>=2',
            'tensorboard>=2.14',
        ],
    },
    entry_points={'console_scripts': ['cmml = cmml_ros.cli:main']},
)
