"""Airholes as vision_msgs/Detection3DArray, for stacks that know nothing of this package, where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from geometry_msgs.msg import Pose, Quaternion, Vector3
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from cmml_ros.measurement.defect import Defect, Measurement
from cmml_ros.nodes.messages import make_point, make_vector

CLASS_NAMES = ('airhole',)


def find_vision_msgs() -> ModuleType | None:
    """The message package, or None where it is not installed."""
    try:
        return importlib.import_module('vision_msgs.msg')
    except ImportError:
        return None


def make_detections(vision_msgs: ModuleType, header: Header, ids: Sequence[int], defects: Sequence[Defect]) -> Any:
    """Detection3DArray with the airholes whose place is known, in the camera's optical frame."""
    message = vision_msgs.Detection3DArray(header=header)
    for defect_id, defect in zip(ids, defects, strict=True):
        if not len(defect.measurement.outline):
            continue
        box = vision_msgs.BoundingBox3D()
        box.center, box.size = _enclose(defect.measurement)
        result = vision_msgs.ObjectHypothesisWithPose()
        result.hypothesis.class_id, result.hypothesis.score = CLASS_NAMES[defect.class_id], defect.confidence
        result.pose.pose = box.center
        message.detections.append(vision_msgs.Detection3D(header=header, id=str(defect_id), bbox=box, results=[result]))
    return message


def _enclose(measurement: Measurement) -> tuple[Pose, Vector3]:
    """The smallest box around rim and depth whose z axis is the normal; its height is 0 where the depth is unknown."""
    z = measurement.normal
    x = np.cross(z, np.eye(3)[np.abs(z).argmin()])
    x /= np.linalg.norm(x)
    R_camera_box: NDArray[np.float64] = np.column_stack([x, np.cross(z, x), z])
    corners = (measurement.outline - measurement.position) @ R_camera_box
    low, high = corners.min(axis=0), corners.max(axis=0)
    low[2], high[2] = -np.nan_to_num(measurement.depth_max_m), 0.0
    qx, qy, qz, qw = Rotation.from_matrix(R_camera_box).as_quat().tolist()
    center = measurement.position + R_camera_box @ ((low + high) / 2.0)
    return Pose(position=make_point(center), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw)), make_vector(high - low)
