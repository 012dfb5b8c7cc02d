"""Message classes without ROS: the standard ones of a distribution, and this package's own."""

from __future__ import annotations

from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

_DEFAULT_STORE = Stores.ROS2_JAZZY


def make_typestore(ros_distro: str | None = None) -> Typestore:
    """Message classes of `ros_distro` (Jazzy when it is unknown), and of this package where its .msg files are found.

    `store.types['sensor_msgs/msg/Image']` is a class that takes the fields of the message as keywords.
    """
    try:
        store = get_typestore(Stores(f'ros2_{ros_distro}'))
    except ValueError:
        store = get_typestore(_DEFAULT_STORE)
    types = {}
    for path in _find_definitions():
        types.update(get_types_from_msg(path.read_text(encoding='utf-8'), f'cmml_ros/msg/{path.stem}'))
    store.register(types)
    return store


def _find_definitions() -> list[Path]:
    """The package's .msg files: beside the sources, or in `share` of the install prefix."""
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / 'msg', parent / 'share' / 'cmml_ros' / 'msg'):
            if (folder / 'Defect.msg').is_file():
                return sorted(folder.glob('*.msg'))
    return []
