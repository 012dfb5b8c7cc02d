"""What a recording cannot tell by itself: settings, model, calibration and version, in recording.yaml beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

from cmml_ros.config import InspectorConfig, list_settings
from cmml_ros.msg import DefectArray
from cmml_ros.version import read_version

_TYPES = {
    'sensor_msgs/msg/CameraInfo': CameraInfo,
    'tf2_msgs/msg/TFMessage': TFMessage,
    'cmml_ros/msg/DefectArray': DefectArray,
}


class Sidecar:
    """Collects it while the recording goes on, and writes the file whenever there is something new."""

    def __init__(self, node: Node, inspection_node: str, settings: Mapping[str, Any]) -> None:
        self._document: dict[str, Any] = {
            'package_version': read_version(),
            'recorder': dict(settings),
            'model_id': None,
            'inspection': None,
            'cameras': {},
            'static_transforms': {},
        }
        self._changed = True
        self._seen: set[str] = set()
        self._node = node
        self._client = node.create_client(GetParameters, f'{inspection_node}/get_parameters')
        self._asked = False

    def observe(self, topic: str, type_name: str, data: bytes) -> None:
        """Learn from one serialized message; what was learnt from its topic before costs nothing."""
        kind = _TYPES.get(type_name)
        if kind is None or topic in self._seen or (kind is TFMessage and not topic.endswith('tf_static')):
            return
        message = deserialize_message(data, kind)
        if kind is TFMessage:  # each publisher of static transforms sends its own
            for edge in message.transforms:
                t, q = edge.transform.translation, edge.transform.rotation
                name = f'{edge.header.frame_id} -> {edge.child_frame_id}'
                pose = {'translation_m': [t.x, t.y, t.z], 'rotation_xyzw': [q.x, q.y, q.z, q.w]}
                self._changed |= self._document['static_transforms'].get(name) != pose
                self._document['static_transforms'][name] = pose
            return
        self._seen.add(topic)
        self._changed = True
        if kind is DefectArray:
            self._document['model_id'] = message.model_id
        else:
            self._document['cameras'][topic] = {
                'width': message.width,
                'height': message.height,
                'distortion_model': message.distortion_model,
                'k': [float(value) for value in message.k],
                'd': [float(value) for value in message.d],
            }

    def write(self, folder: Path, totals: Mapping[str, Any] | None = None) -> None:
        """`folder`/recording.yaml, when something changed; totals: what was recorded, at the end."""
        self._ask_for_parameters()
        if totals is not None:
            self._document['recorded'] = dict(totals)
        elif not self._changed:
            return
        self._changed = False
        path = folder / 'recording.yaml'
        temporary = path.with_suffix('.yaml.tmp')
        try:
            temporary.write_text(yaml.safe_dump(self._document, sort_keys=False), encoding='utf-8')
            temporary.replace(path)
        except OSError as error:
            self._node.get_logger().error(f'{path}: cannot be written ({error.strerror})')

    def close(self) -> None:
        """Ask no more."""
        self._node.destroy_client(self._client)

    def _ask_for_parameters(self) -> None:
        """The settings of the inspection, once it is there."""
        if self._asked or not self._client.service_is_ready():
            return
        self._asked = True
        names = [entry.name for entry in list_settings(InspectorConfig)]

        def on_values(future: Any) -> None:
            values = (parameter_value_to_python(value) for value in future.result().values)
            self._document['inspection'] = dict(zip(names, values, strict=False))
            self._changed = True

        self._client.call_async(GetParameters.Request(names=names)).add_done_callback(on_values)
