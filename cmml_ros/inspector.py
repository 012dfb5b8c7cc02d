"""The pipeline: from one frame to its measured airholes. Live and offline use this and nothing else."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cmml_ros.config import InspectorConfig
from cmml_ros.frame import Frame
from cmml_ros.geometry.cloud import ProjectedCloud, project_cloud
from cmml_ros.measurement.defect import Defect, Status
from cmml_ros.measurement.measure import is_flat, measure, outline_in_image
from cmml_ros.model.runtime import Segmenter


@dataclass(frozen=True)
class Inspection:
    """What one frame told: its airholes, measured in the camera's optical frame.

    timings_s: wall time per stage, seconds.
    """

    frame: Frame
    defects: tuple[Defect, ...]
    model_id: str
    timings_s: dict[str, float]


class Inspector:
    """Segments the picture, finds each airhole's points, measures it."""

    def __init__(self, config: InspectorConfig) -> None:
        self._config = config
        self._segmenter = Segmenter(config.detection)
        self.model_id = self._segmenter.model_id

    def inspect(self, frame: Frame) -> Inspection:
        """The airholes of `frame`; without points or without a transform they carry the reason instead of a size."""
        started = time.perf_counter()
        projected, unknown = self._project(frame)
        projected_at = time.perf_counter()
        masks = self._segmenter.segment(frame.image, projected)
        segmented_at = time.perf_counter()
        measurements = measure(masks, projected, frame.camera, self._config.surface, self._config.measurement, unknown)
        defects = tuple(
            Defect(mask.class_id, mask.confidence, mask.roi, outline_in_image(mask), measurement)
            for mask, measurement in zip(masks, measurements, strict=True)
            if not is_flat(measurement, self._config.measurement)
        )
        measured_at = time.perf_counter()
        timings_s = {
            'project': projected_at - started,
            'network': segmented_at - projected_at,
            'measure': measured_at - segmented_at,
        }
        return Inspection(frame, defects, self.model_id, timings_s)

    @staticmethod
    def _project(frame: Frame) -> tuple[ProjectedCloud | None, tuple[Status, str] | None]:
        """The cloud as the camera sees it, or why there is none."""
        if frame.cloud is None:
            return None, (Status.NO_POINTS, frame.transform_reason or 'no cloud came with this image')
        if frame.T_camera_lidar is None:
            return None, (Status.NO_TRANSFORM, frame.transform_reason)
        return project_cloud(frame.cloud, frame.camera, frame.T_camera_lidar), None
