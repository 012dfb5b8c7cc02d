"""From recordings to a map of airholes and a report: the offline twin of inspection_node.

Recordings are cut into splits. Each is inspected on its own, here or by workers, and its result is kept on disk; the
map takes the results in the order of time, so it does not depend on who inspected what.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
import zstandard
from tqdm import tqdm

from cmml_ros.bag.reader import BagReader, SensorTopics
from cmml_ros.config import InspectorConfig, ReportConfig, flatten_config
from cmml_ros.errors import BagError, CmmlError, ConfigError
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.mapping.record import FrameRecord
from cmml_ros.mapping.standard import load_standards
from cmml_ros.model.checkpoint import find_weights, identify
from cmml_ros.report.calibration import Calibration
from cmml_ros.report.html import Picture
from cmml_ros.report.pdf import print_pdf
from cmml_ros.report.results import RESULTS, write_results
from cmml_ros.report.results_bag import ResultsBag
from cmml_ros.report.summary import Summary
from cmml_ros.report.tables import FRAME_COLUMNS, OBSERVATION_COLUMNS, TableWriter, frame_row, observation_row
from cmml_ros.splits import ReasonCounter, Split, SplitResult, describe_split, inspect_split
from cmml_ros.version import read_version

if TYPE_CHECKING:  # it brings what compiles and what runs networks, which workers need and their driver does not
    from cmml_ros.inspector import Inspector

SPLIT_S = 20.0
_REPORT_PICTURES = 6
_RETRIES = 3
_CONNECT_S = 10.0
_PARTS = 'parts'
_PART_PATTERN = f'{"[0-9a-f]" * 20}.json.zst'
_TABLES = ('frames.csv', 'observations.csv')
_PDF = 'report.pdf'


def analyze(
    bags: Path | Sequence[Path],
    out: Path,
    config: InspectorConfig,
    *,
    image_topic: str | None = None,
    points_topic: str | None = None,
    camera_info_topic: str | None = None,
    bag_out: Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    split_s: float = SPLIT_S,
    pdf: bool = False,
) -> Summary:
    """Facts about the analysis of `bags`, whose results lie in the folder `out` afterwards.

    Topics that are not named are found by type in each bag. workers: processes of this machine; cluster: address of a
    running Ray cluster to use instead. Results of splits are kept in `out`/parts until all is done, so that the same
    call goes on where an earlier one was stopped. pdf: print report.pdf too, where there is a Chromium.
    Raises BagError for missing or unusable bags, ConfigError when `out` is a file or holds files of others that have
    the names of results, ModelError for missing weights. For
    bags that are damaged, or in which no frame could be inspected, it raises after everything that could be read has
    been analysed and written.
    """
    started_s = time.perf_counter()
    paths = [bags] if isinstance(bags, Path) else list(bags)
    if out.exists() and not out.is_dir():
        raise ConfigError(f'{out} is a file; name a folder for the results')
    _refuse_foreign(out)
    load_standards(config.grading.standards)
    config = dataclasses.replace(config, report=_complete_cover(config.report, paths))
    plan = _Plan.of(paths, image_topic, camera_info_topic, points_topic, split_s)
    if bag_out is not None and bag_out.exists():
        raise BagError(f'{bag_out} exists already; name a new folder or remove it')
    # Workers load the network for themselves.
    inspector = None if workers > 1 or cluster else _load_inspector(config)
    model_id = inspector.model_id if inspector else identify(find_weights(config.detection.model))
    parts = _Parts(out, plan.splits, config, model_id)
    with contextlib.ExitStack() as files:
        merge = _Merge(out, config, parts, files)
        progress = files.enter_context(
            tqdm(total=plan.images, unit='frame', disable=None, dynamic_ncols=True, smoothing=0.05)
        )
        progress.update(parts.count_done(plan.images_by_split))
        if inspector is None:
            inspected = _inspect_remotely(plan, parts, config, workers, cluster, progress)
        else:
            inspected = _inspect_here(plan, parts, config, inspector, progress)
        for _ in files.enter_context(contextlib.closing(inspected)):
            merge.advance()  # while workers go on
        progress.close()
        summary = merge.finish(plan, model_id, started_s)
    if bag_out is not None:
        merge.write_bag(bag_out)
    if pdf and (note := print_pdf(out / 'report.html', out / _PDF)):
        summary = dataclasses.replace(summary, warnings=(*summary.warnings, note))
    if not parts.missing:
        parts.remove()
    if summary.fault:
        raise BagError(f'{summary.fault}; {out / "report.html"} covers what was read')
    if not summary.frames:
        causes = (*summary.errors, merge.problem, 'no image in it')
        raise BagError(f'{summary.bag}: no frame could be inspected: {next(filter(None, causes))}')
    return summary


def _refuse_foreign(out: Path) -> None:
    """Raises ConfigError where results would replace files that no analysis wrote, as beside a recording."""
    taken = [name for name in (*RESULTS, *_TABLES, _PDF) if (out / name).exists()]
    if not taken or any((out / _PARTS).glob(_PART_PATTERN)):
        return
    try:
        ours = 'package_version' in json.loads((out / 'summary.json').read_text(encoding='utf-8'))
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise ConfigError(f'{out / taken[0]} is there and no result of an analysis; name another folder')


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The splits of all readable bags in the order of time, and what is wrong with the others."""

    bags: tuple[Path, ...]
    topics: SensorTopics
    splits: tuple[Split, ...]
    images_by_split: tuple[int, ...]
    warnings: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def images(self) -> int:
        return sum(self.images_by_split)

    @classmethod
    def of(
        cls,
        paths: Sequence[Path],
        image_topic: str | None,
        camera_info_topic: str | None,
        points_topic: str | None,
        split_s: float,
    ) -> _Plan:
        """Raises BagError when no bag is usable."""
        found: list[tuple[int, Path, SensorTopics, list[Split], int]] = []
        warnings: list[str] = []
        faults: list[str] = []
        for path in paths:
            try:
                with BagReader(path) as reader:
                    topics = reader.find_sensor_topics(image_topic, camera_info_topic, points_topic)
                    warnings += reader.warnings
                    images, span = reader.count([topics.image]), reader.time_range_ns
            except BagError as error:
                if len(paths) == 1:
                    raise
                faults.append(str(error))
                continue
            splits = _cut(path, topics, span, images, split_s)
            found.append((span[0] if span else 0, path, topics, splits, images))
        if not found:
            raise BagError('; '.join(faults) or 'no bag given')
        found.sort(key=lambda one: (one[0], str(one[1])))
        return cls(
            bags=tuple(path for _, path, _, _, _ in found),
            topics=found[0][2],
            splits=tuple(split for _, _, _, splits, _ in found for split in splits),
            images_by_split=tuple(
                images * (number + 1) // len(splits) - images * number // len(splits)
                for _, _, _, splits, images in found
                for number in range(len(splits))
            ),
            warnings=tuple(warnings),
            faults=tuple(faults),
        )


def _distinguish(names: Sequence[str]) -> list[str]:
    """`names`, with a number where one has been there before."""
    told: list[str] = []
    for name in names:
        numbered = (f'{name}_{number}' for number in itertools.count(2))
        told.append(next(one for one in itertools.chain([name], numbered) if one not in told))
    return told


def _complete_cover(config: ReportConfig, paths: Sequence[Path]) -> ReportConfig:
    """`config`, its gaps filled from recording.yaml in a bag's folder: what the inspection was told then."""
    for path in paths:
        sidecar = (path if path.is_dir() else path.parent) / 'recording.yaml'
        try:
            told = yaml.safe_load(sidecar.read_text(encoding='utf-8'))['inspection']
            values = {name: str(told.get(f'report.{name}') or '') for name in vars(config)}
        except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError):
            continue  # no sidecar, or one that tells nothing of the kind
        config = ReportConfig(**{name: own or values[name] for name, own in vars(config).items()})
    return config


def _cut(path: Path, topics: SensorTopics, span_ns: tuple[int, int] | None, images: int, split_s: float) -> list[Split]:
    """Splits of about split_s; one when the bag is short, or has no index to begin in the middle with.

    More than two are a multiple of four, so that two or four workers end together; the number of workers must not
    matter for the result.
    """
    count = max(round((span_ns[1] - span_ns[0]) * 1e-9 / split_s), 1) if span_ns else 1
    # Most would be empty where the clock was set during the recording, from 1970 on machines without a battery.
    count = 1 if count > images else count
    count = count if count <= 2 else 4 * math.ceil(count / 4)
    if count == 1 or span_ns is None:
        return [Split(path, topics)]
    first, last = span_ns
    limits = [first + (last - first) * number // count for number in range(1, count)]
    return [Split(path, topics, start, stop) for start, stop in zip([None, *limits], [*limits, None], strict=True)]


class _Parts:
    """The results of splits on disk: a document in parts/ and the pictures in overlays/, complete or not there.

    Pictures are named by their stamp, in a folder for each bag where there are several: two cameras that are triggered
    together stamp alike, and so do all simulated walls.
    """

    def __init__(self, out: Path, splits: Sequence[Split], config: InspectorConfig, model_id: str) -> None:
        self._folder = out / _PARTS
        bags = list(dict.fromkeys(split.bag for split in splits))
        names = _distinguish([bag.resolve().name for bag in bags]) if len(bags) > 1 else ['']
        folders = dict(zip(bags, names, strict=True))
        self._overlays = [out / 'overlays' / folders[split.bag] for split in splits]
        settings = {
            name: value
            for name, value in flatten_config(config).items()
            if not name.startswith(('map.', 'grading.', 'report.'))  # what comes after the splits
        }
        common = {'version': read_version(), 'model': model_id, 'config': settings}
        self._paths = []
        for split in splits:
            key = json.dumps([common, describe_split(split), folders[split.bag]], sort_keys=True)
            self._paths.append(self._folder / f'{hashlib.sha256(key.encode()).hexdigest()[:20]}.json.zst')
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for overlays in self._overlays:
                overlays.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f'{out}: cannot be written ({error.strerror}); name another folder') from None

    @property
    def missing(self) -> list[int]:
        """Numbers of the splits whose result is not there yet."""
        return [number for number in range(len(self._paths)) if not self.has(number)]

    def has(self, number: int) -> bool:
        """Whether there is such a split, and its result."""
        return number < len(self._paths) and self._paths[number].exists()

    def count_done(self, images_by_split: Sequence[int]) -> int:
        """Images of the splits that need not be done again."""
        missing = set(self.missing)
        return sum(images for number, images in enumerate(images_by_split) if number not in missing)

    def save(self, number: int, data: bytes, pictures: Mapping[int, bytes]) -> None:
        """Keep a result, as bytes and its pictures; what is half written when the power goes is not taken for one."""
        for stamp_ns, picture in pictures.items():
            self.picture(number, stamp_ns).write_bytes(picture)
        unfinished = self._paths[number].with_suffix('.unfinished')
        unfinished.write_bytes(data)
        unfinished.replace(self._paths[number])

    def picture(self, number: int, stamp_ns: int) -> Path:
        """Where the picture of a frame of split `number` lies."""
        return self._overlays[number] / f'{stamp_ns}.jpg'

    def load(self, number: int) -> SplitResult:
        """A result that is there."""
        try:
            return SplitResult.from_bytes(self._paths[number].read_bytes())
        except (ValueError, zstandard.ZstdError) as error:
            self._paths[number].unlink()
            raise BagError(
                f'{self._paths[number]} is damaged ({error}) and was removed; run the command again'
            ) from None

    def remove(self) -> None:
        """Everything is in the tables now; what others keep in a folder of this name stays."""
        for pattern in (_PART_PATTERN, _PART_PATTERN.replace('.zst', '.unfinished')):
            for path in self._folder.glob(pattern):
                path.unlink()
        with contextlib.suppress(OSError):  # not empty
            self._folder.rmdir()


def _inspect_here(
    plan: _Plan, parts: _Parts, config: InspectorConfig, inspector: Inspector, progress: tqdm[Any]
) -> Generator[None]:
    for number in parts.missing:
        # What an inspector learns about the calibration ends with its split, as it does in a worker.
        result = inspect_split(plan.splits[number], config.sync, inspector.restarted(), progress.update)
        parts.save(number, result.to_bytes(), result.pictures)
        yield


def _inspect_remotely(
    plan: _Plan, parts: _Parts, config: InspectorConfig, workers: int, cluster: str | None, progress: tqdm[Any]
) -> Generator[None]:
    """One Ray task per split. A task whose worker dies is started again; one that fails every time is left out."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ.setdefault('RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO', '0')
    os.environ.setdefault('RAY_task_oom_retries', str(_RETRIES))  # else for ever
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "workers need Ray: pip install 'cmml_ros[cluster]', or leave --workers and --cluster out"
        ) from None
    if cluster:
        _reach(cluster)
    threads = max((os.cpu_count() or 1) // workers, 1)
    if not config.detection.threads:
        detection = dataclasses.replace(config.detection, threads=1 if cluster else threads)
        config = dataclasses.replace(config, detection=detection)
    names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    environment = {name: str(config.detection.threads) for name in names}
    if not cluster:  # the machines of a cluster know their own places
        environment['PYTHONPATH'] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
    try:
        ray.init(
            address=cluster or 'local',  # whatever else runs on this machine
            num_cpus=None if cluster else workers,
            include_dashboard=None if cluster else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={'env_vars': environment},
        )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        where, reason = cluster or 'local Ray', ' '.join(str(error).split())
        hint = 'is `ray start` running there? One that asks for a token needs RAY_AUTH_MODE=token here, too'
        raise ConfigError(f'{where}: cannot be used ({reason}); {hint}') from None
    try:
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_work)
        version = read_version()
        waiting = {task.remote(plan.splits[number], config, version): number for number in parts.missing}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(done[0])
            try:
                data, pictures = ray.get(done[0])
            except ray.exceptions.RayError as error:
                cause = getattr(error, 'cause', None)
                if isinstance(cause, CmmlError):  # no other split would fare better
                    raise cause from None
                reason = repr(cause) if cause else str(error).strip().splitlines()[0]
                if isinstance(error, ray.exceptions.OutOfMemoryError):
                    reason = 'too little memory; take fewer workers'
                progress.write(f'cmml: note: {plan.splits[number].bag}: a split is left out: {reason}')
                continue
            parts.save(number, data, pictures)
            progress.update(plan.images_by_split[number])
            yield
    finally:
        ray.shutdown()


def _reach(cluster: str) -> None:
    """Raises ConfigError when nothing listens at HOST:PORT, for which Ray would wait for minutes."""
    host, _, port = cluster.removeprefix('ray://').rpartition(':')
    if not host or not port.isdecimal():
        return  # an address of another form; Ray knows
    try:
        socket.create_connection((host.strip('[]'), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f'{cluster}: nothing answers there ({error}); is `ray start` running?') from None


def _load_inspector(config: InspectorConfig) -> Inspector:
    from cmml_ros.inspector import Inspector

    return Inspector(config)


@functools.lru_cache(maxsize=1)
def _keep_inspector(config: InspectorConfig) -> Inspector:
    """In a worker, which does one split after the other and loads the network once."""
    return _load_inspector(config)


def _work(split: Split, config: InspectorConfig, version: str) -> tuple[bytes, dict[int, bytes]]:
    """In a worker: the result of `split` as bytes, and its pictures."""
    import cv2

    if read_version() != version:
        raise ConfigError(
            f'{socket.gethostname()} has cmml_ros {read_version()}, this machine {version}; install the same everywhere'
        )
    cv2.setNumThreads(config.detection.threads)
    try:
        result = inspect_split(split, config.sync, _keep_inspector(config).restarted())
    except BagError as error:
        result = SplitResult(fault=str(error))
    return result.to_bytes(), result.pictures


class _Merge:
    """Results of splits, in the order of time, into map, tables and report."""

    def __init__(self, out: Path, config: InspectorConfig, parts: _Parts, files: contextlib.ExitStack) -> None:
        self.problem = ''
        self._problem_of_frames = ''  # of splits in which frames were inspected
        self._config = config
        self._out = out
        self._parts = parts
        self._next = 0  # number of the split
        self._ids: list[list[int]] = []  # of each frame
        self._frame_table = files.enter_context(TableWriter(out / _TABLES[0], FRAME_COLUMNS))
        self._observation_table = files.enter_context(TableWriter(out / _TABLES[1], OBSERVATION_COLUMNS))
        self._map = DefectMap(config.map, config.sync.map_frame, config.measurement)
        self._pictures: list[Picture] = []
        self._range_noises_m: list[float] = []
        self._frames: Counter[str] = Counter()
        self._cameras: Counter[str] = Counter()
        self._calibration: Calibration | None = None
        self._counts: Counter[str] = Counter()
        self._errors, self._incomplete = ReasonCounter(), ReasonCounter()
        self._warnings: list[str] = []
        self._faults: list[str] = []
        self._timings_s: dict[str, float] = {}

    def advance(self) -> None:
        """Take the results that are there, in the order of time, up to the first that is not."""
        while self._parts.has(self._next):
            self._add(self._parts.load(self._next))
            self._next += 1

    def _add(self, result: SplitResult) -> None:
        for record in result.frames:
            self._add_frame(record, self._parts.picture(self._next, record.stamp_ns))
        self._counts.update(result.counts)
        for reason, count in result.errors.items():
            self._errors.add(reason, count)
        self._warnings += result.warnings
        if result.fault and result.fault not in self._faults:
            self._faults.append(result.fault)
        self.problem = self.problem or result.problem
        if result.frames:
            self._problem_of_frames = self._problem_of_frames or result.problem

    def finish(self, plan: _Plan, model_id: str, started_s: float) -> Summary:
        """Take all that is there, and write what is known only at the end."""
        self.advance()
        while self._next < len(plan.splits):
            self._frames['lost splits'] += 1
            self._next += 1
            self.advance()
        if self._frames['lost splits']:
            self._faults.append(
                f'{self._frames["lost splits"]} of {len(plan.splits)} splits were lost with their workers; run it again'
            )
        self._timings_s['total'] = time.perf_counter() - started_s
        names = [path.resolve().name for path in plan.bags]
        snapshot = self._map.snapshot()
        summary = Summary(
            bag=', '.join(names) if len(names) <= 3 else f'{names[0]} and {len(names) - 1} more recordings',
            topics={
                'image': plan.topics.image,
                'camera_info': plan.topics.camera_info,
                'points': plan.topics.points or 'none',
            },
            model_id=model_id,
            config=flatten_config(self._config),
            frames=self._frames['inspected'],
            frames_with_cloud=self._frames['with cloud'],
            frames_in_map=self._frames['in map'],
            counts=dict(sorted(self._counts.items())),
            errors=self._errors.counts,
            incomplete=self._incomplete.counts,
            airholes=len(snapshot.entries),
            warnings=tuple(dict.fromkeys(filter(None, (*plan.warnings, *self._warnings, self._explain(plan))))),
            fault='; '.join((*plan.faults, *self._faults)),
            range_noise_m=float(np.median(self._range_noises_m)) if self._range_noises_m else math.nan,
            timings_s=self._timings_s,
            first_stamp_ns=min((picture.stamp_ns for picture in self._pictures), default=0),
            last_stamp_ns=max((picture.stamp_ns for picture in self._pictures), default=0),
            camera=', '.join(self._cameras),
            largest_correction_m=snapshot.largest_correction_m,
            calibration=self._calibration,
            unplaced=len(snapshot.entries) - len(snapshot.placed),
        )
        self._remove_old_pictures()
        (self._out / _PDF).unlink(missing_ok=True)  # it shows an earlier analysis
        write_results(self._out, snapshot, summary, self._config, _choose_pictures(self._pictures))
        return summary

    def write_bag(self, path: Path) -> None:
        """After all is merged: the results as a recording."""
        ids = iter(self._ids)
        with ResultsBag(path) as bag:
            for number in filter(self._parts.has, range(self._next)):
                for record in self._parts.load(number).frames:
                    bag.write_frame(record, next(ids))
            bag.write_map(self._map.snapshot().entries, self._config.sync.map_frame)

    def _add_frame(self, record: FrameRecord, path: Path) -> None:
        closeups = {id(defect): closeup for defect, closeup in zip(record.defects, record.closeups, strict=True)}
        ids = self._map.add(
            record.defects,
            record.T_map_camera,
            record.stamp_ns,
            record.frame_id,
            record.camera,
            lambda defect: closeups[id(defect)],
        )
        self._frame_table.write(frame_row(record))
        for defect_id, defect in zip(ids, record.defects, strict=True):
            self._observation_table.write(observation_row(record, defect_id, defect))
            if math.isfinite(defect.measurement.range_noise_m):
                self._range_noises_m.append(defect.measurement.range_noise_m)
        self._ids.append(ids)
        self._pictures.append(Picture(path, record.stamp_ns, len(record.defects)))
        self._cameras[f'{record.camera.width} x {record.camera.height} px'] += 1
        self._calibration = Calibration.after(
            self._calibration, record.camera, record.T_camera_lidar, record.calibration
        )
        self._frames['inspected'] += 1
        self._frames['with cloud'] += record.cloud_points is not None
        self._frames['with points'] += record.cloud_points is not None and record.T_camera_lidar is not None
        self._frames['in map'] += record.T_map_camera is not None
        if record.transform_reason:
            self._incomplete.add(record.transform_reason)
        for stage, seconds in record.timings_s.items():
            self._timings_s[stage] = self._timings_s.get(stage, 0.0) + seconds

    def _explain(self, plan: _Plan) -> str:
        """What the first split says of its inputs, when points were recorded and not one frame could use any."""
        unmeasured = plan.topics.points and not self._frames['with points']
        problem = self._problem_of_frames
        return problem if unmeasured and problem not in self._errors.counts else ''

    def _remove_old_pictures(self) -> None:
        mine = {picture.path for picture in self._pictures}
        for path in sorted((self._out / 'overlays').rglob('*.jpg')):
            if path not in mine and path.stem.isdecimal():  # a stamp
                path.unlink()
                with contextlib.suppress(OSError):  # not empty
                    path.parent.rmdir()


def _choose_pictures(pictures: list[Picture]) -> list[Picture]:
    """A few for the report, spread over those that show something."""
    shown = [picture for picture in pictures if picture.defect_count] or pictures
    chosen = np.linspace(0, len(shown) - 1, min(len(shown), _REPORT_PICTURES)).round().astype(int)
    return [shown[index] for index in chosen]
