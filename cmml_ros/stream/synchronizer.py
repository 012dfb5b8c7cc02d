"""Pairs each image with the nearest cloud: pure, bounded, a function of what arrives in which order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

from cmml_ros.config import SyncConfig

ImageT = TypeVar('ImageT')
CloudT = TypeVar('CloudT')

# A message this much older than the newest of its topic is no longer a late one: time has jumped back.
MAX_DISORDER_NS = 200_000_000


@dataclass(frozen=True)
class Pair(Generic[ImageT, CloudT]):
    """One image and the cloud nearest to it, or None and the reason.

    Times are stamps with the sensor's offset added, the time base of pairing and of transforms.
    """

    image: ImageT
    image_time_ns: int
    cloud: CloudT | None = None
    cloud_time_ns: int | None = None
    reason: str = ''


@dataclass(eq=False)
class _QueuedCloud(Generic[CloudT]):
    time_ns: int
    payload: CloudT
    queued: bool = True
    candidate_of: int = 0  # waiting images that have no nearer cloud
    paired: bool = False


@dataclass(eq=False)
class _WaitingImage(Generic[ImageT, CloudT]):
    time_ns: int
    payload: ImageT
    nearest: _QueuedCloud[CloudT] | None = None


class Synchronizer(Generic[ImageT, CloudT]):
    """Pairs each image with the nearest cloud within `tolerance_s` after the offset of each sensor.

    An image waits until no nearer cloud can come: a cloud of the same time is there, or one later by the tolerance.
    So messages may be out of order by up to the tolerance and still pair alike. One cloud may serve several images.
    When more than `queue_size` images wait, the oldest leaves: with its cloud when one at least as late is there, else
    without. At most `queue_size` clouds wait for images, and as many again are held by waiting images.
    Images come out in the order of their stamps. Every message that is not used is counted in `counts` by reason.
    """

    def __init__(self, config: SyncConfig) -> None:
        self._tolerance_ns = round(config.tolerance_s * 1e9)
        self._image_offset_ns = round(config.camera_offset_s * 1e9)
        self._cloud_offset_ns = round(config.lidar_offset_s * 1e9)
        self._queue_size = config.queue_size
        self.counts: Counter[str] = Counter()
        self._reset()

    def _reset(self) -> None:
        self._images: list[_WaitingImage[ImageT, CloudT]] = []
        self._clouds: list[_QueuedCloud[CloudT]] = []
        self._newest_image_ns: int | None = None
        self._newest_cloud_ns: int | None = None
        self._last_settled_ns: int | None = None
        self._evicted_ns: int | None = None

    def __len__(self) -> int:
        """Images that wait."""
        return len(self._images)

    @property
    def newest_time_ns(self) -> int | None:
        """The time that the sensors have reached, None before the first message."""
        return max((t for t in (self._newest_image_ns, self._newest_cloud_ns) if t is not None), default=None)

    def add_image(self, stamp_ns: int, payload: ImageT) -> list[Pair[ImageT, CloudT]]:
        """The pairs that this image settles."""
        time_ns = stamp_ns + self._image_offset_ns
        if _has_jumped(time_ns, self._newest_image_ns):
            self._jump()
        if self._last_settled_ns is not None and time_ns < self._last_settled_ns:
            self.counts['image out of order'] += 1
            return []
        index = bisect_left(self._images, time_ns, key=_time)
        waiting = index < len(self._images) and self._images[index].time_ns == time_ns
        if waiting or time_ns == self._last_settled_ns:
            self.counts['image stamp seen before'] += 1
            return []
        self._newest_image_ns = _later(time_ns, self._newest_image_ns)
        image: _WaitingImage[ImageT, CloudT] = _WaitingImage(time_ns, payload)
        self._images.insert(index, image)
        for cloud in self._clouds:
            self._offer(cloud, image)
        return self._settle()

    def add_cloud(self, stamp_ns: int, payload: CloudT) -> list[Pair[ImageT, CloudT]]:
        """The pairs that this cloud settles."""
        time_ns = stamp_ns + self._cloud_offset_ns
        if _has_jumped(time_ns, self._newest_cloud_ns):
            self._jump()
        if any(cloud.time_ns == time_ns for cloud in self._clouds):
            self.counts['cloud stamp seen before'] += 1
            return []
        self._newest_cloud_ns = _later(time_ns, self._newest_cloud_ns)
        cloud = _QueuedCloud(time_ns, payload)
        insort(self._clouds, cloud, key=_time)
        for image in self._images:
            self._offer(cloud, image)
        pairs = self._settle()
        if len(self._clouds) > self._queue_size:
            self._evicted_ns = _later(self._clouds[0].time_ns, self._evicted_ns)
            self._remove_cloud()
        return pairs

    def flush(self) -> list[Pair[ImageT, CloudT]]:
        """The pairs of all images that wait: nothing more will come."""
        pairs = [self._pair(image) for image in self._images]
        self._images.clear()
        while self._clouds:
            self._remove_cloud()
        return pairs

    def _jump(self) -> None:
        self.counts['time jumped back'] += 1
        self.counts['image lost when time jumped back'] += len(self._images)
        self._reset()

    def _offer(self, cloud: _QueuedCloud[CloudT], image: _WaitingImage[ImageT, CloudT]) -> None:
        def distance(candidate: _QueuedCloud[CloudT]) -> tuple[int, int]:
            return abs(candidate.time_ns - image.time_ns), candidate.time_ns  # of two equally near the earlier

        previous = image.nearest
        if previous is not None:
            if distance(previous) <= distance(cloud):
                return
            previous.candidate_of -= 1
            self._count_unused(previous)
        image.nearest = cloud
        cloud.candidate_of += 1

    def _settle(self) -> list[Pair[ImageT, CloudT]]:
        pairs = []
        while self._images:
            image = self._images[0]
            final = self._newest_cloud_ns is not None and self._newest_cloud_ns >= image.time_ns + self._tolerance_ns
            exact = image.nearest is not None and image.nearest.time_ns == image.time_ns
            if not (final or exact or len(self._images) > self._queue_size):
                break
            pairs.append(self._pair(self._images.pop(0), forced=not (final or exact)))
        if self._last_settled_ns is not None:
            while self._clouds and self._clouds[0].time_ns < self._last_settled_ns - self._tolerance_ns:
                self._remove_cloud()
        return pairs

    def _pair(self, image: _WaitingImage[ImageT, CloudT], forced: bool = False) -> Pair[ImageT, CloudT]:
        self._last_settled_ns = image.time_ns
        cloud = image.nearest
        reason = ''
        if cloud is None:
            reason = 'no cloud has come'
        elif forced and (self._newest_cloud_ns is None or self._newest_cloud_ns < image.time_ns):
            reason = f'the queue of {self._queue_size} images is full before its cloud has come; raise queue_size'
        elif abs(cloud.time_ns - image.time_ns) > self._tolerance_ns:
            offset_s = (cloud.time_ns - image.time_ns) * 1e-9
            reason = f'the nearest cloud is {offset_s:+.3f} s from the image, tolerance {self._tolerance_ns * 1e-9:g} s'
        elif self._evicted_ns is not None and abs(self._evicted_ns - image.time_ns) < abs(
            cloud.time_ns - image.time_ns
        ):
            reason = (
                f'the queue of {self._queue_size} clouds had lost the nearest before the image came; raise queue_size'
            )
        if cloud is not None:
            cloud.candidate_of -= 1
            cloud.paired |= not reason
            self._count_unused(cloud)
        if reason or cloud is None:
            self.counts['image without cloud'] += 1
            return Pair(image.payload, image.time_ns, reason=reason)
        return Pair(image.payload, image.time_ns, cloud.payload, cloud.time_ns)

    def _remove_cloud(self) -> None:
        cloud = self._clouds.pop(0)
        cloud.queued = False
        self._count_unused(cloud)

    def _count_unused(self, cloud: _QueuedCloud[CloudT]) -> None:
        if not (cloud.queued or cloud.candidate_of or cloud.paired):
            self.counts['cloud without image'] += 1


def _time(entry: _QueuedCloud[CloudT] | _WaitingImage[ImageT, CloudT]) -> int:
    return entry.time_ns


def _later(time_ns: int, other_ns: int | None) -> int:
    return time_ns if other_ns is None else max(time_ns, other_ns)


def _has_jumped(time_ns: int, newest_ns: int | None) -> bool:
    return newest_ns is not None and time_ns < newest_ns - MAX_DISORDER_NS
