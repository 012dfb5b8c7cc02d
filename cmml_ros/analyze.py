"""From a recording to a map of airholes and a report: the offline twin of inspection_node."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from cmml_ros.bag.reader import BagMessage, BagReader, SensorTopics
from cmml_ros.config import InspectorConfig, flatten_config
from cmml_ros.errors import BagError, CmmlError, ConfigError
from cmml_ros.frame import Frame
from cmml_ros.inspector import Inspection, Inspector
from cmml_ros.mapping.closeup import CloseupMaker
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.report.html import Picture
from cmml_ros.report.overlay import draw_overlay
from cmml_ros.report.results import write_results
from cmml_ros.report.results_bag import ResultsBag
from cmml_ros.report.summary import Summary
from cmml_ros.report.tables import (
    FRAME_COLUMNS,
    OBSERVATION_COLUMNS,
    TableWriter,
    frame_row,
    observation_row,
)
from cmml_ros.stream.assembler import Assembler

_JPEG_QUALITY = 90
_REPORT_PICTURES = 6


def analyze(
    bag: Path,
    out: Path,
    config: InspectorConfig,
    *,
    image_topic: str | None = None,
    points_topic: str | None = None,
    camera_info_topic: str | None = None,
    bag_out: Path | None = None,
) -> Summary:
    """Facts about the analysis of `bag`, whose results lie in the folder `out` afterwards.

    Topics that are not named are found by type. Raises BagError for a missing or unusable bag, ConfigError when `out`
    is a file, ModelError for missing weights. For a bag that is damaged, or in which no frame could be inspected, it
    raises after everything that could be read has been analysed and written.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f'{out} is a file; name a folder for the results')
    with BagReader(bag) as reader, contextlib.ExitStack() as files:
        topics = reader.find_sensor_topics(image_topic, camera_info_topic, points_topic)
        inspector = Inspector(config)
        results_bag = files.enter_context(ResultsBag(bag_out)) if bag_out is not None else None
        _prepare_folder(out)
        analysis = _Analysis(config, inspector, out, results_bag, files)
        analysis.run(reader, topics)
        summary = analysis.finish(reader, topics)
    if summary.fault:
        raise BagError(f'{summary.fault}; {out / "report.html"} covers what was read')
    if not summary.frames:
        causes = (*summary.errors, analysis.problem, 'no image in it')
        raise BagError(f'{bag}: no frame could be inspected: {next(filter(None, causes))}')
    return summary


class _Analysis:
    """One run over one bag: everything that grows while frames come and go."""

    def __init__(
        self,
        config: InspectorConfig,
        inspector: Inspector,
        out: Path,
        results_bag: ResultsBag | None,
        files: contextlib.ExitStack,
    ) -> None:
        self.problem: str | None = None
        self._config = config
        self._inspector = inspector
        self._out = out
        self._results_bag = results_bag
        self._frame_table = files.enter_context(TableWriter(out / 'frames.csv', FRAME_COLUMNS))
        self._observation_table = files.enter_context(TableWriter(out / 'observations.csv', OBSERVATION_COLUMNS))
        self._map = DefectMap(config.map, config.sync.map_frame)
        self._pictures: list[Picture] = []
        self._range_noises_m: list[float] = []
        self._frames: Counter[str] = Counter()
        self._cameras: Counter[str] = Counter()
        self._errors = _ReasonCounter()
        self._incomplete = _ReasonCounter()
        self._counts: dict[str, int] = {}
        self._fault = ''
        self._timings_s: dict[str, float] = {}

    def run(self, reader: BagReader, topics: SensorTopics) -> None:
        """Inspect every frame of the bag, also of one that is damaged further on."""
        started_s = time.perf_counter()
        assembler = Assembler(self._config.sync, topics.image, topics.camera_info, topics.points or 'points')
        with tqdm(total=reader.count([topics.image]), unit='frame', disable=None, dynamic_ncols=True) as progress:
            try:
                for message in reader.sensor_messages(topics):
                    self._feed(assembler, topics, message)
                    for frame in assembler.take():
                        self._inspect(frame)
                    progress.update(message.topic == topics.image)
            except BagError as error:
                self._fault = str(error)
            for frame in assembler.flush():
                self._inspect(frame)
        while assembler.errors:
            self._errors.add(str(assembler.errors.popleft()))
        self.problem = assembler.problem()
        self._counts = dict(sorted(assembler.counts.items()))
        self._timings_s['total'] = time.perf_counter() - started_s

    def finish(self, reader: BagReader, topics: SensorTopics) -> Summary:
        """Write what is known only at the end."""
        for topic, count in reader.undecodable.items():
            self._errors.add(f'{topic}: bytes that are no {reader.topics()[topic]}', count)
        snapshot = self._map.snapshot()
        summary = Summary(
            bag=reader.path.resolve().name,
            topics={
                'image': topics.image,
                'camera_info': topics.camera_info,
                'points': topics.points or 'none',
            },
            model_id=self._inspector.model_id,
            config=flatten_config(self._config),
            frames=self._frames['inspected'],
            frames_with_cloud=self._frames['with cloud'],
            frames_in_map=self._frames['in map'],
            counts=self._counts,
            errors=self._errors.counts,
            incomplete=self._incomplete.counts,
            airholes=len(snapshot.entries),
            warnings=tuple(reader.warnings),
            fault=self._fault,
            range_noise_m=float(np.median(self._range_noises_m)) if self._range_noises_m else math.nan,
            timings_s=self._timings_s,
            first_stamp_ns=min((picture.stamp_ns for picture in self._pictures), default=0),
            last_stamp_ns=max((picture.stamp_ns for picture in self._pictures), default=0),
            camera=', '.join(self._cameras),
            largest_correction_m=snapshot.largest_correction_m,
        )
        write_results(self._out, snapshot, summary, self._config, _choose_pictures(self._pictures))
        if self._results_bag is not None:
            self._results_bag.write_map(snapshot.entries, self._config.sync.map_frame)
        return summary

    def _feed(self, assembler: Assembler, topics: SensorTopics, message: BagMessage) -> None:
        try:
            if message.topic == topics.image:
                assembler.add_image(message.message)
            elif message.topic == topics.camera_info:
                assembler.add_camera_info(message.message)
            elif message.topic == topics.points:
                assembler.add_cloud(message.message)
            else:
                assembler.add_transforms(message.message, static=message.topic.endswith('tf_static'))
        except CmmlError as error:
            self._errors.add(str(error))
        while assembler.errors:
            self._errors.add(str(assembler.errors.popleft()))

    def _inspect(self, frame: Frame) -> None:
        try:
            inspection = self._inspector.inspect(frame)
        except CmmlError as error:
            self._errors.add(str(error))
            return
        make_closeup = CloseupMaker(frame, inspection.T_camera_lidar).make
        ids = self._map.add(
            inspection.defects, frame.T_map_camera, frame.stamp_ns, frame.frame_id, frame.camera, make_closeup
        )
        self._frame_table.write(frame_row(inspection))
        for defect_id, defect in zip(ids, inspection.defects, strict=True):
            self._observation_table.write(observation_row(inspection, defect_id, defect))
            if math.isfinite(defect.measurement.range_noise_m):
                self._range_noises_m.append(defect.measurement.range_noise_m)
        if self._results_bag is not None:
            self._results_bag.write_frame(inspection, ids)
        self._pictures.append(_save_picture(self._out, inspection))
        self._cameras[f'{frame.camera.width} x {frame.camera.height} px'] += 1
        self._frames['inspected'] += 1
        self._frames['with cloud'] += frame.cloud is not None
        self._frames['in map'] += frame.T_map_camera is not None
        if frame.transform_reason:
            self._incomplete.add(frame.transform_reason)
        for stage, seconds in inspection.timings_s.items():
            self._timings_s[stage] = self._timings_s.get(stage, 0.0) + seconds


class _ReasonCounter:
    """How often each reason occurred; reasons that differ only in numbers count as the first one of them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, count: int = 1) -> None:
        reason = self._first.setdefault(re.sub(r'[0-9.]+', '#', reason), reason)
        self.counts[reason] = self.counts.get(reason, 0) + count


def _prepare_folder(out: Path) -> None:
    """Empty places for the results; pictures of an earlier run are removed."""
    overlays = out / 'overlays'
    try:
        overlays.mkdir(parents=True, exist_ok=True)
        for picture in overlays.glob('[0-9]*.jpg'):
            picture.unlink()
    except OSError as error:
        raise ConfigError(f'{out}: cannot be written ({error.strerror}); name another folder') from None


def _save_picture(out: Path, inspection: Inspection) -> Picture:
    path = out / 'overlays' / f'{inspection.frame.stamp_ns}.jpg'
    cv2.imwrite(str(path), draw_overlay(inspection), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return Picture(path, inspection.frame.stamp_ns, len(inspection.defects))


def _choose_pictures(pictures: list[Picture]) -> list[Picture]:
    """A few for the report, spread over those that show something."""
    shown = [picture for picture in pictures if picture.defect_count] or pictures
    chosen = np.linspace(0, len(shown) - 1, min(len(shown), _REPORT_PICTURES)).round().astype(int)
    return [shown[index] for index in chosen]
