"""The results as a recording: what inspection_node would have published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmml_ros.bag.writer import BagWriter
from cmml_ros.mapping.defect_map import MapEntry
from cmml_ros.measurement.defect import Measurement

if TYPE_CHECKING:  # the inspector brings torch, a bag does not need it
    from cmml_ros.inspector import Inspection

DEFECTS_TOPIC = '/inspection_node/defects'
MAP_TOPIC = '/inspection_node/map'
_TYPE = 'cmml_ros/msg/DefectArray'
_TIMES = ('projection_time', 'segmentation_time', 'measurement_time', 'total_time')


class ResultsBag:
    """A new bag with one DefectArray per frame and the map at the end, to be used as a context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = BagWriter(path)
        self._writer.add_topic(DEFECTS_TOPIC, _TYPE)
        self._writer.add_topic(MAP_TOPIC, _TYPE, latched=True)
        self._latest_stamp_ns = 0
        self._model_id = ''

    def write_frame(self, inspection: Inspection, ids: Sequence[int]) -> None:
        """The airholes of one frame, in the camera's optical frame, under the stamp of its image."""
        frame = inspection.frame
        self._latest_stamp_ns = max(self._latest_stamp_ns, frame.stamp_ns)
        self._model_id = inspection.model_id
        defects = [
            self._defect(defect_id, defect.class_id, defect.confidence, defect.measurement, 1, defect.roi)
            for defect_id, defect in zip(ids, inspection.defects, strict=True)
        ]
        timings_s = inspection.timings_s
        times = [
            *(timings_s.get(stage, math.nan) for stage in ('project', 'network', 'measure')),
            sum(timings_s.values()),
        ]
        calibration = int(inspection.calibration.status)
        message = self._array(frame.stamp_ns, frame.frame_id, defects, frame.sync_offset_s, times, calibration)
        self._writer.write(DEFECTS_TOPIC, message, frame.stamp_ns)

    def write_map(self, entries: Sequence[MapEntry], map_frame: str) -> None:
        """Every airhole that has a place in the map, under the stamp of the latest image."""
        defects = [
            self._defect(entry.defect_id, entry.class_id, entry.confidence, entry.measurement, entry.observations)
            for entry in entries
            if entry.frame_id == map_frame
        ]
        message = self._array(self._latest_stamp_ns, map_frame, defects, math.nan, [math.nan] * len(_TIMES))
        self._writer.write(MAP_TOPIC, message, self._latest_stamp_ns)

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
            area=measurement.area_m2,
            area_stddev=measurement.area_std_m2,
            equivalent_diameter=measurement.equivalent_diameter_m,
            major_axis=measurement.major_axis_m,
            minor_axis=measurement.minor_axis_m,
            depth_max=measurement.depth_max_m,
            depth_max_stddev=measurement.depth_max_std_m,
            volume=measurement.volume_m3,
            volume_stddev=measurement.volume_std_m3,
            volume_upper_bound=measurement.volume_upper_bound_m3,
            area_status=int(measurement.area_status),
            volume_status=int(measurement.volume_status),
            reason=measurement.reason,
            point_count=measurement.point_count,
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

    def _xyz(self, type_name: str, vector: NDArray[np.float64]) -> Any:
        x, y, z = vector.tolist()
        return self._make(type_name, x=x, y=y, z=z)

    def _make(self, type_name: str, **fields: Any) -> Any:
        # Constants of a message are class attributes with defaults, so only fields are given.
        return self._writer.types[type_name](**fields)
