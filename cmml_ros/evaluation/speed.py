"""Where the time of a frame goes: a recording through the pipeline, every stage timed."""

from __future__ import annotations

import math
import resource
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cmml_ros.bag.reader import BagMessage, BagReader, SensorTopics
from cmml_ros.config import InspectorConfig
from cmml_ros.errors import BagError, CmmlError
from cmml_ros.frame import Frame
from cmml_ros.inspector import Inspection, Inspector
from cmml_ros.mapping.defect_map import DefectMap
from cmml_ros.stream.assembler import Assembler

_BEFORE = ('read', 'synchronize', 'convert')


@dataclass(frozen=True)
class Speed:
    """Times of one recording.

    stages_s: (frames,) wall time of each frame in each stage, in the order of the pipeline. frames_s: (frames,) the
    same from message to map entry, without reading the bag. elapsed_s, cpu_s: wall time, and CPU time of all threads,
    of all frames together, reading included: frames that are in work at once share the one and not the other.
    recorded_s: between the first and the last image, plus one period. peak_memory_bytes: of this process so far.
    """

    model_id: str
    stages_s: dict[str, NDArray[np.float64]]
    frames_s: NDArray[np.float64]
    elapsed_s: float
    cpu_s: float
    recorded_s: float
    peak_memory_bytes: int

    @property
    def frames_per_s(self) -> float:
        """Frames a second, reading included."""
        return len(self.frames_s) / self.elapsed_s

    @property
    def tail_ratio(self) -> float:
        """99th percentile over median."""
        return float(np.percentile(self.frames_s, 99) / np.median(self.frames_s))

    @property
    def real_time_ratio(self) -> float:
        """How many times as fast as it was recorded the bag is gone through, reading included."""
        return self.recorded_s / self.elapsed_s

    @property
    def share_outside_network(self) -> float:
        """Share of a frame spent outside the network."""
        return 1.0 - float(self.stages_s['network'].sum() / self.frames_s.sum())

    def document(self) -> dict[str, Any]:
        """Everything as JSON takes it; seconds."""
        return {
            'model_id': self.model_id,
            'frames': len(self.frames_s),
            'stages_s': {
                name: {'median': float(np.median(times)), 'p99': float(np.percentile(times, 99))}
                for name, times in self.stages_s.items()
            },
            'frame_s': {'median': float(np.median(self.frames_s)), 'p99': float(np.percentile(self.frames_s, 99))},
            'frame_cpu_s': self.cpu_s / len(self.frames_s),
            'frames_per_s': self.frames_per_s,
            'tail_ratio': self.tail_ratio,
            'real_time_ratio': self.real_time_ratio,
            'share_outside_network': self.share_outside_network,
            'peak_memory_bytes': self.peak_memory_bytes,
        }

    def table(self) -> str:
        """The same for people, in Markdown."""
        median_s = float(np.median(self.frames_s))
        lines = ['| stage | median | p99 | share |', '|---|---|---|---|']
        for name, times in self.stages_s.items():
            share = '' if name == 'read' else f'{times.sum() / self.frames_s.sum():.0%}'
            lines.append(
                f'| {name} | {_format_ms(np.median(times))} | {_format_ms(np.percentile(times, 99))} | {share} |'
            )
        p99 = _format_ms(np.percentile(self.frames_s, 99))
        lines.append(
            f'| whole frame | {_format_ms(median_s)} | {p99} | CPU {_format_ms(self.cpu_s / len(self.frames_s))} |'
        )
        lines += [
            '',
            f'{len(self.frames_s)} frames, {self.frames_per_s:.1f} a second; p99 is {self.tail_ratio:.1f} times the '
            f'median; {self.real_time_ratio:.1f} times as fast as recorded; outside the network '
            f'{self.share_outside_network:.0%}; peak memory {self.peak_memory_bytes * 1e-9:.2f} GB; {self.model_id}',
        ]
        return '\n'.join(lines)


def measure_speed(bag: Path, config: InspectorConfig, repeats: int = 1) -> Speed:
    """Times of `bag` through the pipeline, `repeats` times over, after one frame that is not counted.

    Raises BagError when no frame comes out of the bag.
    """
    with BagReader(bag) as reader:
        topics = reader.find_sensor_topics()
        image_count = reader.count([topics.image])
    run = _Run(config, topics, Inspector(config))
    with tqdm(total=image_count * repeats, unit='frame', disable=None, dynamic_ncols=True) as progress:
        for _ in range(repeats):
            with BagReader(bag) as reader:
                run.inspect(reader.sensor_messages(topics), progress)
    if not run.frames_s:
        raise BagError(f'{bag}: no frame came out of it; "cmml analyze" tells why')
    stamps_ns = sorted(run.stamps_ns)
    span_s = (stamps_ns[-1] - stamps_ns[0]) * 1e-9
    recorded_s = span_s * len(stamps_ns) / max(len(stamps_ns) - 1, 1) * repeats
    return Speed(
        model_id=run.model_id,
        stages_s={name: np.array(times) for name, times in run.stages_s.items()},
        frames_s=np.array(run.frames_s),
        elapsed_s=time.perf_counter() - run.started_s,
        cpu_s=time.process_time() - run.started_cpu_s,
        recorded_s=recorded_s,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


class _Run:
    """What grows while a recording goes through; what happens between two frames is counted to the later one."""

    def __init__(self, config: InspectorConfig, topics: SensorTopics, inspector: Inspector) -> None:
        self._config = config
        self._topics = topics
        self._inspector = inspector
        self._before_s: deque[dict[str, float]] = deque()  # of the frames in work
        self._pending_s: defaultdict[str, float] = defaultdict(float)
        self.model_id = inspector.model_id
        self.started_s = self.started_cpu_s = math.nan  # of the second frame, when all is compiled and in memory
        self.stages_s: dict[str, list[float]] = {}
        self.frames_s: list[float] = []
        self.stamps_ns: set[int] = set()

    def inspect(self, messages: Iterator[BagMessage], progress: tqdm[Any]) -> None:
        """The recording once, from its first message on."""
        self._map = DefectMap(self._config.map, self._config.sync.map_frame, self._config.measurement)
        points_topic = self._topics.points or 'points'
        self._assembler = Assembler(self._config.sync, self._topics.image, self._topics.camera_info, points_topic)
        for inspected in self._inspector.inspect_all(self._frames(messages, progress)):
            self._finish(inspected.result())

    def _frames(self, messages: Iterator[BagMessage], progress: tqdm[Any]) -> Iterator[Frame]:
        while (message := self._read(messages)) is not None:
            with self._timed('synchronize'), suppress(CmmlError):  # one message is lost, as in the pipeline
                self._add(message)
            with self._timed('convert'):
                frames = self._assembler.take()
            yield from map(self._begin, frames)
            progress.update(message.topic == self._topics.image)
        yield from map(self._begin, self._assembler.flush())

    def _read(self, messages: Iterator[BagMessage]) -> BagMessage | None:
        """The next message, or None at the end."""
        with self._timed('read'):
            try:
                return next(messages, None)
            except BagError:
                return None  # damaged from here on

    def _add(self, message: BagMessage) -> None:
        if message.topic == self._topics.image:
            self._assembler.add_image(message.message)
        elif message.topic == self._topics.camera_info:
            self._assembler.add_camera_info(message.message)
        elif message.topic == self._topics.points:
            self._assembler.add_cloud(message.message)
        else:
            self._assembler.add_transforms(message.message, static=message.topic.endswith('tf_static'))

    def _begin(self, frame: Frame) -> Frame:
        """Keep what was done for it so far; the first one of all is inspected once more, before anything counts."""
        if math.isnan(self.started_s):
            self._inspector.inspect(frame)
            self.started_s, self.started_cpu_s = time.perf_counter(), time.process_time()
        self.stamps_ns.add(frame.stamp_ns)
        self._before_s.append(dict(self._pending_s))
        self._pending_s.clear()
        return frame

    def _finish(self, inspection: Inspection) -> None:
        frame, before_s = inspection.frame, self._before_s.popleft()
        started_s = time.perf_counter()
        self._map.add(inspection.defects, frame.T_map_camera, frame.stamp_ns, frame.frame_id)
        stages_s = {
            **{stage: before_s.get(stage, 0.0) for stage in _BEFORE},
            **inspection.timings_s,
            'map': time.perf_counter() - started_s,
        }
        for stage, seconds in stages_s.items():
            self.stages_s.setdefault(stage, []).append(seconds)
        self.frames_s.append(sum(seconds for stage, seconds in stages_s.items() if stage != 'read'))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._pending_s[stage] += time.perf_counter() - started_s


def _format_ms(seconds: float | np.floating[Any]) -> str:
    return f'{1e3 * seconds:.1f} ms'
