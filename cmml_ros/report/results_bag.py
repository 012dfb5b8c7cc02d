"""The results as a recording: what inspection_node would have published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmml_ros.bag.writer import BagWriter
from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.mapping.record import FrameRecord
from cmml_ros.measurement.defect import Measurement
from cmml_ros.report.overlay import STATUS_COLORS_RGB

DEFECTS_TOPIC = '/inspection_node/defects'
MAP_TOPIC = '/inspection_node/map'
MARKERS_TOPIC = '/inspection_node/markers'
MAP_MARKERS_TOPIC = '/inspection_node/map_markers'
_TYPE = 'cmml_ros/msg/DefectArray'
_MARKERS_TYPE = 'visualization_msgs/msg/MarkerArray'
_RIM_WIDTH_M = 0.0005
_LINE_STRIP, _ADD, _DELETE_ALL = 4, 0, 3
_TIMES = ('projection_time', 'segmentation_time', 'measurement_time', 'total_time')


def list_sizes(measurement: Measurement) -> dict[str, Any]:
    """What a cmml_ros/Defect holds of a measurement beside places and directions, by field; SI units, NaN stays NaN."""
    return {
        'area': measurement.area_m2,
        'area_stddev': measurement.area_std_m2,
        'equivalent_diameter': measurement.equivalent_diameter_m,
        'major_axis': measurement.major_axis_m,
        'minor_axis': measurement.minor_axis_m,
        'depth_max': measurement.depth_max_m,
        'depth_max_stddev': measurement.depth_max_std_m,
        'volume': measurement.volume_m3,
        'volume_stddev': measurement.volume_std_m3,
        'volume_upper_bound': measurement.volume_upper_bound_m3,
        'area_status': int(measurement.area_status),
        'volume_status': int(measurement.volume_status),
        'reason': measurement.reason,
        'point_count': measurement.point_count,
    }


class ResultsBag:
    """A new bag with one DefectArray per frame and the map at the end, to be used as a context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = BagWriter(path)
        self._writer.add_topic(DEFECTS_TOPIC, _TYPE)
        self._writer.add_topic(MAP_TOPIC, _TYPE, latched=True)
        self._writer.add_topic(MARKERS_TOPIC, _MARKERS_TYPE)
        self._writer.add_topic(MAP_MARKERS_TOPIC, _MARKERS_TYPE, latched=True)
        self._latest_stamp_ns = 0
        self._model_id = ''

    def write_frame(self, record: FrameRecord, ids: Sequence[int]) -> None:
        """The airholes of one frame, in the camera's optical frame, under the stamp of its image."""
        self._latest_stamp_ns = max(self._latest_stamp_ns, record.stamp_ns)
        self._model_id = record.model_id
        defects = [
            self._defect(defect_id, defect.class_id, defect.confidence, defect.measurement, 1, defect.roi)
            for defect_id, defect in zip(ids, record.defects, strict=True)
        ]
        timings_s = record.timings_s
        times = [
            *(timings_s.get(stage, math.nan) for stage in ('project', 'network', 'measure')),
            sum(timings_s.values()),
        ]
        message = self._array(
            record.stamp_ns, record.frame_id, defects, record.sync_offset_s, times, int(record.calibration.status)
        )
        self._writer.write(DEFECTS_TOPIC, message, record.stamp_ns)
        markers = [
            self._marker(record.stamp_ns, record.frame_id, number, defect.measurement)
            for number, defect in enumerate(record.defects)
            if len(defect.measurement.outline)
        ]
        self._write_markers(MARKERS_TOPIC, record.stamp_ns, record.frame_id, markers)

    def write_map(self, entries: Sequence[MapEntry], map_frame: str) -> None:
        """Every airhole that has a place in the map, under the stamp of the latest image."""
        defects = [
            self._defect(entry.defect_id, entry.class_id, entry.confidence, entry.measurement, entry.observations)
            for entry in entries
            if entry.frame_id == map_frame
        ]
        message = self._array(self._latest_stamp_ns, map_frame, defects, math.nan, [math.nan] * len(_TIMES))
        self._writer.write(MAP_TOPIC, message, self._latest_stamp_ns)
        markers = [
            self._marker(self._latest_stamp_ns, map_frame, entry.defect_id, entry.measurement)
            for entry in entries
            if entry.frame_id == map_frame and len(entry.measurement.outline)
        ]
        self._write_markers(MAP_MARKERS_TOPIC, self._latest_stamp_ns, map_frame, markers)

    def __enter__(self) -> ResultsBag:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def _array(
        self,
        stamp_ns: int,
        frame_id: str,
        defects: list[Any],
        sync_offset_s: float,
        times_s: Sequence[float],
        calibration_status: int = 0,
    ) -> Any:
        stamp = self._make('builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        return self._make(
            _TYPE,
            header=self._make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id),
            defects=defects,
            model_id=self._model_id,
            sync_offset=sync_offset_s,
            calibration_status=calibration_status,
            **dict(zip(_TIMES, times_s, strict=True)),
        )

    def _defect(
        self,
        defect_id: int,
        class_id: int,
        confidence: float,
        measurement: Measurement,
        observations: int,
        roi: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Any:
        left, top, width, height = roi
        return self._make(
            'cmml_ros/msg/Defect',
            id=defect_id,
            class_id=class_id,
            confidence=confidence,
            position=self._xyz('geometry_msgs/msg/Point', measurement.position),
            normal=self._xyz('geometry_msgs/msg/Vector3', measurement.normal),
            outline=[self._xyz('geometry_msgs/msg/Point', point) for point in measurement.outline],
            **list_sizes(measurement),
            observation_count=observations,
            roi=self._make(
                'sensor_msgs/msg/RegionOfInterest',
                x_offset=left,
                y_offset=top,
                width=width,
                height=height,
                do_rectify=False,
            ),
        )

    def _write_markers(self, topic: str, stamp_ns: int, frame_id: str, markers: list[Any]) -> None:
        """Rims for RViz, in place of all that were there."""
        clear = self._marker(stamp_ns, frame_id, 0, None)
        self._writer.write(topic, self._make(_MARKERS_TYPE, markers=[clear, *markers]), stamp_ns)

    def _marker(self, stamp_ns: int, frame_id: str, number: int, measurement: Measurement | None) -> Any:
        """The rim of one airhole; None deletes all."""
        color = (0, 0, 0) if measurement is None else STATUS_COLORS_RGB[measurement.volume_status]
        red, green, blue = (level / 255.0 for level in color)
        outline = [] if measurement is None else [*measurement.outline, measurement.outline[0]]
        zero = np.zeros(3)
        stamp = self._make('builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
        make = self._make
        return make(
            'visualization_msgs/msg/Marker',
            header=make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id),
            ns=f'{frame_id}/rim',
            id=number,
            type=_LINE_STRIP,
            action=_DELETE_ALL if measurement is None else _ADD,
            pose=make(
                'geometry_msgs/msg/Pose',
                position=self._xyz('geometry_msgs/msg/Point', zero),
                orientation=make('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0),
            ),
            scale=self._xyz('geometry_msgs/msg/Vector3', np.array([_RIM_WIDTH_M, 0.0, 0.0])),
            color=make('std_msgs/msg/ColorRGBA', r=red, g=green, b=blue, a=1.0),
            lifetime=make('builtin_interfaces/msg/Duration', sec=0, nanosec=0),
            frame_locked=False,
            points=[self._xyz('geometry_msgs/msg/Point', point) for point in outline],
            colors=[],
            texture_resource='',
            texture=make(
                'sensor_msgs/msg/CompressedImage',
                header=make('std_msgs/msg/Header', stamp=stamp, frame_id=''),
                format='',
                data=np.empty(0, np.uint8),
            ),
            uv_coordinates=[],
            text='',
            mesh_resource='',
            mesh_file=make('visualization_msgs/msg/MeshFile', filename='', data=np.empty(0, np.uint8)),
            mesh_use_embedded_materials=False,
        )

    def _xyz(self, type_name: str, vector: NDArray[np.float64]) -> Any:
        x, y, z = vector.tolist()
        return self._make(type_name, x=x, y=y, z=z)

    def _make(self, type_name: str, **fields: Any) -> Any:
        # Constants of a message are class attributes with defaults, so only fields are given.
        return self._writer.types[type_name](**fields)
