"""The pipeline: from one frame to its measured airholes. Live and offline use this and nothing else."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cmml_ros.calibration import NOT_CHECKED, CalibrationCheck, CalibrationMonitor, CalibrationStatus
from cmml_ros.config import InspectorConfig
from cmml_ros.errors import PoseError
from cmml_ros.extrinsic_check import ExtrinsicCheck
from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.cloud import Cloud, ProjectedCloud, project_cloud
from cmml_ros.geometry.mask import InstanceMask
from cmml_ros.geometry.transforms import SE3
from cmml_ros.measurement.defect import Defect, Measurement, Status
from cmml_ros.measurement.measure import is_flat, measure, outline_in_image, prepare
from cmml_ros.measurement.uncertainty import ExtrinsicStd
from cmml_ros.model.cells import pack_cells
from cmml_ros.model.range_features import range_features
from cmml_ros.model.registration import Registrar, Registration
from cmml_ros.model.rim_edge import settle_rims
from cmml_ros.model.runtime import Segmenter
from cmml_ros.stream import returns

# No camera shows airholes from so far away; a wall at 0.5 m whose points are in millimetres is at 500 m.
_FARTHEST_M = 100.0


@dataclass(frozen=True)
class Inspection:
    """What one frame told: its airholes, measured in the camera's optical frame.

    T_camera_lidar: the registration that the points were taken through, None when there is none. calibration: what is
    known about the extrinsic by now. points_reason: why a cloud that is there cannot be used, beyond the reason
    of the frame. timings_s: wall time per stage, seconds.
    """

    frame: Frame
    defects: tuple[Defect, ...]
    model_id: str
    timings_s: dict[str, float]
    T_camera_lidar: SE3 | None = None
    calibration: CalibrationCheck = NOT_CHECKED
    points_reason: str = ''


class Inspector:
    """Registers the points with the picture, segments it, finds each airhole's points, measures it.

    parallel: frames that are worked on at once; more than these wait for their turn.
    """

    def __init__(self, config: InspectorConfig, segmenter: Segmenter | None = None) -> None:
        self._config = config
        self._segmenter = segmenter or _load_segmenter(config)
        self._monitor = CalibrationMonitor(config.registration)
        self._calibration = NOT_CHECKED
        self._registrar = Registrar(self._segmenter.matcher, config.registration)
        self._check = ExtrinsicCheck(self._registrar, config.registration.check_period_s)
        self.model_id = self._segmenter.model_id
        self.parallel = self._segmenter.parallel
        self._threads = ThreadPoolExecutor(self.parallel, thread_name_prefix='inspection')

    def restarted(self) -> Inspector:
        """One that has seen no frame yet, with the network of this one."""
        return Inspector(self._config, self._segmenter)

    @property
    def device(self) -> str:
        """Where the network runs: cpu or cuda."""
        return self._segmenter.device

    def finish(self) -> CalibrationCheck:
        """What is known about the extrinsic after the last frame, checks that were under way included."""
        for checked, found in self._check.finish():
            self._calibration = self._judge(found, checked)
        return self._calibration

    def inspect(self, frame: Frame) -> Inspection:
        """The airholes of `frame`; without points or without a transform they carry the reason instead of a size."""
        return self.begin(frame).result()

    def begin(self, frame: Frame) -> Future[Inspection]:
        """The same while the caller goes on. One thread begins all frames, in the order of their stamps.

        What a frame says about the extrinsic depends on those before it, so it is registered here and now; the rest of
        its work stands alone.
        """
        started = time.perf_counter()
        try:
            registered = self._register(frame)
        except Exception as error:  # told like all else that may fail: where the result is asked for
            failed: Future[Inspection] = Future()
            failed.set_exception(error)
            return failed
        return self._threads.submit(self._inspect, frame, *registered, self._calibration, time.perf_counter() - started)

    def inspect_all(self, frames: Iterable[Frame]) -> Iterator[Future[Inspection]]:
        """What `inspect` gives or raises, in the order of `frames`, which are drawn while others are in work."""
        begun: deque[Future[Inspection]] = deque()
        for frame in frames:
            begun.append(self.begin(frame))
            while len(begun) >= self.parallel:  # the caller's thread, which draws, is one of them
                yield begun.popleft()
        while begun:
            yield begun.popleft()

    def _inspect(
        self,
        frame: Frame,
        T_camera_lidar: SE3 | None,
        reason: str,
        extrinsic: ExtrinsicStd | None,
        calibration: CalibrationCheck,
        match_s: float,
    ) -> Inspection:
        """The work of a thread."""
        started = time.perf_counter()
        projected, unknown = _project(frame, T_camera_lidar, reason)
        projected_at = time.perf_counter()
        masks = self._segmenter.segment(frame.image, projected)
        segmented_at = time.perf_counter()
        measurements = measure(
            masks, projected, frame.camera, self._config.surface, self._config.measurement, unknown, extrinsic
        )
        defects = tuple(
            Defect(mask.class_id, mask.confidence, mask.roi, outline_in_image(mask), measurement)
            for mask, measurement in zip(masks, measurements, strict=True)
            if is_reported(mask, measurement, self._config)
        )
        measured_at = time.perf_counter()
        timings_s = {
            'match': match_s,
            'project': projected_at - started,
            'network': segmented_at - projected_at,
            'measure': measured_at - segmented_at,
        }
        points_reason = unknown[1] if unknown and frame.cloud is not None else ''
        points_reason = '' if points_reason in frame.transform_reason else points_reason
        return Inspection(frame, defects, self.model_id, timings_s, T_camera_lidar, calibration, points_reason)

    def _register(self, frame: Frame) -> tuple[SE3 | None, str, ExtrinsicStd | None]:
        """T_camera_lidar to take the points through, or None and why; and how good it is where the data tell.

        The calibration is checked on the way.
        """
        mode, given = self._config.registration.mode, frame.T_camera_lidar
        if frame.cloud is None:
            return None, frame.transform_reason, None
        if given is None and mode != 'match':
            self._calibration = CalibrationCheck(CalibrationStatus.NO_TRANSFORM, frame.transform_reason)
            return None, frame.transform_reason, None
        if mode == 'tf':
            assert given is not None
            if self._calibration.status is CalibrationStatus.NO_TRANSFORM:
                self._calibration = NOT_CHECKED
            for checked, found in self._check.results(frame, given):
                self._calibration = self._judge(found, checked)
                self._check.in_doubt = self._calibration.in_doubt
            return given, '', None
        try:
            if mode == 'match':
                registration = self._registrar.match(frame.image, frame.camera, frame.cloud, given)
            else:
                assert given is not None
                registration = self._registrar.refine(frame.image, frame.camera, frame.cloud, given)
        except PoseError as error:
            self._calibration = self._judge(error, frame)
            # A given extrinsic that could not be corrected is still the best there is.
            return (None, str(error), None) if mode == 'match' else (given, '', None)
        self._calibration = self._judge(registration, frame)
        # Rotation and translation make up for each other: what the points are off by is less than either would say.
        return registration.T_camera_lidar, '', ExtrinsicStd(0.0, registration.point_std_m)

    def _judge(self, found: Registration | PoseError, frame: Frame) -> CalibrationCheck:
        if isinstance(found, PoseError):
            return CalibrationCheck(CalibrationStatus.DEGENERATE, str(found))
        if found.correction is None or found.covariance is None or found.systematic is None:
            return CalibrationCheck(
                CalibrationStatus.NO_TRANSFORM,
                frame.transform_reason,
                match_count=found.match_count,
                inlier_ratio=found.inlier_ratio,
            )
        return self._monitor.add(
            found.correction,
            found.covariance,
            found.systematic,
            found.match_count,
            found.inlier_ratio,
            frame.stamp_ns,
        )


def _load_segmenter(config: InspectorConfig) -> Segmenter:
    # While the network loads; a signal that ends the process must not wait for a compiler, so no pool of threads.
    preparation = threading.Thread(target=prepare_loops, name='prepare', daemon=True)
    preparation.start()
    least = min(config.detection.confidence_threshold, config.detection.confirmed_threshold)
    segmenter = Segmenter(replace(config.detection, confidence_threshold=least))
    preparation.join()
    return segmenter


def prepare_loops() -> None:
    """All that numba compiles is in memory afterwards: half a minute once per machine, else a second."""
    returns.prepare()
    prepare()
    cloud = Cloud(np.tile([0.0, 0.0, 1.0], (64, 1)))
    seen = project_cloud(cloud, Camera(32, 32, 30.0, 30.0, 15.5, 15.5), SE3.identity())
    image = np.full((32, 32, 3), 200, np.uint8)
    range_maps = range_features(seen.pixels, seen.points_camera[:, 2], 32, 32)
    pack_cells(image, range_maps)
    image[10:20, 10:20] = 0
    settle_rims([InstanceMask(np.pad(np.ones((10, 10), np.float32), 2), 8, 8, 1.0)], image, range_maps)


def is_reported(mask: InstanceMask, measurement: Measurement, config: InspectorConfig) -> bool:
    """Whether a blob counts as an airhole: one that the network is sure of, or a cavity; nothing that is flat."""
    cavity = measurement.volume_status is Status.MEASURED
    least = config.detection.confirmed_threshold if cavity else config.detection.confidence_threshold
    return mask.confidence >= least and not is_flat(measurement, config.measurement)


def _project(
    frame: Frame, T_camera_lidar: SE3 | None, reason: str
) -> tuple[ProjectedCloud | None, tuple[Status, str] | None]:
    """The cloud as the camera sees it, or why there is none."""
    if frame.cloud is None:
        return None, (Status.NO_POINTS, reason or 'no cloud came with this image')
    if T_camera_lidar is None:
        return None, (Status.NO_TRANSFORM, reason)
    if not len(frame.cloud):
        return None, (Status.NO_POINTS, 'the cloud has no returns; is anything within reach of the range sensor?')
    projected = project_cloud(frame.cloud, frame.camera, T_camera_lidar)
    if not len(projected):
        return None, (
            Status.NO_POINTS,
            f'none of the {len(frame.cloud)} points lies in the picture; check the transform between the sensors, '
            'whose camera frame is the optical one (z forward, x right)',
        )
    depths_m = projected.points_camera[:, 2]
    # Most of them: to find the median would take as long as to project.
    if 2 * np.count_nonzero(depths_m > _FARTHEST_M) > len(depths_m):
        return None, (
            Status.NO_POINTS,
            f'the points in the picture lie {np.median(depths_m):.0f} m away; clouds are in metres, does the driver '
            'send millimetres?',
        )
    return projected, None
