"""What is left of a frame when its picture and its points are gone: all that the map and the tables need."""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmml_ros.calibration import CalibrationCheck, CalibrationStatus
from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.mapping.closeup import Closeup
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.measurement.pooling import CavityReadings
from cmml_ros.measurement.uncertainty import Budget


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """One inspected frame.

    closeups: one per defect. cloud_points: None without a cloud. T_camera_lidar: through which the points were taken,
    None without. transform_reason: why there are no points in the picture, or no pose in the map; empty when there are.
    calibration: what was known of it by then. timings_s: wall time by stage.
    """

    stamp_ns: int
    frame_id: str
    camera: Camera
    T_map_camera: SE3 | None
    T_camera_lidar: SE3 | None
    cloud_stamp_ns: int | None
    cloud_points: int | None
    sync_offset_s: float
    transform_reason: str
    model_id: str
    calibration: CalibrationCheck
    defects: tuple[Defect, ...]
    closeups: tuple[Closeup, ...]
    timings_s: dict[str, float]

    @classmethod
    def of(
        cls,
        frame: Frame,
        defects: tuple[Defect, ...],
        closeups: tuple[Closeup, ...],
        model_id: str,
        T_camera_lidar: SE3 | None,
        calibration: CalibrationCheck,
        timings_s: dict[str, float],
    ) -> FrameRecord:
        """The record of `frame`."""
        return cls(
            frame.stamp_ns,
            frame.frame_id,
            frame.camera,
            frame.T_map_camera,
            T_camera_lidar,
            frame.cloud_stamp_ns,
            None if frame.cloud is None else len(frame.cloud),
            frame.sync_offset_s,
            frame.transform_reason,
            model_id,
            calibration,
            defects,
            closeups,
            timings_s,
        )

    def to_document(self) -> dict[str, Any]:
        """Ready for JSON, without loss: arrays as the bytes that they are, NaN as NaN."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check = self.calibration
        return document | {
            'camera': dataclasses.asdict(self.camera),
            'T_map_camera': _pack_pose(self.T_map_camera),
            'T_camera_lidar': _pack_pose(self.T_camera_lidar),
            'calibration': vars(check) | {'correction': _pack(check.correction), 'std': _pack(check.std)},
            'defects': [
                [one.class_id, one.confidence, one.roi, _pack(one.outline_px), _pack_fields(one.measurement)]
                for one in self.defects
            ],
            'closeups': [
                [base64.b64encode(one.jpeg).decode(), _pack(one.rim), _pack(one.section_m)] for one in self.closeups
            ],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> FrameRecord:
        """The inverse of `to_document`."""
        camera, check = document['camera'], document['calibration']
        parts = {
            'camera': Camera(**{**camera, 'distortion': tuple(camera['distortion'])}),
            'T_map_camera': _unpack_pose(document['T_map_camera']),
            'T_camera_lidar': _unpack_pose(document['T_camera_lidar']),
            'calibration': CalibrationCheck(
                **check
                | {
                    'status': CalibrationStatus(check['status']),
                    'correction': _unpack(check['correction']),
                    'std': _unpack(check['std']),
                }
            ),
            'defects': tuple(
                Defect(class_id, confidence, _box(roi), _unpack(outline), _unpack_measurement(measurement))
                for class_id, confidence, roi, outline, measurement in document['defects']
            ),
            'closeups': tuple(
                Closeup(base64.b64decode(jpeg), _unpack(rim), _unpack(section))
                for jpeg, rim, section in document['closeups']
            ),
        }
        return cls(**(document | parts))


def _pack(array: NDArray[np.float64]) -> list[Any]:
    values = np.ascontiguousarray(array, '<f8')
    return [list(values.shape), base64.b64encode(values.tobytes()).decode()]


def _unpack(packed: list[Any]) -> NDArray[np.float64]:
    shape, data = packed
    return np.frombuffer(base64.b64decode(data), '<f8').reshape(shape).astype(np.float64)


def _pack_pose(pose: SE3 | None) -> list[Any] | None:
    return None if pose is None else [_pack(pose.rotation), _pack(pose.translation)]


def _unpack_pose(packed: list[Any] | None) -> SE3 | None:
    return None if packed is None else SE3(_unpack(packed[0]), _unpack(packed[1]))


def _pack_fields(one: Measurement | CavityReadings) -> dict[str, Any]:
    return {name: _pack_value(value) for name, value in vars(one).items()}


def _pack_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _pack(value)
    if isinstance(value, CavityReadings):
        return _pack_fields(value)
    return dataclasses.asdict(value) if isinstance(value, Budget) else value


def _unpack_measurement(document: dict[str, Any]) -> Measurement:
    readings = document['readings']
    values = {name: _unpack_value(value) for name, value in document.items() if name != 'readings'}
    statuses = {name: Status(values[name]) for name in ('area_status', 'volume_status')}
    return Measurement(**(values | statuses), readings=None if readings is None else _unpack_readings(readings))


def _unpack_readings(document: dict[str, Any]) -> CavityReadings:
    values = {name: _unpack_value(value) for name, value in document.items()}
    return CavityReadings(**(values | {'rows': values['rows'].astype(np.float32)}))


def _unpack_value(value: Any) -> Any:
    if isinstance(value, list):
        return _unpack(value)
    return Budget(**value) if isinstance(value, dict) else value


def _box(values: list[int]) -> tuple[int, int, int, int]:
    left, top, width, height = values
    return left, top, width, height
