"""One part of a recording, inspected on its own: what a worker does."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import zstandard

from cmml_ros.bag.reader import TRANSFORM_TYPE, BagMessage, BagReader, SensorTopics, is_recorded
from cmml_ros.config import SyncConfig
from cmml_ros.errors import BagError, CmmlError
from cmml_ros.frame import Frame
from cmml_ros.mapping.closeup import CloseupMaker
from cmml_ros.mapping.record import FrameRecord
from cmml_ros.report.overlay import draw_overlay
from cmml_ros.stream.assembler import Assembler

if TYPE_CHECKING:  # as in analyze.py
    from cmml_ros.inspector import Inspection, Inspector

_JPEG_QUALITY = 90
_SPARE_S = 1.0  # beyond what pairing and transforms may wait for
_LATCHED_COUNT = 20  # so few messages are announced once, not with every image
_LATCHED_READ = 1000  # enough for every publisher, also where one repeats itself for hours


@dataclass(frozen=True)
class Split:
    """The images of `bag` received from start_ns until before stop_ns; None: from its start, to its end."""

    bag: Path
    topics: SensorTopics
    start_ns: int | None = None
    stop_ns: int | None = None


@dataclass
class SplitResult:
    """What one split told.

    frames: in stamp order. pictures: JPEG overlays by stamp. counts, errors, fault, warnings, problem: as in a Summary.
    """

    frames: list[FrameRecord] = field(default_factory=list)
    pictures: dict[int, bytes] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    fault: str = ''
    problem: str = ''

    def to_bytes(self) -> bytes:
        """All but the pictures, compressed."""
        document = {name: value for name, value in vars(self).items() if name not in ('frames', 'pictures')}
        document['frames'] = [frame.to_document() for frame in self.frames]
        return zstandard.ZstdCompressor(level=3).compress(json.dumps(document).encode())

    @classmethod
    def from_bytes(cls, data: bytes) -> SplitResult:
        """The inverse of `to_bytes`. Raises ValueError or zstandard.ZstdError for anything else."""
        document: dict[str, Any] = json.loads(zstandard.ZstdDecompressor().decompress(data))
        document['frames'] = [FrameRecord.from_document(frame) for frame in document['frames']]
        return cls(**document)


class ReasonCounter:
    """How often each reason occurred; reasons that differ only in numbers count as the first one of them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, count: int = 1) -> None:
        """Count `reason`."""
        reason = self._first.setdefault(re.sub(r'[-+]?[0-9.]+', '#', reason), reason)
        self.counts[reason] = self.counts.get(reason, 0) + count


def inspect_split(
    split: Split, sync: SyncConfig, inspector: Inspector, on_image: Callable[[], object] = lambda: None
) -> SplitResult:
    """Every frame of `split`, the same whatever other splits the recording is cut into.

    Clouds and transforms are read from a little before its start until a little after its end. on_image: called for
    each image read. A damaged bag is read up to the damage. Raises BagError when it cannot be opened.
    """
    with BagReader(split.bag) as reader:
        return _Run(split, sync, inspector, on_image).run(reader)


class _Run:
    """One split while it is read."""

    def __init__(self, split: Split, sync: SyncConfig, inspector: Inspector, on_image: Callable[[], object]) -> None:
        self._split = split
        self._sync = sync
        self._inspector = inspector
        self._on_image = on_image
        topics = split.topics
        self._assembler = Assembler(sync, topics.image, topics.camera_info, topics.points or 'points')
        self._own_stamps: set[int] | None = None if split.start_ns is None and split.stop_ns is None else set()
        # What the assembler had counted when the split began, and when it ended.
        self._counts_before: Counter[str] = Counter()
        self._counts_after: Counter[str] | None = None
        self._errors = ReasonCounter()
        self._result = SplitResult()

    def run(self, reader: BagReader) -> SplitResult:
        """Read, inspect and count."""
        assembler, result = self._assembler, self._result
        for inspected in self._inspector.inspect_all(self._frames(reader)):
            self._keep(inspected)
        if result.frames:
            result.frames[-1] = replace(result.frames[-1], calibration=self._inspector.finish())
        if self._own_stamps is None:
            self._count_errors()
        counts = Counter(assembler.counts if self._counts_after is None else self._counts_after)
        counts.subtract(self._counts_before)
        if self._own_stamps is not None:
            counts['frame'] = len(result.frames)
        for topic, count in reader.undecodable.items():
            self._errors.add(f'{topic}: bytes that are no {reader.topics()[topic]}', count)
        result.counts = {name: count for name, count in sorted(counts.items()) if count > 0}
        result.errors = self._errors.counts
        result.warnings = list(reader.warnings)
        result.problem = assembler.problem() or ''
        return result

    def _frames(self, reader: BagReader) -> Iterator[Frame]:
        """The frames of the split, as they become complete."""
        split, assembler = self._split, self._assembler
        self._learn_latched(reader)
        inside = split.start_ns is None
        self._counts_before = assembler.counts.copy()
        try:
            for message in self._messages(reader):
                if not inside and message.stamp_ns >= (split.start_ns or 0):
                    inside, self._counts_before = True, assembler.counts.copy()
                if self._counts_after is None and split.stop_ns is not None and message.stamp_ns >= split.stop_ns:
                    self._counts_after = assembler.counts.copy()
                self._feed(message, inside and self._counts_after is None)
                yield from filter(self._is_own, assembler.take())
        except BagError as error:
            self._result.fault = str(error)
        yield from filter(self._is_own, assembler.flush())

    def _learn_latched(self, reader: BagReader) -> None:
        """What is said once holds from the start, though the recorder may have heard it seconds after the first image.

        What is said again, and differs, holds from then on, as it comes with the others.
        """
        topics = self._latched_topics(reader)
        messages: list[BagMessage] = []
        undecodable = reader.undecodable.copy()
        with contextlib.suppress(BagError):  # damage is met again
            for message in itertools.islice(reader.messages(topics), _LATCHED_READ):
                messages.append(message)  # noqa: PERF402 - those before the damage
        reader.undecodable = undecodable
        for message in reversed(messages):  # of several for one edge the first is to stay
            self._feed(message, own=False)

    def _latched_topics(self, reader: BagReader) -> list[str]:
        transforms = [topic for topic, type_name in reader.topics().items() if type_name == TRANSFORM_TYPE]
        latched = [topic for topic in transforms if topic.endswith('tf_static')]
        if reader.count([self._split.topics.camera_info]) <= _LATCHED_COUNT:
            latched.append(self._split.topics.camera_info)
        return latched

    def _messages(self, reader: BagReader) -> Iterator[BagMessage]:
        split, sync = self._split, self._sync
        transforms = [topic for topic, type_name in reader.topics().items() if type_name == TRANSFORM_TYPE]
        sensors = list(filter(None, (split.topics.image, split.topics.camera_info, split.topics.points)))
        waits_s = sync.tolerance_s + sync.transform_wait_s + abs(sync.camera_offset_s) + abs(sync.lidar_offset_s)
        margin_ns = round((waits_s + _SPARE_S) * 1e9)
        start_ns = None if split.start_ns is None else split.start_ns - margin_ns
        stop_ns = None if split.stop_ns is None else split.stop_ns + margin_ns
        if start_ns is not None:
            history_ns = start_ns - round(sync.history_s * 1e9)
            latched = self._latched_topics(reader)
            yield from reader.messages(latched, stop_ns=history_ns)
            yield from reader.messages({*latched, *transforms}, history_ns, start_ns)
        yield from reader.messages([*sensors, *transforms], start_ns, stop_ns)

    def _feed(self, message: BagMessage, own: bool) -> None:
        topics, assembler = self._split.topics, self._assembler
        try:
            if message.topic == topics.image:
                if own:
                    self._on_image()
                    if self._own_stamps is not None:
                        stamp = message.message.header.stamp
                        self._own_stamps.add(int(stamp.sec) * 10**9 + int(stamp.nanosec))
                assembler.add_image(message.message)
            elif message.topic == topics.camera_info:
                assembler.add_camera_info(message.message)
            elif message.topic == topics.points:
                assembler.add_cloud(message.message)
            else:
                assembler.add_transforms(message.message, static=message.topic.endswith('tf_static'))
        except CmmlError as error:
            if own:
                self._errors.add(str(error))
        if own:
            self._count_errors()
        else:
            assembler.errors.clear()

    def _count_errors(self) -> None:
        while self._assembler.errors:
            self._errors.add(str(self._assembler.errors.popleft()))

    def _is_own(self, frame: Frame) -> bool:
        return self._own_stamps is None or frame.stamp_ns in self._own_stamps

    def _keep(self, inspected: Future[Inspection]) -> None:
        try:
            inspection = inspected.result()
        except CmmlError as error:
            self._errors.add(str(error))
            return
        frame = inspection.frame
        maker = CloseupMaker(frame, inspection.T_camera_lidar)
        closeups = tuple(maker.make(defect) for defect in inspection.defects)
        record = FrameRecord.of(
            frame,
            inspection.defects,
            closeups,
            inspection.model_id,
            inspection.T_camera_lidar,
            inspection.calibration,
            inspection.timings_s,
        )
        if inspection.points_reason:
            reasons = inspection.points_reason, record.transform_reason
            record = replace(record, transform_reason='; '.join(filter(None, reasons)))
        self._result.frames.append(record)
        _, picture = cv2.imencode('.jpg', draw_overlay(inspection), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        self._result.pictures[frame.stamp_ns] = picture.tobytes()


def describe_split(split: Split) -> dict[str, Any]:
    """What a split is made from: the bag's files with size and time of change, its topics and its limits."""
    files = filter(is_recorded, sorted(split.bag.iterdir())) if split.bag.is_dir() else [split.bag]
    return {
        'bag': str(split.bag.resolve()),
        'files': [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()],
        'topics': asdict(split.topics),
        'limits': [split.start_ns, split.stop_ns],
    }
