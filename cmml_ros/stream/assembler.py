"""Messages in, Frames out: synchronizer, transform buffer and conversions together, live and offline alike."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cmml_ros.config import SyncConfig
from cmml_ros.errors import CmmlError, MessageError, TransformError
from cmml_ros.frame import Frame
from cmml_ros.geometry.camera import Camera
from cmml_ros.geometry.transforms import SE3
from cmml_ros.stream.conversions import (
    announced_size,
    camera_from_info,
    check_cloud,
    check_image,
    cloud_from_message,
    frame_id,
    image_to_bgr,
    is_rectified,
    stamp_to_ns,
    transforms_from_message,
)
from cmml_ros.stream.synchronizer import Pair, Synchronizer
from cmml_ros.stream.transform_buffer import TransformBuffer

_ERRORS_KEPT = 100
# A stamp below a year of nanoseconds counts from the start of a machine, not from 1970.
_YEAR_NS = 365 * 86400 * 1_000_000_000


@dataclass(frozen=True)
class _Ready:
    """All that a Frame needs, not yet converted."""

    pair: Pair[Any, Any]
    camera: Camera
    T_camera_lidar: SE3 | None
    T_map_camera: SE3 | None
    transform_reason: str


@dataclass
class _Health:
    """What came and what went wrong since the previous `problem()`."""

    received: Counter[str] = field(default_factory=Counter)
    jumps: int = 0
    paired: int = 0
    unpaired_reason: str = ''
    transform_reason: str = ''
    error: CmmlError | None = None


class Assembler:
    """Turns the messages of one camera and one range sensor into Frames, in the order of the image stamps.

    A Frame leaves when its camera_info is there, its cloud is found or cannot come any more, and its transforms are
    known or `transform_wait_s` of sensor time has passed. What comes out depends on the order of the messages within
    each topic, not on how topics interleave nor on when `take` is called, as long as no queue overflows and no message
    is later than `transform_wait_s`.
    Between the stamps of image and cloud the sensors move as `map_frame` says; while the pose of one of them in it is
    unknown they are taken as fixed to each other.
    `add_*` only enqueue, and may run in another thread than `take`, which converts.
    """

    def __init__(
        self,
        config: SyncConfig,
        image_topic: str = 'image',
        camera_info_topic: str = 'camera_info',
        points_topic: str = 'points',
    ) -> None:
        self._config = config
        self._wait_ns = round(config.transform_wait_s * 1e9)
        self._image_topic = image_topic
        self._camera_info_topic = camera_info_topic
        self._points_topic = points_topic
        self._lock = threading.Lock()
        self._synchronizer: Synchronizer[Any, Any] = Synchronizer(config)
        self._transform_buffer = TransformBuffer(config.history_s)
        self._cameras: list[tuple[int, Camera]] = []  # since which stamp; only changes
        self._pending: deque[Pair[Any, Any]] = deque()
        self._ready: deque[_Ready] = deque()
        self._first_time_ns = 0
        self._newest_stamp_ns: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._health = _Health()
        self.errors: deque[CmmlError] = deque(maxlen=_ERRORS_KEPT)

    @property
    def counts(self) -> Counter[str]:
        """Messages received, frames taken, and everything lost by reason, since the start."""
        with self._lock:
            return self._counts + self._synchronizer.counts

    def add_image(self, msg: Any) -> None:
        """Enqueue an Image or CompressedImage. Raises MessageError for a stamp that is not filled, or a bad layout."""
        with self._receiving('image'):
            stamp_ns = stamp_to_ns(msg.header.stamp, self._image_topic)
            check_image(msg, self._image_topic)
            self._synchronize('image', self._synchronizer.add_image, stamp_ns, msg)

    def add_cloud(self, msg: Any) -> None:
        """Enqueue a PointCloud2. Raises MessageError for a stamp that is not filled and for a layout without points."""
        with self._receiving('cloud'):
            stamp_ns = stamp_to_ns(msg.header.stamp, self._points_topic)
            check_cloud(msg, self._points_topic)
            self._synchronize('cloud', self._synchronizer.add_cloud, stamp_ns, msg)

    def add_camera_info(self, msg: Any) -> None:
        """Learn the camera. Raises MessageError when it is not calibrated or not understood."""
        with self._receiving('camera_info'):
            camera = camera_from_info(msg, self._camera_info_topic, is_rectified(self._image_topic))
            if not self._cameras or self._cameras[-1][1] != camera:
                since_ns = int(msg.header.stamp.sec) * 1_000_000_000 + int(msg.header.stamp.nanosec)
                self._cameras = [*self._cameras, (since_ns, camera)][-self._config.queue_size :]
            self._advance()

    def add_transforms(self, msg: Any, static: bool) -> None:
        """Learn the transforms of a TFMessage. Raises MessageError or TransformError for one that cannot be."""
        with self._receiving('transform'):
            for transform in transforms_from_message(msg, '/tf_static' if static else '/tf'):
                self._transform_buffer.set(transform, static)
            self._advance()

    def take(self, newest: int | None = None) -> list[Frame]:
        """Every frame that is ready, in stamp order; or just the `newest` newest that are good, and the others counted.

        A frame whose messages cannot be converted is lost alone: it is counted, and its error goes to `errors`.
        At most `queue_size` frames wait here: offline, take after every message.
        """
        with self._lock:
            ready = list(self._ready)
            self._ready.clear()
        frames: list[Frame] = []
        while ready and (newest is None or len(frames) < newest):
            frame = self._make_frame(ready.pop(0 if newest is None else -1))
            if frame is not None:
                frames.append(frame)
        if newest is None:
            return frames
        self.drop(len(ready), 'pipeline behind')
        return frames[::-1]

    def flush(self) -> list[Frame]:
        """What still waits at the end of a recording, in stamp order, each with what is known for it."""
        with self._lock:
            self._release(self._synchronizer.flush())
        return self.take()

    def release(self) -> None:
        """Let images that have a cloud wait no longer, for a nearer one, for a transform or behind others."""
        with self._lock:
            if self._cameras:
                self._release(self._synchronizer.release())

    def _release(self, pairs: list[Pair[Any, Any]]) -> None:
        self._enqueue(pairs)
        while self._pending:
            self._release_first(final=True)

    def drop(self, count: int, reason: str) -> None:
        """Count `count` frames as not used, for `reason`."""
        with self._lock:
            self._counts[reason] += count

    def problem(self) -> str | None:
        """One line on the input that was missing or wrong since the previous call and the likely cause, or None."""
        with self._lock:
            health, self._health = self._health, _Health()
            if not health.received['image']:
                return (
                    f'no message on "{self._image_topic}"; is the camera running, the topic right, its QoS compatible?'
                )
            if health.error is not None:
                return str(health.error)
            if not self._cameras:
                return (
                    f'no message on "{self._camera_info_topic}": images on "{self._image_topic}" wait for it; '
                    'is the camera calibrated, the topic right, its QoS compatible?'
                )
            if health.jumps > 1:
                return (
                    f'time jumped back {health.jumps} times on "{self._image_topic}" or "{self._points_topic}"; '
                    'do two publishers with different clocks share a topic?'
                )
            if not health.received['cloud']:
                return (
                    f'no message on "{self._points_topic}": frames have no points; '
                    'is the range sensor running, the topic right, its QoS compatible?'
                )
            if health.unpaired_reason and not health.paired:
                return self._explain_unpaired(health.unpaired_reason)
            return health.transform_reason or None

    @contextmanager
    def _receiving(self, name: str) -> Iterator[None]:
        with self._lock:
            self._counts[f'{name} received'] += 1
            self._health.received[name] += 1
            try:
                yield
            except CmmlError as error:
                self._counts[f'{name} refused'] += 1
                self._health.error = error
                raise

    def _synchronize(self, name: str, add: Callable[[int, Any], list[Pair[Any, Any]]], stamp_ns: int, msg: Any) -> None:
        jumps = self._synchronizer.counts['time jumped back']
        pairs = add(stamp_ns, msg)
        if self._synchronizer.counts['time jumped back'] > jumps:
            self._health.jumps += 1
            self._counts['image lost when time jumped back'] += len(self._pending) + len(self._ready)
            self._pending.clear()
            self._ready.clear()
            self._transform_buffer.clear()
            self._cameras = self._cameras[-1:]
            self._newest_stamp_ns.clear()
        if not self._newest_stamp_ns:
            self._first_time_ns = self._synchronizer.newest_time_ns or 0
        self._newest_stamp_ns[name] = stamp_ns
        self._enqueue(pairs)
        self._advance()

    def _enqueue(self, pairs: list[Pair[Any, Any]]) -> None:
        self._pending.extend(pairs)
        for pair in pairs:
            self._health.unpaired_reason = pair.reason or self._health.unpaired_reason
            self._health.paired += not pair.reason

    def _advance(self) -> None:
        """Move what is complete, or has waited long enough, from pending to ready."""
        while self._pending and self._release_first(final=len(self._pending) > self._config.queue_size):
            pass
        while len(self._ready) > self._config.queue_size:
            self._ready.popleft()
            self._counts['pipeline behind'] += 1

    def _release_first(self, final: bool) -> bool:
        """Whether the first pending pair has left; when `final` it leaves in any case."""
        pair = self._pending[0]
        if not self._cameras:
            if final:
                self._pending.popleft()
                self._counts['no camera_info'] += 1
            return final
        ready = self._find_transforms(pair, final)
        if ready is None:
            return False
        self._pending.popleft()
        self._ready.append(ready)
        return True

    def _find_transforms(self, pair: Pair[Any, Any], final: bool) -> _Ready | None:
        """The pair with its camera and transforms, or None while a missing one may still come."""
        buffer, map_frame, camera_frame = self._transform_buffer, self._config.map_frame, frame_id(pair.image.header)
        T_map_camera = T_camera_lidar = None
        reasons = [pair.reason] if pair.reason else []
        try:
            T_map_camera = buffer.lookup(map_frame, camera_frame, pair.image_time_ns)
        except TransformError as error:
            # Where nobody publishes the map frame only the first frames wait for it.
            since_ns = pair.image_time_ns if buffer.knows(map_frame) else self._first_time_ns
            if not (final or self._has_passed(since_ns)):
                return None
            reasons.append(str(error))
        if pair.cloud is not None and pair.cloud_time_ns is not None:
            lidar_frame = frame_id(pair.cloud.header)
            try:
                if T_map_camera is None or pair.cloud_time_ns == pair.image_time_ns:
                    T_camera_lidar = buffer.lookup(camera_frame, lidar_frame, pair.image_time_ns)
                else:
                    T_map_lidar = buffer.lookup(map_frame, lidar_frame, pair.cloud_time_ns)
                    T_camera_lidar = T_map_camera.inverse() @ T_map_lidar
            except TransformError as error:
                if not (final or self._has_passed(max(pair.image_time_ns, pair.cloud_time_ns))):
                    return None
                T_camera_lidar = self._find_extrinsic(camera_frame, lidar_frame, pair.image_time_ns)
                if T_camera_lidar is None:
                    reasons.insert(0, str(error))
                    self._counts['no transform'] += 1
                    self._health.transform_reason = f'no transform from "{lidar_frame}" to "{camera_frame}": {error}'
                else:
                    reasons.insert(0, f'the sensors are taken as fixed to each other between their stamps: {error}')
        return _Ready(pair, self._camera_at(pair), T_camera_lidar, T_map_camera, '; '.join(dict.fromkeys(reasons)))

    def _find_extrinsic(self, camera_frame: str, lidar_frame: str, time_ns: int) -> SE3 | None:
        """T_camera_lidar at one time, None when it is not known."""
        try:
            return self._transform_buffer.lookup(camera_frame, lidar_frame, time_ns)
        except TransformError:
            return None

    def _has_passed(self, since_ns: int) -> bool:
        newest_ns = self._synchronizer.newest_time_ns
        return newest_ns is not None and newest_ns >= since_ns + self._wait_ns

    def _camera_at(self, pair: Pair[Any, Any]) -> Camera:
        """The camera as last announced up to the image's stamp; the newest when all were announced later."""
        stamp_ns = stamp_to_ns(pair.image.header.stamp)
        announced = [camera for since_ns, camera in self._cameras if since_ns <= stamp_ns]
        return announced[-1] if announced else self._cameras[-1][1]

    def _make_frame(self, ready: _Ready) -> Frame | None:
        try:
            frame = self._convert(ready)
        except CmmlError as error:
            with self._lock:
                self._counts['frame lost by a bad message'] += 1
                self._health.error = error
                self.errors.append(error)
            return None
        with self._lock:
            self._counts['frame'] += 1
        return frame

    def _convert(self, ready: _Ready) -> Frame:
        pair, camera = ready.pair, ready.camera
        self._check_size(announced_size(pair.image), camera)
        image = image_to_bgr(pair.image, self._image_topic)
        self._check_size((image.shape[1], image.shape[0]), camera)
        return Frame(
            image=image,
            camera=camera,
            stamp_ns=stamp_to_ns(pair.image.header.stamp),
            frame_id=frame_id(pair.image.header),
            cloud=None if pair.cloud is None else cloud_from_message(pair.cloud, self._points_topic),
            cloud_stamp_ns=None if pair.cloud is None else stamp_to_ns(pair.cloud.header.stamp),
            T_camera_lidar=ready.T_camera_lidar,
            T_map_camera=ready.T_map_camera,
            transform_reason=ready.transform_reason,
        )

    def _check_size(self, size: tuple[int, int] | None, camera: Camera) -> None:
        if size is not None and size != (camera.width, camera.height):
            raise MessageError(
                f'{self._image_topic} is {size[0]}x{size[1]} but {self._camera_info_topic} says '
                f'{camera.width}x{camera.height}; both must come from the same driver at the same resolution'
            )

    def _explain_unpaired(self, reason: str) -> str:
        names = {'image': self._image_topic, 'cloud': self._points_topic}
        booted = [names[name] for name, stamp_ns in self._newest_stamp_ns.items() if stamp_ns < _YEAR_NS]
        if len(booted) == 1:
            return (
                f'stamps of "{booted[0]}" count from the start of the device, the others from 1970: {reason}; '
                'let its driver use the system clock'
            )
        return (
            f'"{self._image_topic}" and "{self._points_topic}" do not pair: {reason}; synchronise the clocks, '
            'set sync.camera_offset_s or sync.lidar_offset_s, or raise sync.queue_size'
        )
